//! Statistics of a cache.

use serde::{Deserialize, Serialize};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Buckets of the latency histogram: below 1 µs, below 2 µs, below 4 µs and so on. The last one
/// holds the rest.
pub const LATENCY_BUCKETS: usize = 24;

/// Counters since the cache was created. Bytes are bytes of originals unless noted otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheStats {
    /// Completed reads.
    pub reads: u64,
    /// Reads that failed.
    pub errors: u64,
    /// Bytes delivered to readers, or to the kernel's page cache on their behalf.
    pub served_bytes: u64,
    /// Bytes decoded.
    pub decoded_bytes: u64,
    /// Stored bytes read to decode them.
    pub stored_bytes: u64,
    /// Requested chunks that were in the cache.
    pub hits: u64,
    /// Requested chunks that had to be decoded.
    pub misses: u64,
    /// Requested chunks that were in flight, for another reader or as readahead.
    pub joined: u64,
    /// Chunks evicted to make room.
    pub evictions: u64,
    /// Chunks decoded ahead of any reader.
    pub ahead: u64,
    /// Chunks decoded ahead that were requested later, by a reader or the page-cache warmer.
    pub ahead_used: u64,
    /// Chunks decoded ahead that were evicted unused.
    pub ahead_dropped: u64,
    /// Bytes in memory now.
    pub held_bytes: u64,
    /// Upper bound of the bytes in memory.
    pub capacity_bytes: u64,
    /// Latency histogram: entry `i` counts reads that took less than 2^i microseconds, but at least
    /// half of that.
    pub latencies: [u64; LATENCY_BUCKETS],
}

/// The counters that are updated without the cache's lock.
#[derive(Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    errors: AtomicU64,
    served_bytes: AtomicU64,
    decoded: AtomicU64,
    stored: AtomicU64,
    latencies: [AtomicU64; LATENCY_BUCKETS],
}

impl Counters {
    /// Count bytes that the page-cache warmer has read.
    pub(super) fn served(&self, bytes: u64) {
        self.served_bytes.fetch_add(bytes, Relaxed);
    }

    /// Count a read: its bytes, or `None` if it failed, and its latency.
    pub(super) fn completed(&self, bytes: Option<u64>, took: Duration) {
        self.reads.fetch_add(1, Relaxed);
        match bytes {
            Some(n) => self.served(n),
            None => drop(self.errors.fetch_add(1, Relaxed)),
        }
        let bucket = (u128::BITS - took.as_micros().leading_zeros()) as usize;
        self.latencies[bucket.min(LATENCY_BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    /// Count a chunk of `bytes` that was decoded from `stored` bytes.
    pub(super) fn decoded(&self, bytes: u64, stored: u64) {
        self.decoded.fetch_add(bytes, Relaxed);
        self.stored.fetch_add(stored, Relaxed);
    }

    /// Complete the statistics that the locked table keeps.
    pub(super) fn add_to(&self, locked: CacheStats) -> CacheStats {
        CacheStats {
            reads: self.reads.load(Relaxed),
            errors: self.errors.load(Relaxed),
            served_bytes: self.served_bytes.load(Relaxed),
            decoded_bytes: self.decoded.load(Relaxed),
            stored_bytes: self.stored.load(Relaxed),
            latencies: std::array::from_fn(|i| self.latencies[i].load(Relaxed)),
            ..locked
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        let counters = Counters::default();
        for micros in [0, 1, 2, 3, 1000, u64::MAX] {
            counters.completed(Some(10), Duration::from_micros(micros));
        }
        counters.completed(None, Duration::ZERO);
        let stats = counters.add_to(CacheStats::default());
        assert_eq!((stats.reads, stats.errors, stats.served_bytes), (7, 1, 60));
        assert_eq!(stats.latencies[..3], [2, 1, 2]);
        assert_eq!((stats.latencies[10], stats.latencies[LATENCY_BUCKETS - 1]), (1, 1));
    }
}
