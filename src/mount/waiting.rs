//! Programs that wait for a network can be killed.
//!
//! A killed program stays until its request is answered: the kernel takes back what it has not
//! handed over yet, and no more. It tells the daemon of signals (`FUSE_INTERRUPT`), but `fuser`
//! answers that it does not want to know. So a thread looks at the programs whose requests have
//! waited for a while. If a signal that ends one of them is pending, its request is answered with
//! `EINTR`, which no program is left to see.
//!
//! The kernel names the thread that made a request by its number in the daemon's PID namespace.
//! Programs in other namespaces have none there, and wait until the deadline.

use super::reply::Replier;
use fuser::RequestId;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Requests that wait for less are not looked at.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often the others are.
const INTERVAL: Duration = Duration::from_millis(250);

/// The requests that wait, and the thread that looks at who made them.
pub(super) struct Waiting(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There are requests, or there will be none any more.
    changed: Condvar,
    replier: Arc<Replier>,
}

#[derive(Default)]
struct State {
    requests: HashMap<u64, Waiter>,
    has_ended: bool,
}

/// Who made a request, and when.
#[derive(Clone, Copy)]
struct Waiter {
    thread: u32,
    since: Instant,
}

impl Waiting {
    /// Start the thread.
    ///
    /// # Errors
    /// Io.
    pub fn start(replier: Arc<Replier>) -> io::Result<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, changed, replier });
        let watched = Arc::clone(&shared);
        thread::Builder::new().name("bsz-killed".into()).spawn(move || watched.watch())?;
        Ok(Self(shared))
    }

    /// A request of `thread` is being answered.
    pub fn begin<R>(&self, request: RequestId, thread: u32, reply: R) -> Awaited<R> {
        let waiter = Waiter { thread, since: Instant::now() };
        let mut state = self.0.lock();
        if state.requests.insert(request.0, waiter).is_none() && state.requests.len() == 1 {
            self.0.changed.notify_one();
        }
        Awaited { reply, wait: Some(Wait { request, shared: Arc::clone(&self.0) }) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().has_ended = true;
        self.0.changed.notify_one();
    }
}

/// A reply that somebody waits for, unless they were killed.
pub(super) struct Awaited<R> {
    reply: R,
    wait: Option<Wait>,
}

/// A request that is being answered.
struct Wait {
    request: RequestId,
    shared: Arc<Shared>,
}

impl<R> Awaited<R> {
    /// The reply to a request that nothing holds up.
    pub fn surely(reply: R) -> Self {
        Self { reply, wait: None }
    }

    /// The reply to be sent. `None` if the request was answered because its program was killed:
    /// what would have been handed over to it is to be given up.
    pub fn take(self) -> Option<R> {
        let Self { reply, wait } = self;
        if wait.is_none_or(|wait| wait.end()) {
            return Some(reply);
        }
        // Dropping it would send a second reply. It owns nothing but a reference count.
        std::mem::forget(reply);
        None
    }
}

impl Wait {
    /// It need not be looked at any more. Returns whether it has not been answered yet.
    fn end(&self) -> bool {
        self.shared.lock().requests.remove(&self.request.0).is_some()
    }
}

/// Also of a job that could not be run, whose reply is sent when it is dropped.
impl Drop for Wait {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let mut state = self.lock();
        while !state.has_ended {
            state = if state.requests.is_empty() {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                drop(state);
                thread::sleep(INTERVAL);
                self.answer_killed();
                self.lock()
            };
        }
    }

    /// Answer the requests of threads that were killed.
    fn answer_killed(&self) {
        let waited = |(id, waiter): (&u64, &Waiter)| {
            (waiter.since.elapsed() >= PATIENCE && waiter.thread > 0).then_some((*id, *waiter))
        };
        let waited: Vec<_> = self.lock().requests.iter().filter_map(waited).collect();
        let mut killed = HashMap::new();
        for (id, Waiter { thread, .. }) in waited {
            let is_killed = *killed.entry(thread).or_insert_with(|| is_killed(thread));
            if is_killed && self.lock().requests.remove(&id).is_some() {
                log::debug!("thread {thread} was killed: its request {id} is answered");
                self.replier.interrupted(RequestId(id));
            }
        }
    }
}

/// Whether a thread is about to end: a signal is pending that ends it.
fn is_killed(thread: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status"));
    status.is_ok_and(|status| is_ending(&status).unwrap_or(false))
}

/// The same by its `/proc/THREAD/status`.
fn is_ending(status: &str) -> Option<bool> {
    let signals = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        u64::from_str_radix(value.trim(), 16).ok()
    };
    let pending = signals("SigPnd")? | signals("ShdPnd")?;
    let kept = signals("SigBlk")? | signals("SigIgn")? | signals("SigCgt")? | HARMLESS;
    Some(pending & !kept != 0)
}

/// The signals that end no program by default: 1 is the bit of signal 1.
const HARMLESS: u64 = {
    let signals = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    let (mut bits, mut i) = (0, 0);
    while i < signals.len() {
        bits |= 1 << (signals[i] - 1);
        i += 1;
    }
    bits
};

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        let masks = [pending, shared, blocked, ignored, caught];
        let names = ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"];
        let lines = names.iter().zip(masks).map(|(name, mask)| format!("{name}:\t{mask:016x}\n"));
        std::iter::once("Name:\tcat\nSigQ:\t0/7\n".into()).chain(lines).collect()
    }

    #[test]
    fn a_signal_that_ends_a_program_is_told_from_others() {
        let bit = |signal: i32| 1 << (signal - 1);
        let (kill, quit, child) = (bit(libc::SIGKILL), bit(libc::SIGQUIT), bit(libc::SIGCHLD));
        for (masks, expected) in [
            ([0, 0, 0, 0, 0], false),
            ([kill, 0, 0, 0, 0], true),
            ([0, kill, !kill, 0, 0], true),
            ([0, quit, 0, 0, 0], true),
            ([0, quit, quit, 0, 0], false),
            ([0, quit, 0, quit, 0], false),
            ([quit, 0, 0, 0, quit], false),
            ([child, bit(libc::SIGSTOP) | bit(libc::SIGWINCH), 0, 0, 0], false),
            ([child, bit(libc::SIGRTMAX()), 0, 0, 0], true),
        ] {
            let [pending, shared, blocked, ignored, caught] = masks;
            let status = status(pending, shared, blocked, ignored, caught);
            assert_eq!(is_ending(&status), Some(expected), "{status}");
        }
        assert_eq!(is_ending("State:\tD\n"), None);
        assert!(!is_killed(std::process::id()) && !is_killed(u32::MAX));
    }

    #[test]
    fn what_is_answered_in_time_is_answered_once() {
        let waiting = Waiting::start(Arc::default()).expect("a thread");
        let reply = waiting.begin(RequestId(7), std::process::id(), "reply");
        thread::sleep(PATIENCE + 2 * INTERVAL);
        assert_eq!(reply.take(), Some("reply"), "the program lives");
        assert!(waiting.0.lock().requests.is_empty());
        let late = waiting.begin(RequestId(8), std::process::id(), "late");
        waiting.0.lock().requests.remove(&8);
        assert_eq!(late.take(), None, "it was answered already");
        assert_eq!(Awaited::surely("local").take(), Some("local"));
    }
}
