//! Small containers of weights, made as the libraries make them: GGUF, NumPy, PyTorch, ONNX, and
//! safetensors to compare them with.

/// A tensor: its name, its dtype as safetensors spells it, its shape, and its bytes.
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn new(name: &str, dtype: &'static str, shape: &[u64], data: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), data }
    }
}

/// A safetensors file with this header, which may be malformed, and these data.
pub fn with_header(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
}

/// A safetensors file of these tensors.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<_> = tensors
        .iter()
        .map(|t| {
            let (name, dtype, shape, start) = (&t.name, t.dtype, &t.shape, at);
            at += t.data.len();
            format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{at}]}}"#
            )
        })
        .collect();
    let data: Vec<u8> = tensors.iter().flat_map(|t| t.data.clone()).collect();
    with_header(&format!("{{{}}}", entries.join(",")), &data)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A GGUF file of tensors of these types, with metadata of every kind and a vocabulary.
pub fn gguf(tensors: &[(Tensor, u32)]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    let scalars: [(u32, &[u8]); 9] = [
        (0, &[1]),
        (1, &[1]),
        (7, &[1]),
        (2, &[1, 0]),
        (3, &[1, 0]),
        (5, &[1; 4]),
        (6, &[1; 4]),
        (10, &[1; 8]),
        (12, &[1; 8]),
    ];
    out.extend((scalars.len() as u64 + 5).to_le_bytes());
    for (i, (kind, value)) in scalars.into_iter().enumerate() {
        text(&mut out, &format!("general.value{i}"));
        out.extend(kind.to_le_bytes());
        out.extend(value);
    }
    text(&mut out, "general.alignment");
    out.extend([4, 0, 0, 0, 64, 0, 0, 0]);
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "bert");
    for (key, kind, count) in [("tokens", 8u32, 3u64), ("scores", 6, 100), ("none", 4, 0)] {
        text(&mut out, &format!("tokenizer.ggml.{key}"));
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(count.to_le_bytes());
        match kind {
            8 => (0..count).for_each(|i| text(&mut out, &format!("token{i}"))),
            _ => out.extend(vec![7; 4 * count as usize]),
        }
    }
    let mut at = 0u64;
    for (tensor, kind) in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(at.to_le_bytes());
        at += (tensor.data.len() as u64).next_multiple_of(64);
    }
    for (tensor, _) in tensors {
        out.resize(out.len().next_multiple_of(64), 0);
        out.extend(&tensor.data);
    }
    out
}

/// A NumPy array; `descr` is as NumPy spells it.
pub fn npy(descr: &str, fortran: bool, shape: &[u64], data: &[u8]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(|d| format!("{d},")).collect();
    let fortran = if fortran { "True" } else { "False" };
    let header = format!(
        "{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({}), }}",
        shape.join(" ")
    );
    let len = (header.len() + 11).next_multiple_of(64) - 10;
    let mut out = b"\x93NUMPY\x01\0".to_vec();
    out.extend((len as u16).to_le_bytes());
    out.extend(format!("{header:<width$}\n", width = len - 1).as_bytes());
    out.extend(data);
    out
}

