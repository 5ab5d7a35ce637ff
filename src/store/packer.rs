//! The packer: a queue of files that were closed and left alone, and what became of them.
//!
//! It makes one archive at a time, on threads that run only when nothing else wants the processor
//! or the disk (`idle`). `work` packs a file; here is what waits, and when it may be packed.

use super::control::Command;
use super::left::Left;
use super::outcome::{Outcome, Task};
use super::policy::{Pack, PackPolicy};
use crate::mount::StoreStatus;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often to ask again whether a file may be packed.
const RECHECK: Duration = Duration::from_secs(2);

/// How long to wait after an attempt that failed, and at least after the first one. Each that has
/// made an archive in vain doubles the time.
const RETRY: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_DOUBLINGS: u32 = 7;

/// How long a writer waits for the packer to give its space back.
const GIVE_ROOM_WITHIN: Duration = Duration::from_secs(30);

/// How long not to pack after a writer had no space.
const AFTER_FULL: Duration = Duration::from_secs(10);

/// Most reasons to report.
const MAX_REASONS: usize = 16;

#[derive(Default)]
struct Queue {
    /// When each node may be packed.
    due: HashMap<u64, Instant>,
    order: BTreeSet<(Instant, u64)>,
    /// Pack what waits without further waiting.
    drain: bool,
    /// The nodes whose last attempt failed. They are not drained.
    again: HashSet<u64>,
    /// Of those of which an attempt failed, until one succeeds: how many made an archive.
    retried: HashMap<u64, u32>,
    /// A walk has to find files before the queue can be drained.
    walk: bool,
    /// A file is being packed.
    busy: bool,
    stopped: bool,
    /// Another process is about to have the store.
    suspended: bool,
    /// A writer had no space: nothing is packed until then.
    full_until: Option<Instant>,
    status: StoreStatus,
}

impl Queue {
    fn remove(&mut self, id: u64) -> Option<Instant> {
        let due = self.due.remove(&id)?;
        self.again.remove(&id);
        self.order.remove(&(due, id));
        Some(due)
    }
}

