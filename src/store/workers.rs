//! Threads for what may take long besides reading: syncing, renaming, removing, unpacking. The
//! threads of the cache must stay free for readers.
//!
//! Threads start as they are needed, up to a limit, and end after a while without work.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Most threads of a store. More work waits until one is free.
pub(super) const MAX_THREADS: usize = 64;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Workers(Arc<Shared>);

struct Shared {
    most: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Those of the threads that wait for a job.
    idle: usize,
}

impl Workers {
    /// At most so many threads.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, state: Mutex::default(), wake: Condvar::new() }))
    }

    /// Have a job done. If there is no thread for it, and none can be started, it is done here.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            return self.0.wake.notify_one();
        }
        if state.threads == self.0.most {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(&self.0);
        let started = thread::Builder::new().name("bsz-store".into()).spawn(move || shared.work());
        if let Err(e) = started {
            log::warn!("a thread does not start: {e}");
            let mut state = self.0.lock();
            state.threads -= 1;
            let left = if state.threads == 0 { state.jobs.pop_front() } else { None };
            drop(state);
            left.into_iter().for_each(|job| job());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    log::error!("a thread of the store panicked");
                }
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, timeout) =
                self.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_job_that_waits_does_not_keep_others_from_being_done() {
        let workers = Workers::new(MAX_THREADS);
        let (release, released) = channel::<()>();
        let (send, done) = channel();
        let first = send.clone();
        workers.spawn(move || {
            released.recv().expect("is released");
            first.send(1).expect("somebody waits");
        });
        for n in 2..10 {
            let send = send.clone();
            workers.spawn(move || send.send(n).expect("somebody waits"));
        }
        let mut others: Vec<i32> = done.iter().take(8).collect();
        others.sort_unstable();
        assert_eq!(others, (2..10).collect::<Vec<_>>());
        release.send(()).expect("it waits");
        assert_eq!(done.recv(), Ok(1));
    }

    #[test]
    fn there_are_never_more_threads_than_the_limit_and_all_jobs_are_done() {
        let workers = Workers::new(MAX_THREADS);
        let (send, done) = channel();
        for n in 0..10 * MAX_THREADS {
            let send = send.clone();
            workers.spawn(move || {
                thread::sleep(Duration::from_millis(1));
                send.send(n).expect("somebody waits");
            });
            assert!(workers.0.lock().threads <= MAX_THREADS);
        }
        assert_eq!(done.iter().take(10 * MAX_THREADS).count(), 10 * MAX_THREADS);
    }
}
