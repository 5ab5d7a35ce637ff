//! Readahead: decoding what programs will read before they read it.
//!
//! Three mechanisms share this room:
//!
//! - **Streams.** [`SequentialReadahead`] is the policy of the chunk cache. After each read, it
//!   consults the access history of the file. If the read is part of a sequential one, the next
//!   chunks are decoded at once, within a window that grows while they are used.
//! - **Layers.** Frameworks read a model layer by layer, and compute in between. `models` finds the
//!   layers (`layer_map`) in the headers of all shards of a model. `layer_tracker` predicts the
//!   next layers from the order of those before. They are put into the `queue` of the
//!   [`Prefetcher`], which decodes them while no program reads, or has a GPU decode them
//!   (`offload`, `cuda`).
//! - **The page cache.** [`PageCacheWarmer`] reads prefetched layers through the mount in a process
//!   of its own, so that programs find them in the kernel's page cache.
//!
//! [`Readahead`] is what the mount uses: reads go through it to the cache.

#[cfg(feature = "cuda")]
mod cuda;
mod layer_map;
mod layer_tracker;
mod models;
mod offload;
mod prefetcher;
mod queue;
mod reads;
mod sequential;
mod warmer;

#[cfg(feature = "cuda")]
pub use cuda::use_gpu;
pub use layer_map::layer_of;
pub use models::{FindShards, OpenArchive, Shard, shard_pattern};
pub use offload::OffloadDecoder;
pub use prefetcher::{LOCAL_PIECE, Prefetcher, REMOTE_PIECE};
pub use queue::PrefetchRequest;
pub use reads::Readahead;
pub use sequential::SequentialReadahead;
pub use warmer::{PageCacheWarmer, serve_warm_requests};

/// What to decode before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing.
    Off,
    /// The next chunks of sequential reads, and as many layers as were read in order before.
    Auto,
    /// The same, but at most so many layers.
    Layers(u32),
    /// As [`Prefetch::Auto`], with layers decoded by a GPU.
    Cuda,
}
