//! The index: a table of chunks, read in place, and the models they share.

use super::{
    Footer,
    parts::{Checker, IndexMemory, PART, Parts, ReadIndex, Reservation},
};
use crate::{
    codec::{Coding, EntropyModel, checksum, model::MAX_WIRE_LEN},
    error::{Error, Result},
    sha256::{self, State},
};
use std::{ops::Range, sync::Arc};

/// Bytes of a chunk's record.
pub(super) const RECORD: usize = 32;
/// Bytes that a reader may keep beside the record of a chunk, of the history of its reads.
const HISTORY: u64 = 8;
/// The model number of a chunk that needs none.
pub const NO_MODEL: u32 = 0xff_ffff;

/// One chunk, as the index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The bytes of the original it holds.
    pub original: Range<u64>,
    /// Where its stored bytes start.
    pub stored_at: u64,
    /// How many stored bytes.
    pub stored_len: u32,
    /// How they are coded.
    pub coding: Coding,
    /// The number of its model, or [`NO_MODEL`].
    pub model: u32,
    /// Checksum of the decoded bytes.
    pub checksum: u64,
}

impl Chunk {
    /// Decoded bytes.
    pub fn len(&self) -> usize {
        (self.original.end - self.original.start) as usize
    }

    /// Never: a chunk holds at least a byte.
    pub fn is_empty(&self) -> bool {
        self.original.is_empty()
    }
}

/// A checked index: all of it in memory, or read again in parts where that would take too much.
pub struct Index {
    bytes: Bytes,
    footer: Footer,
    /// Where the model ends start.
    ends_at: usize,
    /// What it takes of a memory, if it is whole.
    _held: Option<Reservation>,
}

enum Bytes {
    Whole(Vec<u8>),
    Parts(Parts),
}

impl Index {
    /// Check the index that `footer` describes, and keep it in memory.
    ///
    /// # Errors
    /// Corruption, where the checksum, the order of chunks or any bound does not hold; compatibility, where a
    /// coding is unknown.
    pub fn new(bytes: Vec<u8>, footer: &Footer) -> Result<Self> {
        let mut checker = Checker::new(footer);
        bytes.chunks(PART).for_each(|part| checker.feed(part));
        checker.finish()?;
        Ok(Self::checked(Bytes::Whole(bytes), None, footer))
    }

    /// Read and check the index that `footer` describes. It stays in memory if `memory` has room for it; otherwise it is
    /// read in parts, and each part is checked again whenever it is read.
    ///
    /// # Errors
    /// As [`Index::new`], and of `source`; Io, where `memory` has no room even for what reading in parts takes.
    pub fn read(source: ReadIndex, footer: &Footer, memory: &Arc<IndexMemory>) -> Result<Self> {
        let mut checker = Checker::new(footer);
        let len = footer.index_len;
        let Some(held) =
            memory.reserve_whole(len + HISTORY * u64::from(footer.chunk_count.min(1 << 16)))
        else {
            let held = memory.reserve(Parts::cost(footer))?;
            let mut part = Vec::new();
            for at in (0..len).step_by(PART) {
                part.resize(PART.min((len - at) as usize), 0);
                source(at, &mut part)?;
                checker.feed(&part);
            }
            let parts = Parts::new(source, checker.finish()?, held);
            return Ok(Self::checked(Bytes::Parts(parts), None, footer));
        };
        let mut bytes = vec![0; len as usize];
        for (at, part) in (0..).step_by(PART).zip(bytes.chunks_mut(PART)) {
            source(at, part)?;
            checker.feed(part);
        }
        checker.finish()?;
        Ok(Self::checked(Bytes::Whole(bytes), Some(held), footer))
    }

    fn checked(bytes: Bytes, held: Option<Reservation>, footer: &Footer) -> Self {
        let ends_at = (footer.tables_len() - 4 * u64::from(footer.model_count)) as usize;
        Self { bytes, footer: footer.clone(), ends_at, _held: held }
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.footer.chunk_count as usize
    }

    /// Whether the original is empty.
    pub fn is_empty(&self) -> bool {
        self.footer.chunk_count == 0
    }

    /// Whether it is read in parts: then looking something up may wait for the disk.
    pub fn is_in_parts(&self) -> bool {
        matches!(self.bytes, Bytes::Parts(_))
    }

    /// Chunk `id`.
    ///
    /// # Errors
    /// Io and corruption, where the index is in parts and one can no longer be read as it was.
    ///
    /// # Panics
    /// Where `id` is not below [`Index::len`].
    pub fn chunk(&self, id: usize) -> Result<Chunk> {
        assert!(id < self.len(), "chunk {id} of {}", self.len());
        let at = id * RECORD;
        let end = if id + 1 < self.len() {
            u64::from_le_bytes(self.bytes_at(at + RECORD)?)
        } else {
            self.footer.original_len
        };
        record(&self.bytes_at(at)?, end)
    }

    /// The chunk that holds byte `offset` of the original; [`Index::len`] behind its end.
    ///
    /// # Errors
    /// As [`Index::chunk`].
    pub fn find(&self, offset: u64) -> Result<usize> {
        if offset >= self.footer.original_len {
            return Ok(self.len());
        }
        let chunks = match &self.bytes {
            Bytes::Whole(_) => 0..self.len(),
            Bytes::Parts(parts) => parts.chunks_near(offset, self.len()),
        };
        let (mut low, mut high) = (chunks.start, chunks.end);
        while high - low > 1 {
            let middle = low.midpoint(high);
            let start = u64::from_le_bytes(self.bytes_at(middle * RECORD)?);
            if start <= offset { low = middle } else { high = middle }
        }
        Ok(low)
    }

