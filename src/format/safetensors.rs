//! The safetensors header, which is untrusted, and the extents of a file that follow from it.
//!
//! A wrong header costs compression but no data: what it does not describe consistently is packed
//! as plain bytes. Header format: <https://github.com/huggingface/safetensors#format>.

use super::extent::{self, Extent, cover};
use crate::codec::ElementKind;
use ::safetensors::{Dtype, tensor::TensorInfo};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The longest header in bytes, as in the readers of the format's authors.
pub const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the length that precedes the header.
const PREFIX: u64 = 8;

/// A tensor that the header describes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, in elements.
    pub shape: Vec<usize>,
    /// Its first byte in the file.
    pub start: u64,
    /// The end of its bytes in the file.
    pub end: u64,
}

/// What a file's header says, as far as it is consistent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Bytes before the tensors' data: the prefix and the header itself.
    pub data_start: u64,
    /// The tensors in the order of their data; no two overlap and all end within the file.
    pub tensors: Vec<Tensor>,
}

/// The length of the header, without the prefix, of a file of `file_len` bytes that starts with
/// `prefix`; `None` if it is not a safetensors file.
pub fn header_len(prefix: [u8; PREFIX as usize], file_len: u64) -> Option<u64> {
    let n = u64::from_le_bytes(prefix);
    ((2..=MAX_HEADER).contains(&n) && PREFIX + n <= file_len).then_some(n)
}

/// The length of a file with the header `json`, according to its tensors; `None` if the header is
/// not a JSON object.
pub fn claimed_len(json: &[u8]) -> Option<u64> {
    let entries: BTreeMap<String, &RawValue> = serde_json::from_slice(json).ok()?;
    let data_start = PREFIX + json.len() as u64;
    let tensors = entries.iter().filter(|(name, _)| *name != "__metadata__");
    let ends = tensors.filter_map(|(_, raw)| {
        let info: TensorInfo = serde_json::from_str(raw.get()).ok()?;
        Some(info.data_offsets.1 as u64)
    });
    Some(data_start.saturating_add(ends.max().unwrap_or(0)))
}

impl Header {
    /// Parses the header `json` of a file of `file_len` bytes; `None` if it is not a JSON object.
    ///
    /// Tensors that are of an unknown type, out of bounds or overlapping are left out.
    pub fn parse(json: &[u8], file_len: u64) -> Option<Self> {
        let entries: BTreeMap<String, &RawValue> = serde_json::from_slice(json).ok()?;
        let data_start = PREFIX + json.len() as u64;
        let mut tensors: Vec<Tensor> = entries
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .filter_map(|(name, raw)| {
                let info: TensorInfo = serde_json::from_str(raw.get()).ok()?;
                let start = data_start.checked_add(info.data_offsets.0 as u64)?;
                let end = data_start.checked_add(info.data_offsets.1 as u64)?;
                (start <= end && end <= file_len).then_some(Tensor {
                    name,
                    dtype: info.dtype,
                    shape: info.shape,
                    start,
                    end,
                })
            })
            .collect();
        tensors.sort_by_key(|t| (t.start, t.end));
        let mut covered = data_start;
        tensors.retain(|t| {
            let fits = t.start >= covered;
            if fits {
                covered = t.end;
            }
            fits
        });
        Some(Self { data_start, tensors })
    }

    /// The extents of a file of `file_len` bytes.
    pub fn extents(&self, file_len: u64) -> Vec<Extent> {
        let known = self.tensors.iter().map(|t| {
            let (kind, row) = (Some(kind(t.dtype)), row(t.dtype, &t.shape));
            Extent { start: t.start, len: t.end - t.start, kind, row }
        });
        // The header ends where the first tensor may start.
        let known = known.chain([Extent::unknown(0, self.data_start.min(file_len))]);
        cover(known.collect(), file_len)
    }

    /// Whether the tensors cover the whole file, as they do in a valid safetensors file and hardly
    /// anywhere else.
    pub fn covers(&self, file_len: u64) -> bool {
        self.tensors.iter().map(|t| t.end - t.start).sum::<u64>() + self.data_start == file_len
    }
}

/// Elements of a row. Types narrower than a byte have no rows: these need not end at a byte
/// boundary.
fn row(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    match dtype {
        // A complex number is two elements.
        Dtype::C64 => extent::row(2, shape),
        narrow if narrow.bitsize() < 8 => None,
        _ => extent::row(1, shape),
    }
}

/// The element kind of a type. Types narrower than a byte are packed, and their bytes are the
/// elements.
fn kind(dtype: Dtype) -> ElementKind {
    match dtype {
        Dtype::F16 => ElementKind::Float { width: 2, exponent: 5 },
        Dtype::BF16 => ElementKind::Float { width: 2, exponent: 8 },
        Dtype::F32 | Dtype::C64 => ElementKind::Float { width: 4, exponent: 8 },
        Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ => ElementKind::Float { width: 1, exponent: 4 },
        Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ => ElementKind::Float { width: 1, exponent: 5 },
        Dtype::F64 => ElementKind::Float { width: 8, exponent: 11 },
        Dtype::I16 | Dtype::U16 => ElementKind::Bytes { width: 2 },
        Dtype::I32 | Dtype::U32 => ElementKind::Bytes { width: 4 },
        Dtype::I64 | Dtype::U64 => ElementKind::Bytes { width: 8 },
        _ => ElementKind::Bytes { width: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(json: &str, file_len: u64) -> Vec<(u64, u64, bool)> {
        let header = Header::parse(json.as_bytes(), file_len).unwrap_or_default();
        header.extents(file_len).iter().map(|e| (e.start, e.len, e.kind.is_some())).collect()
    }

    #[test]
    fn extents_cover_every_byte_whatever_the_header_says() {
        let t =
            |a: u64, b: u64| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{a},{b}]}}"#);
        for json in [
            "{}".to_owned(),
            format!(r#"{{"a":{},"b":{}}}"#, t(0, 100), t(100, 200)),
            format!(r#"{{"a":{},"b":{}}}"#, t(100, 200), t(0, 100)),
            format!(r#"{{"a":{},"b":{}}}"#, t(0, 100), t(50, 200)), // overlap
            format!(r#"{{"a":{},"b":{}}}"#, t(10, 100), t(150, 160)), // gaps
            format!(r#"{{"a":{},"a":{}}}"#, t(0, 100), t(100, 200)), // one name twice
            format!(r#"{{"a":{}}}"#, t(0, u64::MAX)),
            format!(r#"{{"a":{}}}"#, t(100, 50)),
            r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
            r#"{"__metadata__":{"x":"y"},"a":7}"#.to_owned(),
            "[".repeat(100_000),
            format!(r#"{{"a":{}}}"#, "[".repeat(100_000)),
            "\u{0}".to_owned(),
        ] {
            let len = json.len() as u64 + 8 + 200;
            let mut at = 0;
            for (start, n, _) in extents(&json, len) {
                assert!(start == at && n > 0, "{json:.80}");
                at += n;
            }
            assert_eq!(at, len, "{json:.80}");
        }
    }

    #[test]
    fn impossible_lengths_are_not_headers() {
        assert_eq!(header_len(u64::MAX.to_le_bytes(), 1 << 40), None);
        assert_eq!(header_len(93u64.to_le_bytes(), 100), None);
        assert_eq!(header_len(92u64.to_le_bytes(), 100), Some(92));
        assert_eq!(header_len((MAX_HEADER + 1).to_le_bytes(), u64::MAX), None);
    }
}
