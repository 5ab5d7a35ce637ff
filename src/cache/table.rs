//! The chunk table: chunks that are present, chunks in flight, and who waits for them. Not locked.

use super::{
    buffer::{Buffer, footprint},
    file::{CachedFile, FileId},
    stats::CacheStats,
};
use crate::{error::Result, read::IndexedChunk};
use lru::LruCache;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Weak},
};

/// A file, and the number of a chunk in it.
type Key = (FileId, usize);
/// Called when a chunk completes.
pub(super) type Waiter = Box<dyn FnOnce(Result<Arc<Buffer>>) + Send>;

/// A chunk that was requested and is present.
struct Requested {
    chunk: Arc<Buffer>,
    /// How many of its bytes have been read.
    read: usize,
}

/// A chunk that was decoded ahead and has not been requested yet.
struct ReadAhead {
    chunk: Arc<Buffer>,
    /// Whose readahead window depends on whether the chunk is used.
    file: Weak<CachedFile>,
}

/// See the module's documentation.
pub(super) struct ChunkTable {
    requested: LruCache<Key, Requested>,
    read_ahead: LruCache<Key, ReadAhead>,
    in_flight: HashMap<Key, InFlight>,
    /// Most chunks that were present since the tables were allocated.
    peak_present: usize,
    /// Footprint of the chunks in `read_ahead`, and of those in flight that nobody waits for.
    pub(super) readahead_bytes: u64,
    pub(super) stats: CacheStats,
}

/// The readers that wait for a chunk in flight.
#[derive(Default)]
struct InFlight {
    waiters: Vec<Waiter>,
    /// How many of its bytes they read.
    read: usize,
    page_cached: bool,
    /// The batch that decodes the chunk, while nobody waits for it.
    readahead_batch: Option<u64>,
}

/// How a reader joins a chunk that is not present.
pub(super) enum Joined {
    /// The caller has to decode the chunk.
    Missing,
    /// The chunk was in flight as readahead, in this batch. Now a reader waits for it.
    Promoted(u64),
    /// Another reader waits for the chunk already.
    InFlight,
}

