//! Memory for decoded chunks: counted, and returned to the system when dropped, but for a little.
//!
//! A heap keeps what is freed for as long as it likes; a daemon that promises a bound cannot let it.

use super::pages::{SLOT, Shelf, Slot};
use crate::error::{Context, Result};
use memmap2::{MmapMut, MmapOptions};
use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Chunks that are smaller are on the heap.
const SMALL: usize = 64 << 10;
/// Chunks that are larger than a slot take multiples of this many bytes.
const GRAIN: usize = 64 << 10;

/// A source of [`Buffer`]s.
#[derive(Default)]
pub(super) struct BufferPool {
    shelf: Arc<Shelf>,
    lent: AtomicU64,
}

impl BufferPool {
    /// Give back what is unused.
    pub(super) fn clear(&self) {
        self.shelf.clear();
    }

    /// A buffer of `len` bytes with any content.
    ///
    /// # Errors
    /// Io, where there is no memory.
    pub(super) fn get(self: &Arc<Self>, len: usize) -> Result<Buffer> {
        let memory = match len {
            0..SMALL => Memory::Heap(vec![0; len]),
            SMALL..=SLOT => Memory::Slot(self.shelf.slot()?),
            _ => {
                let mut map = MmapOptions::new();
                map.len(len.next_multiple_of(GRAIN)).populate();
                Memory::Mapped(map.map_anon().about("memory for a chunk")?)
            }
        };
        let buffer = Buffer { memory, len, pool: Arc::clone(self) };
        self.lent.fetch_add(buffer.footprint() as u64, Ordering::Relaxed);
        Ok(buffer)
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
    len: usize,
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
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(v) => v,
            Memory::Slot(slot) => &slot[..self.len],
            Memory::Mapped(map) => &map[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(v) => v,
            Memory::Slot(slot) => &mut slot[..self.len],
            Memory::Mapped(map) => &mut map[..self.len],
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
        for (len, takes) in [(0, 0), (100, 100), (SMALL, SLOT), (SLOT, SLOT), (SLOT + 1, SLOT + GRAIN)] {
            let mut buffer = pool.get(len).expect("memory");
            assert_eq!((buffer.len(), buffer.footprint()), (len, takes));
            buffer.fill(1);
            total += takes as u64;
            assert_eq!(pool.lent(), total);
            buffers.push(buffer);
        }
        drop(buffers);
        assert_eq!(pool.lent(), 0);
    }
}
