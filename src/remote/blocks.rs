//! The parts of objects that are in memory or on their way. Each is fetched once, whoever wants it,
//! and the last ones are kept within a bound.

use super::{demand::Demand, identity::Identity, store::Store};
use crate::error::Error;
use bytes::Bytes;
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

struct Table {
    flights: HashMap<PartKey, Flight>,
    kept: LruCache<PartKey, Bytes>,
    bytes: u64,
}

/// What is known of a part.
pub enum Lookup {
    /// It is here.
    Kept(Bytes),
    /// It is on its way; whoever asked waits for it now.
    Joined(Arc<Request>),
    /// It has to be fetched.
    Absent,
}

impl Blocks {
    /// Keep at most `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let table = Table { flights: HashMap::new(), kept: LruCache::unbounded(), bytes: 0 };
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
        self.lock().find(key, waiter)
    }

    /// Whether a part is here or on its way.
    pub fn has(&self, key: PartKey) -> bool {
        let table = self.lock();
        table.kept.contains(&key) || table.flights.contains_key(&key)
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
            match table.find(key, waiter.as_ref()) {
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
    pub fn complete(&self, key: PartKey, bytes: &Bytes) {
        let waiters = {
            let mut table = self.lock();
            table.keep(key, bytes, self.capacity);
            table.flights.remove(&key).map(|flight| flight.waiters)
        };
        for (demand, number) in waiters.into_iter().flatten() {
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
        let keys: Vec<PartKey> = table.kept.iter().map(|(key, _)| *key).filter(overlaps).collect();
        keys.iter().for_each(|key| table.drop_kept(key));
    }

    /// Forget all that is here.
    pub fn clear(&self) {
        let mut table = self.lock();
        table.kept.clear();
        table.bytes = 0;
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
    fn find(&mut self, key: PartKey, waiter: Option<&Waiter>) -> Lookup {
        if let Some(bytes) = self.kept.get(&key) {
            return Lookup::Kept(bytes.clone());
        }
        let Some(flight) = self.flights.get_mut(&key) else { return Lookup::Absent };
        flight.waiters.extend(waiter.cloned());
        Lookup::Joined(Arc::clone(&flight.request))
    }

    fn keep(&mut self, key: PartKey, bytes: &Bytes, capacity: u64) {
        if let Some(old) = self.kept.put(key, bytes.clone()) {
            self.bytes -= old.len() as u64;
        }
        self.bytes += bytes.len() as u64;
        while self.bytes > capacity
            && let Some((_, old)) = self.kept.pop_lru()
        {
            self.bytes -= old.len() as u64;
        }
    }

    fn drop_kept(&mut self, key: &PartKey) {
        if let Some(old) = self.kept.pop(key) {
            self.bytes -= old.len() as u64;
        }
    }
}
