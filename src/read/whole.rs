//! Whole files back: verify and unpack, chunks in parallel, bytes in order.

use super::archive::Archive;
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, Result},
    output::{Attributes, Output},
};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{io::Write, path::Path};

/// Decoded bytes that are in memory at a time, twice: one half is hashed and written while the other fills.
const BATCH: usize = 8 << 20;

/// Decode everything and check every checksum and the original's SHA-256. `progress` is told of decoded bytes.
///
/// # Errors
/// Io and corruption, naming the first chunk that is damaged.
pub fn verify(archive: &Archive, decoder: &dyn ChunkDecoder, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    stream(archive, decoder, progress, &mut |_| Ok(()))
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
    let mut file = output.file();
    stream(archive, decoder, progress, &mut |bytes| file.write_all(bytes).about_path(out))?;
    let f = archive.footer();
    output.sync(Attributes { mode: f.mode, mtime: f.mtime, owner: archive.owner()? })?;
    output.commit(replace)
}

/// Give every byte in order to `sink` and check everything. What `sink` got is not to be used if this fails.
fn stream(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
    sink: &mut (dyn FnMut(&[u8]) -> Result<()> + Send),
) -> Result<()> {
    let mut hash = Sha256::new();
    let (mut filled, mut filling) = (Vec::new(), Vec::new());
    let mut next = 0;
    while next < archive.index().len() || !filled.is_empty() {
        let batch = batch(archive, next);
        next = batch.end;
        let used: &[u8] = &filled;
        let (decoded, (sunk, ())) = rayon::join(
            || decode(archive, batch, decoder, progress, &mut filling),
            || rayon::join(|| sink(used), || hash.update(used)),
        );
        sunk?;
        decoded?;
        std::mem::swap(&mut filled, &mut filling);
    }
    if hash.finalize()[..] != archive.footer().sha256 {
        return Err(Error::corrupt("the whole file does not match its SHA-256"));
    }
    Ok(())
}

/// The chunks from `first` on that make a batch.
fn batch(archive: &Archive, first: usize) -> std::ops::Range<usize> {
    let index = archive.index();
    let mut last = first;
    let mut bytes = 0;
    while last < index.len() && bytes < BATCH {
        bytes += index.chunk(last).len();
        last += 1;
    }
    first..last
}

/// Decode neighbouring chunks into `out`, in parallel.
fn decode(
    archive: &Archive,
    chunks: std::ops::Range<usize>,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
    out: &mut Vec<u8>,
) -> Result<()> {
    let lengths: Vec<usize> = chunks.clone().map(|id| archive.index().chunk(id).len()).collect();
    out.resize(lengths.iter().sum(), 0);
    let mut rest = &mut out[..];
    let mut jobs = Vec::with_capacity(lengths.len());
    for (id, len) in chunks.zip(lengths) {
        let (part, after) = rest.split_at_mut(len);
        jobs.push((id, part));
        rest = after;
    }
    jobs.into_par_iter().try_for_each_init(Vec::new, |scratch, (id, part)| {
        archive.read_chunk(id, decoder, scratch, part)?;
        progress(part.len() as u64);
        Ok(())
    })
}
