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
