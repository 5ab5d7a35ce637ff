//! An index that is too large to be kept in memory: its parts are read when they are needed, and
//! each is checked again.

use super::{
    check::{CheckedPart, PART, is_sound},
    footer::Footer,
    memory::Reservation,
    record::{Chunk, RECORD, start_of},
};
use crate::{
    codec::checksum,
    error::{Error, Result},
};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Reads bytes of the index from a position to all of the slice.
pub type ReadIndex = Box<dyn Fn(u64, &mut [u8]) -> Result<()> + Send + Sync>;

/// An index whose parts are read when they are needed.
pub(super) struct Parts {
    /// Identifies the index among all of the process, now and before.
    number: u64,
    source: ReadIndex,
    parts: Vec<CheckedPart>,
    held: Reservation,
}

impl Parts {
    /// Bytes of memory that it takes, a small history of reads included.
    pub(super) fn cost(footer: &Footer) -> u64 {
        footer.index_len.div_ceil(PART as u64) * size_of::<CheckedPart>() as u64 + (16 << 10)
    }

    pub(super) fn new(source: ReadIndex, parts: Vec<CheckedPart>, held: Reservation) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), source, parts, held }
    }

    /// The chunks whose records are in the same part as that of the chunk at `offset` of the
    /// original.
    pub(super) fn chunks_near(&self, offset: u64, chunks: usize) -> Range<usize> {
        const RECORDS: usize = PART / RECORD;
        let records = &self.parts[..chunks.div_ceil(RECORDS)];
        let part = records.partition_point(|part| part.first <= offset).saturating_sub(1);
        part * RECORDS..chunks.min((part + 1) * RECORDS)
    }

    /// A part, which is as it was when the index was opened.
    pub(super) fn part(&self, number: usize, footer: &Footer) -> Result<Arc<[u8]>> {
        if let Some(part) = self.held.memory.part(self.number, number) {
            return Ok(part);
        }
        let start = number * PART;
        let mut bytes = vec![0; PART.min(footer.index_len as usize - start)];
        (self.source)(start as u64, &mut bytes)?;
        if checksum(&bytes) != self.parts[number].checksum || !self.is_sound(number, &bytes, footer)
        {
            return Err(Error::corrupt("the archive's index has changed since it was opened"));
        }
        let part: Arc<[u8]> = bytes.into();
        self.held.memory.keep(self.number, number, &part);
        Ok(part)
    }

    /// Whether the chunks of a part are within bounds. A checksum alone can be forged.
    fn is_sound(&self, number: usize, bytes: &[u8], footer: &Footer) -> bool {
        let start = number * PART;
        let chunks =
            (footer.chunk_count as usize).saturating_sub(start / RECORD).min(PART / RECORD);
        let records = &bytes.as_chunks::<RECORD>().0[..chunks];
        let starts = records.iter().map(start_of);
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
                .all(|(r, end)| Chunk::read_from(r, end).is_ok_and(|c| is_sound(&c, footer)))
    }

    /// The bytes of a range.
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
