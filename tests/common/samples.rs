//! Small files of every kind, made from seeds, and how to pack and unpack them in a test.

use super::containers::with_header;
use super::random::Random;
use bszfs::{
    codec::{self, ChunkDecoder},
    error::Result,
    pack, read,
};
use std::path::Path;

/// Every element type that the format names, with its width in bits.
pub const DTYPES: [(&str, usize); 21] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
];

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Approximately normally distributed floats, or small integers.
    Weights,
    /// Random bits.
    Noise,
    /// A single value.
    Constant,
    /// NaN payloads, infinities, zeros of both signs, denormals, the largest and the smallest
    /// values.
    Special,
    /// One row, repeated.
    Rows,
    /// Mostly zero.
    Sparse,
    /// Weights whose lower half is zero, as after widening.
    Widened,
    /// Weights in rows of different scales.
    Scaled,
    /// Weights in columns of different scales and means, some of one sign, and in rows of different
    /// scales.
    Columns,
    /// Weights of one sign, in rows of which a third were widened.
    Frozen,
    /// Values slightly above one, which all have the same leading bits.
    Narrow,
}

impl Fill {
    /// The length of a row in elements, if the shape should describe rows: one that nothing
    /// divides, or whole rounds.
    pub fn row(self) -> Option<usize> {
        match self {
            Self::Columns => Some(201),
            Self::Frozen => Some(384),
            _ => None,
        }
    }
}

/// All fills.
pub const FILLS: [Fill; 11] = [
    Fill::Weights,
    Fill::Noise,
    Fill::Constant,
    Fill::Special,
    Fill::Rows,
    Fill::Sparse,
    Fill::Widened,
    Fill::Scaled,
    Fill::Columns,
    Fill::Frozen,
    Fill::Narrow,
];

impl Random {
    /// An approximately normally distributed number, like a weight.
    pub fn weight(&mut self) -> f64 {
        (0..4).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64 - 0.5).sum::<f64>() * 0.05
    }

    fn element(&mut self, dtype: &str) -> Vec<u8> {
        self.scaled(dtype, 1.0)
    }

    fn scaled(&mut self, dtype: &str, scale: f64) -> Vec<u8> {
        let w = self.weight() * scale;
        self.number(dtype, w)
    }

    fn number(&mut self, dtype: &str, w: f64) -> Vec<u8> {
        match dtype {
            "F16" => half_float(w).to_le_bytes().into(),
            "BF16" => half::bf16::from_f64(w).to_le_bytes().into(),
            "F32" => (w as f32).to_le_bytes().into(),
            "C64" => [(w as f32).to_le_bytes(), (self.weight() as f32).to_le_bytes()].concat(),
            "F64" => w.to_le_bytes().into(),
            "I16" | "U16" => ((w * 1000.0) as i16).to_le_bytes().into(),
            "I32" | "U32" => ((w * 1000.0) as i32).to_le_bytes().into(),
            "I64" | "U64" => ((w * 1000.0) as i64).to_le_bytes().into(),
            "BOOL" => vec![u8::from(w > 0.02)],
            _ => vec![(half_float(w).to_bits() >> 8) as u8],
        }
    }
}

/// The `f16` of a number, by way of `f32`: `f16::from_f64` rounds twice on some machines and once
/// on others.
fn half_float(w: f64) -> half::f16 {
    half::f16::from_f32(w as f32)
}

