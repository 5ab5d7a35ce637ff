//! An index that is too large to be kept: checked as it is read, and read again in parts, each checked again.

use super::{
    Chunk, Footer, HEADER_LEN, NO_MODEL,
    index::{RECORD, record},
};
use crate::{
    codec::{Coding, checksum},
    error::{Error, ErrorKind, Result},
};
use lru::LruCache;
use std::{
    hash::Hasher,
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use twox_hash::XxHash3_64;

/// Bytes of a part. No record, state or model end is in two.
pub(super) const PART: usize = 64 << 10;
/// How many parts are kept, of all indexes that share a memory.
const KEPT_PARTS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Reads bytes of the index from a place in it on, to all of the slice.
pub type ReadIndex = Box<dyn Fn(u64, &mut [u8]) -> Result<()> + Send + Sync>;

/// The memory that the open indexes of a process, or of a mount, take together.
pub struct IndexMemory {
    limit: u64,
    used: AtomicU64,
    /// The parts last used.
    parts: Mutex<Kept>,
}

/// Parts, by index and number.
type Kept = LruCache<(u64, usize), Arc<[u8]>>;

impl Default for IndexMemory {
    /// Enough for models of a terabyte.
    fn default() -> Self {
        Self::new(128 << 20)
    }
}

impl IndexMemory {
    /// Bytes that parts take, beside what is reserved.
    pub const PARTS: u64 = (KEPT_PARTS.get() * PART) as u64;

    /// Memory of `limit` bytes, and [`IndexMemory::PARTS`].
    pub fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0), parts: Mutex::new(LruCache::new(KEPT_PARTS)) }
    }

    /// Bytes that are reserved.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Room for an index that stays in memory. An eighth is left to those that do not.
    pub(super) fn reserve_whole(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.reserve_below(bytes, self.limit - self.limit / 8)
    }

    /// Room for what an index takes that is read in parts.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        let full = || {
            let why = "the open archives' indexes take all the memory they may; a larger cache allows more";
            Error::new(ErrorKind::Io, why)
        };
        self.reserve_below(bytes, self.limit).ok_or_else(full)
    }

    fn reserve_below(self: &Arc<Self>, bytes: u64, limit: u64) -> Option<Reservation> {
        let add = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Reservation { memory: Arc::clone(self), bytes })
    }
}

/// Bytes of an [`IndexMemory`], given back when dropped.
pub(super) struct Reservation {
    memory: Arc<IndexMemory>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What is known of a part.
pub(super) struct Part {
    checksum: u64,
    /// Where the chunk of its first record starts in the original.
    first: u64,
}

/// An index of which parts are read when they are needed.
pub(super) struct Parts {
    /// No other index has or had it.
    number: u64,
    source: ReadIndex,
    parts: Vec<Part>,
    held: Reservation,
}

impl Parts {
    /// Bytes of memory that it takes: a small history of reads included.
    pub(super) fn cost(footer: &Footer) -> u64 {
        footer.index_len.div_ceil(PART as u64) * size_of::<Part>() as u64 + (16 << 10)
    }

    pub(super) fn new(source: ReadIndex, parts: Vec<Part>, held: Reservation) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), source, parts, held }
    }

    /// The chunks of the part that has the record of the one at `offset` of the original.
    pub(super) fn chunks_near(&self, offset: u64, chunks: usize) -> Range<usize> {
        const RECORDS: usize = PART / RECORD;
        let records = &self.parts[..chunks.div_ceil(RECORDS)];
        let part = records.partition_point(|part| part.first <= offset).saturating_sub(1);
        part * RECORDS..chunks.min((part + 1) * RECORDS)
    }

    /// A part, as it was when the index was opened.
    pub(super) fn part(&self, number: usize, footer: &Footer) -> Result<Arc<[u8]>> {
        let key = (self.number, number);
        let kept = || self.held.memory.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = kept().get(&key) {
            return Ok(Arc::clone(part));
        }
        let start = number * PART;
        let mut bytes = vec![0; PART.min(footer.index_len as usize - start)];
        (self.source)(start as u64, &mut bytes)?;
        if checksum(&bytes) != self.parts[number].checksum || !self.is_sound(number, &bytes, footer)
        {
            return Err(Error::corrupt("the archive's index has changed since it was opened"));
        }
        let part: Arc<[u8]> = bytes.into();
        kept().put(key, Arc::clone(&part));
        Ok(part)
    }

    /// Whether what a part says of chunks is within bounds: a checksum can be met on purpose.
    fn is_sound(&self, number: usize, bytes: &[u8], footer: &Footer) -> bool {
        let start = number * PART;
        let chunks =
            (footer.chunk_count as usize).saturating_sub(start / RECORD).min(PART / RECORD);
        let records = &bytes.as_chunks::<RECORD>().0[..chunks];
        let starts = records.iter().map(first_word);
        let behind = match self.parts.get(number + 1) {
            Some(next) if start / RECORD + chunks < footer.chunk_count as usize => next.first,
            _ => footer.original_len,
        };
        let ends = starts.clone().skip(1).chain([behind]);
        let first = starts.clone().next().is_none_or(|first| first == self.parts[number].first);
        first
            && records
                .iter()
                .zip(ends)
                .all(|(r, end)| record(r, end).is_ok_and(|c| is_sound(&c, footer)))
    }

    /// A range of bytes.
    pub(super) fn range(&self, range: Range<usize>, footer: &Footer) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(range.len());
        let mut at = range.start;
        while at < range.end {
            let part = self.part(at / PART, footer)?;
            let part = &part[at % PART..];
            let n = part.len().min(range.end - at);
            bytes.extend_from_slice(&part[..n]);
            at += n;
        }
        Ok(bytes)
    }
}

