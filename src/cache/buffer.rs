//! Buffers for decoded chunks, taken from a pool that returns unused memory to the system.
//!
//! A heap keeps freed memory as long as it likes, so a daemon with a memory limit cannot use one.
//!
//! The offset of a chunk in a page of memory is its offset in a page of its file, so that the
//! kernel copies whole pages of it to whole pages of its cache.

use super::{
    budget::MemoryBudget,
    slab::{SlabPool, Slot},
};
use crate::{
    error::{Context, Result},
    read::PAGE,
};
use memmap2::{MmapMut, MmapOptions};
use std::{
    ops::{Deref, DerefMut, Range},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Slot sizes: for small chunks, and for chunks of 64, 128 and 256 KiB at any offset in a page.
const SLOT_SIZES: [usize; 7] =
    [1 << 10, 4 << 10, 16 << 10, 32 << 10, 17 * PAGE, 33 * PAGE, 65 * PAGE];
/// Smaller chunks are not aligned to their offset in the file.
const ALIGNED_FROM: usize = 64 << 10;
/// Chunks larger than any slot have mappings of their own, in multiples of this many bytes.
const MAPPING_UNIT: usize = 64 << 10;

/// Bytes accounted for each chunk besides its memory: two allocations of at most 160 bytes that
/// refer to it, and its place in a hash table that has just grown.
const OVERHEAD: u64 = 256;

/// The source of [`Buffer`]s.
pub(super) struct BufferPool {
    slabs: [Arc<SlabPool>; SLOT_SIZES.len()],
    budget: Arc<MemoryBudget>,
    in_use: AtomicU64,
    /// The bytes in use that are not in slabs.
    mapped: AtomicU64,
}

impl BufferPool {
    pub(super) fn new(budget: &Arc<MemoryBudget>) -> Arc<Self> {
        let slabs = SLOT_SIZES.map(|size| SlabPool::new(size, OVERHEAD, budget));
        let (in_use, mapped) = Default::default();
        Arc::new(Self { slabs, budget: Arc::clone(budget), in_use, mapped })
    }

    /// Return unused memory to the system; `false` if there was none.
    pub(super) fn trim(&self) -> bool {
        self.slabs.iter().fold(false, |any, slabs| slabs.trim() | any)
    }

    /// A buffer of `len` bytes with arbitrary content, for a chunk at `offset` of its file.
    ///
    /// If the budget is exhausted, unused memory is returned first. Then `evict_one` is called
    /// until there is room, or until it returns `false`. Then the budget is exceeded.
    ///
    /// # Errors
    /// Io, if the system has no memory.
    pub(super) fn allocate(
        self: &Arc<Self>,
        offset: u64,
        len: usize,
        evict_one: impl FnMut() -> bool,
    ) -> Result<Buffer> {
        let skip = if len < ALIGNED_FROM { 0 } else { offset as usize % PAGE };
        let range = skip..skip + len;
        let memory = self.memory(range.end, evict_one)?;
        let buffer = Buffer { memory, range, pool: Arc::clone(self) };
        self.in_use.fetch_add(buffer.footprint(), Ordering::Relaxed);
        self.mapped.fetch_add(buffer.mapped(), Ordering::Relaxed);
        Ok(buffer)
    }

    fn memory(&self, len: usize, mut evict_one: impl FnMut() -> bool) -> Result<Memory> {
        Ok(match self.slabs.iter().find(|slabs| slabs.slot_size() >= len) {
            Some(slabs) => loop {
                if let Some(slot) = slabs.take() {
                    break Memory::Slot(slot);
                }
                if self.try_reserve(slabs.growth(), &mut evict_one) {
                    slabs.grow()?;
                }
            },
            None => {
                let bytes = len.next_multiple_of(MAPPING_UNIT);
                let reserved = bytes as u64 + OVERHEAD;
                while !self.try_reserve(reserved, &mut evict_one) {}
                let mut map = MmapOptions::new();
                map.len(bytes).populate();
                let map = map.map_anon().about("memory for a chunk");
                Memory::Mapped(map.inspect_err(|_| self.budget.release(reserved))?)
            }
        })
    }

    /// Reserve `bytes`, or free some memory and return `false`: the caller tries again.
    fn try_reserve(&self, bytes: u64, evict_one: &mut impl FnMut() -> bool) -> bool {
        if self.budget.try_reserve(bytes) {
            return true;
        }
        if self.trim() || evict_one() {
            return false;
        }
        self.budget.reserve(bytes);
        true
    }

    /// Populate memory for more buffers of these slabs, before they are needed.
    pub(super) fn preallocate(&self, slabs: &Arc<SlabPool>) {
        // Otherwise, the pool of each size could grow to the whole budget.
        for other in self.slabs.iter().filter(|other| !Arc::ptr_eq(other, slabs)) {
            other.trim();
        }
        slabs.preallocate();
    }

    /// Bytes of all buffers in use, with their overhead.
    pub(super) fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Bytes that cannot be returned to the system now: pages that buffers overlap, and overhead.
    pub(super) fn held(&self) -> u64 {
        let pages: u64 = self.slabs.iter().map(|slabs| slabs.bytes_in_use()).sum();
        pages + self.mapped.load(Ordering::Relaxed)
    }
}

enum Memory {
    Slot(Slot),
    Mapped(MmapMut),
}

/// Memory from a [`BufferPool`].
pub(super) struct Buffer {
    memory: Memory,
    range: Range<usize>,
    pool: Arc<BufferPool>,
}

impl Buffer {
    /// Bytes of memory, with the overhead.
    pub(super) fn footprint(&self) -> u64 {
        let memory = match &self.memory {
            Memory::Slot(slot) => slot.len(),
            Memory::Mapped(map) => map.len(),
        };
        memory as u64 + OVERHEAD
    }

    /// The footprint of a buffer that is not in a slab, or 0.
    fn mapped(&self) -> u64 {
        match &self.memory {
            Memory::Slot(_) => 0,
            Memory::Mapped(_) => self.footprint(),
        }
    }

    /// The slabs that the buffer is from.
    pub(super) fn slabs(&self) -> Option<&Arc<SlabPool>> {
        match &self.memory {
            Memory::Slot(slot) => Some(slot.pool()),
            Memory::Mapped(_) => None,
        }
    }
}

/// Approximate footprint of a chunk of `len` bytes in a buffer.
pub(super) fn footprint(len: usize) -> u64 {
    let slot = SLOT_SIZES.iter().copied().find(|&slot| slot >= len);
    slot.unwrap_or(len.next_multiple_of(MAPPING_UNIT)) as u64 + OVERHEAD
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Slot(slot) => &slot[self.range.clone()],
            Memory::Mapped(map) => &map[self.range.clone()],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Slot(slot) => &mut slot[self.range.clone()],
            Memory::Mapped(map) => &mut map[self.range.clone()],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.in_use.fetch_sub(self.footprint(), Ordering::Relaxed);
        self.pool.mapped.fetch_sub(self.mapped(), Ordering::Relaxed);
        // The reservation of a slot is released with its page.
        self.pool.budget.release(self.mapped());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(limit: u64) -> Arc<BufferPool> {
        BufferPool::new(&MemoryBudget::new(limit))
    }

    fn get(pool: &Arc<BufferPool>, offset: u64, len: usize) -> Buffer {
        pool.allocate(offset, len, || false).expect("memory")
    }

    #[test]
    fn buffers_of_all_sizes_are_accounted_for() {
        let pool = pool(u64::MAX);
        let mut total = 0;
        let mut buffers = Vec::new();
        let (small, large) = (68 << 10, 260 << 10);
        for (at, len, takes) in [
            (0, 0, 1 << 10),
            (7, 100, 1 << 10),
            (7, 5000, 16 << 10),
            (4095, ALIGNED_FROM, small),
            (0, small + 1, 132 << 10),
            (4095, large - 4095, large),
            (4095, large - 4094, 320 << 10),
            (1 << 40, large + 1, 320 << 10),
        ] {
            let mut buffer = get(&pool, at, len);
            let takes = takes as u64 + OVERHEAD;
            assert_eq!((buffer.len(), buffer.footprint()), (len, takes));
            assert!(len < ALIGNED_FROM || buffer.as_ptr().addr() % 4096 == at as usize % 4096);
            buffer.fill(1);
            total += takes;
            assert_eq!(pool.in_use(), total);
            assert!(pool.held() >= total && pool.budget.used() >= pool.held());
            buffers.push(buffer);
        }
        drop(buffers);
        assert!(pool.trim());
        assert_eq!((pool.in_use(), pool.held(), pool.budget.used()), (0, 0, 0));
    }

    #[test]
    fn unused_memory_is_returned_before_chunks_are_evicted_and_the_budget_exceeded() {
        let limit = 16 << 20;
        let pool = pool(limit);
        let mut held: Vec<Buffer> = Vec::new();
        // Fill the budget with one size after another; evictions leave survivors scattered.
        for (round, len) in
            [256 << 10, 300 << 10, 128 << 10, 1, 5000, 64 << 10, 30_000].into_iter().enumerate()
        {
            for i in 0..20_000_000 / len.max(2000) {
                let mut at = 0;
                let evict_one = || {
                    at = (at + 1 + i % 7).min(held.len());
                    at < held.len() && {
                        held.swap_remove(at);
                        true
                    } || held.pop().is_some()
                };
                let buffer = pool.allocate(0, len, evict_one).expect("memory");
                assert!(pool.budget.used() <= limit, "round {round}");
                held.push(buffer);
            }
        }
        held.clear();
        // Nothing can be evicted.
        let kept: Vec<Buffer> = (0..80).map(|_| get(&pool, 0, 256 << 10)).collect();
        assert!(pool.budget.used() > limit && pool.in_use() > limit);
        drop(kept);
    }

    #[test]
    fn memory_is_preallocated_within_the_budget() {
        let last = |pool: &BufferPool| Arc::clone(&pool.slabs[SLOT_SIZES.len() - 1]);
        for (limit, pages) in [(4 << 20, 1), (1 << 20, 0)] {
            let pool = pool(limit);
            let slabs = last(&pool);
            assert!(slabs.should_preallocate() && !slabs.should_preallocate());
            pool.preallocate(&slabs);
            assert_eq!((slabs.resident_pages(), slabs.should_preallocate()), (pages, pages == 0));
        }
    }

    #[test]
    fn the_overhead_covers_the_bookkeeping_of_a_chunk() {
        // The system's allocator adds eight bytes and rounds up.
        let allocated = |bytes: usize| (bytes + 8).next_multiple_of(16).max(32);
        let buffer = allocated(16 + size_of::<Buffer>());
        // An entry of the LRU list: key, chunk and its state, and two links.
        let entry = allocated(16 + 16 + 16);
        // Two words and a byte, while a full table grows into one that is 7/16 full.
        let place = 17 * 16 / 7 + 17 * 8 / 7;
        assert!(buffer + entry + place <= OVERHEAD as usize, "{buffer} + {entry} + {place}");
    }
}
