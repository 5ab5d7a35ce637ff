//! Whole files back: verify and unpack, in parallel, each stretch of the file on its own.

use super::archive::Archive;
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, Result},
    output::{Attributes, Output},
    sha256::{INITIAL, SEGMENT, State, Stretch},
};
use rayon::prelude::*;
use std::{
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Decode everything and check every checksum and the original's SHA-256. `progress` is told of decoded bytes.
/// Each thread of the current rayon pool takes the memory of two chunks.
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
    // An empty file is one empty stretch: its hash is checked all the same. Two stretches go together.
    let pairs = archive.footer().original_len.div_ceil(2 * SEGMENT).max(1);
    let next = AtomicU64::new(0);
    let workers = (0..rayon::current_num_threads()).into_par_iter().with_max_len(1);
    workers.try_for_each(|_| {
        let mut cursors = [Cursor::default(), Cursor::default()];
        loop {
            let pair = next.fetch_add(1, Ordering::Relaxed);
            if pair >= pairs {
                return Ok(());
            }
            // The other workers have nothing to look for once one has failed.
            two_stretches(archive, 2 * pair, &mut cursors, decoder, progress, sink)
                .inspect_err(|_| next.store(pairs, Ordering::Relaxed))?;
        }
    })
}

/// Segments `first` and `first + 1` of the original.
fn two_stretches(
    archive: &Archive,
    first: u64,
    [a, b]: &mut [Cursor; 2],
    decoder: &dyn ChunkDecoder,
    progress: &(dyn Fn(u64) + Sync),
    sink: &(dyn Fn(&[u8], u64) -> Result<()> + Sync),
) -> Result<()> {
    let [start, middle, end] =
        [first, first + 1, first + 2].map(|i| archive.footer().original_len.min(i * SEGMENT));
    a.seek(archive, start..middle);
    b.seek(archive, middle..end);
    let mut hashes = [start, middle].map(|at| Stretch::new(state(archive, at)));
    while !(a.range.is_empty() && b.range.is_empty()) {
        let at = [a.range.start, b.range.start];
        let bytes = [a.next(archive, decoder)?, b.next(archive, decoder)?];
        Stretch::update_two(&mut hashes, bytes);
        for (bytes, at) in bytes.into_iter().zip(at).filter(|(bytes, _)| !bytes.is_empty()) {
            sink(bytes, at)?;
            progress(bytes.len() as u64);
        }
    }
    let [a, b] = hashes;
    arrived(archive, a, middle)?;
    if end > middle { arrived(archive, b, end) } else { Ok(()) }
}

/// SHA-256's state at `at`, a multiple of [`SEGMENT`]; at the original's end there is none, and any will do.
fn state(archive: &Archive, at: u64) -> State {
    match at / SEGMENT {
        0 => INITIAL,
        _ if at == archive.footer().original_len => INITIAL,
        i => archive.index().sha256_state((i - 1) as usize),
    }
}

/// Check that a stretch led to the next one's state, or to the hash.
fn arrived(archive: &Archive, stretch: Stretch, end: u64) -> Result<()> {
    let footer = archive.footer();
    let right = if end == footer.original_len {
        stretch.finish(end) == footer.sha256
    } else {
        stretch.state() == state(archive, end)
    };
    right.then_some(()).ok_or_else(|| Error::corrupt("the whole file does not match its SHA-256"))
}

/// Goes through a range of the original, chunk by chunk.
#[derive(Default)]
struct Cursor {
    range: Range<u64>,
    id: usize,
    chunk: Vec<u8>,
    scratch: Vec<u8>,
}

impl Cursor {
    fn seek(&mut self, archive: &Archive, range: Range<u64>) {
        self.id = archive.index().find(range.start);
        self.range = range;
    }

    /// The next bytes of the range, as far as one chunk has them; none at its end.
    fn next(&mut self, archive: &Archive, decoder: &dyn ChunkDecoder) -> Result<&[u8]> {
        if self.range.is_empty() {
            return Ok(&[]);
        }
        let original = archive.index().chunk(self.id).original;
        self.chunk.resize((original.end - original.start) as usize, 0);
        archive.read_chunk(self.id, decoder, &mut self.scratch, &mut self.chunk)?;
        let end = self.range.end.min(original.end);
        let bytes =
            &self.chunk[(self.range.start - original.start) as usize..(end - original.start) as usize];
        self.range.start = end;
        self.id += 1;
        Ok(bytes)
    }
}
