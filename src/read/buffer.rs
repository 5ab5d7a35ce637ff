//! Memory for decoded chunks: counted, and returned to the system when dropped, but for a little.
//!
//! A heap keeps what is freed for as long as it likes; a daemon that promises a bound cannot let it.
//!
//! A chunk lies in a page of memory where it lies in a page of its file, so that the kernel can copy whole pages of it to
//! whole pages of its cache.

use super::pages::{self, Shelf, Slot};
use crate::error::{Context, Result};
use memmap2::{MmapMut, MmapOptions};
use std::{
    ops::{Deref, DerefMut, Range},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Slots are for chunks of 64, 128 and 256 KiB, anywhere in a small page.
const SLOTS: [usize; 3] = [17 * pages::SMALL, 33 * pages::SMALL, 65 * pages::SMALL];
/// Chunks that are smaller are on the heap.
const SMALL: usize = 64 << 10;
/// Chunks that are larger than a slot take multiples of this many bytes.
const GRAIN: usize = 64 << 10;

/// A source of [`Buffer`]s.
pub(super) struct BufferPool {
    shelves: [Arc<Shelf>; SLOTS.len()],
    lent: AtomicU64,
}

impl Default for BufferPool {
    fn default() -> Self {
        Self { shelves: SLOTS.map(Shelf::new), lent: AtomicU64::default() }
    }
}

impl BufferPool {
    /// Give back what is unused.
    pub(super) fn clear(&self) {
        self.shelves.iter().for_each(|shelf| shelf.clear());
    }

    /// A buffer of `len` bytes with any content, for what is at `offset` of a file.
    ///
    /// # Errors
    /// Io, where there is no memory.
    pub(super) fn get(self: &Arc<Self>, offset: u64, len: usize) -> Result<Buffer> {
        let skip = if len < SMALL { 0 } else { offset as usize % pages::SMALL };
        let range = skip..skip + len;
        let memory = match self.shelves.iter().find(|shelf| shelf.size() >= range.end) {
            _ if len < SMALL => Memory::Heap(vec![0; len]),
            Some(shelf) => {
                if shelf.is_empty() {
                    self.make_way_for(shelf);
                }
                Memory::Slot(shelf.slot()?)
            }
            None => {
                let mut map = MmapOptions::new();
                map.len(range.end.next_multiple_of(GRAIN)).populate();
                Memory::Mapped(map.map_anon().about("memory for a chunk")?)
            }
        };
        let buffer = Buffer { memory, range, pool: Arc::clone(self) };
        self.lent.fetch_add(buffer.footprint() as u64, Ordering::Relaxed);
        Ok(buffer)
    }

    /// Bring memory for more buffers on this shelf, before they are asked for.
    pub(super) fn stock(&self, shelf: &Arc<Shelf>) {
        self.make_way_for(shelf);
        shelf.stock();
    }

    /// Give back what is unused on other shelves before this one grows: else each could grow as large as all may be.
    fn make_way_for(&self, shelf: &Arc<Shelf>) {
        self.shelves.iter().filter(|other| !Arc::ptr_eq(other, shelf)).for_each(|other| other.clear());
    }

    /// Bytes of all buffers that are in use.
    pub(super) fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }
}

enum Memory {
    Heap(Vec<u8>),
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
    /// Bytes of memory it takes.
    pub(super) fn footprint(&self) -> usize {
        match &self.memory {
            Memory::Heap(v) => v.capacity(),
            Memory::Slot(slot) => slot.len(),
            Memory::Mapped(map) => map.len(),
        }
    }

    /// The slots that it has one of.
    pub(super) fn shelf(&self) -> Option<&Arc<Shelf>> {
        match &self.memory {
            Memory::Slot(slot) => Some(slot.shelf()),
            Memory::Heap(_) | Memory::Mapped(_) => None,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(v) => v,
            Memory::Slot(slot) => &slot[self.range.clone()],
            Memory::Mapped(map) => &map[self.range.clone()],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(v) => v,
            Memory::Slot(slot) => &mut slot[self.range.clone()],
            Memory::Mapped(map) => &mut map[self.range.clone()],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.lent.fetch_sub(self.footprint() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_all_sizes_are_counted_by_what_they_take() {
        let pool = Arc::<BufferPool>::default();
        let mut total = 0;
        let mut buffers = Vec::new();
        let (small, large) = (68 << 10, 260 << 10);
        for (at, len, takes) in [
            (0, 0, 0),
            (7, 100, 100),
            (4095, SMALL, small),
            (0, small + 1, 132 << 10),
            (4095, large - 4095, large),
            (4095, large - 4094, 320 << 10),
            (1 << 40, large + 1, 320 << 10),
        ] {
            let mut buffer = pool.get(at, len).expect("memory");
            assert_eq!((buffer.len(), buffer.footprint()), (len, takes));
            assert!(len < SMALL || buffer.as_ptr().addr() % 4096 == at as usize % 4096);
            buffer.fill(1);
            total += takes as u64;
            assert_eq!(pool.lent(), total);
            buffers.push(buffer);
        }
        drop(buffers);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn what_chunks_of_one_size_leave_unused_is_given_back_before_those_of_another_take_more() {
        let pool = Arc::<BufferPool>::default();
        let fill = |len| -> Vec<Buffer> { (0..60).map(|_| pool.get(0, len).expect("memory")).collect() };
        let held = || pool.shelves.each_ref().map(|shelf| shelf.pages());
        for (len, expected) in [(256 << 10, [0, 0, 8]), (128 << 10, [0, 4, 0]), (64 << 10, [2, 0, 0])] {
            drop(fill(len));
            assert_eq!(held(), expected);
        }
        let shelf = &pool.shelves[2];
        assert!(shelf.runs_low() && !shelf.runs_low());
        pool.stock(shelf);
        assert_eq!(held(), [0, 0, 1]);
        assert!(!shelf.runs_low());
    }
}
