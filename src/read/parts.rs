//! Any bytes of the original: which chunks hold them, which of these are read together, and where
//! the decoded bytes go.

use super::{
    archive::{Archive, IndexedChunk, scratch_len, stored_range},
    scratch::Scratch,
};
use crate::{
    codec::ChunkDecoder,
    error::{Error, Result},
    format::Chunk,
};
use std::{cell::Cell, ops::Range};

/// Most chunks that are read together.
const MAX_RUN_CHUNKS: usize = 512;

/// Most decoded bytes of such a run, unless it is a single chunk.
const MAX_RUN_BYTES: usize = 512 << 10;

/// A part of the original to read, and the memory for it.
#[derive(Debug)]
pub struct Part<'m> {
    /// Where it starts, in bytes of the original.
    pub offset: u64,
    /// Where it goes, and its length.
    pub target: &'m mut [u8],
}

/// What is wanted of a chunk.
struct Wanted<'m> {
    chunk: IndexedChunk,
    /// Decoded bytes before those that are wanted.
    skip: usize,
    target: &'m mut [u8],
}

impl Wanted<'_> {
    /// Whether it can be read together with `last`, which precedes it.
    fn follows(&self, last: &Chunk) -> bool {
        last.stored_at + u64::from(last.stored_len) == self.chunk.1.stored_at
    }
}

/// Chunks whose stored bytes are adjacent.
#[derive(Default)]
pub(super) struct Run<'m>(Vec<Wanted<'m>>);

impl Run<'_> {
    /// Where its stored bytes are.
    pub(super) fn stored(&self) -> Range<u64> {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return 0..0 };
        stored_range(&first.chunk.1, &last.chunk.1)
    }
}

/// Cuts parts of the original into runs of chunks, in the order of the archive.
pub(super) struct Plan<'a, 'm> {
    archive: &'a Archive,
    /// The parts that are not begun, the first one last.
    parts: Vec<Part<'m>>,
    /// What is left of the current part, and the number of its next chunk.
    current: Option<(Part<'m>, usize)>,
    /// What did not fit into the last run.
    left: Option<Wanted<'m>>,
}

impl<'a, 'm> Plan<'a, 'm> {
    /// # Errors
    /// Invalid argument, if a part ends beyond the original.
    pub(super) fn new(archive: &'a Archive, mut parts: Vec<Part<'m>>) -> Result<Self> {
        let len = archive.footer().original_len;
        let fits = |part: &Part<'_>| {
            part.offset.checked_add(part.target.len() as u64).is_some_and(|end| end <= len)
        };
        if !parts.iter().all(fits) {
            return Err(Error::invalid("a part ends beyond the end of the original"));
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.offset));
        Ok(Self { archive, parts, current: None, left: None })
    }

    /// The next run; `None` at the end.
    ///
    /// # Errors
    /// Io, if a part of the index cannot be read.
    pub(super) fn next_run(&mut self) -> Result<Option<Run<'m>>> {
        let Some(first) = self.left.take().map_or_else(|| self.next_wanted(), |w| Ok(Some(w)))?
        else {
            return Ok(None);
        };
        let mut bytes = first.chunk.1.len();
        let mut last = first.chunk.1.clone();
        let mut run = vec![first];
        while let Some(wanted) = self.next_wanted()? {
            bytes += wanted.chunk.1.len();
            if !wanted.follows(&last) || bytes > MAX_RUN_BYTES || run.len() == MAX_RUN_CHUNKS {
                self.left = Some(wanted);
                break;
            }
            last = wanted.chunk.1.clone();
            run.push(wanted);
        }
        Ok(Some(Run(run)))
    }

    fn next_wanted(&mut self) -> Result<Option<Wanted<'m>>> {
        while self.current.as_ref().is_none_or(|(part, _)| part.target.is_empty()) {
            let Some(part) = self.parts.pop() else { return Ok(None) };
            let id = self.archive.index().find(part.offset)?;
            self.current = Some((part, id));
        }
        let Some((part, id)) = &mut self.current else { return Ok(None) };
        let chunk = self.archive.index().chunk(*id)?;
        let skip = (part.offset - chunk.original.start) as usize;
        let here = part.target.len().min(chunk.len() - skip);
        let (target, rest) = std::mem::take(&mut part.target).split_at_mut(here);
        let wanted = Wanted { chunk: (*id, chunk), skip, target };
        part.target = rest;
        part.offset += here as u64;
        *id += 1;
        Ok(Some(wanted))
    }
}

