//! The header of a GGUF file, and the blocks of its quantised types.
//!
//! A block holds its scales and its quants at fixed places. A quantised tensor is described as a
//! matrix of bytes whose rows are whole blocks: each place in a block is a column, and the codec
//! gives columns that are distributed differently tables of their own.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::{
    Known, MAX_TENSORS, Named,
    cursor::{Cursor, Input, Result, Stop},
};
use crate::{
    codec::ElementKind,
    format::extent::{Extent, row},
};

const MAGIC: &[u8] = b"GGUF";
/// Bytes that tensors are aligned to, unless the file says otherwise, and at most.
const ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// The key of the alignment.
const ALIGNMENT_KEY: &[u8] = b"general.alignment";
/// The longest key, in bytes.
const MAX_KEY: usize = 64 << 10;
/// Arrays in arrays.
const MAX_DEPTH: u32 = 4;
const MAX_DIMENSIONS: u32 = 8;
/// The type numbers of metadata.
const UINT32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// The least bytes of a row of blocks.
const LEAST_ROW: usize = 128;

/// How elements of a tensor are stored.
enum Type {
    Elements(ElementKind),
    /// Blocks of so many weights in so many bytes.
    Blocks(u64, usize),
}

/// The name of a type, as ggml spells it, and how its elements are stored.
fn type_of(number: u32) -> Option<(&'static str, Type)> {
    let float = |width, exponent| Type::Elements(ElementKind::Float { width, exponent });
    let bytes = |width| Type::Elements(ElementKind::Bytes { width });
    Some(match number {
        0 => ("F32", float(4, 8)),
        1 => ("F16", float(2, 5)),
        28 => ("F64", float(8, 11)),
        30 => ("BF16", float(2, 8)),
        24 => ("I8", bytes(1)),
        25 => ("I16", bytes(2)),
        26 => ("I32", bytes(4)),
        27 => ("I64", bytes(8)),
        2 => ("Q4_0", Type::Blocks(32, 18)),
        3 => ("Q4_1", Type::Blocks(32, 20)),
        6 => ("Q5_0", Type::Blocks(32, 22)),
        7 => ("Q5_1", Type::Blocks(32, 24)),
        8 => ("Q8_0", Type::Blocks(32, 34)),
        10 => ("Q2_K", Type::Blocks(256, 84)),
        11 => ("Q3_K", Type::Blocks(256, 110)),
        12 => ("Q4_K", Type::Blocks(256, 144)),
        13 => ("Q5_K", Type::Blocks(256, 176)),
        14 => ("Q6_K", Type::Blocks(256, 210)),
        15 => ("Q8_K", Type::Blocks(256, 292)),
        16 => ("IQ2_XXS", Type::Blocks(256, 66)),
        17 => ("IQ2_XS", Type::Blocks(256, 74)),
        18 => ("IQ3_XXS", Type::Blocks(256, 98)),
        19 => ("IQ1_S", Type::Blocks(256, 50)),
        20 => ("IQ4_NL", Type::Blocks(32, 18)),
        21 => ("IQ3_S", Type::Blocks(256, 110)),
        22 => ("IQ2_S", Type::Blocks(256, 82)),
        23 => ("IQ4_XS", Type::Blocks(256, 136)),
        29 => ("IQ1_M", Type::Blocks(256, 56)),
        34 => ("TQ1_0", Type::Blocks(256, 54)),
        35 => ("TQ2_0", Type::Blocks(256, 66)),
        39 => ("MXFP4", Type::Blocks(32, 17)),
        _ => return None,
    })
}

/// The tensors of a GGUF file.
pub(super) fn tensors(input: &Input<'_>) -> Known {
    if !input.start()?.starts_with(MAGIC) {
        return Ok(None);
    }
    let mut cursor = input.cursor(MAGIC.len() as u64..input.len());
    // Version 1 had shorter counts; other versions, and big-endian files, are unknown.
    if !matches!(cursor.u32()?, 2 | 3) {
        return Ok(None);
    }
    let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
    let mut alignment = ALIGNMENT;
    for _ in 0..pairs {
        let key = string(&mut cursor)?;
        match (cursor.u32()?, &*key) {
            (UINT32, ALIGNMENT_KEY) => alignment = cursor.u32()?.into(),
            (kind, _) => skip_value(&mut cursor, kind, 0)?,
        }
    }
    if !(1..=MAX_ALIGNMENT).contains(&alignment) || tensors > MAX_TENSORS as u64 {
        return Err(Stop::Malformed);
    }
    let mut known = Vec::new();
    for _ in 0..tensors {
        known.extend(tensor(&mut cursor)?);
    }
    let data = cursor.position().next_multiple_of(alignment);
    let mut claimed = 0;
    for Named { extent, .. } in &mut known {
        extent.start = extent.start.checked_add(data).ok_or(Stop::Malformed)?;
        claimed = claimed.max(extent.start.checked_add(extent.len).ok_or(Stop::Malformed)?);
    }
    if claimed > input.len() {
        return Err(Stop::Cut(claimed));
    }
    Ok(Some(known))
}

/// A tensor, whose start counts from the first one; `None` if its type is unknown.
fn tensor(cursor: &mut Cursor<'_>) -> Result<Option<Named>> {
    let name = string(cursor)?;
    let dimensions = cursor.u32()?;
    if dimensions > MAX_DIMENSIONS {
        return Err(Stop::Malformed);
    }
    let mut shape = (0..dimensions).map(|_| cursor.u64()).collect::<Result<Vec<u64>>>()?;
    // The innermost dimension comes first.
    shape.reverse();
    let (number, start) = (cursor.u32()?, cursor.u64()?);
    let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or(Stop::Malformed)?;
    let Some((dtype, stored)) = type_of(number) else { return Ok(None) };
    let (len, kind, row) = match stored {
        Type::Elements(kind) => (count.checked_mul(kind.width() as u64), kind, row(1, &shape)),
        Type::Blocks(weights, bytes) => {
            let row = LEAST_ROW.div_ceil(bytes) * bytes;
            let len = (count / weights).checked_mul(bytes as u64);
            (len, ElementKind::Bytes { width: 1 }, Some(row))
        }
    };
    let extent = Extent { start, len: len.ok_or(Stop::Malformed)?, kind: Some(kind), row };
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(Some(Named { name, dtype: dtype.to_owned(), shape, extent }))
}

fn string(cursor: &mut Cursor<'_>) -> Result<Vec<u8>> {
    let len = cursor.u64()?;
    cursor.bytes(len, MAX_KEY)
}

/// Bytes of a metadata value of fixed width.
fn width(kind: u32) -> Result<u64> {
    match kind {
        // Integers and booleans; float; double.
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(Stop::Malformed),
    }
}

/// Skip a metadata value.
fn skip_value(cursor: &mut Cursor<'_>, kind: u32, depth: u32) -> Result<()> {
    match kind {
        STRING => {
            let len = cursor.u64()?;
            cursor.skip(len)
        }
        ARRAY if depth < MAX_DEPTH => {
            let (kind, count) = (cursor.u32()?, cursor.u64()?);
            if matches!(kind, STRING | ARRAY) {
                return (0..count).try_for_each(|_| skip_value(cursor, kind, depth + 1));
            }
            cursor.skip(count.checked_mul(width(kind)?).ok_or(Stop::Malformed)?)
        }
        _ => cursor.skip(width(kind)?),
    }
}