    /// SHA-256's state after `i + 1` segments of the original: see [`crate::sha256`].
    ///
    /// # Errors
    /// As [`Index::chunk`].
    ///
    /// # Panics
    /// Where there is no such state.
    pub fn sha256_state(&self, i: usize) -> Result<State> {
        let bytes: [u8; RECORD] = self.bytes_at(self.len() * RECORD + 32 * i)?;
        Ok(std::array::from_fn(|j| u32::from_le_bytes(std::array::from_fn(|k| bytes[4 * j + k]))))
    }

    /// EntropyModel `id`.
    ///
    /// # Errors
    /// Corruption, where the model is malformed; and as [`Index::chunk`].
    ///
    /// # Panics
    /// Where there is no such model.
    pub fn model(&self, id: u32) -> Result<EntropyModel> {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.model_end(id - 1)? };
        let end = self.model_end(id)?;
        let models_at = self.ends_at + 4 * self.footer.model_count as usize;
        let models = self.footer.index_len as usize - models_at;
        if start > end || end > models || end - start > MAX_WIRE_LEN {
            return Err(Error::corrupt("the archive's models are out of bounds"));
        }
        match &self.bytes {
            Bytes::Whole(bytes) => {
                EntropyModel::read_from(&bytes[models_at + start..models_at + end])
            }
            Bytes::Parts(parts) => EntropyModel::read_from(
                &parts.range(models_at + start..models_at + end, &self.footer)?,
            ),
        }
    }

    fn model_end(&self, id: usize) -> Result<usize> {
        Ok(u32::from_le_bytes(self.bytes_at(self.ends_at + id * 4)?) as usize)
    }

    /// Some bytes of a table. They are all of one part.
    fn bytes_at<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let (part, at) = match &self.bytes {
            Bytes::Whole(bytes) => (&**bytes, at),
            Bytes::Parts(parts) => (&*parts.part(at / PART, &self.footer)?, at % PART),
        };
        Ok(*part[at..].first_chunk().expect("tables were checked when the index was opened"))
    }
}

/// The chunk of a record that ends at `end` of the original.
pub(super) fn record(bytes: &[u8; RECORD], end: u64) -> Result<Chunk> {
    let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let kind = u32_at(28);
    Ok(Chunk {
        original: u64_at(0)..end,
        stored_at: u64_at(8),
        checksum: u64_at(16),
        stored_len: u32_at(24),
        model: kind & NO_MODEL,
        coding: Coding::from_wire((kind >> 24) as u8)?,
    })
}

/// Collects the index while chunks are written.
#[derive(Default)]
pub struct IndexWriter {
    chunks: Vec<u8>,
    model_ends: Vec<u8>,
    models: Vec<u8>,
    max_chunk: u32,
}

impl IndexWriter {
    /// Add a model; returns its number.
    ///
    /// # Errors
    /// Invalid argument, where there are more models than numbers for them.
    pub fn model(&mut self, model: &EntropyModel) -> Result<u32> {
        let id = (self.model_ends.len() / 4) as u32;
        model.write_to(&mut self.models);
        let end = u32::try_from(self.models.len()).ok().filter(|_| id < NO_MODEL);
        let end =
            end.ok_or_else(|| Error::invalid("the file has too many tensors for one archive"))?;
        self.model_ends.extend_from_slice(&end.to_le_bytes());
        Ok(id)
    }

    /// Add the next chunk.
    pub fn chunk(&mut self, c: &Chunk) {
        self.max_chunk = self.max_chunk.max(c.len() as u32);
        self.chunks.extend_from_slice(&c.original.start.to_le_bytes());
        self.chunks.extend_from_slice(&c.stored_at.to_le_bytes());
        self.chunks.extend_from_slice(&c.checksum.to_le_bytes());
        self.chunks.extend_from_slice(&c.stored_len.to_le_bytes());
        self.chunks.extend_from_slice(&(c.model | (c.coding as u32) << 24).to_le_bytes());
    }

    /// The chunk that starts at byte `start` of the original, if there is one that is not the last so far.
    pub fn find(&self, start: u64) -> Option<Chunk> {
        let records: &[[u8; RECORD]] = self.chunks.as_chunks().0;
        let start_of = |r: &[u8; RECORD]| u64::from_le_bytes(std::array::from_fn(|i| r[i]));
        let i = records.binary_search_by_key(&start, start_of).ok()?;
        record(&records[i], start_of(records.get(i + 1)?)).ok()
    }

    /// The index, and `footer` with everything filled in that describes it; `states` are those of SHA-256.
    pub fn finish(mut self, footer: Footer, states: &[State]) -> (Vec<u8>, Footer) {
        let chunk_count = (self.chunks.len() / RECORD) as u32;
        let model_count = (self.model_ends.len() / 4) as u32;
        debug_assert_eq!(states.len() as u64, sha256::state_count(footer.original_len));
        let mut bytes = self.chunks;
        bytes.extend(states.as_flattened().iter().flat_map(|word| word.to_le_bytes()));
        bytes.append(&mut self.model_ends);
        bytes.append(&mut self.models);
        let footer = Footer {
            index_len: bytes.len() as u64,
            index_checksum: checksum(&bytes),
            chunk_count,
            model_count,
            max_chunk: self.max_chunk,
            ..footer
        };
        (bytes, footer)
    }
}
