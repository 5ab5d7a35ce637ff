//! The index: a table of chunks, read in place, and the models they share.

use super::{Footer, HEADER_LEN};
use crate::{
    codec::{Coding, Model, checksum},
    error::{Error, Result},
    sha256::{self, State},
};
use std::ops::Range;

/// Bytes of a chunk's record.
pub(super) const CHUNK_LEN: u64 = 32;
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

/// A checked index. It keeps the bytes as they are and decodes records when asked.
pub struct Index {
    bytes: Vec<u8>,
    original_len: u64,
    chunk_count: usize,
    /// Where the model ends start.
    ends_at: usize,
    model_count: usize,
}

impl Index {
    /// Check the index that `footer` describes.
    ///
    /// # Errors
    /// Corruption, where the checksum, the order of chunks or any bound does not hold; compatibility, where a
    /// coding is unknown.
    pub fn new(bytes: Vec<u8>, footer: &Footer) -> Result<Self> {
        if bytes.len() as u64 != footer.index_len || checksum(&bytes) != footer.index_checksum {
            return Err(Error::corrupt("the archive's index does not match its checksum"));
        }
        let model_count = footer.model_count as usize;
        let chunk_count = footer.chunk_count as usize;
        let ends_at = (footer.tables_len() - 4 * u64::from(footer.model_count)) as usize;
        let index = Self { bytes, original_len: footer.original_len, chunk_count, ends_at, model_count };
        let mut at = 0;
        for id in 0..index.chunk_count {
            let c = index.record(id)?;
            let sound = c.original.start == at
                && c.original.end > at
                && c.original.end - at <= footer.max_chunk.into()
                && u64::from(c.stored_len) <= c.original.end - at
                && c.stored_at >= HEADER_LEN
                && c.stored_at.checked_add(c.stored_len.into()).is_some_and(|end| end <= footer.index_offset)
                && (c.model == NO_MODEL) == (c.coding != Coding::Planes)
                && (c.model == NO_MODEL || (c.model as usize) < model_count);
            if !sound {
                return Err(Error::corrupt(format!("chunk {id} of the archive's index is out of bounds")));
            }
            at = c.original.end;
        }
        if at != footer.original_len {
            return Err(Error::corrupt("the archive's chunks do not cover the original"));
        }
        let mut end = 0;
        for id in 0..model_count {
            let next = index.model_end(id);
            if next < end || next > index.model_bytes().len() {
                return Err(Error::corrupt("the archive's models are out of bounds"));
            }
            end = next;
        }
        if end != index.model_bytes().len() {
            return Err(Error::corrupt("the archive's index has trailing bytes"));
        }
        Ok(index)
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.chunk_count
    }

    /// Whether the original is empty.
    pub fn is_empty(&self) -> bool {
        self.chunk_count == 0
    }

    /// Chunk `id`.
    ///
    /// # Panics
    /// Where `id` is not below [`Index::len`].
    pub fn chunk(&self, id: usize) -> Chunk {
        self.record(id)
            .unwrap_or_else(|e| unreachable!("chunk {id} was checked when the index was opened: {e}"))
    }

    /// The chunk that holds byte `offset` of the original; [`Index::len`] behind its end.
    pub fn find(&self, offset: u64) -> usize {
        if offset >= self.original_len {
            return self.chunk_count;
        }
        let (mut low, mut high) = (0, self.chunk_count);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.u64_at(middle * CHUNK_LEN as usize) <= offset { low = middle } else { high = middle }
        }
        low
    }

    /// SHA-256's state after `i + 1` segments of the original: see [`crate::sha256`].
    ///
    /// # Panics
    /// Where there is no such state.
    pub fn sha256_state(&self, i: usize) -> State {
        std::array::from_fn(|j| self.u32_at(self.chunk_count * CHUNK_LEN as usize + 32 * i + 4 * j))
    }

    /// Model `id`.
    ///
    /// # Errors
    /// Corruption, where the model is malformed.
    ///
    /// # Panics
    /// Where there is no such model.
    pub fn model(&self, id: u32) -> Result<Model> {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.model_end(id - 1) };
        Model::read_from(&self.model_bytes()[start..self.model_end(id)])
    }

    fn record(&self, id: usize) -> Result<Chunk> {
        let at = id * CHUNK_LEN as usize;
        let end =
            if id + 1 < self.chunk_count { self.u64_at(at + CHUNK_LEN as usize) } else { self.original_len };
        let kind = self.u32_at(at + 28);
        Ok(Chunk {
            original: self.u64_at(at)..end,
            stored_at: self.u64_at(at + 8),
            checksum: self.u64_at(at + 16),
            stored_len: self.u32_at(at + 24),
            model: kind & NO_MODEL,
            coding: Coding::from_wire((kind >> 24) as u8)?,
        })
    }

    fn model_end(&self, id: usize) -> usize {
        self.u32_at(self.ends_at + id * 4) as usize
    }

    fn model_bytes(&self) -> &[u8] {
        &self.bytes[self.ends_at + self.model_count * 4..]
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.bytes[at + i]))
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.bytes[at + i]))
    }
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
    pub fn model(&mut self, model: &Model) -> Result<u32> {
        let id = (self.model_ends.len() / 4) as u32;
        model.write_to(&mut self.models);
        let end = u32::try_from(self.models.len()).ok().filter(|_| id < NO_MODEL);
        let end = end.ok_or_else(|| Error::invalid("the file has too many tensors for one archive"))?;
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
        let records: &[[u8; CHUNK_LEN as usize]] = self.chunks.as_chunks().0;
        let u64_at =
            |r: &[u8; CHUNK_LEN as usize], at: usize| u64::from_le_bytes(std::array::from_fn(|i| r[at + i]));
        let u32_at =
            |r: &[u8; CHUNK_LEN as usize], at: usize| u32::from_le_bytes(std::array::from_fn(|i| r[at + i]));
        let i = records.binary_search_by_key(&start, |r| u64_at(r, 0)).ok()?;
        let (record, next) = (&records[i], records.get(i + 1)?);
        let kind = u32_at(record, 28);
        Some(Chunk {
            original: start..u64_at(next, 0),
            stored_at: u64_at(record, 8),
            checksum: u64_at(record, 16),
            stored_len: u32_at(record, 24),
            model: kind & NO_MODEL,
            coding: Coding::from_wire((kind >> 24) as u8).ok()?,
        })
    }

    /// The index, and `footer` with everything filled in that describes it; `states` are those of SHA-256.
    pub fn finish(mut self, footer: Footer, states: &[State]) -> (Vec<u8>, Footer) {
        let chunk_count = (self.chunks.len() as u64 / CHUNK_LEN) as u32;
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
