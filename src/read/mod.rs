//! Archives to bytes: random access, the cache of decoded chunks, whole files back.

mod account;
mod admission;
mod ahead;
mod archive;
mod batch;
mod buffer;
mod cache;
mod describe;
mod elsewhere;
mod figures;
mod layers;
mod pace;
mod pages;
mod passed;
mod request;
mod scratch;
mod state;
mod storage;
mod whole;
mod wishes;
mod workers;

pub use crate::format::peek;
pub use archive::{Archive, StoredChunk};
pub use batch::{Owed, Prefetcher};
pub use cache::{CacheOptions, ChunkCache, Reader};
pub use describe::{Coded, Description, TensorDescription, describe, header, header_json};
pub use figures::{CacheStats, LATENCIES};
pub use layers::{Course, LayerMap, LayerMapBuilder, MOST_PLACES, Read};
pub use request::Slice;
pub use scratch::Scratch;
pub use whole::{unpack, verify, verify_chunks};
pub use wishes::{Taker, Wish};
