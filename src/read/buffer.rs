//! Memory for decoded chunks: counted, and returned to the system when dropped, but for a little.
//!
//! A heap keeps what is freed for as long as it likes; a daemon that promises a bound cannot let it.
//!
//! A chunk lies in a page of memory where it lies in a page of its file, so that the kernel can copy whole pages of it to
//! whole pages of its cache.

use super::{
    account::Account,
    pages::{self, Shelf, Slot},
};
use crate::error::{Context, Result};
use memmap2::{MmapMut, MmapOptions};
use std::{
    ops::{Deref, DerefMut, Range},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Slots are for chunks of 64, 128 and 256 KiB, anywhere in a small page; and for smaller ones.
const SLOTS: [usize; 7] =
    [1 << 10, 4 << 10, 16 << 10, 32 << 10, 17 * pages::SMALL, 33 * pages::SMALL, 65 * pages::SMALL];
/// Chunks that are smaller lie anywhere in a page.
const SMALL: usize = 64 << 10;
/// Chunks that are larger than a slot take multiples of this many bytes.
const GRAIN: usize = 64 << 10;

/// Bytes that are counted for a chunk beside its memory: two allocations of at most 160 bytes by which it is found, and its
/// place in a hash table that has just grown.
const KEPT_FOR_EACH: u64 = 256;

/// A source of [`Buffer`]s.
pub(super) struct BufferPool {
    shelves: [Arc<Shelf>; SLOTS.len()],
    account: Arc<Account>,
    lent: AtomicU64,
    /// Of these: what is on no shelf.
    mapped: AtomicU64,
}

impl BufferPool {
    /// With memory from `account`.
    pub(super) fn new(account: &Arc<Account>) -> Arc<Self> {
        let shelves = SLOTS.map(|size| Shelf::new(size, KEPT_FOR_EACH, account));
        let (lent, mapped) = Default::default();
        Arc::new(Self { shelves, account: Arc::clone(account), lent, mapped })
    }

    /// Give back what is unused; `false` if there was nothing.
    pub(super) fn clear(&self) -> bool {
        self.shelves.iter().fold(false, |any, shelf| shelf.clear() | any)
    }

    /// A buffer of `len` bytes with any content, for what is at `offset` of a file.
    ///
    /// Where the account has nothing left, what is unused is given back first, then `drop_one` is asked to drop a buffer,
    /// as long as it has one. Without any the account is overdrawn.
    ///
    /// # Errors
    /// Io, where there is no memory.
    pub(super) fn get(
        self: &Arc<Self>,
        offset: u64,
        len: usize,
        drop_one: impl FnMut() -> bool,
    ) -> Result<Buffer> {
        let skip = if len < SMALL { 0 } else { offset as usize % pages::SMALL };
        let range = skip..skip + len;
        let memory = self.memory(range.end, drop_one)?;
        let buffer = Buffer { memory, range, pool: Arc::clone(self) };
        self.lent.fetch_add(buffer.footprint(), Ordering::Relaxed);
        self.mapped.fetch_add(buffer.mapped(), Ordering::Relaxed);
        Ok(buffer)
    }

    fn memory(&self, len: usize, mut drop_one: impl FnMut() -> bool) -> Result<Memory> {
        Ok(match self.shelves.iter().find(|shelf| shelf.size() >= len) {
            Some(shelf) => loop {
                if let Some(slot) = shelf.slot() {
                    break Memory::Slot(slot);
                }
                if self.room(shelf.grows_by(), &mut drop_one) {
                    shelf.grow()?;
                }
            },
            None => {
                let bytes = len.next_multiple_of(GRAIN);
                let taken = bytes as u64 + KEPT_FOR_EACH;
                while !self.room(taken, &mut drop_one) {}
                let mut map = MmapOptions::new();
                map.len(bytes).populate();
                let map = map.map_anon().about("memory for a chunk");
                Memory::Mapped(map.inspect_err(|_| self.account.give_back(taken))?)
            }
        })
    }

    /// Take so many bytes from the account, or something that may help; `false` if it is to be tried again.
    fn room(&self, bytes: u64, drop_one: &mut impl FnMut() -> bool) -> bool {
        if self.account.try_take(bytes) {
            return true;
        }
        if self.clear() || drop_one() {
            return false;
        }
        self.account.take(bytes);
        true
    }

    /// Bring memory for more buffers on this shelf, before they are asked for.
    pub(super) fn stock(&self, shelf: &Arc<Shelf>) {
        // What others left unused first: else each could grow as large as all may be.
        for other in self.shelves.iter().filter(|other| !Arc::ptr_eq(other, shelf)) {
            other.clear();
        }
        shelf.stock();
    }

    /// Bytes of all buffers that are in use, with all that is kept for each.
    pub(super) fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }

    /// Bytes of memory that could not be given back: those of pages of which a buffer has some, and what is kept for each.
    pub(super) fn held(&self) -> u64 {
        let pages: u64 = self.shelves.iter().map(|shelf| shelf.used_bytes()).sum();
        pages + self.mapped.load(Ordering::Relaxed)
    }
}

enum Memory {
    Slot(Slot),
    Mapped(MmapMut),
}

/// Some bytes of a [`BufferPool`].
pub(super) struct Buffer {
    memory: Memory,
    range: Range<usize>,
    pool: Arc<BufferPool>,
}

