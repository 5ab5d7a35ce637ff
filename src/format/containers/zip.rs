//! The stored entries of a zip archive, as NumPy and PyTorch write them, by its central directory.
//!
//! Format: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>.

use super::cursor::{Input, Result, Stop};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: [u8; 4] = *b"PK\x05\x06";
const LOCATOR_64: u32 = 0x0706_4b50;
const END_64: u32 = 0x0606_4b50;
/// Bytes of a local header, of the end record, and of the locator of its 64-bit form.
const LOCAL_LEN: u64 = 30;
const END_LEN: u64 = 22;
const LOCATOR_LEN: u64 = 20;
/// The longest comment behind the end record, in bytes.
const MAX_COMMENT: u64 = u16::MAX as u64;
/// The most entries of an archive that are looked at, and the longest of their names in bytes.
const MAX_ENTRIES: u64 = 1 << 17;
const MAX_NAME: usize = 256;
/// Smaller entries are looked at only for their names.
const MIN_ENTRY: u64 = 4096;
/// The extra field with 64-bit sizes, and what a 32-bit size holds then.
const EXTRA_64: u16 = 1;
const IN_EXTRA: u64 = u32::MAX as u64;

/// An entry that is stored as it is.
pub(super) struct Entry {
    pub name: Vec<u8>,
    /// Its first byte in the file.
    pub start: u64,
    pub len: u64,
}

/// Where the central directory is.
struct Directory {
    start: u64,
    len: u64,
    count: u64,
}

/// The stored entries of an archive; `None` if the file is none.
pub(super) fn entries(input: &Input<'_>) -> Result<Option<Vec<Entry>>> {
    if !input.start()?.starts_with(&LOCAL.to_le_bytes()) {
        return Ok(None);
    }
    let directory = directory(input)?.ok_or(Stop::Malformed)?;
    let end = directory.start.checked_add(directory.len).ok_or(Stop::Malformed)?;
    let mut cursor = input.cursor(directory.start..end);
    let mut entries = Vec::new();
    for _ in 0..directory.count.min(MAX_ENTRIES) {
        if cursor.u32()? != CENTRAL {
            return Err(Stop::Malformed);
        }
        cursor.skip(4)?;
        let (flags, method) = (cursor.u16()?, cursor.u16()?);
        cursor.skip(8)?;
        let (packed, len) = (cursor.u32()?.into(), cursor.u32()?.into());
        let [name, extra, comment] = [cursor.u16()?, cursor.u16()?, cursor.u16()?];
        cursor.skip(8)?;
        let local = cursor.u32()?.into();
        let name = cursor.bytes(name.into(), u16::MAX.into())?;
        let extra = cursor.bytes(extra.into(), u16::MAX.into())?;
        cursor.skip(comment.into())?;
        let [len, packed, local] = sizes([len, packed, local], &extra)?;
        let is_encrypted = flags & 1 != 0;
        if method != 0 || is_encrypted || len != packed || name.len() > MAX_NAME {
            continue;
        }
        if len < MIN_ENTRY && !name.ends_with(b".pkl") {
            continue;
        }
        entries.extend(entry(input, local, name, len)?);
    }
    Ok(Some(entries))
}

/// Sizes and offset of an entry, which may be in the extra field with 64 bits.
fn sizes(mut sizes: [u64; 3], extra: &[u8]) -> Result<[u64; 3]> {
    let mut rest = extra;
    while let Some((&[a, b, c, d], after)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([c, d]));
        let Some((mut field, next)) = after.split_at_checked(len) else { break };
        rest = next;
        if u16::from_le_bytes([a, b]) != EXTRA_64 {
            continue;
        }
        for size in sizes.iter_mut().filter(|size| **size == IN_EXTRA) {
            let (value, after) = field.split_first_chunk().ok_or(Stop::Malformed)?;
            (*size, field) = (u64::from_le_bytes(*value), after);
        }
    }
    Ok(sizes)
}

/// The entry whose local header is at `local`; `None` if there is no such header.
fn entry(input: &Input<'_>, local: u64, name: Vec<u8>, len: u64) -> Result<Option<Entry>> {
    let Some(end) = local.checked_add(LOCAL_LEN).filter(|&end| end <= input.len()) else {
        return Ok(None);
    };
    let mut cursor = input.cursor(local..end);
    if cursor.u32()? != LOCAL {
        return Ok(None);
    }
    cursor.skip(LOCAL_LEN - 8)?;
    let (name_len, extra) = (cursor.u16()?, cursor.u16()?);
    let start = end + u64::from(name_len) + u64::from(extra);
    let fits = start.checked_add(len).is_some_and(|end| end <= input.len());
    Ok(fits.then_some(Entry { name, start, len }))
}

/// The central directory, by the end record, which may be followed by a comment.
fn directory(input: &Input<'_>) -> Result<Option<Directory>> {
    let from = input.len().saturating_sub(END_LEN + MAX_COMMENT);
    let tail = input.cursor(from..input.len()).bytes(input.len() - from, usize::MAX)?;
    let is_end = |&at: &usize| {
        let record = &tail[at..];
        let comment = u16::from_le_bytes([record[20], record[21]]);
        record.starts_with(&END) && record.len() == END_LEN as usize + usize::from(comment)
    };
    let last = (tail.len() + 1).saturating_sub(END_LEN as usize);
    let Some(at) = (0..last).rev().find(is_end) else { return Ok(None) };
    let at = from + at as u64;
    let mut cursor = input.cursor(at..input.len());
    cursor.skip(10)?;
    let count = cursor.u16()?.into();
    let (len, start) = (cursor.u32()?.into(), cursor.u32()?.into());
    let short = Directory { start, len, count };
    Ok(Some(directory_64(input, at)?.unwrap_or(short)))
}

/// The same by the 64-bit form of the end record, if there is one.
fn directory_64(input: &Input<'_>, end: u64) -> Result<Option<Directory>> {
    let Some(at) = end.checked_sub(LOCATOR_LEN) else { return Ok(None) };
    let mut cursor = input.cursor(at..end);
    if cursor.u32()? != LOCATOR_64 {
        return Ok(None);
    }
    cursor.skip(4)?;
    let mut cursor = input.cursor(cursor.u64()?..at);
    if cursor.u32()? != END_64 {
        return Err(Stop::Malformed);
    }
    cursor.skip(28)?;
    let (count, len, start) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
    Ok(Some(Directory { start, len, count }))
}