/// Where a record's chunk starts in the original.
fn first_word(record: &[u8; RECORD]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| record[i]))
}

/// Whether a chunk is within the bounds of its archive.
fn is_sound(c: &Chunk, footer: &Footer) -> bool {
    c.original.end > c.original.start
        && c.original.end - c.original.start <= footer.max_chunk.into()
        && u64::from(c.stored_len) <= c.original.end - c.original.start
        && c.stored_at >= HEADER_LEN
        && c.stored_at
            .checked_add(c.stored_len.into())
            .is_some_and(|end| end <= footer.index_offset)
        && (c.model == NO_MODEL) == (c.coding != Coding::Planes)
        && (c.model == NO_MODEL || c.model < footer.model_count)
}

/// Checks an index that passes by, part after part.
pub(super) struct Checker<'f> {
    footer: &'f Footer,
    hash: XxHash3_64,
    /// Bytes that have passed.
    at: usize,
    /// The last record, whose chunk ends where that of the next one starts.
    last: Option<[u8; RECORD]>,
    chunks: usize,
    model_end: u32,
    problem: Option<Error>,
    parts: Vec<Part>,
}

impl<'f> Checker<'f> {
    pub(super) fn new(footer: &'f Footer) -> Self {
        Self {
            footer,
            hash: XxHash3_64::new(),
            at: 0,
            last: None,
            chunks: 0,
            model_end: 0,
            problem: None,
            parts: Vec::new(),
        }
    }

    /// The next [`PART`] bytes, or fewer at the end.
    pub(super) fn feed(&mut self, part: &[u8]) {
        self.hash.write(part);
        let first = part.first_chunk().map_or(0, first_word);
        self.parts.push(Part { checksum: checksum(part), first });
        let start = self.at;
        self.at += part.len();
        let within = |range: Range<usize>| {
            let clip = |at: usize| at.clamp(start, start + part.len()) - start;
            &part[clip(range.start)..clip(range.end)]
        };
        let models_at = self.footer.tables_len() as usize;
        let ends_at = models_at - 4 * self.footer.model_count as usize;
        for record in within(0..self.footer.chunk_count as usize * RECORD).as_chunks().0 {
            self.record_ends(first_word(record));
            self.last = Some(*record);
        }
        for &end in within(ends_at..models_at).as_chunks().0 {
            let end = u32::from_le_bytes(end);
            if end < self.model_end {
                self.wrong(|| Error::corrupt("the archive's models are out of bounds"));
            }
            self.model_end = end;
        }
    }

    /// The chunk of the last record ends here.
    fn record_ends(&mut self, end: u64) {
        let Some(last) = self.last.take() else {
            if end != 0 {
                self.wrong(|| Error::corrupt("the archive's chunks do not cover the original"));
            }
            return;
        };
        let id = self.chunks;
        self.chunks += 1;
        match record(&last, end) {
            Ok(chunk) if is_sound(&chunk, self.footer) => {}
            Ok(_) => self.wrong(|| {
                Error::corrupt(format!("chunk {id} of the archive's index is out of bounds"))
            }),
            Err(e) => self.wrong(|| e),
        }
    }

    /// The first problem counts.
    fn wrong(&mut self, problem: impl FnOnce() -> Error) {
        self.problem.get_or_insert_with(problem);
    }

    /// The parts, if all is well. What does not match its checksum is wrong in no other way.
    pub(super) fn finish(mut self) -> Result<Vec<Part>> {
        let footer = self.footer;
        if self.at as u64 != footer.index_len || self.hash.finish() != footer.index_checksum {
            return Err(Error::corrupt("the archive's index does not match its checksum"));
        }
        // An empty original has no chunk that could end there.
        self.record_ends(footer.original_len);
        if u64::from(self.model_end) != footer.index_len - footer.tables_len() {
            self.wrong(|| Error::corrupt("the archive's index has trailing bytes or lacks some"));
        }
        self.problem.map_or(Ok(self.parts), Err)
    }
}
