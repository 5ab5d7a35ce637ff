//! How much memory a cache has taken, and how much it may take.

use crate::format::IndexMemory;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Bytes of open indexes that are not at the expense of chunks.
const FREE_INDEXES: u64 = 8 << 20;

/// The memory of a cache: chunks, with all that is kept for each, and what else grows beyond its free share.
pub(super) struct Account {
    limit: u64,
    taken: AtomicU64,
    indexes: Arc<IndexMemory>,
}

impl Account {
    /// Of a cache that may take `limit` bytes. Open indexes may take an eighth of that, and a little more.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        let indexes = Arc::new(IndexMemory::new(FREE_INDEXES + limit / 8));
        Arc::new(Self { limit, taken: AtomicU64::new(0), indexes })
    }

    pub(super) fn indexes(&self) -> &Arc<IndexMemory> {
        &self.indexes
    }

    /// Take so many bytes if there are as many left.
    pub(super) fn try_take(&self, bytes: u64) -> bool {
        let most = self.limit.saturating_sub(self.indexes.used().saturating_sub(FREE_INDEXES));
        let add = |taken: u64| taken.checked_add(bytes).filter(|&sum| sum <= most);
        self.taken.fetch_update(Relaxed, Relaxed, add).is_ok()
    }

    /// Take so many bytes in any case: without them nothing would go on.
    pub(super) fn take(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Relaxed);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Relaxed);
    }

    /// Bytes that are taken.
    #[cfg(test)]
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }
}
