//! The parts of objects that are in memory or on their way. Each is fetched once, whoever wants it,
//! and the last ones are kept within a bound.

use super::{
    demand::{Demand, Stored},
    identity::Identity,
    store::Store,
};
use crate::error::Error;
use lru::LruCache;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::time::Instant;

/// Bytes of a block: what streams are divided into.
pub const BLOCK: u64 = 1 << 20;

/// The most bytes that are kept of what was read: it was decoded or passed on, and others keep
/// that. Memory that is used again is in the processor's caches, and needs no page faults.
const MOST_READ: u64 = 16 << 20;

/// An object to fetch from.
pub struct Source {
    /// Its store.
    pub store: Arc<Store>,
    /// Its key there.
    pub key: String,
    /// Which object it is.
    pub identity: Identity,
    /// Its name among all objects.
    pub id: u128,
}

/// A part of an object: a block, or exactly the bytes of a read at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartKey {
    /// [`Source::id`].
    pub object: u128,
    /// Where it starts.
    pub start: u64,
    /// Its length in bytes.
    pub len: u32,
}

impl PartKey {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }
}

/// Adjacent parts that are fetched by one request.
pub struct Request {
    /// The object.
    pub source: Arc<Source>,
    /// The parts in order, at least one.
    pub parts: Vec<PartKey>,
    /// Whether somebody waits for one of them.
    urgent: AtomicBool,
    /// When it is given up.
    deadline: Mutex<Instant>,
}

impl Request {
    /// A request that is given up at `deadline`.
    pub fn new(
        source: &Arc<Source>,
        parts: Vec<PartKey>,
        urgent: bool,
        deadline: Instant,
    ) -> Arc<Self> {
        let (source, urgent) = (Arc::clone(source), AtomicBool::new(urgent));
        Arc::new(Self { source, parts, urgent, deadline: Mutex::new(deadline) })
    }

    /// The bytes of all parts.
    pub fn range(&self) -> Range<u64> {
        let ends = self.parts.first().zip(self.parts.last());
        ends.map_or(0..0, |(first, last)| first.start..last.end())
    }

    /// Whether somebody waits for it.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    /// Somebody waits for it; returns whether nobody did before.
    pub fn hurry(&self) -> bool {
        !self.urgent.swap(true, Ordering::Relaxed)
    }

    /// When it is given up.
    pub fn deadline(&self) -> Instant {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Give it up at this time, if that is later.
    pub fn extend(&self, deadline: Instant) {
        let mut now = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        *now = deadline.max(*now);
    }
}

/// A read that waits for a part: the read, and the number of the part in it.
pub type Waiter = (Arc<Demand>, usize);

struct Flight {
    request: Arc<Request>,
    waiters: Vec<Waiter>,
}

/// What became of a part, and who wants it.
pub type Found = (Lookup, Option<Waiter>);

/// All parts of a process.
pub struct Blocks {
    table: Mutex<Table>,
    /// The most bytes that are kept.
    capacity: u64,
}

/// The most bytes of what was read, out of so many in all.
fn most_read(capacity: u64) -> u64 {
    MOST_READ.min(capacity / 4)
}

struct Table {
    flights: HashMap<PartKey, Flight>,
    /// What is to be read yet.
    unread: Shelf,
    /// What was read whole.
    read: Shelf,
}

/// Parts that are here, least recently used first.
struct Shelf {
    parts: LruCache<PartKey, Kept>,
    bytes: u64,
}

/// A part that is here.
struct Kept {
    bytes: Stored,
    /// How many bytes of it were read.
    read: usize,
}

/// What is known of a part.
pub enum Lookup {
    /// It is here.
    Kept(Stored),
    /// It is on its way; whoever asked waits for it now.
    Joined(Arc<Request>),
    /// It has to be fetched.
    Absent,
}

impl Blocks {
    /// Keep at most `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let (unread, read) = (Shelf::new(), Shelf::new());
        let table = Table { flights: HashMap::new(), unread, read };
        Self { table: Mutex::new(table), capacity }
    }

    /// The most bytes that are kept.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Look for a part. If it is on its way, `waiter` waits for it.
    pub fn find(&self, key: PartKey, waiter: Option<&Waiter>) -> Lookup {
        self.lock().find(key, waiter, self.capacity)
    }