impl Buffer {
    /// Bytes of memory it takes, with all that is kept for it.
    pub(super) fn footprint(&self) -> u64 {
        let memory = match &self.memory {
            Memory::Slot(slot) => slot.len(),
            Memory::Mapped(map) => map.len(),
        };
        memory as u64 + KEPT_FOR_EACH
    }

    /// The same, if it is in no slot.
    fn mapped(&self) -> u64 {
        match &self.memory {
            Memory::Slot(_) => 0,
            Memory::Mapped(_) => self.footprint(),
        }
    }

    /// The slots that it has one of.
    pub(super) fn shelf(&self) -> Option<&Arc<Shelf>> {
        match &self.memory {
            Memory::Slot(slot) => Some(slot.shelf()),
            Memory::Mapped(_) => None,
        }
    }
}

/// Bytes that a chunk of so many takes, in a buffer, about.
pub(super) fn cost(len: usize) -> u64 {
    let slot = SLOTS.iter().copied().find(|&slot| slot >= len);
    slot.unwrap_or(len.next_multiple_of(GRAIN)) as u64 + KEPT_FOR_EACH
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
        self.pool.lent.fetch_sub(self.footprint(), Ordering::Relaxed);
        self.pool.mapped.fetch_sub(self.mapped(), Ordering::Relaxed);
        // The bytes of a slot are given back with its page.
        self.pool.account.give_back(self.mapped());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(limit: u64) -> Arc<BufferPool> {
        BufferPool::new(&Account::new(limit))
    }

    fn get(pool: &Arc<BufferPool>, offset: u64, len: usize) -> Buffer {
        pool.get(offset, len, || false).expect("memory")
    }

    #[test]
    fn buffers_of_all_sizes_are_counted_by_what_they_take() {
        let pool = pool(u64::MAX);
        let mut total = 0;
        let mut buffers = Vec::new();
        let (small, large) = (68 << 10, 260 << 10);
        for (at, len, takes) in [
            (0, 0, 1 << 10),
            (7, 100, 1 << 10),
            (7, 5000, 16 << 10),
            (4095, SMALL, small),
            (0, small + 1, 132 << 10),
            (4095, large - 4095, large),
            (4095, large - 4094, 320 << 10),
            (1 << 40, large + 1, 320 << 10),
        ] {
            let mut buffer = get(&pool, at, len);
            let takes = takes as u64 + KEPT_FOR_EACH;
            assert_eq!((buffer.len(), buffer.footprint()), (len, takes));
            assert!(len < SMALL || buffer.as_ptr().addr() % 4096 == at as usize % 4096);
            buffer.fill(1);
            total += takes;
            assert_eq!(pool.lent(), total);
            assert!(pool.held() >= total && pool.account.taken() >= pool.held());
            buffers.push(buffer);
        }
        drop(buffers);
        assert!(pool.clear());
        assert_eq!((pool.lent(), pool.held(), pool.account.taken()), (0, 0, 0));
    }

    #[test]
    fn memory_is_taken_from_what_is_unused_then_from_what_is_dropped_and_then_overdrawn() {
        let limit = 16 << 20;
        let pool = pool(limit);
        let mut held: Vec<Buffer> = Vec::new();
        // Of each size as many as there is room for; whatever is dropped, some is kept here and there.
        for (round, len) in
            [256 << 10, 300 << 10, 128 << 10, 1, 5000, 64 << 10, 30_000].into_iter().enumerate()
        {
            for i in 0..20_000_000 / len.max(2000) {
                let mut at = 0;
                let drop_one = || {
                    at = (at + 1 + i % 7).min(held.len());
                    at < held.len() && {
                        held.swap_remove(at);
                        true
                    } || held.pop().is_some()
                };
                let buffer = pool.get(0, len, drop_one).expect("memory");
                assert!(pool.account.taken() <= limit, "round {round}");
                held.push(buffer);
            }
        }
        held.clear();
        // Nothing is left to drop.
        let kept: Vec<Buffer> = (0..80).map(|_| get(&pool, 0, 256 << 10)).collect();
        assert!(pool.account.taken() > limit && pool.lent() > limit);
        drop(kept);
    }

    #[test]
    fn memory_is_brought_ahead_while_there_is_room_for_it() {
        let shelf = |pool: &BufferPool| Arc::clone(&pool.shelves[SLOTS.len() - 1]);
        for (limit, pages) in [(4 << 20, 1), (1 << 20, 0)] {
            let pool = pool(limit);
            let shelf = shelf(&pool);
            assert!(shelf.runs_low() && !shelf.runs_low());
            pool.stock(&shelf);
            assert_eq!((shelf.pages(), shelf.runs_low()), (pages, pages == 0));
        }
    }

    #[test]
    fn what_is_kept_for_each_chunk_is_no_more_than_is_counted() {
        // As the system's allocator rounds, with its own eight bytes.
        let allocated = |bytes: usize| (bytes + 8).next_multiple_of(16).max(32);
        let buffer = allocated(16 + size_of::<Buffer>());
        // An entry of the list of those used last: key, chunk and what is known of it, and two neighbours.
        let entry = allocated(16 + 16 + 16);
        // Two words and a byte, in a table that is filled to seven sixteenths after it has grown, from one that is full.
        let place = 17 * 16 / 7 + 17 * 8 / 7;
        assert!(buffer + entry + place <= KEPT_FOR_EACH as usize, "{buffer} + {entry} + {place}");
    }
}