pub(super) struct Packer {
    pub policy: PackPolicy,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Tells the file being packed to give up.
    cancelled: AtomicBool,
    pub left: Left,
    /// Held while a plain file is removed beside its archive.
    removing: Mutex<()>,
    /// Held while an archive takes the place of its file, or is taken away again.
    swapping: Mutex<()>,
    /// Whether the store is still mounted.
    is_mounted: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Packer {
    pub fn new(policy: PackPolicy) -> Self {
        let status = StoreStatus { pack: policy.pack.name().into(), ..StoreStatus::default() };
        Self {
            policy,
            queue: Mutex::new(Queue { status, ..Queue::default() }),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
            left: Left::new(),
            removing: Mutex::default(),
            swapping: Mutex::default(),
            is_mounted: OnceLock::new(),
        }
    }

    /// Whether files of this size are packed without being asked to.
    pub fn wants(&self, size: u64) -> bool {
        self.policy.pack != Pack::Off && size >= self.policy.min_size
    }

    /// Queue a node that has been unchanged for `age`. Returns false if it was queued already; its
    /// time is counted from now, then.
    pub fn enqueue(&self, id: u64, age: Duration) -> bool {
        self.enqueue_at(id, later(self.policy.settle.saturating_sub(age)))
    }

    fn enqueue_at(&self, id: u64, due: Instant) -> bool {
        let mut queue = self.queue();
        let is_new = queue.remove(id).is_none();
        queue.due.insert(id, due);
        queue.order.insert((due, id));
        self.changed.notify_all();
        is_new
    }

    /// Try a node again later; `in_vain`: an archive was made. Its hold stays.
    pub fn retry(&self, id: u64, in_vain: bool) -> bool {
        let before = {
            let mut queue = self.queue();
            let before = queue.retried.get(&id).copied();
            queue.retried.insert(id, before.unwrap_or(0) + u32::from(in_vain));
            before
        };
        let wait = match before {
            None => self.policy.settle.clamp(FIRST_RETRY, RETRY),
            Some(made) => RETRY * (1 << made.min(MAX_DOUBLINGS)),
        };
        let is_new = self.enqueue_at(id, later(wait));
        self.queue().again.insert(id);
        is_new
    }

    /// An attempt has come to an end that is no reason to try again. It may have been queued anew
    /// meanwhile.
    pub fn settled(&self, id: u64) {
        self.queue().retried.remove(&id);
    }

    /// Nothing more is to be done about a node: it is packed, or gone. Returns whether it was
    /// queued.
    pub fn remove(&self, id: u64) -> bool {
        let mut queue = self.queue();
        queue.retried.remove(&id);
        queue.remove(id).is_some()
    }

    pub fn command(&self, command: Command) {
        let mut queue = self.queue();
        match command {
            Command::PackNow => {
                queue.drain = true;
                queue.walk = true;
                queue.status.paused = false;
            }
            Command::Pause => queue.status.paused = true,
            Command::Resume => queue.status.paused = false,
        }
        self.changed.notify_all();
    }

    /// Wait for something to do. `busy` says why nothing should be done at the moment, `examines`
    /// whether there are archives to examine, which comes before packing.
    pub fn next(&self, busy: impl Fn() -> Option<String>, examines: impl Fn() -> bool) -> Task {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            if queue.stopped {
                return Task::Stop;
            }
            if queue.walk {
                queue.walk = false;
                return Task::Walk;
            }
            let due = self.due(&mut queue, now).map(Some);
            let examine = !queue.status.paused && examines();
            let due = if examine { Ok(due.ok().flatten()) } else { due };
            let wait = match due {
                Ok(id) => {
                    let hurry = queue.drain || self.policy.pack == Pack::Now;
                    let why = if hurry { None } else { busy() };
                    let Some(why) = why else {
                        let Some(id) = id.filter(|_| !examine) else { return Task::Examine };
                        queue.remove(id);
                        queue.busy = true;
                        queue.status.waits = None;
                        self.cancelled.store(false, Ordering::Release);
                        return Task::Pack(id);
                    };
                    queue.status.waits = Some(why).filter(|_| id.is_some());
                    RECHECK
                }
                Err(wait) => wait,
            };
            let waited = self.changed.wait_timeout(queue, wait);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The node that may be packed now, or how long to wait for one.
    fn due(&self, queue: &mut Queue, now: Instant) -> Result<u64, Duration> {
        const LONG: Duration = Duration::from_secs(3600);
        if !queue.status.recovered {
            // A file and its archive may be what a crash has left, or what is being swapped.
            return Err(LONG);
        }
        let drained = queue.order.iter().find(|(_, id)| !queue.again.contains(id)).copied();
        if drained.is_none() {
            queue.drain = false;
        }
        if queue.status.paused || queue.suspended {
            return Err(LONG);
        }
        if let Some(until) = queue.full_until.filter(|until| *until > now) {
            return Err(until - now);
        }
        match (drained.filter(|_| queue.drain), queue.order.first()) {
            (Some((_, id)), _) => Ok(id),
            (None, Some(&(due, id))) if due <= now => Ok(id),
            (None, Some(&(due, _))) => Err(due - now),
            (None, None) => Err(LONG),
        }
    }

    /// A file is being packed.
    pub fn begin(&self, path: &str) {
        self.queue().status.packing = Some(short(path));
    }

    /// The task is done.
    pub fn done(&self) {
        let mut queue = self.queue();
        queue.busy = false;
        queue.status.packing = None;
        self.changed.notify_all();
    }

    /// Count what became of a file.
    pub fn record(&self, path: &str, outcome: &Outcome) {
        let mut queue = self.queue();
        let status = &mut queue.status;
        let why = match outcome {
            Outcome::Packed { original, stored } => {
                status.packed += 1;
                status.original_bytes += original;
                status.stored_bytes += stored;
                return;
            }
            Outcome::Gone => return,
            Outcome::Left(why) => {
                status.left += 1;
                why
            }
            Outcome::Later(why) | Outcome::Failed(why) => {
                status.failed += 1;
                why
            }
        };
        let reason = (short(&crate::escape::text(path)), short(why));
        status.reasons.retain(|other| other.0 != reason.0);
        if status.reasons.len() == MAX_REASONS {
            status.reasons.remove(0);
        }
        status.reasons.push(reason);
    }

    /// A packed file is plain again, because it was written to.
    pub fn unpacked(&self) {
        self.queue().status.unpacked += 1;
    }

    /// The walk after mounting is done.
    pub fn recovered(&self) {
        self.queue().status.recovered = true;
        self.changed.notify_all();
    }

    /// Whether the file being packed is to be given up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Wait while packing is paused. Returns whether the file is to be given up.
    pub fn pause(&self) -> bool {
        let mut queue = self.queue();
        while queue.status.paused && !queue.stopped && !self.is_cancelled() {
            let waited = self.changed.wait_timeout(queue, RECHECK);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.stopped || self.is_cancelled()
    }

    /// A writer has no space. Give up the archive that is being written, if there is one, and wait
    /// until its space is free. Returns whether it is worth to try again.
    pub fn give_room(&self) -> bool {
        let mut queue = self.queue();
        queue.full_until = Some(Instant::now() + AFTER_FULL);
        if !queue.busy {
            return false;
        }
        self.cancelled.store(true, Ordering::Release);
        self.changed.notify_all();
        let is_busy = |queue: &mut Queue| queue.busy;
        let waited = self.changed.wait_timeout_while(queue, GIVE_ROOM_WITHIN, is_busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Stop, and give up the file being packed. Afterwards, none is there in two forms.
    pub fn stop(&self) {
        self.queue().stopped = true;
        self.suspend(true);
        drop(self.swapping.lock());
    }

    /// Keep [`Packer::stop`] waiting while an archive has its name beside the plain file; `None` if
    /// nothing is to be packed any more.
    pub fn begin_swap(&self) -> Option<MutexGuard<'_, ()>> {
        let swapping = self.swapping.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.queue().suspended).then_some(swapping)
    }

    /// Give up the file being packed, and pack none, or go on. While this is so, no plain file is
    /// removed: another process may have the store.
    pub fn suspend(&self, suspended: bool) {
        self.queue().suspended = suspended;
        self.cancelled.store(suspended, Ordering::Release);
        self.changed.notify_all();
        drop(self.removing.lock());
    }

    /// Pack only while `is_mounted`.
    pub fn pack_while(&self, is_mounted: impl Fn() -> bool + Send + Sync + 'static) {
        // Set once.
        let _ = self.is_mounted.set(Box::new(is_mounted));
    }

    /// Stop packing if the store is no longer mounted: what is there is shown to everybody then.
    /// This reads the table of mounts, so call it before names are locked.
    pub fn check_mount(&self) {
        if self.is_mounted.get().is_some_and(|is_mounted| !is_mounted()) {
            self.suspend(true);
            self.waits(Some("the store was unmounted".into()));
        }
    }

    /// Keep [`Packer::suspend`] waiting while a plain file is removed; `None` if it was called.
    pub fn enter(&self) -> Option<MutexGuard<'_, ()>> {
        let removing = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.queue().suspended).then_some(removing)
    }

    /// Nothing is packed for this reason, or for none.
    pub fn waits(&self, why: Option<String>) {
        self.queue().status.waits = why;
    }

    /// Wait, at most so long, until it is stopped. Returns whether it is.
    pub fn is_stopped_within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.queue(), time, |queue| !queue.stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    pub fn is_stopped(&self) -> bool {
        let queue = self.queue();
        queue.stopped || queue.suspended
    }

    pub fn status(&self) -> StoreStatus {
        let queue = self.queue();
        let mut status = queue.status.clone();
        status.queued = queue.order.len() as u64;
        status.draining = queue.drain || queue.walk;
        status
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So much later; users may want to wait for longer than clocks can tell.
fn later(wait: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 86400);
    Instant::now() + wait.min(LONGEST)
}

/// The end of a text for the status, which must fit into an extended attribute.
fn short(text: &str) -> String {
    const MOST: usize = 256;
    let skipped = text.chars().count().saturating_sub(MOST);
    if skipped == 0 { text.to_owned() } else { text.chars().skip(skipped - 1).collect() }
}

#[cfg(test)]
#[path = "packer_tests.rs"]
mod tests;
