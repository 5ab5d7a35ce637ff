//! Checks an index, part by part.

use super::{
    HEADER_LEN,
    footer::Footer,
    record::{Chunk, NO_MODEL, RECORD, start_of},
};
use crate::{
    codec::{Coding, checksum},
    error::{Error, Result},
};
use std::{hash::Hasher, ops::Range};
use twox_hash::XxHash3_64;

/// Bytes of a part. No record, state or model end crosses a part boundary.
pub(super) const PART: usize = 64 << 10;

/// What is remembered about a checked part.
pub(super) struct CheckedPart {
    pub checksum: u64,
    /// Where the chunk of its first record starts in the original.
    pub first: u64,
}

/// Whether a chunk is within the bounds of its archive.
pub(super) fn is_sound(c: &Chunk, footer: &Footer) -> bool {
    c.original.end > c.original.start
        && c.original.end - c.original.start <= footer.max_chunk.into()
        && u64::from(c.stored_len) <= c.original.end - c.original.start
        && c.stored_at >= HEADER_LEN
        && c.stored_at
            .checked_add(c.stored_len.into())
            .is_some_and(|end| end <= footer.index_offset)
        && (c.model == NO_MODEL) == matches!(c.coding, Coding::Raw | Coding::Zstd)
        && (c.coding != Coding::Delta || footer.base_count > 0)
        && (c.model == NO_MODEL || c.model < footer.model_count)
}

/// Checks an index whose parts are fed in order.
pub(super) struct Checker<'f> {
    footer: &'f Footer,
    hash: XxHash3_64,
    /// Bytes fed so far.
    at: usize,
    /// The last record. Its chunk ends where that of the next record starts.
    last: Option<[u8; RECORD]>,
    chunks: usize,
    model_end: u32,
    problem: Option<Error>,
    parts: Vec<CheckedPart>,
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

    /// Feeds the next [`PART`] bytes, or fewer at the end.
    pub(super) fn feed(&mut self, part: &[u8]) {
        self.hash.write(part);
        let first = part.first_chunk().map_or(0, start_of);
        self.parts.push(CheckedPart { checksum: checksum(part), first });
        let start = self.at;
        self.at += part.len();
        let within = |range: Range<usize>| {
            let clip = |at: usize| at.clamp(start, start + part.len()) - start;
            &part[clip(range.start)..clip(range.end)]
        };
        let models_at = self.footer.tables_len() as usize;
        let ends_at = models_at - 4 * self.footer.model_count as usize;
        for record in within(0..self.footer.chunk_count as usize * RECORD).as_chunks().0 {
            self.record_ends(start_of(record));
            self.last = Some(*record);
        }
        for &end in within(ends_at..models_at).as_chunks().0 {
            let end = u32::from_le_bytes(end);
            if end < self.model_end {
                self.report(|| Error::corrupt("the archive's models are out of bounds"));
            }
            self.model_end = end;
        }
    }

    /// Checks the chunk of the last record, which ends at `end`.
    fn record_ends(&mut self, end: u64) {
        let Some(last) = self.last.take() else {
            if end != 0 {
                self.report(|| Error::corrupt("the archive's chunks do not cover the original"));
            }
            return;
        };
        let id = self.chunks;
        self.chunks += 1;
        match Chunk::read_from(&last, end) {
            Ok(chunk) if is_sound(&chunk, self.footer) => {}
            Ok(_) => self.report(|| {
                Error::corrupt(format!("chunk {id} of the archive's index is out of bounds"))
            }),
            Err(e) => self.report(|| e),
        }
    }

    /// Remembers a problem; the first one counts.
    fn report(&mut self, problem: impl FnOnce() -> Error) {
        self.problem.get_or_insert_with(problem);
    }

    /// The parts, if the index is valid. An index that does not match its checksum is reported as
    /// such, whatever else is wrong.
    pub(super) fn finish(mut self) -> Result<Vec<CheckedPart>> {
        let footer = self.footer;
        if self.at as u64 != footer.index_len || self.hash.finish() != footer.index_checksum {
            return Err(Error::corrupt("the archive's index does not match its checksum"));
        }
        // An empty original has no chunk that ends there.
        self.record_ends(footer.original_len);
        if u64::from(self.model_end) != footer.models_end() - footer.tables_len() {
            self.report(|| {
                Error::corrupt("the archive's index is longer or shorter than its contents")
            });
        }
        self.problem.map_or(Ok(self.parts), Err)
    }
}
