//! Threads that read and decode: what a reader waits for first, what is fetched ahead after it.
//!
//! Others help where work piles up: a disk serves many at once better, and they wait for it while others decode. Where
//! there is less to do they would only take the cores from those who were there first.

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
    /// Wakes those who help.
    help: Condvar,
    /// How many threads there are beside those who help.
    threads: usize,
}

#[derive(Default)]
struct Queues {
    urgent: VecDeque<Job>,
    /// With numbers by which they can be made urgent.
    ahead: VecDeque<(u64, Job)>,
    ended: bool,
}

impl Workers {
    /// Start `threads`, one at least, and `helpers`.
    ///
    /// # Errors
    /// Io, where they cannot be started.
    pub(super) fn start(threads: usize, helpers: usize) -> Result<Self> {
        let threads = threads.max(1);
        let workers = Self(Arc::new(Shared {
            queues: Mutex::default(),
            wake: Condvar::new(),
            help: Condvar::new(),
            threads,
        }));
        for i in 0..threads + helpers {
            let shared = Arc::clone(&workers.0);
            let named = thread::Builder::new().name(format!("bsz-decode-{i}"));
            named.spawn(move || shared.work(i >= threads)).about("decode threads")?;
        }
        Ok(workers)
    }

    /// Do `job` as soon as a thread is free.
    pub(super) fn urgent(&self, job: impl FnOnce() + Send + 'static) {
        let mut queues = self.0.lock();
        queues.urgent.push_back(Box::new(job));
        let piled_up = queues.urgent.len() > self.0.threads;
        drop(queues);
        if piled_up { self.0.help.notify_one() } else { self.0.wake.notify_one() }
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
        let (urgent, ahead) =
            (std::mem::take(&mut queues.urgent), std::mem::take(&mut queues.ahead));
        drop(queues);
        self.0.wake.notify_all();
        self.0.help.notify_all();
        drop((urgent, ahead));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, helps: bool) {
        let wake = if helps { &self.help } else { &self.wake };
        let mut queues = self.lock();
        while !queues.ended {
            let next = match helps {
                true if queues.urgent.len() <= self.threads => None,
                true => queues.urgent.pop_front(),
                false => queues.next(),
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
}

impl Queues {
    fn next(&mut self) -> Option<Job> {
        self.urgent.pop_front().or_else(|| self.ahead.pop_front().map(|(_, job)| job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};

    #[test]
    fn urgent_work_goes_first_and_a_panic_ends_no_thread() {
        let workers = Workers::start(1, 0).expect("starts");
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
    fn others_help_with_what_piles_up() {
        let workers = Workers::start(1, 1).expect("starts");
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let (done, order) = mpsc::channel();
        workers.urgent(move || {
            begun.send(()).expect("listened to");
            let _ = held.recv();
        });
        begins.recv().expect("begins");
        for n in 0..3 {
            let done = done.clone();
            workers.urgent(move || done.send(n).expect("listened to"));
        }
        // The last one does not pile up.
        assert_eq!([order.recv(), order.recv()], [Ok(0), Ok(1)]);
        assert!(order.recv_timeout(Duration::from_millis(50)).is_err());
        drop(hold);
        assert_eq!(order.recv(), Ok(2));
    }

    #[test]
    fn what_is_not_begun_is_dropped_with_the_threads() {
        let workers = Workers::start(1, 0).expect("starts");
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
