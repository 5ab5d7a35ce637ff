//! The storages in a PyTorch archive (`.pt`, `.pth`, `.bin`, `.ckpt`): its pickle says what type
//! they are of, and which tensors are views of them.

use super::{
    MAX_TENSORS, Named,
    cursor::{Input, Result},
    pickle::{View, views},
    zip::Entry,
};
use crate::{
    codec::ElementKind,
    format::extent::{Extent, row},
};
use std::collections::HashMap;

/// The entry that describes the others, and the folder of the storages beside it.
const PICKLE: &[u8] = b"/data.pkl";
const STORAGES: &[u8] = b"/data/";
/// The longest pickle that is read, in bytes.
const MAX_PICKLE: usize = 16 << 20;

/// The storages among the entries of an archive, as far as its pickle describes them.
pub(super) fn entries(input: &Input<'_>, entries: &[Entry]) -> Result<Vec<Named>> {
    let pickle = entries.iter().find_map(|e| Some((e, e.name.strip_suffix(PICKLE)?)));
    let Some((pickle, folder)) = pickle.filter(|(e, _)| e.len <= MAX_PICKLE as u64) else {
        return Ok(Vec::new());
    };
    let end = pickle.start + pickle.len;
    let bytes = input.cursor(pickle.start..end).bytes(pickle.len, MAX_PICKLE)?;
    let views = views(&bytes, MAX_TENSORS);
    let mut of_key: HashMap<&[u8], &View> = HashMap::new();
    for view in &views {
        // The largest view of a storage tells most about it.
        let largest = of_key.entry(&view.key).or_insert(view);
        if count(&view.shape) > count(&largest.shape) {
            *largest = view;
        }
    }
    let tensor = |entry: &Entry| {
        let key = entry.name.strip_prefix(folder)?.strip_prefix(STORAGES)?;
        let view = of_key.get(key)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (name, dtype) = (text(view.name.as_deref().unwrap_or(key)), text(&view.dtype));
        Some(Named { name, dtype, shape: view.shape.clone(), extent: storage(view, entry)? })
    };
    Ok(entries.iter().filter_map(tensor).collect())
}

fn count(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |n: u64, &d| n.saturating_mul(d))
}

/// The storage of a view, which has rows if the view is the whole of it.
fn storage(view: &View, entry: &Entry) -> Option<Extent> {
    let (kind, parts) = kind(&view.dtype)?;
    let is_whole = view.offset == 0
        && count(&view.shape).checked_mul((kind.width() * parts) as u64) == Some(entry.len);
    // The dimensions in the order in which they are stored: a transposed matrix is a view, too.
    let mut shape: Vec<(u64, u64)> =
        view.strides.iter().copied().zip(view.shape.iter().copied()).collect();
    shape.sort_by_key(|(stride, _)| std::cmp::Reverse(*stride));
    let shape: Vec<u64> = shape.into_iter().map(|(_, dimension)| dimension).collect();
    let row = if is_whole { row(parts, &shape) } else { None };
    Some(Extent { start: entry.start, len: entry.len, kind: Some(kind), row })
}

/// The kind of an element, and how many of them make a number. Storages are named like classes of
/// older versions, or like dtypes.
fn kind(dtype: &[u8]) -> Option<(ElementKind, usize)> {
    let float = |width, exponent| Some((ElementKind::Float { width, exponent }, 1));
    let bytes = |width| Some((ElementKind::Bytes { width }, 1));
    match dtype {
        b"FloatStorage" | b"float32" => float(4, 8),
        b"HalfStorage" | b"float16" => float(2, 5),
        b"BFloat16Storage" | b"bfloat16" => float(2, 8),
        b"DoubleStorage" | b"float64" => float(8, 11),
        b"ComplexFloatStorage" | b"complex64" => float(4, 8).map(|(kind, _)| (kind, 2)),
        b"ComplexDoubleStorage" | b"complex128" => float(8, 11).map(|(kind, _)| (kind, 2)),
        b"float8_e4m3fn" | b"float8_e4m3fnuz" => float(1, 4),
        b"float8_e5m2" | b"float8_e5m2fnuz" => float(1, 5),
        b"LongStorage" | b"int64" | b"uint64" => bytes(8),
        b"IntStorage" | b"int32" | b"uint32" | b"QInt32Storage" => bytes(4),
        b"ShortStorage" | b"int16" | b"uint16" => bytes(2),
        b"CharStorage" | b"ByteStorage" | b"BoolStorage" | b"int8" | b"uint8" | b"bool"
        | b"QInt8Storage" | b"QUInt8Storage" | b"float8_e8m0fnu" => bytes(1),
        _ => None,
    }
}