    /// Whether a part is here or on its way.
    pub fn has(&self, key: PartKey) -> bool {
        let table = self.lock();
        let shelves = [&table.unread, &table.read];
        shelves.iter().any(|shelf| shelf.parts.contains(&key)) || table.flights.contains_key(&key)
    }

    /// Register those of the parts that are still absent as being on their way by the requests that
    /// `group` makes of them. Returns these, and what became of the others meanwhile.
    pub fn claim(
        &self,
        wanted: Vec<(PartKey, Option<Waiter>)>,
        group: impl FnOnce(Vec<PartKey>) -> Vec<Arc<Request>>,
    ) -> (Vec<Arc<Request>>, Vec<Found>) {
        let mut table = self.lock();
        let (mut absent, mut others) = (Vec::new(), Vec::new());
        let mut waiters = HashMap::new();
        for (key, waiter) in wanted {
            match table.find(key, waiter.as_ref(), self.capacity) {
                Lookup::Absent => {
                    absent.push(key);
                    waiters.insert(key, waiter);
                }
                found => others.push((found, waiter)),
            }
        }
        let requests = group(absent);
        for request in &requests {
            for key in &request.parts {
                let waiters = waiters.remove(key).flatten().into_iter().collect();
                table.flights.insert(*key, Flight { request: Arc::clone(request), waiters });
            }
        }
        (requests, others)
    }

    /// A part has arrived: keep it, and answer those who wait for it.
    pub fn complete(&self, key: PartKey, bytes: &Stored) {
        let waiters = {
            let mut table = self.lock();
            let waiters = table.flights.remove(&key).map_or(Vec::new(), |flight| flight.waiters);
            let read = waiters.iter().map(|(demand, number)| demand.wanted(*number)).sum();
            table.keep(key, Kept { bytes: bytes.clone(), read }, self.capacity);
            waiters
        };
        for (demand, number) in waiters {
            demand.supply(number, bytes);
        }
    }

    /// The parts of a request that have not arrived never will.
    pub fn fail(&self, request: &Arc<Request>, e: &Error) {
        let waiters: Vec<Waiter> = {
            let mut table = self.lock();
            let mut gone = Vec::new();
            for key in &request.parts {
                if table.flights.get(key).is_some_and(|f| Arc::ptr_eq(&f.request, request)) {
                    gone.extend(table.flights.remove(key).into_iter().flat_map(|f| f.waiters));
                }
            }
            gone
        };
        waiters.iter().for_each(|(demand, _)| demand.fail(e));
    }

    /// Withdraw a request that has not begun, if nobody waits for any part of it. Returns whether
    /// it was withdrawn: nobody can join it from then on.
    pub fn withdraw(&self, request: &Request) -> bool {
        let mut table = self.lock();
        let waits = |demand: &Waiter| demand.0.is_waiting();
        let wanted = |key| table.flights.get(key).is_some_and(|f| f.waiters.iter().any(waits));
        if request.parts.iter().any(wanted) {
            return false;
        }
        let parts = request.parts.iter();
        let gone: Vec<_> = parts.filter_map(|key| table.flights.remove(key)).collect();
        drop(table);
        drop(gone);
        true
    }

    /// The requests on their way that overlap `range` of an object.
    pub fn on_their_way(&self, object: u128, range: &Range<u64>) -> Vec<Arc<Request>> {
        let table = self.lock();
        let overlaps = |key: &PartKey| {
            key.object == object && key.start < range.end && range.start < key.end()
        };
        let flights = table.flights.iter().filter(|(key, _)| overlaps(key));
        let mut requests: Vec<_> = flights.map(|(_, flight)| Arc::clone(&flight.request)).collect();
        requests.sort_by_key(Arc::as_ptr);
        requests.dedup_by(|a, b| Arc::ptr_eq(a, b));
        requests
    }

