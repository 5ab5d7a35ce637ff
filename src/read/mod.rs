//! Archives to bytes: random access, the cache of decoded chunks, whole files back.

mod archive;
mod buffer;
mod cache;
mod describe;
mod whole;

pub use crate::format::peek;
pub use archive::{Archive, StoredChunk};
pub use cache::{CacheStats, ChunkCache, Slice};
pub use describe::{Coded, Description, TensorDescription, describe};
pub use whole::{unpack, verify};
