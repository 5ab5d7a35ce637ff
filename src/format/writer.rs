//! Collects the index while chunks are written.

use super::{
    bases::{self, Base, MAX_BASES},
    footer::Footer,
    record::{Chunk, NO_MODEL, RECORD, start_of},
};
use crate::{
    codec::{EntropyModel, checksum},
    error::{Error, Result},
    sha256::{self, State},
};

/// The index of an archive that is being written.
#[derive(Default)]
pub struct IndexWriter {
    chunks: Vec<u8>,
    model_ends: Vec<u8>,
    models: Vec<u8>,
    bases: Vec<Base>,
    max_chunk: u32,
}

impl IndexWriter {
    /// Adds a model; returns its number.
    ///
    /// # Errors
    /// Invalid argument if there are more models than an archive can number.
    pub fn model(&mut self, model: &EntropyModel) -> Result<u32> {
        let id = (self.model_ends.len() / 4) as u32;
        model.write_to(&mut self.models);
        let end = u32::try_from(self.models.len()).ok().filter(|_| id < NO_MODEL);
        let end =
            end.ok_or_else(|| Error::invalid("the file has too many tensors for one archive"))?;
        self.model_ends.extend_from_slice(&end.to_le_bytes());
        Ok(id)
    }

    /// Adds a base unless it is there; returns its number.
    ///
    /// # Errors
    /// Invalid argument if there are more bases than an archive can number, or if the base's name
    /// cannot be stored.
    pub fn base(&mut self, base: &Base) -> Result<u8> {
        let known = self.bases.iter().position(|b| (b.sha256, b.len) == (base.sha256, base.len));
        let id = known.unwrap_or(self.bases.len());
        if id >= MAX_BASES || !bases::is_name(&base.name) {
            return Err(Error::invalid("too many bases for one archive, or a base without a name"));
        }
        if known.is_none() {
            self.bases.push(base.clone());
        }
        Ok(id as u8)
    }

    /// Adds the next chunk.
    pub fn chunk(&mut self, c: &Chunk) {
        self.max_chunk = self.max_chunk.max(c.len() as u32);
        c.write_to(&mut self.chunks);
    }

    /// The chunk that starts at byte `start` of the original, if there is one and it is not the
    /// last so far.
    pub fn find(&self, start: u64) -> Option<Chunk> {
        let records: &[[u8; RECORD]] = self.chunks.as_chunks().0;
        let i = records.binary_search_by_key(&start, start_of).ok()?;
        Chunk::read_from(&records[i], start_of(records.get(i + 1)?)).ok()
    }

    /// The index, with these `states` of SHA-256, and `footer` with the fields set that describe
    /// it.
    pub fn finish(mut self, footer: Footer, states: &[State]) -> (Vec<u8>, Footer) {
        let chunk_count = (self.chunks.len() / RECORD) as u32;
        let model_count = (self.model_ends.len() / 4) as u32;
        debug_assert_eq!(states.len() as u64, sha256::state_count(footer.original_len));
        let mut bytes = self.chunks;
        bytes.extend(states.as_flattened().iter().flat_map(|word| word.to_le_bytes()));
        bytes.append(&mut self.model_ends);
        bytes.append(&mut self.models);
        let mut table = bases::to_bytes(&self.bases);
        let bases_len = table.len() as u32;
        bytes.append(&mut table);
        let footer = Footer {
            index_len: bytes.len() as u64,
            index_checksum: checksum(&bytes),
            chunk_count,
            model_count,
            max_chunk: self.max_chunk,
            base_count: self.bases.len() as u32,
            bases_len,
            ..footer
        };
        (bytes, footer)
    }
}
