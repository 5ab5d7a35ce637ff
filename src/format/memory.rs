//! The memory that the open indexes of a process take together.

use super::check::PART;
use crate::error::{Error, ErrorKind, Result};
use lru::LruCache;
use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Parts that are kept, of all indexes that share a memory.
const KEPT_PARTS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// The memory that the open indexes of a process or of a mount take together.
pub struct IndexMemory {
    limit: u64,
    used: AtomicU64,
    /// The most recently used parts.
    parts: Mutex<KeptParts>,
}

/// Parts by index and number.
type KeptParts = LruCache<(u64, usize), Arc<[u8]>>;

impl Default for IndexMemory {
    /// Enough for models of one terabyte.
    fn default() -> Self {
        Self::new(128 << 20)
    }
}

impl IndexMemory {
    /// Bytes that kept parts take, besides what is reserved.
    pub const PARTS: u64 = (KEPT_PARTS.get() * PART) as u64;

    /// A memory of `limit` bytes and [`IndexMemory::PARTS`].
    pub fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0), parts: Mutex::new(LruCache::new(KEPT_PARTS)) }
    }

    /// Reserved bytes.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Reserves memory for an index that stays in memory. One eighth is left to those that do not.
    pub(super) fn reserve_whole(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.reserve_below(bytes, self.limit - self.limit / 8)
    }

    /// Reserves memory for an index that is read in parts.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        let full = || {
            Error::new(
                ErrorKind::Io,
                "the indexes of open archives take all memory allowed; a larger cache allows more",
            )
        };
        self.reserve_below(bytes, self.limit).ok_or_else(full)
    }

    /// A kept part.
    pub(super) fn part(&self, index: u64, number: usize) -> Option<Arc<[u8]>> {
        self.parts().get(&(index, number)).cloned()
    }

    /// Keeps a part.
    pub(super) fn keep(&self, index: u64, number: usize, part: &Arc<[u8]>) {
        self.parts().put((index, number), Arc::clone(part));
    }

    fn parts(&self) -> MutexGuard<'_, KeptParts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve_below(self: &Arc<Self>, bytes: u64, limit: u64) -> Option<Reservation> {
        let add = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Reservation { memory: Arc::clone(self), bytes })
    }
}

/// Bytes of an [`IndexMemory`], released when dropped.
pub(super) struct Reservation {
    pub(super) memory: Arc<IndexMemory>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
