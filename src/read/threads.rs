//! How many threads of this process decode at a time, over all calls of the library.
//!
//! There is no pool and no lock: threads live as long as the call that started them, and all that
//! outlives a call is one number. So a process may fork at any time, and its child may decode.

use std::sync::atomic::{AtomicU64, Ordering};

/// A limit of threads that many calls share.
#[derive(Debug)]
pub struct ThreadLimit {
    limit: usize,
    /// The number of threads in use, below the process to which that number belongs.
    state: AtomicU64,
}

impl ThreadLimit {
    /// A limit of `limit` threads, or of one.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), state: AtomicU64::new(0) }
    }

    /// As many threads as this process has processors, according to its affinity and the quota of
    /// its control group.
    pub fn of_this_machine() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// The number of threads.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Count the calling thread, whatever the limit: a call never waits for others.
    pub fn enter(&self) -> Permit<'_> {
        let process = this_process();
        let enter = |state| Some(process | (in_use(state, process) + 1));
        let _ = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter);
        Permit { limit: self, process }
    }

    /// A thread more, if the limit allows it.
    pub fn another(&self) -> Option<Permit<'_>> {
        let process = this_process();
        let take = |state| {
            let used = in_use(state, process);
            (used < self.limit as u64).then_some(process | (used + 1))
        };
        let taken = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.ok().map(|_| Permit { limit: self, process })
    }
}

/// The process, in the upper half of a number.
fn this_process() -> u64 {
    u64::from(std::process::id()) << 32
}

/// How many threads of a process are in use. Those of its parent are not its own.
fn in_use(state: u64, process: u64) -> u64 {
    if state >> 32 == process >> 32 { state & u64::from(u32::MAX) } else { 0 }
}

/// A thread that is in use until this is dropped.
#[derive(Debug)]
pub struct Permit<'l> {
    limit: &'l ThreadLimit,
    process: u64,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let leave = |state| (in_use(state, self.process) > 0).then(|| state - 1);
        let _ = self.limit.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_share_the_limit_and_each_has_a_thread() {
        let limit = ThreadLimit::new(2);
        let first = (limit.enter(), limit.another());
        assert!(first.1.is_some());
        let second = limit.enter();
        assert!(limit.another().is_none());
        drop(first);
        assert!(limit.another().is_some());
        drop(second);
        let both = [limit.another(), limit.another(), limit.another()];
        assert!(both[1].is_some() && both[2].is_none());
        assert_eq!(ThreadLimit::new(0).limit(), 1);
    }

    #[test]
    fn threads_of_the_parent_do_not_count_after_a_fork() {
        let limit = ThreadLimit::new(1);
        limit.state.store(1 << 32 | 1, Ordering::Relaxed);
        let parents = Permit { limit: &limit, process: 1 << 32 };
        let own = limit.another();
        assert!(own.is_some());
        drop(parents);
        assert!(limit.another().is_none());
    }
}
