//! Whole files: verify or unpack an archive in parallel, with the SHA-256 of the original checked.
//!
//! SHA-256 is sequential, but the index holds its state at the start of each segment of the
//! original. Segments are therefore decoded and hashed independently: each must reach the state at
//! which the next one starts.

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

/// Archives with larger chunks are decoded two segments at a time, to bound the memory.
const LARGE_CHUNK: usize = 512 << 10;

/// Decode everything, and verify all checksums and the SHA-256 of the original. `progress` is
/// called with each number of newly decoded bytes. Each thread of the current rayon pool needs
/// memory for sixteen chunks, or for two if chunks are large.
///
/// # Errors
/// Io; corruption, naming the damaged chunk.
pub fn verify(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    decode_all(archive, decoder, progress, &|_, _| Ok(()))
}

/// Like [`verify`], but without the SHA-256 of the original.
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

/// Write the original to the empty file `out`, which errors call `path`. Blocks of zeros become
/// holes. After an error, the content of `out` must not be used.
///
/// # Errors
/// As [`verify`]; Io, if `out` cannot be written.
pub fn unpack(
    archive: &Archive,
    out: &File,
    path: &Path,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    out.set_len(archive.footer().original_len).about_path(path)?;
    let write = |bytes: &[u8], at: u64| write_sparse(out, bytes, at).about_path(path);
    decode_all(archive, decoder, progress, &write)
}

/// Decode and verify everything. `sink` is called with parts of the original and their offsets, in
/// any order. After an error, they must not be used.
fn decode_all(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
    sink: &(dyn Fn(&[u8], u64) -> Result<()> + Sync),
) -> Result<()> {
    archive.check_start()?;
    let len = archive.footer().original_len;
    // An empty file counts as one segment, so that its hash is checked, too.
    let segments = len.div_ceil(SEGMENT).max(1);
    let threads = rayon::current_num_threads();
    let at_once = match SegmentHasher::at_once() as u64 {
        // Also two if there are few segments, so that some are left for other threads.
        n if archive.footer().max_chunk as usize > LARGE_CHUNK || segments <= n => 2,
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
            // After an error, the other threads stop, too.
            decode_segments(archive, first, &mut cursors, decoder, progress, sink)
                .inspect_err(|_| next.store(segments, Ordering::Relaxed))?;
        }
    })
}

/// Decode the segments from `first` on, one with each cursor, and hash them in parallel lanes.
fn decode_segments(
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
        // Hash as many bytes as all cursors have ready, except those at their end.
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
        let matches = if end == len {
            // The last segment; or an empty one after it, which has nothing to check.
            edge(i) == end && end > 0 || finish(reached, cursor.tail(), end) == footer.sha256
        } else {
            reached == state(archive, end)?
        };
        if !matches {
            return Err(Error::corrupt("the whole file does not match its SHA-256"));
        }
    }
    Ok(())
}

/// The state of SHA-256 at `at`, a multiple of [`SEGMENT`], from the index. At the end of the
/// original, where no bytes follow, any state will do.
fn state(archive: &Archive, at: u64) -> Result<State> {
    match at / SEGMENT {
        0 => Ok(INITIAL),
        _ if at == archive.footer().original_len => Ok(INITIAL),
        i => archive.index().sha256_state((i - 1) as usize),
    }
}

/// Decodes a range of the original chunk by chunk.
#[derive(Default)]
struct Cursor {
    /// The part that is not yet decoded.
    range: Range<u64>,
    /// The next chunk.
    id: usize,
    /// Decoded bytes. Those from `start` to `end` are not yet consumed.
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

    /// The complete blocks that are decoded and not yet consumed.
    fn ready(&self) -> &[u8] {
        let bytes = &self.buffer[self.start..self.end];
        &bytes[..bytes.len() / BLOCK * BLOCK]
    }

    /// At the end of the range: the incomplete last block.
    fn tail(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Consume `n` bytes, or fewer if fewer are ready.
    fn advance(&mut self, n: usize) {
        self.start += n.min(self.ready().len());
    }

    /// Decode until a block is ready or the range ends. Decoded bytes are passed to `sink`.
    fn refill(
        &mut self,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        sink: &mut dyn FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        while self.ready().is_empty() && !self.range.is_empty() {
            // The start of a block that continues in the next chunk.
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
            // Remove the bytes before the range. Only in its first chunk are there any.
            self.buffer.copy_within(left + wanted.start..left + wanted.end, left);
            (self.start, self.end) = (0, left + wanted.len());
            self.range.start = end;
            self.id += 1;
        }
        Ok(())
    }
}
