//! What a cache holds and expects, without its lock: chunks that are present, chunks on their way, who waits for them.

use super::{archive::Archive, buffer::Buffer, figures::CacheStats};
use crate::error::Result;
use lru::LruCache;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Weak},
};

/// A chunk of an archive: its [`Archive::id`] and its number.
type Key = (u64, usize);
pub(super) type Waiter = Box<dyn FnOnce(Result<Arc<Buffer>>) + Send>;

/// A chunk that is present.
struct Ready {
    chunk: Arc<Buffer>,
    /// Bytes of it that were read.
    taken: usize,
}

/// A chunk that was decoded ahead.
struct Unused {
    chunk: Arc<Buffer>,
    /// To tell it what became of its guess, if it is still open.
    archive: Weak<Archive>,
}

/// The state of a cache.
pub(super) struct State {
    ready: LruCache<Key, Ready>,
    /// Chunks that are present but were not asked for yet.
    unused: LruCache<Key, Unused>,
    in_flight: HashMap<Key, Awaited>,
    /// Bytes of `unused`, and of those among `in_flight` that nobody waits for.
    pub(super) ahead_bytes: u64,
    pub(super) stats: CacheStats,
}

/// Who waits for a chunk, and what they have in mind.
#[derive(Default)]
struct Awaited {
    waiters: Vec<Waiter>,
    taken: usize,
    keeps: bool,
    /// The number of the batch that it is in, while nobody waits for it.
    ahead: Option<u64>,
}

/// What became of the wish for a chunk that is not present.
pub(super) enum Joined {
    /// It is to be decoded.
    Wanted,
    /// It was on its way, but nobody had waited for it: in this batch.
    Hurried(u64),
    /// It is on its way.
    Expected,
}

impl State {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            ready: LruCache::unbounded(),
            unused: LruCache::unbounded(),
            in_flight: HashMap::new(),
            ahead_bytes: 0,
            stats: CacheStats { capacity_bytes: capacity, ..CacheStats::default() },
        }
    }

    /// The chunk, if it is present; dropped from here once all of it has been taken by who keeps it.
    pub(super) fn take(
        &mut self,
        archive: &Archive,
        id: usize,
        taken: usize,
        keeps: bool,
    ) -> Option<Arc<Buffer>> {
        let key = (archive.id(), id);
        if let Some(Unused { chunk, .. }) = self.unused.pop(&key) {
            self.used(archive, chunk.len());
            self.ready.put(key, Ready { chunk, taken: 0 });
        }
        let ready = self.ready.get_mut(&key)?;
        ready.taken += taken;
        let chunk = Arc::clone(&ready.chunk);
        if ready.taken >= chunk.len() {
            archive.passed().mark(id, archive.index().len());
            if keeps {
                self.ready.pop(&key);
                self.stats.held_bytes -= chunk.footprint() as u64;
            }
        }
        Some(chunk)
    }

    /// A chunk of so many bytes was rightly decoded ahead.
    fn used(&mut self, archive: &Archive, len: usize) {
        self.ahead_bytes -= len as u64;
        self.stats.ahead_used += 1;
        archive.passed().guessed(Some(len as u64));
    }

    /// Wait for a chunk that is not present.
    pub(super) fn join(
        &mut self,
        archive: &Archive,
        id: usize,
        taken: usize,
        keeps: bool,
        waiter: Waiter,
    ) -> Joined {
        let len = archive.index().chunk(id).len();
        let mut joined = Joined::Expected;
        let awaited = self.in_flight.entry((archive.id(), id)).or_insert_with(|| {
            joined = Joined::Wanted;
            Awaited::default()
        });
        if let Some(batch) = awaited.ahead.take() {
            joined = Joined::Hurried(batch);
        }
        awaited.waiters.push(waiter);
        awaited.taken += taken;
        awaited.keeps = keeps;
        let whole = awaited.taken >= len;
        if matches!(joined, Joined::Hurried(_)) {
            self.used(archive, len);
        }
        if matches!(joined, Joined::Wanted) {
            self.stats.misses += 1;
            archive.passed().again(id);
        } else {
            self.stats.joined += 1;
        }
        if whole {
            archive.passed().mark(id, archive.index().len());
        }
        joined
    }

    /// Those chunks that are neither present nor on their way nor were read whole before.
    pub(super) fn unclaimed(&self, archive: &Archive, ids: Range<usize>) -> Vec<usize> {
        let mut ids = archive.passed().left(ids);
        ids.retain(|&id| {
            let key = (archive.id(), id);
            !self.ready.contains(&key) && !self.unused.contains(&key) && !self.in_flight.contains_key(&key)
        });
        ids
    }

    /// Nobody waits for this chunk yet; it comes in the batch of this number.
    pub(super) fn expect(&mut self, archive: &Archive, id: usize, batch: u64) {
        self.in_flight.insert((archive.id(), id), Awaited { ahead: Some(batch), ..Awaited::default() });
        self.ahead_bytes += archive.index().chunk(id).len() as u64;
        self.stats.ahead += 1;
    }

    /// A chunk has come, or will not: it is kept, unless whoever waits for it keeps it; returns these.
    pub(super) fn land(
        &mut self,
        archive: &Arc<Archive>,
        id: usize,
        chunk: Option<&Arc<Buffer>>,
    ) -> Vec<Waiter> {
        let key = (archive.id(), id);
        let awaited = self.in_flight.remove(&key).unwrap_or_default();
        let Some(chunk) = chunk.map(Arc::clone) else {
            self.ahead_bytes -= awaited.ahead.map_or(0, |_| archive.index().chunk(id).len() as u64);
            return awaited.waiters;
        };
        if awaited.ahead.is_some() {
            self.stats.held_bytes += chunk.footprint() as u64;
            self.unused.put(key, Unused { chunk, archive: Arc::downgrade(archive) });
        } else if !awaited.keeps || awaited.taken < chunk.len() {
            self.stats.held_bytes += chunk.footprint() as u64;
            self.ready.put(key, Ready { chunk, taken: awaited.taken });
        }
        awaited.waiters
    }

    /// Drop chunks to make up for `beyond` bytes, the longest unused first, those that nobody asked for yet last. They
    /// are returned, to be freed unlocked.
    pub(super) fn make_room(&mut self, beyond: u64) -> Vec<Arc<Buffer>> {
        let mut dropped = Vec::new();
        let mut freed = 0;
        while freed < beyond {
            let ready = self.ready.pop_lru().map(|(_, ready)| ready.chunk);
            let Some(chunk) = ready.or_else(|| self.drop_unused()) else { break };
            freed += chunk.footprint() as u64;
            self.stats.evictions += 1;
            dropped.push(chunk);
        }
        self.stats.held_bytes -= freed;
        dropped
    }

    /// Take out the chunk that has waited longest to be asked for.
    fn drop_unused(&mut self) -> Option<Arc<Buffer>> {
        let (_, Unused { chunk, archive }) = self.unused.pop_lru()?;
        self.ahead_bytes -= chunk.len() as u64;
        self.stats.ahead_dropped += 1;
        archive.upgrade().inspect(|archive| archive.passed().guessed(None));
        Some(chunk)
    }
}
