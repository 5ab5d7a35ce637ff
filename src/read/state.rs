//! What a cache holds and expects, without its lock: chunks that are present, chunks on their way, who waits for them.

use super::{
    archive::{Archive, Numbered},
    buffer::{Buffer, cost},
    figures::CacheStats,
};
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
    /// Most chunks that were present since the tables were made.
    most_present: usize,
    /// What `unused` costs, and those among `in_flight` that nobody waits for, in bytes.
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
            most_present: 0,
            ahead_bytes: 0,
            stats: CacheStats { capacity_bytes: capacity, ..CacheStats::default() },
        }
    }

    /// Whether a chunk is present.
    pub(super) fn has(&self, archive: &Archive, id: usize) -> bool {
        let key = (archive.id(), id);
        self.ready.contains(&key) || self.unused.contains(&key)
    }

    /// Whether somebody waits for a chunk that is on its way.
    pub(super) fn is_awaited(&self, archive: &Archive, id: usize) -> bool {
        self.in_flight.get(&(archive.id(), id)).is_some_and(|awaited| awaited.ahead.is_none())
    }

    /// Whether so many chunks are on their way that no more should be before they are asked for.
    pub(super) fn is_crowded(&self) -> bool {
        const MOST: usize = 1 << 14;
        self.in_flight.len() >= MOST
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
            archive.passed().mark(id);
            if keeps {
                self.ready.pop(&key);
            }
        }
        Some(chunk)
    }

    /// A chunk of so many bytes was rightly decoded ahead.
    fn used(&mut self, archive: &Archive, len: usize) {
        self.ahead_bytes -= cost(len);
        self.stats.ahead_used += 1;
        archive.passed().guessed(Some(len as u64));
    }

    /// Wait for a chunk that is not present.
    pub(super) fn join(
        &mut self,
        archive: &Archive,
        (id, chunk): &Numbered,
        taken: usize,
        keeps: bool,
        waiter: Waiter,
    ) -> Joined {
        let (id, len) = (*id, chunk.len());
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
            archive.passed().mark(id);
        }
        joined
    }

    /// Those chunks that are neither present nor on their way nor were read whole before.
    pub(super) fn unclaimed(&self, archive: &Archive, ids: Range<usize>) -> Vec<usize> {
        let mut ids = archive.passed().left(ids);
        ids.retain(|&id| self.is_unclaimed(archive, id));
        ids
    }

    /// Whether a chunk is neither present nor on its way.
    pub(super) fn is_unclaimed(&self, archive: &Archive, id: usize) -> bool {
        !self.has(archive, id) && !self.in_flight.contains_key(&(archive.id(), id))
    }

    /// Nobody waits for this chunk yet; it comes in the batch of this number.
    pub(super) fn expect(&mut self, archive: &Archive, (id, chunk): &Numbered, batch: u64) {
        self.in_flight
            .insert((archive.id(), *id), Awaited { ahead: Some(batch), ..Awaited::default() });
        self.ahead_bytes += cost(chunk.len());
        self.stats.ahead += 1;
    }

    /// A chunk has come, or will not: it is kept, unless whoever waits for it keeps it; returns these.
    pub(super) fn land(
        &mut self,
        archive: &Arc<Archive>,
        (id, of): &Numbered,
        chunk: Option<&Arc<Buffer>>,
    ) -> Vec<Waiter> {
        let key = (archive.id(), *id);
        let awaited = self.in_flight.remove(&key).unwrap_or_default();
        let Some(chunk) = chunk.map(Arc::clone) else {
            self.ahead_bytes -= awaited.ahead.map_or(0, |_| cost(of.len()));
            return awaited.waiters;
        };
        if awaited.ahead.is_some() {
            self.unused.put(key, Unused { chunk, archive: Arc::downgrade(archive) });
        } else if !awaited.keeps || awaited.taken < chunk.len() {
            self.ready.put(key, Ready { chunk, taken: awaited.taken });
        }
        self.most_present = self.most_present.max(self.ready.len() + self.unused.len());
        awaited.waiters
    }

    /// Drop chunks to make up for `beyond` bytes, the longest unused first, those that nobody asked for yet last. They
    /// are returned, to be freed unlocked.
    pub(super) fn make_room(&mut self, beyond: u64) -> Vec<Arc<Buffer>> {
        let mut dropped = Vec::new();
        let mut freed = 0;
        while freed < beyond {
            let Some(chunk) = self.drop_one() else { break };
            freed += chunk.footprint();
            dropped.push(chunk);
        }
        dropped
    }

    /// Drop the chunk that is needed least.
    pub(super) fn drop_one(&mut self) -> Option<Arc<Buffer>> {
        let ready = self.ready.pop_lru().map(|(_, ready)| ready.chunk);
        let chunk = ready.or_else(|| self.drop_unused())?;
        self.stats.evictions += 1;
        self.shrink();
        Some(chunk)
    }

    /// Make the tables anew when they are far larger than they need be: many small chunks made way for a few large ones.
    fn shrink(&mut self) {
        const WORTH_IT: usize = 1 << 14;
        let present = self.ready.len() + self.unused.len();
        if self.most_present < WORTH_IT || present > self.most_present / 8 {
            return;
        }
        self.most_present = present;
        self.in_flight.shrink_to_fit();
        anew(&mut self.ready);
        anew(&mut self.unused);
    }

    /// Take out the chunk that has waited longest to be asked for.
    fn drop_unused(&mut self) -> Option<Arc<Buffer>> {
        let (_, Unused { chunk, archive }) = self.unused.pop_lru()?;
        self.ahead_bytes -= cost(chunk.len());
        self.stats.ahead_dropped += 1;
        archive.upgrade().inspect(|archive| archive.passed().guessed(None));
        Some(chunk)
    }
}

/// Move what is in a table to one of its size, in the same order.
fn anew<V>(table: &mut LruCache<Key, V>) {
    let mut small = LruCache::unbounded();
    while let Some((key, value)) = table.pop_lru() {
        small.put(key, value);
    }
    *table = small;
}