impl ChunkTable {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            requested: LruCache::unbounded(),
            read_ahead: LruCache::unbounded(),
            in_flight: HashMap::new(),
            peak_present: 0,
            readahead_bytes: 0,
            stats: CacheStats { capacity_bytes: capacity, ..CacheStats::default() },
        }
    }

    /// Whether a chunk is present.
    pub(super) fn contains(&self, file: &CachedFile, id: usize) -> bool {
        let key = (file.id(), id);
        self.requested.contains(&key) || self.read_ahead.contains(&key)
    }

    /// Whether a reader waits for a chunk in flight.
    pub(super) fn has_waiters(&self, file: &CachedFile, id: usize) -> bool {
        self.in_flight.get(&(file.id(), id)).is_some_and(|chunk| chunk.readahead_batch.is_none())
    }

    /// Whether too many chunks are in flight to start readahead.
    pub(super) fn is_congested(&self) -> bool {
        const MAX_IN_FLIGHT: usize = 1 << 14;
        self.in_flight.len() >= MAX_IN_FLIGHT
    }

    /// A chunk, if it is present, of which `bytes` are read. Once the page cache has all of the
    /// chunk, the table drops it.
    pub(super) fn get(
        &mut self,
        file: &CachedFile,
        id: usize,
        bytes: usize,
        page_cached: bool,
    ) -> Option<Arc<Buffer>> {
        let key = (file.id(), id);
        if let Some(ReadAhead { chunk, .. }) = self.read_ahead.pop(&key) {
            self.count_used(file, chunk.len());
            self.requested.put(key, Requested { chunk, read: 0 });
        }
        let requested = self.requested.get_mut(&key)?;
        requested.read += bytes;
        let chunk = Arc::clone(&requested.chunk);
        if requested.read >= chunk.len() {
            file.history().record(id);
            if page_cached {
                self.requested.pop(&key);
            }
        }
        Some(chunk)
    }

    /// A chunk, if it is present, for a file that differs from this one: no program reads it.
    pub(super) fn base_chunk(&mut self, file: &CachedFile, id: usize) -> Option<Arc<Buffer>> {
        let key = (file.id(), id);
        let requested = self.requested.get(&key).map(|requested| &requested.chunk);
        requested.or_else(|| self.read_ahead.peek(&key).map(|ahead| &ahead.chunk)).cloned()
    }

    /// Keep a chunk of which nothing was read, unless it is present or in flight.
    pub(super) fn keep(&mut self, file: &CachedFile, id: usize, chunk: &Arc<Buffer>) {
        if self.is_absent(file, id) {
            let requested = Requested { chunk: Arc::clone(chunk), read: 0 };
            self.requested.put((file.id(), id), requested);
            self.peak_present = self.peak_present.max(self.requested.len() + self.read_ahead.len());
        }
    }

    /// A chunk of `len` bytes that was decoded ahead has been requested.
    fn count_used(&mut self, file: &CachedFile, len: usize) {
        self.readahead_bytes -= footprint(len);
        self.stats.ahead_used += 1;
        file.history().readahead_used(len as u64);
    }

    /// Wait for a chunk that is not present, of which `bytes` are read.
    pub(super) fn join(
        &mut self,
        file: &CachedFile,
        (id, chunk): &IndexedChunk,
        bytes: usize,
        page_cached: bool,
        waiter: Waiter,
    ) -> Joined {
        let (id, len) = (*id, chunk.len());
        let mut joined = Joined::InFlight;
        let in_flight = self.in_flight.entry((file.id(), id)).or_insert_with(|| {
            joined = Joined::Missing;
            InFlight::default()
        });
        if let Some(batch) = in_flight.readahead_batch.take() {
            joined = Joined::Promoted(batch);
        }
        in_flight.waiters.push(waiter);
        in_flight.read += bytes;
        in_flight.page_cached = page_cached;
        let complete = in_flight.read >= len;
        if matches!(joined, Joined::Promoted(_)) {
            self.count_used(file, len);
        }
        if matches!(joined, Joined::Missing) {
            self.stats.misses += 1;
            file.history().record_miss(id);
        } else {
            self.stats.joined += 1;
        }
        if complete {
            file.history().record(id);
        }
        joined
    }

    /// The chunks of `ids` that are neither present nor in flight, and were not read completely
    /// before.
    pub(super) fn readahead_candidates(&self, file: &CachedFile, ids: Range<usize>) -> Vec<usize> {
        let mut ids = file.history().unread(ids);
        ids.retain(|&id| self.is_absent(file, id));
        ids
    }

    /// Whether a chunk is neither present nor in flight.
    pub(super) fn is_absent(&self, file: &CachedFile, id: usize) -> bool {
        !self.contains(file, id) && !self.in_flight.contains_key(&(file.id(), id))
    }

    /// Register a chunk of a readahead batch. Nobody waits for it yet.
    pub(super) fn start_readahead(
        &mut self,
        file: &CachedFile,
        (id, chunk): &IndexedChunk,
        batch: u64,
    ) {
        let in_flight = InFlight { readahead_batch: Some(batch), ..InFlight::default() };
        self.in_flight.insert((file.id(), *id), in_flight);
        self.readahead_bytes += footprint(chunk.len());
        self.stats.ahead += 1;
    }

    /// End the flight of a chunk, which is `None` if it failed. The chunk is kept unless the page
    /// cache gets all of it. Returns the waiters.
    pub(super) fn complete(
        &mut self,
        file: &Arc<CachedFile>,
        (id, indexed): &IndexedChunk,
        chunk: Option<&Arc<Buffer>>,
    ) -> Vec<Waiter> {
        let key = (file.id(), *id);
        let flight = self.in_flight.remove(&key).unwrap_or_default();
        let Some(chunk) = chunk.map(Arc::clone) else {
            self.readahead_bytes -= flight.readahead_batch.map_or(0, |_| footprint(indexed.len()));
            return flight.waiters;
        };
        if flight.readahead_batch.is_some() {
            self.read_ahead.put(key, ReadAhead { chunk, file: Arc::downgrade(file) });
        } else if !flight.page_cached || flight.read < chunk.len() {
            self.requested.put(key, Requested { chunk, read: flight.read });
        }
        self.peak_present = self.peak_present.max(self.requested.len() + self.read_ahead.len());
        flight.waiters
    }

    /// Evict chunks of at least `bytes`. Returns them, so that the caller frees them unlocked.
    pub(super) fn evict(&mut self, bytes: u64) -> Vec<Arc<Buffer>> {
        let mut evicted = Vec::new();
        let mut freed = 0;
        while freed < bytes {
            let Some(chunk) = self.evict_one() else { break };
            freed += chunk.footprint();
            evicted.push(chunk);
        }
        evicted
    }

    /// Evict the least recently used chunk. Chunks that nobody has requested yet come last.
    pub(super) fn evict_one(&mut self) -> Option<Arc<Buffer>> {
        let requested = self.requested.pop_lru().map(|(_, requested)| requested.chunk);
        let chunk = requested.or_else(|| self.evict_read_ahead())?;
        self.stats.evictions += 1;
        self.shrink();
        Some(chunk)
    }

    /// Reallocate the tables if they are far too large, because a few large chunks have replaced
    /// many small ones.
    fn shrink(&mut self) {
        const MIN_PEAK: usize = 1 << 14;
        let present = self.requested.len() + self.read_ahead.len();
        if self.peak_present < MIN_PEAK || present > self.peak_present / 8 {
            return;
        }
        self.peak_present = present;
        self.in_flight.shrink_to_fit();
        reallocate(&mut self.requested);
        reallocate(&mut self.read_ahead);
    }

    fn evict_read_ahead(&mut self) -> Option<Arc<Buffer>> {
        let (_, ReadAhead { chunk, file }) = self.read_ahead.pop_lru()?;
        self.readahead_bytes -= footprint(chunk.len());
        self.stats.ahead_dropped += 1;
        if let Some(file) = file.upgrade() {
            file.history().readahead_wasted();
        }
        Some(chunk)
    }
}

/// Move the entries of a table to a new one, in the same order.
fn reallocate<V>(table: &mut LruCache<Key, V>) {
    let mut small = LruCache::unbounded();
    while let Some((key, value)) = table.pop_lru() {
        small.put(key, value);
    }
    *table = small;
}
