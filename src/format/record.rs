//! The record of a chunk in the index (`docs/FORMAT.md`, "Chunk record").

use crate::{codec::Coding, error::Result};
use std::ops::Range;

/// Bytes of a record.
pub(super) const RECORD: usize = 32;
/// The model number of a chunk that needs none.
pub const NO_MODEL: u32 = 0xff_ffff;

/// One chunk, as the index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The range of the original that the chunk holds.
    pub original: Range<u64>,
    /// Where its stored bytes start in the archive.
    pub stored_at: u64,
    /// The number of stored bytes.
    pub stored_len: u32,
    /// Their encoding.
    pub coding: Coding,
    /// The number of its model, or [`NO_MODEL`].
    pub model: u32,
    /// Checksum of the decoded bytes.
    pub checksum: u64,
}

impl Chunk {
    /// The number of decoded bytes.
    pub fn len(&self) -> usize {
        (self.original.end - self.original.start) as usize
    }

    /// Whether the chunk is empty. A valid chunk never is.
    pub fn is_empty(&self) -> bool {
        self.original.is_empty()
    }
}

/// Where the chunk of a record starts in the original.
pub(super) fn start_of(record: &[u8; RECORD]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| record[i]))
}

impl Chunk {
    /// The chunk of a record that ends at `end` of the original.
    pub(super) fn read_from(record: &[u8; RECORD], end: u64) -> Result<Self> {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| record[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| record[at + i]));
        let kind = u32_at(28);
        Ok(Self {
            original: start_of(record)..end,
            stored_at: u64_at(8),
            checksum: u64_at(16),
            stored_len: u32_at(24),
            model: kind & NO_MODEL,
            coding: Coding::from_wire((kind >> 24) as u8)?,
        })
    }

    /// Appends the record, which does not say where the chunk ends.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.original.start.to_le_bytes());
        out.extend_from_slice(&self.stored_at.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        out.extend_from_slice(&self.stored_len.to_le_bytes());
        out.extend_from_slice(&(self.model | (self.coding as u32) << 24).to_le_bytes());
    }
}
