//! Whole files back: verify and unpack, in parallel, each stretch of the file on its own.

use super::archive::Archive;
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, Result},
    output::{Attributes, Output},
    sha256::{self, INITIAL, SEGMENT, State},
};
use rayon::prelude::*;
use std::{ops::Range, os::unix::fs::FileExt, path::Path};

/// Segments of SHA-256 that one thread decodes and hashes together.
const PAIR: u64 = 2 * SEGMENT;

/// Decode everything and check every checksum and the original's SHA-256. `progress` is told of decoded bytes.
/// Each thread of the current rayon pool takes 8 MiB of memory.
///
/// # Errors
/// Io and corruption, naming a chunk that is damaged.
pub fn verify(archive: &Archive, decoder: &dyn ChunkDecoder, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    stretches(archive, decoder, progress, &|_, _| Ok(()))
}

/// Restore the original at `out`, with its mode and times. It appears there only once it is complete and verified;
/// an existing file is replaced if `replace`.
///
/// # Errors
/// As [`verify`]; Io, where `out` cannot be written.
pub fn unpack(
    archive: &Archive,
    out: &Path,
    replace: bool,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let output = Output::create(out)?;
    let write = |bytes: &[u8], at: u64| output.file().write_all_at(bytes, at).about_path(out);
    stretches(archive, decoder, progress, &write)?;
    let f = archive.footer();
    output.sync(Attributes { mode: f.mode, mtime: f.mtime, owner: archive.owner()? })?;
    output.commit(replace)
}

/// Give all of the original to `sink`, with its place, in any order, and check everything. What `sink` got is not to
/// be used if this fails.
fn stretches(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
    sink: &(dyn Fn(&[u8], u64) -> Result<()> + Sync),
) -> Result<()> {
    let len = archive.footer().original_len;
    // An empty file is one empty stretch: its hash is checked all the same.
    (0..len.div_ceil(PAIR).max(1)).into_par_iter().try_for_each_init(
        || (Vec::new(), Vec::new()),
        |(buffer, scratch), i| {
            let range = i * PAIR..len.min((i + 1) * PAIR);
            let bytes = decode(archive, range.clone(), decoder, scratch, buffer)?;
            check(archive, range.start, bytes)?;
            sink(bytes, range.start)?;
            progress(bytes.len() as u64);
            Ok(())
        },
    )
}

/// Decode the chunks that overlap `range`; returns the bytes of the range.
fn decode<'a>(
    archive: &Archive,
    range: Range<u64>,
    decoder: &dyn ChunkDecoder,
    scratch: &mut Vec<u8>,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8]> {
    let index = archive.index();
    let chunks =
        index.find(range.start)..index.find(range.end.saturating_sub(1)) + usize::from(!range.is_empty());
    if chunks.is_empty() {
        return Ok(&[]);
    }
    let first = index.chunk(chunks.start).original.start;
    let end = index.chunk(chunks.end - 1).original.end;
    buffer.resize((end - first) as usize, 0);
    let mut rest = &mut buffer[..];
    for id in chunks {
        let (part, after) = rest.split_at_mut(index.chunk(id).len());
        archive.read_chunk(id, decoder, scratch, part)?;
        rest = after;
    }
    Ok(&buffer[(range.start - first) as usize..(range.end - first) as usize])
}

/// Check that the bytes from `start`, a multiple of [`PAIR`], lead from SHA-256's state there to the next ones.
fn check(archive: &Archive, start: u64, bytes: &[u8]) -> Result<()> {
    let footer = archive.footer();
    let state = |at: u64| -> State {
        if at == 0 { INITIAL } else { archive.index().sha256_state((at / SEGMENT - 1) as usize) }
    };
    let (a, b) = bytes.split_at(bytes.len().min(SEGMENT as usize));
    let mut states = [state(start), if b.is_empty() { INITIAL } else { state(start + SEGMENT) }];
    sha256::advance_two(&mut states, [a, b]);
    let mut matches = true;
    for (i, part) in [a, b].into_iter().enumerate() {
        let end = start + i as u64 * SEGMENT + part.len() as u64;
        if end == footer.original_len && (!part.is_empty() || end == 0) {
            let tail = part.as_chunks::<64>().1;
            matches &= sha256::finish(states[i], tail, end) == footer.sha256;
            break;
        }
        matches &= states[i] == state(end);
    }
    matches.then_some(()).ok_or_else(|| Error::corrupt("the whole file does not match its SHA-256"))
}
