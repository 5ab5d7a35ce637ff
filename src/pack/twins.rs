//! Stored bytes that another archive holds already: they are cloned where the file system can do
//! that (`output::clone_range`), and written otherwise.
//!
//! Nothing is taken on trust. An archive that may hold the same tensor is found by a fingerprint;
//! what is encoded is compared with its stored bytes, and only bytes that are equal are cloned. No
//! archive refers to another one: the file system counts who uses a block.

use crate::{
    codec,
    error::{Context, Result},
    output::{CLONE_BLOCK, Output, clone_range},
};
use rustix::fs::{Advice, fadvise};
use std::{fs::File, num::NonZeroU64, ops::Range, os::unix::fs::FileExt, sync::Arc};

/// Called before each write of at most a chunk, or of the index. An error ends the encoding.
pub(super) type BeforeWrite<'a> = &'a (dyn Fn() -> Result<()> + Sync);

/// Smaller tensors are not shared between archives, in bytes of the original. To be shared, stored
/// bytes start at a block, which leaves 2 KiB unused on average: at most a third of a percent of
/// such a tensor. The tensors of the smallest text encoders are larger.
pub const MIN_TWIN: u64 = 1 << 20;

/// Finds archives that may hold the same tensors.
pub trait Twins: Sync {
    /// An archive that may hold a tensor of this [`fingerprint`], and where the tensor's stored
    /// bytes start in it: at a multiple of [`CLONE_BLOCK`].
    fn find(&self, fingerprint: u64) -> Option<(File, u64)>;

    /// One of the archives that were found for this file is damaged.
    fn distrust(&self);
}

/// The fingerprint of a tensor of `len` bytes: of the checksums of its first, its middle and its
/// last chunk. See [`sampled_chunks`].
pub fn fingerprint(len: u64, checksums: [u64; 3]) -> u64 {
    let [a, b, c] = checksums;
    codec::checksum([len, a, b, c].map(u64::to_le_bytes).as_flattened())
}

/// Which chunks of a tensor of so many chunks, which are not none, the fingerprint is made of.
pub fn sampled_chunks(count: usize) -> [usize; 3] {
    [0, (count - 1) / 2, count - 1]
}

/// An archive that may hold a tensor, and how far behind its own place in the new archive.
#[derive(Clone)]
pub(super) struct Twin {
    file: Arc<File>,
    /// Where the tensor's stored bytes start there, and here.
    there: u64,
    here: u64,
}

impl Twin {
    pub(super) fn new((file, there): (File, u64), here: u64) -> Self {
        Self { file: Arc::new(file), there, here }
    }

    /// Where the bytes are that may equal those at `at` here.
    fn position(&self, at: u64) -> u64 {
        self.there + (at - self.here)
    }

    /// Whether it holds these bytes, which are to be at `at` here.
    fn holds(&self, at: u64, bytes: &[u8], scratch: &mut Vec<u8>) -> bool {
        scratch.resize(bytes.len(), 0);
        let position = self.position(at);
        let read = self.file.read_exact_at(scratch, position);
        // Packing does not fill the page cache.
        let _ =
            fadvise(&self.file, position, NonZeroU64::new(bytes.len() as u64), Advice::DontNeed);
        read.is_ok() && scratch == bytes
    }
}

/// Encoded bytes, and where in the archive they belong.
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    /// An archive that may hold the same bytes.
    pub(super) twin: Option<Twin>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// Write it without those bytes whose place is within `shared`.
    fn write(&self, output: &Output, shared: &Range<u64>, before: BeforeWrite<'_>) -> Result<()> {
        for part in [self.at..self.end().min(shared.start), self.at.max(shared.end)..self.end()] {
            if !part.is_empty() {
                before()?;
                let bytes = &self.bytes[(part.start - self.at) as usize..];
                let bytes = &bytes[..(part.end - part.start) as usize];
                output.file().write_all_at(bytes, part.start).about_path(&output.path())?;
            }
        }
        Ok(())
    }
}

/// Put pieces, which are in order, into the archive. Returns how many bytes were cloned.
pub(super) fn put(
    output: &Output,
    pieces: impl IntoIterator<Item = Piece>,
    before: BeforeWrite<'_>,
) -> Result<u64> {
    let mut scratch = Vec::new();
    let mut check = |mut piece: Piece| {
        piece.twin = piece.twin.filter(|t| t.holds(piece.at, &piece.bytes, &mut scratch));
        piece
    };
    let pieces: Vec<Piece> = pieces.into_iter().map(&mut check).collect();
    let mut cloned = 0;
    for run in pieces.chunk_by(follows) {
        let shared = clone_run(output, run);
        cloned += shared.end - shared.start;
        run.iter().try_for_each(|piece| piece.write(output, &shared, before))?;
    }
    Ok(cloned)
}

/// Whether two pieces are neighbours, here and in the same other archive.
fn follows(a: &Piece, b: &Piece) -> bool {
    let same = |a: &Twin, b: &Twin| Arc::ptr_eq(&a.file, &b.file) && a.here == b.here;
    a.end() == b.at && a.twin.as_ref().zip(b.twin.as_ref()).is_some_and(|(a, b)| same(a, b))
}

/// Clone the whole blocks of neighbouring pieces; returns what was cloned.
fn clone_run(output: &Output, run: &[Piece]) -> Range<u64> {
    let start = run[0].at.next_multiple_of(CLONE_BLOCK);
    let end = run[run.len() - 1].end() / CLONE_BLOCK * CLONE_BLOCK;
    let Some(twin) = run[0].twin.as_ref().filter(|_| start < end) else { return 0..0 };
    let cloned = clone_range(&twin.file, twin.position(start), output.file(), start, end - start);
    match cloned {
        Ok(()) => start..end,
        // It is on another file system, say.
        Err(e) => {
            log::debug!("equal bytes are not shared: {e}");
            0..0
        }
    }
}
