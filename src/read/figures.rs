//! What a cache did since it was made, in figures.

use serde::{Deserialize, Serialize};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Classes of waiting times: below 1 µs, below 2 µs, below 4 µs and so on; the last takes the rest.
pub const LATENCIES: usize = 24;

/// Figures of a cache since it was made. Bytes are of the originals unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Reads that were answered.
    pub reads: u64,
    /// Reads that failed.
    pub errors: u64,
    /// Bytes given to readers, or to the kernel's page cache for them.
    pub served_bytes: u64,
    /// Bytes decoded.
    pub decoded_bytes: u64,
    /// Stored bytes read for that.
    pub stored_bytes: u64,
    /// Chunks that were asked for and present.
    pub hits: u64,
    /// Chunks that had to be decoded when they were asked for.
    pub misses: u64,
    /// Chunks that were asked for while they were being decoded, for another reader or ahead.
    pub joined: u64,
    /// Chunks dropped to make room.
    pub evictions: u64,
    /// Chunks decoded ahead.
    pub ahead: u64,
    /// Of these: asked for since, by readers or to be in the kernel's page cache for them.
    pub ahead_used: u64,
    /// Of these: dropped without having been asked for.
    pub ahead_dropped: u64,
    /// Bytes held now.
    pub held_bytes: u64,
    /// Most bytes held.
    pub capacity_bytes: u64,
    /// Reads by the time they took: entry `i` is of those that took less than 2^i microseconds, but not less than half
    /// of that.
    pub latencies: [u64; LATENCIES],
}

/// Those that are counted without the cache's lock.
#[derive(Default)]
pub(super) struct Figures {
    reads: AtomicU64,
    errors: AtomicU64,
    served: AtomicU64,
    decoded: AtomicU64,
    stored: AtomicU64,
    latencies: [AtomicU64; LATENCIES],
    /// Nanoseconds per stored byte, in 1/1024, that decoding the last ones took.
    decoding: AtomicU64,
}

/// Let the last value count for an eighth.
fn follow(average: &AtomicU64, took: Duration, bytes: u64) {
    let new = took.as_nanos() as u64 * 1024 / bytes.max(1);
    // Two at once may lose one of them, which does no harm.
    let old = average.load(Relaxed);
    average.store(old - old / 8 + new / 8, Relaxed);
}

impl Figures {
    /// Bytes were given to somebody for whom nobody waited.
    pub(super) fn given(&self, bytes: u64) {
        self.served.fetch_add(bytes, Relaxed);
    }

    /// A read of so many bytes, or none if it failed, took so long.
    pub(super) fn answered(&self, bytes: Option<u64>, took: Duration) {
        self.reads.fetch_add(1, Relaxed);
        match bytes {
            Some(n) => self.given(n),
            None => drop(self.errors.fetch_add(1, Relaxed)),
        }
        let class = (u128::BITS - took.as_micros().leading_zeros()) as usize;
        self.latencies[class.min(LATENCIES - 1)].fetch_add(1, Relaxed);
    }

    /// A chunk of so many bytes was decoded from so many.
    pub(super) fn decoded(&self, bytes: u64, stored: u64, took: Duration) {
        follow(&self.decoding, took, stored);
        self.decoded.fetch_add(bytes, Relaxed);
        self.stored.fetch_add(stored, Relaxed);
    }

    /// Nanoseconds that a core takes to decode a stored byte.
    pub(super) fn decoding_nanos(&self) -> f64 {
        self.decoding.load(Relaxed) as f64 / 1024.0
    }

    /// `locked`, with these.
    pub(super) fn add_to(&self, locked: CacheStats) -> CacheStats {
        CacheStats {
            reads: self.reads.load(Relaxed),
            errors: self.errors.load(Relaxed),
            served_bytes: self.served.load(Relaxed),
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
    fn waiting_times_fall_into_their_classes() {
        let figures = Figures::default();
        for micros in [0, 1, 2, 3, 1000, u64::MAX] {
            figures.answered(Some(10), Duration::from_micros(micros));
        }
        figures.answered(None, Duration::ZERO);
        let stats = figures.add_to(CacheStats::default());
        assert_eq!((stats.reads, stats.errors, stats.served_bytes), (7, 1, 60));
        assert_eq!(stats.latencies[..3], [2, 1, 2]);
        assert_eq!((stats.latencies[10], stats.latencies[LATENCIES - 1]), (1, 1));
    }
}
