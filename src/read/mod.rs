//! Archives to bytes: an immutable archive with random access, and whole files back.

mod archive;
mod describe;
mod memory;
mod scratch;
mod storage;
mod whole;

pub use crate::format::peek;
pub use archive::{Archive, IndexedChunk, StoredChunk};
pub(crate) use archive::{are_adjacent, scratch_len};
pub use describe::{Coded, Description, TensorDescription, describe, header, header_json};
pub use memory::ArchiveMemory;
pub use scratch::Scratch;
pub(crate) use scratch::{HUGE_PAGE, PAGE};
pub use whole::{unpack, verify, verify_chunks};