/// Memory for runs while they are decoded, to be reused.
#[derive(Default)]
pub(super) struct Memory {
    stored: Scratch,
    decoded: Vec<u8>,
}

impl Memory {
    /// Do something with memory that this thread keeps: mapping some takes longer than decoding a
    /// small tensor.
    pub(super) fn with_own<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        thread_local! {
            static OWN: Cell<Memory> = Cell::default();
        }
        let mut memory = OWN.take();
        let done = work(&mut memory);
        OWN.set(memory);
        done
    }
}

/// What decodes runs.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) archive: &'a Archive,
    pub(super) decoder: &'a dyn ChunkDecoder,
}

impl Reader<'_> {
    /// Read, decode and verify the chunks of a run.
    ///
    /// # Errors
    /// As [`Archive::read_chunk`].
    pub(super) fn read(self, run: Run<'_>, memory: &mut Memory) -> Result<()> {
        self.read_with(run, &mut memory.stored, &mut memory.decoded)
    }

    /// The same, with memory for the stored bytes, and for chunks of which only a part is wanted.
    fn read_with(self, run: Run<'_>, scratch: &mut Scratch, decoded: &mut Vec<u8>) -> Result<()> {
        let (Some(first), Some(last)) = (run.0.first(), run.0.last()) else { return Ok(()) };
        let start = first.chunk.1.stored_at;
        // If the run cannot be read, its chunks are read one by one to name the bad one.
        let stored = self.archive.stored(&first.chunk.1, &last.chunk.1, scratch).ok();
        let mut one = Scratch::default();
        for Wanted { chunk, skip, target } in run.0 {
            let whole = target.len() == chunk.1.len();
            if !whole && decoded.len() < chunk.1.len() {
                decoded.resize(chunk.1.len(), 0);
            }
            let out = if whole { &mut *target } else { &mut decoded[..chunk.1.len()] };
            match stored {
                Some(stored) => {
                    let from = (chunk.1.stored_at - start) as usize;
                    let stored = &stored[from..from + chunk.1.stored_len as usize];
                    self.archive.decode_chunk(&chunk, stored, self.decoder, out)?;
                }
                None => self.archive.read_indexed(&chunk, self.decoder, &mut one, out)?,
            }
            if !whole {
                target.copy_from_slice(&decoded[skip..skip + target.len()]);
            }
        }
        Ok(())
    }
}

impl Archive {
    /// Read bytes of the original at `offset` into `out`, up to the end of the original. Returns
    /// how many were read.
    ///
    /// # Errors
    /// As [`Archive::read_chunk`]. The content of `out` must not be used then.
    pub fn read_at(
        &self,
        offset: u64,
        out: &mut [u8],
        decoder: &dyn ChunkDecoder,
    ) -> Result<usize> {
        Memory::with_own(|Memory { stored, decoded }| {
            self.read_runs(offset, out, decoder, stored, decoded)
        })
    }

    /// Like [`Archive::read_with`], but all of `out` must be within the original.
    pub(crate) fn read_exactly(
        &self,
        offset: u64,
        out: &mut [u8],
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
    ) -> Result<()> {
        match self.read_with(offset, out, decoder, scratch)? {
            n if n == out.len() => Ok(()),
            _ => Err(Error::truncated("the original ends before the bytes that are needed")),
        }
    }

    /// Like [`Archive::read_at`], with scratch memory to reuse.
    pub(crate) fn read_with(
        &self,
        offset: u64,
        out: &mut [u8],
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
    ) -> Result<usize> {
        self.read_runs(offset, out, decoder, scratch, &mut Vec::new())
    }

    fn read_runs(
        &self,
        offset: u64,
        out: &mut [u8],
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
        decoded: &mut Vec<u8>,
    ) -> Result<usize> {
        let left = self.footer().original_len.saturating_sub(offset);
        let len = left.min(out.len() as u64) as usize;
        if len == 0 {
            return Ok(0);
        }
        let mut plan = Plan::new(self, vec![Part { offset, target: &mut out[..len] }])?;
        while let Some(run) = plan.next_run()? {
            Reader { archive: self, decoder }.read_with(run, scratch, decoded)?;
        }
        Ok(len)
    }

    /// Most bytes of scratch memory that [`Archive::read_with`] needs.
    pub(crate) fn scratch_len(&self) -> usize {
        scratch_len(MAX_RUN_BYTES.max(self.footer().max_chunk as usize))
    }
}
