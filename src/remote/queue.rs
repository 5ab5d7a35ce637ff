//! Requests that wait for their turn: those that somebody waits for first.

use super::{blocks::Request, parallel::Parallelism, parts::RUN};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Requests that only reads may take which somebody waits for.
const RESERVED: usize = 4;

/// The requests of a process.
pub struct Queue {
    state: Mutex<State>,
    /// The most bytes on their way.
    most_bytes: u64,
}

struct State {
    urgent: VecDeque<Arc<Request>>,
    ahead: VecDeque<Arc<Request>>,
    /// How many run, and their bytes.
    running: usize,
    bytes: u64,
    parallel: Parallelism,
}

impl Queue {
    /// No requests yet, and never more than `most_bytes` on their way.
    pub fn new(most_bytes: u64) -> Self {
        let state = State {
            urgent: VecDeque::new(),
            ahead: VecDeque::new(),
            running: 0,
            bytes: 0,
            parallel: Parallelism::new(Instant::now()),
        };
        Self { state: Mutex::new(state), most_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Add a request.
    pub fn push(&self, request: Arc<Request>) {
        let mut state = self.lock();
        if request.is_urgent() {
            state.urgent.push_back(request);
        } else {
            state.ahead.push_back(request);
        }
    }

    /// Somebody waits for a request that was fetched ahead.
    pub fn promote(&self, request: &Arc<Request>) {
        let mut state = self.lock();
        if let Some(i) = state.ahead.iter().position(|other| Arc::ptr_eq(other, request))
            && let Some(request) = state.ahead.remove(i)
        {
            state.urgent.push_back(request);
        }
    }

    /// The next request, if one may start.
    pub fn pop(&self) -> Option<Arc<Request>> {
        let mut state = self.lock();
        let limit = state.parallel.limit();
        let fits = |request: &Arc<Request>| {
            state.bytes == 0 || state.bytes + len(request) <= self.most_bytes
        };
        let next = if state.running < limit + RESERVED && !state.urgent.is_empty() {
            state.urgent.pop_front()
        } else if state.running < limit && state.ahead.front().is_some_and(fits) {
            state.ahead.pop_front()
        } else {
            None
        }?;
        state.running += 1;
        state.bytes += len(&next);
        Some(next)
    }

    /// How many requests are on their way.
    pub fn running(&self) -> usize {
        self.lock().running
    }

    /// A request has ended.
    pub fn finished(&self, request: &Request) {
        let mut state = self.lock();
        state.running -= 1;
        state.bytes -= len(request);
    }

    /// Drop requests for an object that have not begun, if they can be withdrawn.
    pub fn cancel(&self, object: u128, withdraw: impl Fn(&Request) -> bool) {
        let mut state = self.lock();
        state.ahead.retain(|request| request.source.id != object || !withdraw(request));
    }

    /// Bytes have arrived.
    pub fn arrived(&self, bytes: u64) {
        let mut state = self.lock();
        let saturated = !state.ahead.is_empty() || !state.urgent.is_empty();
        state.parallel.arrived(bytes, saturated, Instant::now());
    }

    /// A server asks for fewer requests.
    pub fn throttled(&self) {
        self.lock().parallel.throttled(Instant::now());
    }

    /// So many bytes ahead keep all requests busy that may run, and twice as many waiting.
    pub fn window(&self) -> u64 {
        let limit = self.lock().parallel.limit() as u64;
        (2 * limit * RUN).min(self.most_bytes)
    }
}

fn len(request: &Request) -> u64 {
    let range = request.range();
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::{
        blocks::{Blocks, Lookup, PartKey, Source, Waiter},
        demand::Demand,
        identity::{Facts, Identity},
        options::Deadlines,
        parts::runs,
        store::Store,
        url::RemoteUrl,
    };
    use std::time::Duration;

    fn source() -> Arc<Source> {
        let url = RemoteUrl::parse("http://localhost/").expect("a URL");
        let store = Store::new(&url, Deadlines::default()).expect("a store");
        let identity = Identity { url: "x".into(), facts: Facts::default() };
        Arc::new(Source { store: Arc::new(store), key: "x".into(), identity, id: 7 })
    }

    fn request(source: &Arc<Source>, start: u64, len: u32, urgent: bool) -> Arc<Request> {
        let part = PartKey { object: source.id, start, len };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        Request::new(source, vec![part], urgent, deadline)
    }

    #[test]
    fn a_request_longer_than_the_bound_runs_alone() {
        let (queue, source) = (Queue::new(1 << 20), source());
        queue.push(request(&source, 0, 8 << 20, false));
        queue.push(request(&source, 8 << 20, 1, false));
        let first = queue.pop().expect("nothing else is on its way");
        assert!(queue.pop().is_none(), "the bound holds");
        queue.push(request(&source, 9 << 20, 1, true));
        assert!(queue.pop().expect("somebody waits for it").is_urgent());
        queue.finished(&first);
        assert_eq!(queue.running(), 1);
    }

    #[test]
    fn what_nobody_waits_for_is_withdrawn_and_what_somebody_joins_is_not() {
        let (queue, source, blocks) = (Queue::new(1 << 30), source(), Blocks::new(1 << 20));
        let keys: Vec<PartKey> = [(5, 10), (1 << 20, 20)]
            .map(|(start, len)| PartKey { object: source.id, start, len })
            .to_vec();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let make = |keys: Vec<PartKey>| {
            let runs = runs(keys).into_iter();
            runs.map(|run| Request::new(&source, run, false, deadline)).collect()
        };
        let (requests, _) = blocks.claim(keys.iter().map(|key| (*key, None)).collect(), make);
        assert_eq!(requests.len(), 2);
        requests.iter().for_each(|request| queue.push(Arc::clone(request)));
        // Found by any byte of it, however it was divided.
        let found = blocks.on_their_way(source.id, &(14..15));
        assert!(found.len() == 1 && Arc::ptr_eq(&found[0], &requests[0]));
        let waiter: Waiter = (Arc::new(Demand::new(std::iter::once(0..1), Box::new(drop))), 0);
        assert!(matches!(blocks.find(keys[0], Some(&waiter)), Lookup::Joined(_)));
        queue.cancel(source.id, |request| blocks.withdraw(request));
        let left = queue.pop().expect("somebody waits for it");
        assert!(Arc::ptr_eq(&left, &requests[0]) && queue.pop().is_none());
        assert!(!blocks.has(keys[1]), "nobody can join what was withdrawn");
    }
}
