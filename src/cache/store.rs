//! What the parts of a cache share: the chunk table, memory, threads and counters.

use super::{
    budget::MemoryBudget,
    buffer::{Buffer, BufferPool},
    file::CachedFile,
    scratch_pool::ScratchPool,
    slab::SlabPool,
    stats::{CacheStats, Counters},
    table::ChunkTable,
    workers::WorkerPool,
};
use crate::{error::Result, read::IndexedChunk};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// See the module's documentation.
pub(super) struct ChunkStore {
    table: Mutex<ChunkTable>,
    pub(super) workers: WorkerPool,
    pub(super) budget: Arc<MemoryBudget>,
    pub(super) scratch: ScratchPool,
    pub(super) counters: Counters,
    buffers: Arc<BufferPool>,
    capacity: u64,
    next_batch: AtomicU64,
}

impl ChunkStore {
    /// # Errors
    /// Io, if the threads cannot be started.
    pub(super) fn new(capacity: u64, threads: usize) -> Result<Arc<Self>> {
        let budget = MemoryBudget::new(capacity);
        Ok(Arc::new(Self {
            table: Mutex::new(ChunkTable::new(capacity)),
            workers: WorkerPool::start(threads, threads)?,
            buffers: BufferPool::new(&budget),
            scratch: ScratchPool::new(capacity, &budget),
            counters: Counters::default(),
            budget,
            capacity,
            next_batch: AtomicU64::new(0),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ChunkTable> {
        // No code that holds the lock can leave the table half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most bytes that the cache uses.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// A number for a batch of chunks.
    pub(super) fn next_batch(&self) -> u64 {
        self.next_batch.fetch_add(1, Ordering::Relaxed)
    }

    /// A buffer for a chunk at `offset` of its file. Others are evicted if need be.
    ///
    /// # Errors
    /// Io, if the system has no memory.
    pub(super) fn allocate(&self, offset: u64, len: usize) -> Result<Buffer> {
        self.buffers.allocate(offset, len, || {
            let evicted = self.lock().evict_one();
            evicted.is_some()
        })
    }

    /// Deliver a chunk in flight, or the reason why it failed, to the table and its waiters.
    pub(super) fn complete(
        &self,
        file: &Arc<CachedFile>,
        indexed: &IndexedChunk,
        chunk: Result<Arc<Buffer>>,
    ) {
        let mut table = self.lock();
        let waiters = table.complete(file, indexed, chunk.as_ref().ok());
        let evicted = table.evict(self.buffers.in_use().saturating_sub(self.capacity));
        drop(table);
        drop(evicted);
        for waiter in waiters {
            waiter(chunk.clone());
        }
        if let Ok(chunk) = chunk {
            self.preallocate(&chunk);
        }
    }

    /// Keep a chunk that was decoded for another file, unless it is present or in flight.
    pub(super) fn keep_base(&self, file: &CachedFile, id: usize, chunk: &Arc<Buffer>) {
        let mut table = self.lock();
        table.keep(file, id, chunk);
        let evicted = table.evict(self.buffers.in_use().saturating_sub(self.capacity));
        drop(table);
        drop(evicted);
    }

    /// Populate memory for more chunks like this one in the background. Doing it on demand takes
    /// longer than decoding.
    fn preallocate(&self, chunk: &Buffer) {
        // A nearly full cache reuses the slots of evicted chunks.
        let fits = |slabs: &SlabPool| self.buffers.in_use() + slabs.growth() <= self.capacity;
        let slabs = chunk.slabs().filter(|slabs| fits(slabs) && slabs.should_preallocate());
        if let Some(slabs) = slabs {
            let (buffers, slabs) = (Arc::clone(&self.buffers), Arc::clone(slabs));
            self.workers.readahead(self.next_batch(), move || buffers.preallocate(&slabs));
        }
    }

    /// Whether a reader waits for one of these chunks.
    pub(super) fn is_awaited(&self, file: &CachedFile, ids: &[usize]) -> bool {
        let table = self.lock();
        ids.iter().any(|id| table.has_waiters(file, *id))
    }

    /// Run a job on the threads of the cache: on demand, or as readahead with this number.
    pub(super) fn run(&self, ahead: Option<u64>, job: impl FnOnce() + Send + 'static) {
        match ahead {
            None => self.workers.demand(job),
            Some(number) => self.workers.readahead(number, job),
        }
    }

    /// Return unused memory to the system.
    pub(super) fn trim(&self) {
        self.buffers.trim();
        self.scratch.trim();
    }

    /// Evict all chunks, and return their memory to the system.
    pub(super) fn clear(&self) {
        let evicted = self.lock().evict(u64::MAX);
        drop(evicted);
        self.trim();
    }

    pub(super) fn stats(&self) -> CacheStats {
        let locked = self.lock().stats;
        self.counters.add_to(CacheStats { held_bytes: self.buffers.held(), ..locked })
    }
}
