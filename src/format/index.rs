//! The index of an archive: a table of chunks, which is read in place, and the models they share.

use super::{
    bases::{self, Base},
    check::{Checker, PART},
    footer::{Footer, peek, read_exact},
    memory::{IndexMemory, Reservation},
    parts::{Parts, ReadIndex},
    record::{Chunk, RECORD},
};
use crate::{
    codec::{EntropyModel, model::MAX_WIRE_LEN},
    error::{Error, Result},
    sha256::State,
};
use std::{fs::File, sync::Arc};

/// Bytes of memory that a reader may keep per chunk for its access history, besides the record.
const HISTORY: u64 = 8;

/// A checked index. It is in memory as a whole, or read again in parts if it is too large for that.
pub struct Index {
    bytes: Storage,
    bases: Vec<Base>,
    footer: Footer,
    /// Where the table of model ends starts.
    ends_at: usize,
    /// The memory that it takes, if it is in memory as a whole.
    _held: Option<Reservation>,
}

enum Storage {
    Whole(Vec<u8>),
    Parts(Parts),
}

impl Index {
    /// Checks the index that `footer` describes, and keeps it in memory.
    ///
    /// # Errors
    /// Corruption if the checksum does not match, or if the order of chunks or any bound is
    /// violated; compatibility if a coding is unknown.
    pub fn new(bytes: Vec<u8>, footer: &Footer) -> Result<Self> {
        let mut checker = Checker::new(footer);
        bytes.chunks(PART).for_each(|part| checker.feed(part));
        checker.finish()?;
        Self::checked(Storage::Whole(bytes), None, footer)
    }

    /// Reads and checks the index that `footer` describes. It stays in memory if `memory` has room
    /// for it. Otherwise it is read in parts, and each part is checked again whenever it is read.
    ///
    /// # Errors
    /// As [`Index::new`], and any error of `source`; Io if `memory` does not even have room for
    /// reading in parts.
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
            return Self::checked(Storage::Parts(parts), None, footer);
        };
        let mut bytes = vec![0; len as usize];
        for (at, part) in (0..).step_by(PART).zip(bytes.chunks_mut(PART)) {
            source(at, part)?;
            checker.feed(part);
        }
        checker.finish()?;
        Self::checked(Storage::Whole(bytes), Some(held), footer)
    }

    fn checked(bytes: Storage, held: Option<Reservation>, footer: &Footer) -> Result<Self> {
        let ends_at = (footer.tables_len() - 4 * u64::from(footer.model_count)) as usize;
        let table = footer.models_end() as usize..footer.index_len as usize;
        let bases = match &bytes {
            Storage::Whole(bytes) => bases::from_bytes(&bytes[table], footer.base_count as usize)?,
            Storage::Parts(parts) => {
                bases::from_bytes(&parts.range(table, footer)?, footer.base_count as usize)?
            }
        };
        Ok(Self { bytes, bases, footer: footer.clone(), ends_at, _held: held })
    }

    /// The files from which chunks store differences.
    pub fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// The number of chunks.
    pub fn len(&self) -> usize {
        self.footer.chunk_count as usize
    }

    /// Whether the original is empty.
    pub fn is_empty(&self) -> bool {
        self.footer.chunk_count == 0
    }

    /// Whether the index is read in parts, so that lookups may wait for the disk.
    pub fn is_in_parts(&self) -> bool {
        matches!(self.bytes, Storage::Parts(_))
    }

    /// Chunk `id`.
    ///
    /// # Errors
    /// Io and corruption if the index is read in parts, and one of them cannot be read or has
    /// changed.
    ///
    /// # Panics
    /// If `id` is not below [`Index::len`].
    pub fn chunk(&self, id: usize) -> Result<Chunk> {
        assert!(id < self.len(), "chunk {id} of {}", self.len());
        let at = id * RECORD;
        let end = if id + 1 < self.len() {
            u64::from_le_bytes(self.bytes_at(at + RECORD)?)
        } else {
            self.footer.original_len
        };
        Chunk::read_from(&self.bytes_at(at)?, end)
    }

    /// The chunk that holds byte `offset` of the original, or [`Index::len`] beyond its end.
    ///
    /// # Errors
    /// As [`Index::chunk`].
    pub fn find(&self, offset: u64) -> Result<usize> {
        if offset >= self.footer.original_len {
            return Ok(self.len());
        }
        let chunks = match &self.bytes {
            Storage::Whole(_) => 0..self.len(),
            Storage::Parts(parts) => parts.chunks_near(offset, self.len()),
        };
        let (mut low, mut high) = (chunks.start, chunks.end);
        while high - low > 1 {
            let middle = low.midpoint(high);
            let start = u64::from_le_bytes(self.bytes_at(middle * RECORD)?);
            if start <= offset { low = middle } else { high = middle }
        }
        Ok(low)
    }

    /// The state of SHA-256 after `i + 1` segments of the original. See [`crate::sha256`].
    ///
    /// # Errors
    /// As [`Index::chunk`].
    ///
    /// # Panics
    /// If there is no such state.
    pub fn sha256_state(&self, i: usize) -> Result<State> {
        let bytes: [u8; RECORD] = self.bytes_at(self.len() * RECORD + 32 * i)?;
        Ok(std::array::from_fn(|j| u32::from_le_bytes(std::array::from_fn(|k| bytes[4 * j + k]))))
    }

    /// Model `id`.
    ///
    /// # Errors
    /// Corruption if the model is malformed; otherwise as [`Index::chunk`].
    ///
    /// # Panics
    /// If there is no such model.
    pub fn model(&self, id: u32) -> Result<EntropyModel> {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.model_end(id - 1)? };
        let end = self.model_end(id)?;
        let models_at = self.ends_at + 4 * self.footer.model_count as usize;
        let models = self.footer.models_end() as usize - models_at;
        if start > end || end > models || end - start > MAX_WIRE_LEN {
            return Err(Error::corrupt("the archive's models are out of bounds"));
        }
        match &self.bytes {
            Storage::Whole(bytes) => {
                EntropyModel::read_from(&bytes[models_at + start..models_at + end])
            }
            Storage::Parts(parts) => EntropyModel::read_from(
                &parts.range(models_at + start..models_at + end, &self.footer)?,
            ),
        }
    }

    fn model_end(&self, id: usize) -> Result<usize> {
        Ok(u32::from_le_bytes(self.bytes_at(self.ends_at + id * 4)?) as usize)
    }

    /// Bytes of a table, all of which are in one part.
    fn bytes_at<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let (part, at) = match &self.bytes {
            Storage::Whole(bytes) => (&**bytes, at),
            Storage::Parts(parts) => (&*parts.part(at / PART, &self.footer)?, at % PART),
        };
        Ok(*part[at..].first_chunk().expect("tables were checked when the index was opened"))
    }
}

/// The files that an archive needs; `None` if `file` is not an archive.
///
/// # Errors
/// As [`peek`] and [`Index::read`].
pub fn bases_of(file: &File) -> Result<Option<Vec<Base>>> {
    let Some(footer) = peek(file)? else { return Ok(None) };
    if footer.base_count == 0 {
        return Ok(Some(Vec::new()));
    }
    let (file, start) = (file.try_clone()?, footer.index_offset);
    let source = move |at: u64, out: &mut [u8]| read_exact(&file, out, start + at);
    Ok(Some(Index::read(Box::new(source), &footer, &Arc::default())?.bases))
}
