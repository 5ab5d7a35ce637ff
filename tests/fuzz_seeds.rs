//! Writes the seed inputs of the fuzzer: archives of every kind and their parts, in the forms that
//! `fuzz/fuzz_targets` read.

mod common;

use bszfs::{format::NO_MODEL, read::Archive};
use common::containers::{self, Tensor};
use common::random::Random;
use common::samples::{Fill, pack_bytes, safetensors, tensor};
use std::path::Path;

/// Longer inputs are slow to mutate.
const LONGEST: usize = 36 << 10;

fn originals() -> Vec<(&'static str, Vec<u8>)> {
    let one = |dtype, bytes, fill| safetensors(&[("a", dtype, tensor(dtype, bytes, fill, 1))]);
    let mut files = vec![
        ("empty", Vec::new()),
        ("text", b"not a model at all\n".repeat(40)),
        ("long", vec![7; 9 << 18]),
        ("rows", matrix(|i| i / 256)),
        ("columns", matrix(|i| i % 256)),
        ("both", matrix(|i| i % 256 % 3 + i / 256 % 2)),
        (
            "three",
            safetensors(&[
                ("a", "BF16", tensor("BF16", 8200, Fill::Weights, 1)),
                ("b", "F32", tensor("F32", 8192, Fill::Widened, 2)),
                ("c", "U8", tensor("U8", 100, Fill::Noise, 3)),
            ]),
        ),
    ];
    for (name, dtype) in
        [("bf16", "BF16"), ("f16", "F16"), ("f32", "F32"), ("f64", "F64"), ("i8", "I8")]
    {
        files.push((name, one(dtype, 9000, Fill::Weights)));
    }
    for (name, fill) in
        [("special", Fill::Special), ("sparse", Fill::Sparse), ("constant", Fill::Constant)]
    {
        files.push((name, one("BF16", 9000, fill)));
    }
    files
}

/// A matrix with rows of 256 bytes and about three tables; `scale` selects the table of an element.
fn matrix(scale: impl Fn(usize) -> usize) -> Vec<u8> {
    let mut r = Random(5);
    let element = |i: usize| (r.next() >> 62) as u8 + [0x20, 0x30, 0x38][scale(i) % 3];
    let data: Vec<u8> = (0..256 * 100).map(element).collect();
    let json = r#"{"a":{"dtype":"F8_E4M3","shape":[100,256],"data_offsets":[0,25600]}}"#;
    containers::with_header(json, &data)
}

#[test]
#[ignore = "writes to fuzz/corpus; fuzz/run does it"]
fn seeds() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, original) in originals() {
        let bytes = pack_bytes(dir.path(), "x.safetensors", &original, 64 << 10);
        let path = dir.path().join("a.bsz");
        std::fs::write(&path, &bytes).expect("written");
        let archive = Archive::open(&path).expect("opens");
        let offset = archive.footer().index_offset as usize;
        let (index, footer) = bytes[offset..].split_at(archive.footer().index_len as usize);
        seed("archive", name, &[&[1, 9, 0, 0, 99, 0, 0], &bytes[..]]);
        seed(
            "index",
            &format!("footer-{name}"),
            &[&[0], &(bytes.len() as u64).to_le_bytes(), footer],
        );
        seed("index", &format!("index-{name}"), &[&[1], index, footer]);
        if let Some((prefix, rest)) = original.split_first_chunk::<8>() {
            let json = &rest[..(u64::from_le_bytes(*prefix) as usize).min(rest.len())];
            let len = original.len() as u64;
            seed("index", &format!("header-{name}"), &[&[3], &len.to_le_bytes(), prefix, json]);
        }
        for id in (0..archive.index().len()).take(8) {
            let c = archive.index().chunk(id).expect("indexed");
            let mut model = Vec::new();
            if c.model != NO_MODEL {
                archive.index().model(c.model).expect("a model").write_to(&mut model);
                seed("index", &format!("model-{name}-{id}"), &[&[2], &model]);
            }
            let payload = &bytes[c.stored_at as usize..][..c.stored_len as usize];
            let (len, model_len) = (c.len() as u32, model.len() as u16);
            let head = [&[0, c.coding as u8, 0], &len.to_le_bytes()[..], &model_len.to_le_bytes()]
                .concat();
            seed("decode", &format!("{name}-{id}"), &[&head, &model, payload]);
        }
    }
    // Inputs that produce matrices of single bytes, BF16 and F32, whose scale depends on the row or
    // on the column.
    for (name, kind, op) in [("f8", 0, 4), ("bf16", 3, 10), ("f32", 4, 16)] {
        for (scale, op) in [("rows", op), ("columns", op + 24)] {
            let head = [kind, 1, 0, 1, 0, 0, 0, 0, 0];
            let fill = [&[op, 0, 0x60], &[0x20; 8][..], &[0xff, 0], &[7; 8], &[2]].concat();
            seed("roundtrip", &format!("{name}-{scale}"), &[&head, &fill]);
            // Then a repetition of the end, zeros, and single changed bytes.
            let again = [[3, 0, 0x20, 0, 1], [1, 0, 0x10, 0, 3], [5, 0, 0, 0x40, 9]].concat();
            seed("roundtrip", &format!("{name}-{scale}-again"), &[&head, &fill, &again.repeat(8)]);
        }
    }
}

#[test]
#[ignore = "writes to fuzz/corpus; fuzz/run does it"]
fn seeds_of_containers() {
    let of = |name, dtype, shape: &[u64], bytes| {
        Tensor::new(name, dtype, shape, tensor(dtype, bytes, Fill::Weights, 1))
    };
    let model = || vec![of("a", "F32", &[4, 300], 4800), of("b", "F16", &[300], 600)];
    let gguf = containers::gguf(&model().into_iter().zip([0, 1]).collect::<Vec<_>>());
    let (inside, _) = containers::onnx(&model(), None);
    let (outside, _) = containers::onnx(&model(), Some("x"));
    let npy = containers::npy("<f4", true, &[4, 300], &[1; 4800]);
    for (name, file) in [
        ("gguf", gguf),
        ("npz", containers::npz(&model())),
        ("torch", containers::torch(&model())),
        ("npy", npy),
        ("onnx", inside),
        ("onnx-data", outside),
    ] {
        seed("containers", name, &[&[0], &file]);
        seed("containers", &format!("{name}-long"), &[&[2], &file]);
    }
    seed("containers", "pickle", &[&[1], &containers::pickle(&model())]);
}

/// Write an input for a target, unless it is too long.
fn seed(target: &str, name: &str, parts: &[&[u8]]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let input = parts.concat();
    if input.len() <= LONGEST {
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join(format!("seed-{name}")), input).expect("written");
    }
}
