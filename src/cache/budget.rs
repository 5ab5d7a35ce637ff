//! The memory budget of a cache: how much it uses, and how much it may use.

use crate::read::ArchiveMemory;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Bytes of open indexes that do not reduce the budget for chunks.
const FREE_INDEX_BYTES: u64 = 8 << 20;

/// The budget for chunks, their bookkeeping, and everything else that grows beyond its free share.
pub(super) struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    archives: Arc<ArchiveMemory>,
}

impl MemoryBudget {
    /// A budget of `limit` bytes. Open indexes may use an eighth of it, plus a few megabytes.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        let archives = Arc::new(ArchiveMemory::new(FREE_INDEX_BYTES + limit / 8));
        Arc::new(Self { limit, used: AtomicU64::new(0), archives })
    }

    /// The memory that the archives of this cache share.
    pub(super) fn archives(&self) -> &Arc<ArchiveMemory> {
        &self.archives
    }

    /// Reserve `bytes` if the budget allows it.
    pub(super) fn try_reserve(&self, bytes: u64) -> bool {
        let indexes = self.archives.index_bytes();
        let available = self.limit.saturating_sub(indexes.saturating_sub(FREE_INDEX_BYTES));
        let add = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= available);
        self.used.fetch_update(Relaxed, Relaxed, add).is_ok()
    }

    /// Reserve `bytes` even beyond the limit, where no progress is possible without them.
    pub(super) fn reserve(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// Reserved bytes.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }
}