/// A zip archive of stored entries, each of which starts at a multiple of 64 bytes, as PyTorch
/// writes it.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let local = out.len() as u32;
        let len = (data.len() as u32).to_le_bytes();
        let padding =
            (out.len() + 30 + name.len() + 4).next_multiple_of(64) - out.len() - 30 - name.len();
        // Version, flags, method, time, date, and a checksum that nobody reads here.
        let common = [&[20, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4][..], &len, &len].concat();
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend((name.len() as u16).to_le_bytes());
        out.extend((padding as u16).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(b"FB");
        out.extend((padding as u16 - 4).to_le_bytes());
        out.resize(out.len() + padding - 4, b'Z');
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(local.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (out.len() as u32, (entries.len() as u16).to_le_bytes());
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count);
    out.extend(count);
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// An `.npz` file.
pub fn npz(tensors: &[Tensor]) -> Vec<u8> {
    let entry = |t: &Tensor| {
        let descr = match t.dtype {
            "F16" => "<f2",
            "F32" => "<f4",
            "F64" => "<f8",
            "I64" => "<i8",
            _ => "|V2",
        };
        (format!("{}.npy", t.name), npy(descr, false, &t.shape, &t.data))
    };
    zip(&tensors.iter().map(entry).collect::<Vec<_>>())
}

/// What `torch.save` writes for a dictionary of tensors.
pub fn torch(tensors: &[Tensor]) -> Vec<u8> {
    let mut entries = vec![("archive/data.pkl".to_owned(), pickle(tensors))];
    entries.push(("archive/byteorder".to_owned(), b"little".to_vec()));
    for (i, tensor) in tensors.iter().enumerate() {
        entries.push((format!("archive/data/{i}"), tensor.data.clone()));
    }
    entries.push(("archive/version".to_owned(), b"3\n".to_vec()));
    zip(&entries)
}

/// The pickle of such a dictionary, protocol 2.
pub fn pickle(tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"\x80\x02}q\x00(".to_vec();
    let unicode = |out: &mut Vec<u8>, s: &str| {
        out.push(b'X');
        out.extend((s.len() as u32).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let int = |out: &mut Vec<u8>, n: u64| match n {
        0..256 => out.extend([b'K', n as u8]),
        256..65536 => out.extend([b'M', n as u8, (n >> 8) as u8]),
        _ => {
            out.push(b'J');
            out.extend((n as u32).to_le_bytes());
        }
    };
    let ints = |out: &mut Vec<u8>, values: &[u64]| {
        out.push(b'(');
        values.iter().for_each(|&n| int(out, n));
        out.push(b't');
    };
    for (i, tensor) in tensors.iter().enumerate() {
        let class = match tensor.dtype {
            "F16" => "HalfStorage",
            "BF16" => "BFloat16Storage",
            "F64" => "DoubleStorage",
            "I64" => "LongStorage",
            _ => "FloatStorage",
        };
        unicode(&mut out, &tensor.name);
        // Put into the memo, as each text is.
        out.extend(b"r\x00\x01\x00\x00");
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\nq\x01((");
        unicode(&mut out, "storage");
        out.extend(format!("ctorch\n{class}\n").as_bytes());
        unicode(&mut out, &i.to_string());
        unicode(&mut out, "cpu");
        let count = tensor.shape.iter().product();
        int(&mut out, count);
        out.extend(b"tQK\x00");
        ints(&mut out, &tensor.shape);
        let strides: Vec<u64> =
            (1..=tensor.shape.len()).map(|i| tensor.shape[i..].iter().product()).collect();
        ints(&mut out, &strides);
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A field of a protocol buffer that holds bytes.
fn field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// An ONNX model with a node and these initializers. With `file`, their data is in the file of that
/// name, which is returned, too.
pub fn onnx(tensors: &[Tensor], file: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let (mut graph, mut data) = (Vec::new(), Vec::new());
    field(&mut graph, 1, b"\x0a\x01x\x12\x01y\x22\x06MatMul");
    field(&mut graph, 2, b"torch-jit-export");
    for tensor in tensors {
        let data_type = match tensor.dtype {
            "F16" => 10,
            "BF16" => 16,
            "F64" => 11,
            "I64" => 7,
            _ => 1,
        };
        let mut one = Vec::new();
        for &dimension in &tensor.shape {
            one.push(8);
            varint(&mut one, dimension);
        }
        one.extend([16, data_type]);
        field(&mut one, 8, tensor.name.as_bytes());
        match file {
            None => field(&mut one, 9, &tensor.data),
            Some(file) => {
                data.resize(data.len().next_multiple_of(64), 0);
                let at = data.len().to_string();
                let len = tensor.data.len().to_string();
                for (key, value) in [("location", file), ("offset", &at), ("length", &len)] {
                    let mut pair = Vec::new();
                    field(&mut pair, 1, key.as_bytes());
                    field(&mut pair, 2, value.as_bytes());
                    field(&mut one, 13, &pair);
                }
                one.extend([112, 1]);
                data.extend(&tensor.data);
            }
        }
        field(&mut graph, 5, &one);
    }
    let mut model = vec![8, 8];
    field(&mut model, 2, b"pytorch");
    field(&mut model, 7, &graph);
    field(&mut model, 8, b"\x10\x11");
    (model, data)
}
