//! Scratch memory for the threads of one cache, bounded in bytes.

use super::budget::MemoryBudget;
use crate::read::{HUGE_PAGE, Scratch};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A pool of scratch memory.
pub(super) struct ScratchPool {
    /// Most bytes of all scratch memory together.
    limit: u64,
    budget: Arc<MemoryBudget>,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Block>,
    /// Bytes of all scratch memory, in use or idle.
    bytes: u64,
}

/// Scratch memory, and its size.
struct Block {
    scratch: Scratch,
    bytes: u64,
}

impl ScratchPool {
    /// Bytes that do not reduce the budget for chunks.
    const FREE_BYTES: u64 = 16 << 20;

    /// A pool for a cache of `capacity` bytes. It may use a quarter of them, or
    /// [`Self::FREE_BYTES`] if that is more.
    pub(super) fn new(capacity: u64, budget: &Arc<MemoryBudget>) -> Self {
        let limit = Self::FREE_BYTES.max(capacity / 4);
        let (budget, pool) = (Arc::clone(budget), Mutex::default());
        Self { limit, budget, pool, returned: Condvar::new() }
    }

    /// Call `work` with room for `len` bytes. Waits while other threads use too much of the limit,
    /// so `work` must not call this again.
    pub(super) fn with<T>(&self, len: usize, work: impl FnOnce(&mut Scratch) -> T) -> T {
        self.use_block(len, true, work)
    }

    /// The same within such work: does not wait, and exceeds the limit rather than that. What is
    /// beyond it is returned to the system afterwards.
    pub(super) fn with_more<T>(&self, len: usize, work: impl FnOnce(&mut Scratch) -> T) -> T {
        self.use_block(len, false, work)
    }

    fn use_block<T>(&self, len: usize, may_wait: bool, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let acquired = self.acquire(len.next_multiple_of(HUGE_PAGE) as u64, may_wait);
        let mut guard = ReturnOnDrop { pool: self, acquired: Some(acquired) };
        work(&mut guard.acquired.as_mut().expect("taken on drop only").scratch)
    }

    fn acquire(&self, bytes: u64, may_wait: bool) -> Block {
        let mut pool = self.lock();
        loop {
            if let Some(i) = pool.idle.iter().rposition(|idle| idle.bytes >= bytes) {
                return pool.idle.swap_remove(i);
            }
            // One thread always makes progress, whatever the limit.
            if pool.bytes == 0 || pool.bytes + bytes <= self.limit {
                self.resize(&mut pool, |all| all + bytes);
                return Block { scratch: Scratch::default(), bytes };
            }
            if let Some(Block { bytes, .. }) = pool.idle.pop() {
                self.resize(&mut pool, |all| all - bytes);
            } else if !may_wait {
                self.resize(&mut pool, |all| all + bytes);
                return Block { scratch: Scratch::default(), bytes };
            } else {
                pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Change the bytes of the pool, and charge the budget for those beyond the free share.
    fn resize(&self, pool: &mut Pool, change: impl FnOnce(u64) -> u64) {
        let before = pool.bytes.saturating_sub(Self::FREE_BYTES);
        pool.bytes = change(pool.bytes);
        let after = pool.bytes.saturating_sub(Self::FREE_BYTES);
        self.budget.reserve(after.saturating_sub(before));
        self.budget.release(before.saturating_sub(after));
    }

    /// Return idle memory to the system.
    pub(super) fn trim(&self) {
        let mut pool = self.lock();
        let idle = std::mem::take(&mut pool.idle);
        let unused: u64 = idle.iter().map(|idle| idle.bytes).sum();
        self.resize(&mut pool, |all| all - unused);
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the memory to its pool, even if the work panics.
struct ReturnOnDrop<'p> {
    pool: &'p ScratchPool,
    acquired: Option<Block>,
}

impl Drop for ReturnOnDrop<'_> {
    fn drop(&mut self) {
        let mut pool = self.pool.lock();
        let block = self.acquired.take();
        match &block {
            Some(block) if pool.bytes > self.pool.limit && pool.bytes > block.bytes => {
                self.pool.resize(&mut pool, |all| all - block.bytes);
            }
            _ => pool.idle.extend(block),
        }
        drop(pool);
        // Wake all, because the first one may need more than this.
        self.pool.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_waiting_threads_get_what_others_return() {
        let budget = MemoryBudget::new(0);
        let pool = ScratchPool { limit: 3 * HUGE_PAGE as u64, ..ScratchPool::new(0, &budget) };
        let bytes = || pool.lock().bytes;
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (pool, bytes) = (&pool, &bytes);
                scope.spawn(move || {
                    for round in 0..200 {
                        let len = if (thread + round) % 5 == 0 { 2 * HUGE_PAGE } else { 1 + round };
                        pool.with(len, |scratch| {
                            assert!(scratch.bytes(len).expect("memory").len() == len);
                            assert!(bytes() <= pool.limit);
                        });
                    }
                });
            }
        });
        // What another block is used for cannot wait for that one.
        pool.with(3 * HUGE_PAGE, |_| {
            pool.with_more(1, |_| assert_eq!(bytes(), 4 * HUGE_PAGE as u64));
            assert_eq!(bytes(), 3 * HUGE_PAGE as u64);
        });
        // A single thread may exceed the limit.
        pool.with(5 * HUGE_PAGE, |_| assert_eq!(bytes(), 5 * HUGE_PAGE as u64));
        pool.trim();
        assert_eq!((bytes(), budget.used()), (0, 0));
    }

    #[test]
    fn memory_beyond_the_free_share_reduces_the_budget_for_chunks() {
        let budget = MemoryBudget::new(1 << 30);
        let pool = ScratchPool::new(1 << 30, &budget);
        pool.with(ScratchPool::FREE_BYTES as usize, |_| {
            assert_eq!(budget.used(), 0);
            pool.with(3, |_| assert_eq!(budget.used(), HUGE_PAGE as u64));
        });
        pool.trim();
        assert_eq!(budget.used(), 0);
    }
}
