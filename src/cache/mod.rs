//! The cache of decoded chunks, one for a whole mount.
//!
//! A read goes through these steps:
//!
//! 1. [`ChunkCache::read`] splits it into chunks. A read of very many tiny chunks bypasses the
//!    cache.
//! 2. `admission` limits how many reads wait at once, because the chunks of waiting reads cannot be
//!    evicted.
//! 3. `table` knows which chunks are present and which are in flight. The read takes the former,
//!    joins the latter, and registers the rest: a chunk is decoded once, however many readers wait
//!    for it.
//! 4. `workers` run a `batch` of adjacent chunks: one read from the disk, then decoding chunk by
//!    chunk, with the checksum verified by [`crate::read`]. Demand goes before readahead.
//! 5. Each chunk completes the `request`s that wait for it, and stays in the table until it is
//!    evicted, or dropped because the kernel's page cache has all of it.
//!
//! A chunk that is stored as differences takes those of its `base` from the same table.
//!
//! All memory is accounted for in `budget`: decoded chunks are `buffer`s in `slab`s of populated
//! pages, stored bytes are in the `scratch_pool`, and open indexes share what [`crate::read`] calls
//! archive memory. `file` is what the cache knows of an archive, including its `access_history`,
//! from which a [`ReadaheadPolicy`] recognizes sequential reads. `activity` detects pauses between
//! reads.

mod access_history;
mod activity;
mod admission;
mod base;
mod batch;
mod budget;
mod buffer;
mod chunk_cache;
mod claim;
mod file;
mod lookup;
mod page_size;
mod region;
mod request;
mod scratch_pool;
mod slab;
mod stats;
mod store;
mod table;
mod workers;

pub use batch::PendingChunk;
pub use chunk_cache::{CacheOptions, ChunkCache, ReadaheadPolicy};
pub use file::{CachedFile, FileId, FileTable};
pub use request::{Reader, Slice};
pub use stats::{CacheStats, LATENCY_BUCKETS};