/// A tensor of `bytes` bytes.
pub fn tensor(dtype: &str, bytes: usize, fill: Fill, seed: u64) -> Vec<u8> {
    let mut r = Random(seed);
    let width = DTYPES.iter().find(|d| d.0 == dtype).map_or(1, |d| d.1.div_ceil(8));
    let mut out = Vec::with_capacity(bytes + 8);
    let row: Vec<u8> = (0..96).flat_map(|_| r.element(dtype)).collect();
    let one = r.element(dtype);
    while out.len() < bytes {
        match fill {
            Fill::Weights => out.extend(r.element(dtype)),
            Fill::Noise => out.extend(r.next().to_le_bytes()),
            Fill::Constant => out.extend(&one),
            Fill::Rows => out.extend(&row),
            Fill::Sparse if r.next().is_multiple_of(50) => out.extend(r.element(dtype)),
            Fill::Sparse => out.resize(out.len() + width, 0),
            Fill::Scaled => {
                let row = out.len() / width / 700;
                out.extend(r.scaled(dtype, f64::from(1u32 << (row * 7 % 5))));
            }
            Fill::Widened => {
                let mut e = r.element(dtype);
                e[..width / 2].fill(0);
                out.extend(e);
            }
            Fill::Columns => {
                let (row, column) = (out.len() / width / 201, out.len() / width % 201);
                let scale = f64::from(1u32 << (column * 7 % 5 + row / 16 % 3));
                let mean = [0.0, 0.4, -0.4][column % 3];
                let w = r.weight() * scale + mean;
                out.extend(r.number(dtype, w));
            }
            Fill::Frozen => {
                let w = r.weight().abs();
                let mut e = r.number(dtype, w);
                if (out.len() / width / 384).is_multiple_of(3) {
                    e[..width / 2].fill(0);
                }
                out.extend(e);
            }
            Fill::Narrow => {
                let w = 1.0 + (r.next() >> 11) as f64 / (1u64 << 53) as f64 / 16.0;
                out.extend(r.number(dtype, w));
            }
            Fill::Special => {
                // All ones, all zeros, the sign alone, the exponent alone, and single bits, mixed
                // with noise.
                let bits = match r.next() % 8 {
                    0 => u64::MAX,
                    1 => 0,
                    2 => 0x8000_8000_8000_8000 & (1 << (8 * width - 1)),
                    3 => 0x7ff0_0000_0000_0000 >> (64 - 8 * width),
                    4 => 0x7f80_7f80_7f80_7f80 >> (64 - 8 * width),
                    5 => 1,
                    6 => 1 << (r.next() % 64),
                    _ => r.next(),
                };
                out.extend(&bits.to_le_bytes()[..width]);
            }
        }
    }
    out.truncate(bytes);
    out
}

/// A safetensors file of these tensors, given by name, dtype and data. All shapes have one
/// dimension.
pub fn safetensors(tensors: &[(&str, &str, Vec<u8>)]) -> Vec<u8> {
    matrices(
        &tensors
            .iter()
            .map(|(name, dtype, data)| (*name, *dtype, None, data.clone()))
            .collect::<Vec<_>>(),
    )
}

/// A safetensors file of these tensors, given by name, dtype, elements of a row, and data. The
/// shape leaves out an incomplete last row.
pub fn matrices(tensors: &[(&str, &str, Option<usize>, Vec<u8>)]) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, row, data)| {
            let bits = DTYPES.iter().find(|d| d.0 == *dtype).map_or(8, |d| d.1);
            let elements = data.len() * 8 / bits;
            let shape =
                row.map_or(format!("{elements}"), |row| format!("{},{row}", elements / row));
            let entry = format!(
                r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{at},{}]}}"#,
                at + data.len()
            );
            at += data.len();
            entry
        })
        .collect();
    with_header(
        &format!("{{{}}}", entries.join(",")),
        &tensors.iter().flat_map(|t| t.3.clone()).collect::<Vec<_>>(),
    )
}

/// Pack a file of these tensors, given by name, dtype, bytes and fill, to `out.bsz` in `dir`, with
/// chunks of this size. Returns the file.
pub fn pack_tensors(
    dir: &Path,
    chunk_size: u32,
    seed: u64,
    tensors: &[(&str, &str, usize, Fill)],
) -> Vec<u8> {
    let made: Vec<_> = tensors
        .iter()
        .map(|&(name, dtype, bytes, fill)| {
            (name, dtype, fill.row(), tensor(dtype, bytes, fill, seed))
        })
        .collect();
    let bytes = matrices(&made);
    pack_bytes(dir, "x.safetensors", &bytes, chunk_size);
    bytes
}

