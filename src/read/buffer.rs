//! Memory for decoded chunks: page-aligned, returned to the system when dropped, a few kept for reuse.
//!
//! A heap keeps what is freed for as long as it likes; a daemon that promises a bound cannot let it.

use crate::error::{Context, Result};
use memmap2::{MmapMut, MmapOptions};
use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Mappings come in multiples of this many bytes, so that chunks of about a size share spares.
const GRAIN: usize = 64 << 10;

/// A source of [`Buffer`]s that keeps up to `spares` unused ones.
pub(super) struct BufferPool {
    spares: Mutex<Vec<MmapMut>>,
    limit: usize,
    lent: AtomicU64,
}

impl BufferPool {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { spares: Mutex::new(Vec::with_capacity(limit)), limit, lent: AtomicU64::new(0) })
    }

    /// Give back the unused ones.
    pub(super) fn clear(&self) {
        let spares = std::mem::take(&mut *self.spares.lock().unwrap_or_else(PoisonError::into_inner));
        drop(spares);
    }

    /// A buffer of `len` bytes with any content.
    pub(super) fn get(self: &Arc<Self>, len: usize) -> Result<Buffer> {
        if len < GRAIN {
            return Ok(self.lend(Memory::Heap(vec![0; len]), len));
        }
        let size = len.next_multiple_of(GRAIN);
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = spares.iter().position(|s| s.len() == size).map(|i| spares.swap_remove(i));
        drop(spares);
        let map = match spare {
            Some(s) => s,
            // All its pages at once: at first use they would be asked for one by one.
            None => MmapOptions::new().len(size).populate().map_anon().about("memory for a chunk")?,
        };
        Ok(self.lend(Memory::Mapped(Some(map)), len))
    }

    fn lend(self: &Arc<Self>, memory: Memory, len: usize) -> Buffer {
        let buffer = Buffer { memory, len, pool: Arc::clone(self) };
        self.lent.fetch_add(buffer.footprint() as u64, Ordering::Relaxed);
        buffer
    }

    /// Bytes of all buffers that are in use.
    pub(super) fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }
}

enum Memory {
    Heap(Vec<u8>),
    Mapped(Option<MmapMut>),
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
            Memory::Mapped(_) => self.len.next_multiple_of(GRAIN),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(v) => v,
            Memory::Mapped(map) => map.as_ref().map_or(&[], |m| &m[..self.len]),
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(v) => v,
            Memory::Mapped(map) => map.as_mut().map_or(&mut [], |m| &mut m[..self.len]),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.lent.fetch_sub(self.footprint() as u64, Ordering::Relaxed);
        if let Memory::Mapped(map) = &mut self.memory {
            let mut spares = self.pool.spares.lock().unwrap_or_else(PoisonError::into_inner);
            if spares.len() < self.pool.limit {
                spares.extend(map.take());
            }
        }
    }
}
