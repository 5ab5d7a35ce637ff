//! Threads that read and decode: what a reader waits for first, what is fetched ahead after it.

use crate::error::{Context, Result};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

type Job = Box<dyn FnOnce() + Send>;

/// Some threads and their work. Dropped, it lets what is under way end and forgets the rest.
pub(super) struct Workers(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    wake: Condvar,
}

#[derive(Default)]
struct Queues {
    urgent: VecDeque<Job>,
    /// With numbers by which they can be made urgent.
    ahead: VecDeque<(u64, Job)>,
    ended: bool,
}

impl Workers {
    /// # Errors
    /// Io, where the threads cannot be started.
    pub(super) fn start(threads: usize) -> Result<Self> {
        let workers = Self(Arc::new(Shared { queues: Mutex::default(), wake: Condvar::new() }));
        for i in 0..threads.max(1) {
            let shared = Arc::clone(&workers.0);
            let named = thread::Builder::new().name(format!("bsz-decode-{i}"));
            named.spawn(move || shared.work()).about("decode threads")?;
        }
        Ok(workers)
    }

    /// Do `job` as soon as a thread is free.
    pub(super) fn urgent(&self, job: impl FnOnce() + Send + 'static) {
        self.0.lock().urgent.push_back(Box::new(job));
        self.0.wake.notify_one();
    }

    /// Do `job` when nothing urgent is left; `number` names it.
    pub(super) fn ahead(&self, number: u64, job: impl FnOnce() + Send + 'static) {
        self.0.lock().ahead.push_back((number, Box::new(job)));
        self.0.wake.notify_one();
    }

    /// Whether there is work ahead that has not begun.
    pub(super) fn has_ahead(&self) -> bool {
        !self.0.lock().ahead.is_empty()
    }

    /// Somebody waits for the job of this number now, if it has not begun.
    pub(super) fn hurry(&self, number: u64) {
        let mut queues = self.0.lock();
        if let Some(i) = queues.ahead.iter().position(|(n, _)| *n == number)
            && let Some((_, job)) = queues.ahead.remove(i)
        {
            queues.urgent.push_back(job);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut queues = self.0.lock();
        queues.ended = true;
        // Unlocked, for a job that is dropped may answer whoever waits for it.
        let (urgent, ahead) = (std::mem::take(&mut queues.urgent), std::mem::take(&mut queues.ahead));
        drop(queues);
        self.0.wake.notify_all();
        drop((urgent, ahead));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queues = self.lock();
        while !queues.ended {
            let next = queues.urgent.pop_front().or_else(|| queues.ahead.pop_front().map(|(_, job)| job));
            let Some(job) = next else {
                queues = self.wake.wait(queues).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queues);
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                log::error!("a decode thread panicked");
            }
            queues = self.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn urgent_work_goes_first_and_a_panic_ends_no_thread() {
        let workers = Workers::start(1).expect("starts");
        let (hold, held) = mpsc::channel::<()>();
        let (done, order) = mpsc::channel();
        workers.urgent(move || {
            let _ = held.recv();
        });
        let say = |name: &'static str| {
            let done = done.clone();
            move || done.send(name).expect("listened to")
        };
        workers.ahead(1, say("first ahead"));
        workers.ahead(2, say("second ahead"));
        workers.urgent(|| panic!("as the test wants it"));
        workers.urgent(say("urgent"));
        workers.hurry(2);
        workers.hurry(77);
        drop(hold);
        let said: Vec<_> = order.iter().take(3).collect();
        assert_eq!(said, ["urgent", "second ahead", "first ahead"]);
    }

    #[test]
    fn what_is_not_begun_is_dropped_with_the_threads() {
        let workers = Workers::start(1).expect("starts");
        let (hold, held) = mpsc::channel::<()>();
        workers.urgent(move || {
            let _ = held.recv();
        });
        let (kept, gone) = mpsc::channel::<()>();
        workers.ahead(1, move || drop(kept));
        drop(workers);
        assert!(gone.recv().is_err());
        drop(hold);
    }
}