/// Named files that together cover every coding, every dtype and every fill.
pub fn samples() -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        ("empty".to_owned(), Vec::new()),
        ("a byte".to_owned(), vec![7]),
        ("text".to_owned(), b"not a model at all\n".repeat(5000)),
        ("noise".to_owned(), tensor("U8", 2_300_001, Fill::Noise, 1)),
    ];
    for (i, (dtype, _)) in DTYPES.iter().enumerate() {
        let tensors: Vec<_> = FILLS
            .iter()
            .enumerate()
            .map(|(j, fill)| {
                let n = [0, 24, 600, 8 << 10, 24_000, 90_000, 300_000][(i + j) % 7];
                let n = match fill {
                    Fill::Scaled => 300_000,
                    Fill::Columns | Fill::Frozen => 150_000,
                    _ => n,
                };
                let name = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"][j];
                (name, *dtype, fill.row(), tensor(dtype, n, *fill, (i * 7 + j) as u64))
            })
            .collect();
        files.push((format!("every fill of {dtype}"), matrices(&tensors)));
    }
    let t = |range: &str| format!(r#"{{"dtype":"BF16","shape":[3],"data_offsets":[{range}]}}"#);
    let data = tensor("BF16", 70_000, Fill::Weights, 99);
    for (name, json) in [
        ("overlap", format!(r#"{{"a":{},"b":{}}}"#, t("0,60000"), t("30000,70000"))),
        ("gaps", format!(r#"{{"a":{},"b":{}}}"#, t("100,30000"), t("30100,60000"))),
        ("reversed", format!(r#"{{"a":{},"b":{}}}"#, t("30000,70000"), t("0,30000"))),
        ("huge offsets", format!(r#"{{"a":{}}}"#, t("0,18446744073709551615"))),
        ("odd offsets", format!(r#"{{"a":{},"b":{}}}"#, t("1,30002"), t("30003,69999"))),
        ("one name twice", format!(r#"{{"a":{},"a":{}}}"#, t("0,30000"), t("30000,70000"))),
        (
            "unknown dtype",
            r#"{"a":{"dtype":"Q3","shape":[70000],"data_offsets":[0,70000]}}"#.to_owned(),
        ),
        ("deep", "[".repeat(50_000)),
        ("deep inside", format!(r#"{{"a":{}}}"#, "[".repeat(50_000))),
        ("padded", format!("{{\"a\":{}}}{}", t("0,70000"), " ".repeat(4000))),
    ] {
        files.push((format!("a header with {name}"), with_header(&json, &data)));
    }
    let mut bad =
        with_header(r#"{"a?":{"dtype":"BF16","shape":[35000],"data_offsets":[0,70000]}}"#, &data);
    bad[11] = 0xff;
    files.push(("a header that is not UTF-8".to_owned(), bad));
    let mut long = with_header("{}", &data);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    files.push(("a header longer than everything".to_owned(), long));
    files
}

/// Discards all reports.
pub struct Silent;

impl pack::Progress for Silent {
    fn begin(&self, _: &Path, _: pack::Task, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self, _: &pack::FileReport) {}
}

/// The archive of `bytes`, which the packer verifies as always.
pub fn pack_bytes(dir: &Path, name: &str, bytes: &[u8], chunk_size: u32) -> Vec<u8> {
    let (src, out) = (dir.join(name), dir.join("out.bsz"));
    std::fs::write(&src, bytes).expect("written");
    let check = |file: &std::fs::File, _: &dyn pack::Progress| {
        let archive = read::Archive::from_file(file.try_clone()?)?;
        read::verify(&archive, &*codec::reference(), &|_| ())
    };
    let o = pack::Options { force: true, chunk_size, ..Default::default() };
    pack::file(&src, &out, &o, &check, &Silent).expect("packs");
    std::fs::read(&out).expect("read")
}

/// Restore the original from the bytes of an archive.
pub fn unpack_bytes(dir: &Path, bytes: &[u8], decoder: &dyn ChunkDecoder) -> Result<Vec<u8>> {
    let path = dir.join("in.bsz");
    std::fs::write(&path, bytes).expect("written");
    let archive = read::Archive::open(&path)?;
    // The original length is the archive's claim, so it is limited to the most that these tests
    // ever pack.
    let mut out = vec![0; archive.footer().original_len.min(1 << 22) as usize];
    let n = archive.read_at(0, &mut out, decoder)?;
    out.truncate(n);
    read::verify(&archive, decoder, &|_| ())?;
    Ok(out)
}
