//! Detects pauses between reads: a reader that computes leaves the disk and the processor idle.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long no read may arrive before the readers are considered to be computing.
const PAUSE: Duration = Duration::from_millis(3);

/// The reads of a cache that are in progress, and when the last one started.
pub(super) struct Activity {
    in_progress: AtomicUsize,
    created: Instant,
    /// In microseconds after `created`.
    last_start: AtomicU64,
    /// Whether a thread waits for a pause.
    is_watched: AtomicBool,
    watch: Mutex<()>,
    none_in_progress: Condvar,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            in_progress: AtomicUsize::new(0),
            created: Instant::now(),
            last_start: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
            watch: Mutex::new(()),
            none_in_progress: Condvar::new(),
        }
    }

    /// A read has started at `now`.
    pub(super) fn start(&self, now: Instant) {
        self.in_progress.fetch_add(1, Ordering::SeqCst);
        let micros = now.duration_since(self.created).as_micros() as u64;
        self.last_start.store(micros, Ordering::Relaxed);
    }

    /// A read has finished.
    pub(super) fn finish(&self) {
        let was_last = self.in_progress.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.is_watched.load(Ordering::SeqCst) {
            // The watcher either holds the lock and has yet to check, or it waits already.
            drop(self.watch.lock().unwrap_or_else(PoisonError::into_inner));
            self.none_in_progress.notify_all();
        }
    }

    /// Reads in progress.
    pub(super) fn in_progress(&self) -> usize {
        self.in_progress.load(Ordering::SeqCst)
    }

    /// How long to wait at least until the present pause is long enough; zero if it is already.
    fn pause_left(&self) -> Duration {
        let last_start = Duration::from_micros(self.last_start.load(Ordering::Relaxed));
        (last_start + PAUSE).saturating_sub(self.created.elapsed())
    }

    /// Whether the readers pause.
    pub(super) fn is_paused(&self) -> bool {
        self.in_progress() == 0 && self.pause_left().is_zero()
    }

    /// Wait until the readers pause. To be called by one thread only.
    pub(super) fn wait_for_pause(&self) {
        while !self.is_paused() {
            self.wait_until_none_in_progress();
            thread::sleep(self.pause_left());
        }
    }

    fn wait_until_none_in_progress(&self) {
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_watched.store(true, Ordering::SeqCst);
        let in_progress = |(): &mut ()| self.in_progress() > 0;
        let woken = self.none_in_progress.wait_while(watch, in_progress);
        drop(woken.unwrap_or_else(PoisonError::into_inner));
        self.is_watched.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_pause_begins_after_the_last_of_several_reads() {
        let activity = Arc::new(Activity::new());
        for round in 0..200u64 {
            let readers: Vec<_> = (0..3)
                .map(|i| {
                    activity.start(Instant::now());
                    let activity = Arc::clone(&activity);
                    thread::spawn(move || {
                        thread::sleep(Duration::from_micros(37 * (round + i) % 900));
                        activity.finish();
                    })
                })
                .collect();
            activity.wait_for_pause();
            assert!(activity.is_paused());
            readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
        }
    }
}
