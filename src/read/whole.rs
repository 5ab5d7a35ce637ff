//! Whole files back: verify and unpack, in parallel, each stretch of the file on its own.

use super::{archive::Archive, scratch::Scratch};
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, Result},
    output::write_sparse,
    sha256::{BLOCK, INITIAL, SEGMENT, SegmentHasher, State, finish},
};
use rayon::prelude::*;
use std::{
    fs::File,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Larger chunks are not decoded for many stretches at once, for the memory that takes.
const WIDEST_CHUNK: usize = 512 << 10;

/// Decode everything and check every checksum and the original's SHA-256. `progress` is told of decoded bytes.
/// Each thread of the current rayon pool takes the memory of sixteen chunks, or of two if chunks are large.
///
/// # Errors
/// Io and corruption, naming a chunk that is damaged.
pub fn verify(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    stretches(archive, decoder, progress, &|_, _| Ok(()))
}

/// Decode every chunk and check its checksum, not the original's SHA-256. `progress` is told of decoded bytes.
///
/// # Errors
/// As [`verify`].
pub fn verify_chunks(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    (0..archive.index().len()).into_par_iter().try_for_each_init(
        || (Scratch::default(), Vec::new()),
        |(scratch, decoded), id| {
            let len = archive.index().chunk(id)?.len();
            if decoded.len() < len {
                decoded.resize(len, 0);
            }
            archive.read_chunk(id, decoder, scratch, &mut decoded[..len])?;
            progress(len as u64);
            Ok(())
        },
    )
}

/// Write the original to the empty file `out`, which messages call `path`. What it holds is not to be used if this fails.
/// Blocks of zeros are left as holes.
///
/// # Errors
/// As [`verify`]; Io, where `out` cannot be written.
pub fn unpack(
    archive: &Archive,
    out: &File,
    path: &Path,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    out.set_len(archive.footer().original_len).about_path(path)?;
    let write = |bytes: &[u8], at: u64| write_sparse(out, bytes, at).about_path(path);
    stretches(archive, decoder, progress, &write)
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
    // No more at once than leaves some for each worker. An empty file is one empty segment: its hash is checked all
    // the same.
    let segments = len.div_ceil(SEGMENT).max(1);
    let threads = rayon::current_num_threads();
    let at_once = match SegmentHasher::at_once() as u64 {
        n if archive.footer().max_chunk as usize > WIDEST_CHUNK || segments <= n => 2,
        n => n,
    };
    let next = AtomicU64::new(0);
    (0..threads).into_par_iter().with_max_len(1).try_for_each(|_| {
        let mut cursors: Vec<Cursor> = (0..at_once).map(|_| Cursor::default()).collect();
        loop {
            let first = next.fetch_add(at_once, Ordering::Relaxed);
            if first >= segments {
                return Ok(());
            }
            // The other workers have nothing to look for once one has failed.
            group(archive, first, &mut cursors, decoder, progress, sink)
                .inspect_err(|_| next.store(segments, Ordering::Relaxed))?;
        }
    })
}

/// The segments from `first` on, one for each cursor, at once.
fn group(
    archive: &Archive,
    first: u64,
    cursors: &mut [Cursor],
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
    sink: &(dyn Fn(&[u8], u64) -> Result<()> + Sync),
) -> Result<()> {
    let len = archive.footer().original_len;
    let edge = |i: usize| len.min((first + i as u64) * SEGMENT);
    for (i, cursor) in cursors.iter_mut().enumerate() {
        cursor.seek(archive, edge(i)..edge(i + 1))?;
    }
    let mut hashes = SegmentHasher::new(
        (0..cursors.len()).map(|i| state(archive, edge(i))).collect::<Result<_>>()?,
    );
    loop {
        for cursor in cursors.iter_mut().filter(|c| c.ready().is_empty()) {
            cursor.refill(archive, decoder, &mut |bytes, at| {
                progress(bytes.len() as u64);
                sink(bytes, at)
            })?;
        }
        // As far as all have whole blocks, except those that are at their end.
        let Some(n) = cursors.iter().map(|c| c.ready().len()).filter(|&n| n > 0).min() else {
            break;
        };
        let bytes: Vec<&[u8]> =
            cursors.iter().map(|c| &c.ready()[..n.min(c.ready().len())]).collect();
        hashes.update(&bytes);
        cursors.iter_mut().for_each(|c| c.advance(n));
    }
    for (i, (cursor, &reached)) in cursors.iter().zip(hashes.states()).enumerate() {
        let footer = archive.footer();
        let end = edge(i + 1);
        let right = if end == len {
            // The last segment, or one behind it, that is not there.
            edge(i) == end && end > 0 || finish(reached, cursor.tail(), end) == footer.sha256
        } else {
            reached == state(archive, end)?
        };
        if !right {
            return Err(Error::corrupt("the whole file does not match its SHA-256"));
        }
    }
    Ok(())
}

/// SHA-256's state at `at`, a multiple of [`SEGMENT`]; at the original's end there is none, and any will do.
fn state(archive: &Archive, at: u64) -> Result<State> {
    match at / SEGMENT {
        0 => Ok(INITIAL),
        _ if at == archive.footer().original_len => Ok(INITIAL),
        i => archive.index().sha256_state((i - 1) as usize),
    }
}

/// Goes through a range of the original, chunk by chunk.
#[derive(Default)]
struct Cursor {
    /// What is not yet decoded.
    range: Range<u64>,
    id: usize,
    /// Decoded bytes, of which those before `start` were taken and those from `end` on are not of the range.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    scratch: Scratch,
}

impl Cursor {
    fn seek(&mut self, archive: &Archive, range: Range<u64>) -> Result<()> {
        self.id = archive.index().find(range.start)?;
        self.range = range;
        (self.start, self.end) = (0, 0);
        Ok(())
    }

    /// The whole blocks that are decoded and not yet taken.
    fn ready(&self) -> &[u8] {
        let bytes = &self.buffer[self.start..self.end];
        &bytes[..bytes.len() / BLOCK * BLOCK]
    }

    /// What follows the last whole block, at the range's end.
    fn tail(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// `n` bytes were taken, or as many as were ready.
    fn advance(&mut self, n: usize) {
        self.start += n.min(self.ready().len());
    }

    /// Decode until a block is ready or the range ends, and give what is decoded to `sink`.
    fn refill(
        &mut self,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        sink: &mut dyn FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        while self.ready().is_empty() && !self.range.is_empty() {
            // What is left of a block, which goes on with the next chunk.
            let left = self.end - self.start;
            self.buffer.copy_within(self.start..self.end, 0);
            let original = archive.index().chunk(self.id)?.original;
            let len = (original.end - original.start) as usize;
            if self.buffer.len() < left + len {
                self.buffer.resize(left + len, 0);
            }
            let chunk = &mut self.buffer[left..left + len];
            archive.read_chunk(self.id, decoder, &mut self.scratch, chunk)?;
            let skip = (self.range.start - original.start) as usize;
            let end = self.range.end.min(original.end);
            let wanted = skip..(end - original.start) as usize;
            sink(&chunk[wanted.clone()], self.range.start)?;
            // Close up: the range begins within its first chunk only.
            self.buffer.copy_within(left + wanted.start..left + wanted.end, left);
            (self.start, self.end) = (0, left + wanted.len());
            self.range.start = end;
            self.id += 1;
        }
        Ok(())
    }
}
