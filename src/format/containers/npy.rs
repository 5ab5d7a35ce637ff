//! The header of a NumPy array, in a file of its own or in an archive of them.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use super::{
    Known, Named,
    cursor::{Cursor, Input, Result, Stop},
    zip::Entry,
};
use crate::{
    codec::ElementKind,
    format::extent::{Extent, row},
};

const MAGIC: [u8; 6] = *b"\x93NUMPY";
/// The longest header, in bytes: that of a structured type.
const MAX_HEADER: usize = 64 << 10;
const MAX_DIMENSIONS: usize = 64;

/// The array of a file.
pub(super) fn tensors(input: &Input<'_>) -> Known {
    if !input.start()?.starts_with(&MAGIC) {
        return Ok(None);
    }
    let mut cursor = input.cursor(0..input.len());
    let array = array(&mut cursor, "array")?;
    let end = array.as_ref().map_or(0, |array| array.extent.end());
    if end > input.len() {
        return Err(Stop::Cut(end));
    }
    Ok(Some(array.into_iter().collect()))
}

/// The arrays among the stored entries of an archive.
pub(super) fn entries(input: &Input<'_>, entries: &[Entry]) -> Result<Vec<Named>> {
    let mut known = Vec::new();
    let arrays = entries.iter().filter_map(|e| Some((e, e.name.strip_suffix(b".npy")?)));
    for (entry, name) in arrays {
        let end = entry.start + entry.len;
        match array(&mut input.cursor(entry.start..end), &String::from_utf8_lossy(name)) {
            Ok(array) => known.extend(array.filter(|array| array.extent.end() <= end)),
            Err(Stop::Io(e)) => return Err(Stop::Io(e)),
            Err(Stop::Malformed | Stop::Cut(_)) => {}
        }
    }
    Ok(known)
}

/// The array at a cursor, called `name`; `None` if its type is not one of little-endian numbers.
fn array(cursor: &mut Cursor<'_>, name: &str) -> Result<Option<Named>> {
    if cursor.array()? != MAGIC {
        return Err(Stop::Malformed);
    }
    let [major, _] = cursor.array()?;
    let len = match major {
        1 => u32::from(cursor.u16()?),
        2 | 3 => cursor.u32()?,
        _ => return Err(Stop::Malformed),
    };
    let header = cursor.bytes(len.into(), MAX_HEADER)?;
    let Some(dtype) = value(&header, "descr").and_then(dtype) else { return Ok(None) };
    let Some(kind) = kind(dtype) else { return Ok(None) };
    let shown = value(&header, "shape").and_then(shape).ok_or(Stop::Malformed)?;
    let mut shape = shown.clone();
    if value(&header, "fortran_order").is_some_and(|order| order.starts_with(b"True")) {
        shape.reverse();
    }
    let width = kind.1 as u64;
    let len = shape.iter().try_fold(width, |n, &d| n.checked_mul(d)).ok_or(Stop::Malformed)?;
    let start = cursor.position();
    start.checked_add(len).ok_or(Stop::Malformed)?;
    // A complex number is two elements.
    let row = row(kind.1 / kind.0.width(), &shape);
    let extent = Extent { start, len, kind: Some(kind.0), row };
    let (name, dtype) = (name.to_owned(), String::from_utf8_lossy(dtype).into_owned());
    Ok(Some(Named { name, dtype, shape: shown, extent }))
}

/// What follows the key in the header, a dictionary that Python would print in this way.
fn value<'a>(header: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let key = format!("'{key}':");
    let at = header.windows(key.len()).position(|w| w == key.as_bytes())?;
    Some(header[at + key.len()..].trim_ascii_start())
}

/// The name of a type: what is between the quotes of `'<f4'`.
fn dtype(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"'")?.split(|&byte| byte == b'\'').next()
}

/// The kind of an element, and the bytes of a number, of a type such as `<f4`.
fn kind(name: &[u8]) -> Option<(ElementKind, usize)> {
    // What NumPy does not know itself is written as bytes without a type: BF16, nearly always.
    if matches!(name, [b'<' | b'|', b'V', b'2']) {
        return Some((ElementKind::Float { width: 2, exponent: 8 }, 2));
    }
    let [b'<' | b'|', letter, width @ ..] = name else { return None };
    let float = |width, exponent| ElementKind::Float { width, exponent };
    let width = match width {
        [digit @ b'1'..=b'8'] => digit - b'0',
        b"16" => 16,
        _ => return None,
    };
    let kind = match (letter, width) {
        (b'f', 2) => float(2, 5),
        (b'f' | b'c', 4) | (b'c', 8) => float(4, 8),
        (b'f', 8) | (b'c', 16) => float(8, 11),
        (b'i' | b'u' | b'b', 1 | 2 | 4 | 8) => ElementKind::Bytes { width },
        _ => return None,
    };
    Some((kind, width.into()))
}

/// The dimensions of a shape such as `(3, 4)`.
fn shape(value: &[u8]) -> Option<Vec<u64>> {
    let inside = value.strip_prefix(b"(")?.split(|&byte| byte == b')').next()?;
    let dimensions = std::str::from_utf8(inside).ok()?.split(',').map(str::trim);
    let dimensions = dimensions.filter(|d| !d.is_empty()).map(|d| d.parse().ok());
    let shape: Vec<u64> = dimensions.collect::<Option<_>>()?;
    (shape.len() <= MAX_DIMENSIONS).then_some(shape)
}
