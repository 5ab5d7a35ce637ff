//! The threads that read and decode. Demand reads come first, readahead second.
//!
//! Additional threads help while demand reads pile up: a disk serves many requests at once better,
//! and some threads wait for it while others decode. With less to do, they would only take the
//! processor from the regular threads.

use crate::error::{Context, Result};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

type Job = Box<dyn FnOnce() + Send>;

/// A thread pool. On drop, running jobs finish and queued jobs are dropped.
pub(super) struct WorkerPool(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    /// Wakes regular threads.
    wake: Condvar,
    /// Wakes helpers.
    wake_helpers: Condvar,
    /// Signals that no readahead is queued any more.
    readahead_started: Condvar,
    /// The number of regular threads.
    threads: usize,
}

#[derive(Default)]
struct Queues {
    demand: VecDeque<Job>,
    /// Jobs by their batch numbers.
    readahead: VecDeque<(u64, Job)>,
    closed: bool,
}

impl WorkerPool {
    /// Start `threads` regular threads, at least one, and `helpers`.
    ///
    /// # Errors
    /// Io, if a thread cannot be started.
    pub(super) fn start(threads: usize, helpers: usize) -> Result<Self> {
        let threads = threads.max(1);
        let pool = Self(Arc::new(Shared {
            queues: Mutex::default(),
            wake: Condvar::new(),
            wake_helpers: Condvar::new(),
            readahead_started: Condvar::new(),
            threads,
        }));
        for i in 0..threads + helpers {
            let shared = Arc::clone(&pool.0);
            let named = thread::Builder::new().name(format!("bsz-decode-{i}"));
            named.spawn(move || shared.work(i >= threads)).about("decode threads")?;
        }
        Ok(pool)
    }

    /// Queue a job that a reader waits for.
    pub(super) fn demand(&self, job: impl FnOnce() + Send + 'static) {
        let mut queues = self.0.lock();
        queues.demand.push_back(Box::new(job));
        let backlog = queues.demand.len() > self.0.threads;
        drop(queues);
        if backlog { self.0.wake_helpers.notify_one() } else { self.0.wake.notify_one() }
    }

    /// Queue a readahead job with its batch number.
    pub(super) fn readahead(&self, batch: u64, job: impl FnOnce() + Send + 'static) {
        self.0.lock().readahead.push_back((batch, Box::new(job)));
        self.0.wake.notify_one();
    }

    /// Whether readahead is queued.
    pub(super) fn has_readahead(&self) -> bool {
        !self.0.lock().readahead.is_empty()
    }

    /// Wait until no readahead is queued.
    pub(super) fn wait_for_readahead(&self) {
        let waiting = |queues: &mut Queues| !queues.readahead.is_empty() && !queues.closed;
        let started = self.0.readahead_started.wait_while(self.0.lock(), waiting);
        drop(started.unwrap_or_else(PoisonError::into_inner));
    }

    /// Move a queued readahead job to the demand queue, because a reader waits for it now.
    pub(super) fn promote(&self, batch: u64) {
        let mut queues = self.0.lock();
        if let Some(i) = queues.readahead.iter().position(|(number, _)| *number == batch)
            && let Some((_, job)) = queues.readahead.remove(i)
        {
            queues.demand.push_back(job);
            if queues.readahead.is_empty() {
                self.0.readahead_started.notify_all();
            }
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        let mut queues = self.0.lock();
        queues.closed = true;
        // Drop the jobs unlocked: they may call back to their waiters.
        let demand = std::mem::take(&mut queues.demand);
        let readahead = std::mem::take(&mut queues.readahead);
        drop(queues);
        self.0.wake.notify_all();
        self.0.wake_helpers.notify_all();
        self.0.readahead_started.notify_all();
        drop((demand, readahead));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, is_helper: bool) {
        let wake = if is_helper { &self.wake_helpers } else { &self.wake };
        let mut queues = self.lock();
        while !queues.closed {
            let next = match is_helper {
                true if queues.demand.len() <= self.threads => None,
                true => queues.demand.pop_front(),
                false => queues.demand.pop_front().or_else(|| self.next_readahead(&mut queues)),
            };
            let Some(job) = next else {
                queues = wake.wait(queues).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queues);
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                log::error!("a decode thread panicked");
            }
            queues = self.lock();
        }
    }

    fn next_readahead(&self, queues: &mut Queues) -> Option<Job> {
        let (_, job) = queues.readahead.pop_front()?;
        if queues.readahead.is_empty() {
            self.readahead_started.notify_all();
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};

    #[test]
    fn demand_goes_first_and_a_panic_ends_no_thread() {
        let pool = WorkerPool::start(1, 0).expect("starts");
        let (hold, held) = mpsc::channel::<()>();
        let (done, order) = mpsc::channel();
        pool.demand(move || {
            let _ = held.recv();
        });
        let say = |name: &'static str| {
            let done = done.clone();
            move || done.send(name).expect("listened to")
        };
        pool.readahead(1, say("first readahead"));
        pool.readahead(2, say("second readahead"));
        pool.demand(|| panic!("expected by the test"));
        pool.demand(say("demand"));
        pool.promote(2);
        pool.promote(77);
        drop(hold);
        let said: Vec<_> = order.iter().take(3).collect();
        pool.wait_for_readahead();
        assert_eq!(said, ["demand", "second readahead", "first readahead"]);
    }

    #[test]
    fn helpers_work_on_a_backlog_only() {
        let pool = WorkerPool::start(1, 1).expect("starts");
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let (done, order) = mpsc::channel();
        pool.demand(move || {
            begun.send(()).expect("listened to");
            let _ = held.recv();
        });
        begins.recv().expect("begins");
        for n in 0..3 {
            let done = done.clone();
            pool.demand(move || done.send(n).expect("listened to"));
        }
        // A single job is no backlog.
        assert_eq!([order.recv(), order.recv()], [Ok(0), Ok(1)]);
        assert!(order.recv_timeout(Duration::from_millis(50)).is_err());
        drop(hold);
        assert_eq!(order.recv(), Ok(2));
    }

    #[test]
    fn queued_jobs_are_dropped_with_the_pool() {
        let pool = WorkerPool::start(1, 0).expect("starts");
        let (hold, held) = mpsc::channel::<()>();
        pool.demand(move || {
            let _ = held.recv();
        });
        let (kept, gone) = mpsc::channel::<()>();
        pool.readahead(1, move || drop(kept));
        drop(pool);
        assert!(gone.recv().is_err());
        drop(hold);
    }
}
