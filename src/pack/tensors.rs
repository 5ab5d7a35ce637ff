//! The tensors of a file, by its header: their places, and their names where it tells them.

use super::regions::detect_unknown;
use crate::{
    error::Result,
    format::{Container, Extent, Header, MAX_HEADER, ReadAt, container, header_len},
};

/// A part of a file that has a kind, and what else is known of it.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) extent: Extent,
    /// Empty, if the header does not tell it.
    pub(super) name: String,
    /// Empty, if the header does not tell it.
    pub(super) shape: Vec<usize>,
}

/// The JSON of a safetensors header, if the file of `len` bytes starts like one.
pub(super) fn header_json(read: ReadAt<'_>, len: u64) -> Result<Option<Vec<u8>>> {
    let mut prefix = [0; 8];
    if len < 8 {
        return Ok(None);
    }
    read(0, &mut prefix)?;
    let Some(n) = header_len(prefix, len) else { return Ok(None) };
    debug_assert!(n <= MAX_HEADER);
    // Checked first: in other files, the first bytes can amount to any length.
    let mut brace = [0];
    read(8, &mut brace)?;
    if !matches!(brace, [b'{'] | [b' '] | [b'\t'] | [b'\n'] | [b'\r']) {
        return Ok(None);
    }
    let mut json = vec![0; n as usize];
    read(8, &mut json)?;
    Ok(Some(json))
}

/// The extents of a base: those of its header, and what samples say about the rest.
pub(super) fn extents(read: ReadAt<'_>, len: u64) -> Result<Vec<Extent>> {
    if let Some(header) = header(read, len)? {
        return Ok(header.extents(len));
    }
    let extents = match container(read, len)? {
        Container::Known(_, extents) => extents,
        _ => Header::default().extents(len),
    };
    let read = |at, out: &mut Vec<u8>, len: usize| {
        out.resize(len, 0);
        read(at, out)
    };
    detect_unknown(&read, extents)
}

/// The tensors among these extents of a file of `len` bytes.
pub(super) fn tensors(read: ReadAt<'_>, len: u64, extents: &[Extent]) -> Result<Vec<Tensor>> {
    let header = header(read, len)?.unwrap_or_default();
    let tensor = |extent: &Extent| {
        let at = header.tensors.partition_point(|t| t.start < extent.start);
        // Others that start there are empty.
        let named = header.tensors[at..].iter().take_while(|t| t.start == extent.start);
        let named = named.filter(|t| t.end == extent.end()).last();
        let (name, shape) = named.map(|t| (t.name.clone(), t.shape.clone())).unwrap_or_default();
        Tensor { extent: *extent, name, shape }
    };
    Ok(extents.iter().filter(|e| e.kind.is_some()).map(tensor).collect())
}

fn header(read: ReadAt<'_>, len: u64) -> Result<Option<Header>> {
    Ok(header_json(read, len)?.and_then(|json| Header::parse(&json, len)))
}