    /// Forget the bytes of an object between `range`.
    pub fn forget(&self, object: u128, range: &Range<u64>) {
        let mut table = self.lock();
        let overlaps = |key: &PartKey| {
            key.object == object && key.start < range.end && range.start < key.end()
        };
        let Table { unread, read, .. } = &mut *table;
        for shelf in [unread, read] {
            let keys = shelf.parts.iter().map(|(key, _)| *key);
            let keys: Vec<_> = keys.filter(overlaps).collect();
            keys.iter().for_each(|key| drop(shelf.take(key)));
        }
    }

    /// Forget all that is here.
    pub fn clear(&self) {
        let mut table = self.lock();
        (table.unread, table.read) = (Shelf::new(), Shelf::new());
    }

    /// Forget everything, and answer everybody with an error.
    pub fn close(&self) {
        self.clear();
        let flights = std::mem::take(&mut self.lock().flights);
        let e = Error::os(libc::EIO, "the program ends");
        for (demand, _) in flights.into_values().flat_map(|flight| flight.waiters) {
            demand.fail(&e);
        }
    }
}

impl Table {
    fn find(&mut self, key: PartKey, waiter: Option<&Waiter>, capacity: u64) -> Lookup {
        let wanted = waiter.map_or(0, |(demand, number)| demand.wanted(*number));
        if let Some(kept) = self.unread.parts.get_mut(&key) {
            kept.read += wanted;
            let bytes = kept.bytes.clone();
            if kept.is_read()
                && let Some(kept) = self.unread.take(&key)
            {
                self.read.put(key, kept, most_read(capacity));
            }
            return Lookup::Kept(bytes);
        }
        if let Some(kept) = self.read.parts.get(&key) {
            return Lookup::Kept(kept.bytes.clone());
        }
        let Some(flight) = self.flights.get_mut(&key) else { return Lookup::Absent };
        flight.waiters.extend(waiter.cloned());
        Lookup::Joined(Arc::clone(&flight.request))
    }

    fn keep(&mut self, key: PartKey, kept: Kept, capacity: u64) {
        drop((self.unread.take(&key), self.read.take(&key)));
        match kept.is_read() {
            true => self.read.put(key, kept, most_read(capacity)),
            false => self.unread.put(key, kept, capacity.saturating_sub(self.read.bytes)),
        }
    }
}

impl Kept {
    /// Whether nearly all of it was read: there are gaps between the chunks of an archive.
    fn is_read(&self) -> bool {
        self.read >= self.bytes.len() - self.bytes.len() / 8
    }
}

impl Shelf {
    fn new() -> Self {
        Self { parts: LruCache::unbounded(), bytes: 0 }
    }

    /// Add a part, and drop others until `most` bytes are left.
    fn put(&mut self, key: PartKey, kept: Kept, most: u64) {
        self.bytes += kept.bytes.len() as u64;
        self.parts.put(key, kept);
        while self.bytes > most
            && let Some((_, old)) = self.parts.pop_lru()
        {
            self.bytes -= old.bytes.len() as u64;
        }
    }

    fn take(&mut self, key: &PartKey) -> Option<Kept> {
        let kept = self.parts.pop(key)?;
        self.bytes -= kept.bytes.len() as u64;
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn key(block: u64) -> PartKey {
        PartKey { object: 1, start: block * BLOCK, len: BLOCK as u32 }
    }

    /// How many of the blocks are there, after reading so much of each.
    fn there(capacity: u64, read: usize, blocks: u64) -> usize {
        let all = Blocks::new(capacity);
        let bytes = Stored::from(Bytes::from(vec![1; BLOCK as usize]));
        for block in 0..blocks {
            all.complete(key(block), &bytes);
            let demand = Demand::new(std::iter::once(0..read), Box::new(drop));
            all.find(key(block), Some(&(Arc::new(demand), 0)));
        }
        (0..blocks).filter(|block| all.has(key(*block))).count()
    }

    #[test]
    fn what_was_read_whole_goes_before_what_was_not() {
        let whole = BLOCK as usize;
        assert_eq!(there(200 * BLOCK, whole / 2, 150), 150);
        assert_eq!(there(100 * BLOCK, whole / 2, 150), 100);
        assert_eq!(there(1000 * BLOCK, whole - 1000, 150), (MOST_READ / BLOCK) as usize);
        assert_eq!(there(8 * BLOCK, whole, 150), 2);
    }
}
