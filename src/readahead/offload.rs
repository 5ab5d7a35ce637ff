//! Decoding on another device, such as a GPU, as long as it responds.
//!
//! The device has a thread of its own, and a call into its driver may never return. If it does not
//! respond in time, its chunks are reclaimed and the device is not used again.

use crate::cache::{ChunkCache, PendingChunk};
use crate::error::{Context, Result};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a reader waits without progress until the chunks are reclaimed.
const READER_TIMEOUT: Duration = Duration::from_secs(5);
/// The same if no reader waits.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait for the device to get ready. No reader waits for that. The cores decode what is
/// requested later, until it is.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to check for progress.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Decodes prefetched chunks on another device.
pub trait OffloadDecoder: Send + Sync {
    /// How many bytes to request at a time; 0 once the device cannot be used any more.
    fn piece(&self) -> u64;

    /// Whether chunks would be decoded at once. If not, none are claimed for this device.
    fn is_ready(&self) -> bool {
        true
    }

    /// Get ready: initialize drivers, allocate memory. That may take seconds.
    fn prepare(&self) {}

    /// Decode chunks. The cache decodes those that are not supplied, or not in time.
    fn decode(&self, chunks: &[PendingChunk]);

    /// Nothing has been requested for another second: release resources.
    fn release(&self);
}

enum Work {
    Prepare,
    Decode(Arc<[PendingChunk]>),
    Release,
}

/// An [`OffloadDecoder`] on its thread.
pub(super) struct Offload {
    work: Sender<Work>,
    /// Receives a message after each [`Work::Decode`].
    finished: Mutex<Receiver<()>>,
    state: Arc<State>,
    timed_out: AtomicBool,
}

/// The last answers of an [`OffloadDecoder`].
#[derive(Default)]
struct State {
    piece: AtomicU64,
    is_ready: AtomicBool,
    /// Whether it was told to get ready, and has not finished.
    is_preparing: AtomicBool,
}

impl State {
    fn update(&self, decoder: &dyn OffloadDecoder) {
        self.piece.store(decoder.piece(), Ordering::Relaxed);
        self.is_ready.store(decoder.is_ready(), Ordering::Relaxed);
    }
}

impl Offload {
    /// Start the thread.
    ///
    /// # Errors
    /// Io, if the thread cannot be started.
    pub(super) fn start(decoder: Box<dyn OffloadDecoder>) -> Result<Self> {
        let (work, received) = channel();
        let (finish, finished) = channel();
        let state = Arc::<State>::default();
        state.update(&*decoder);
        let latest = Arc::clone(&state);
        let serve = move || {
            for work in received {
                let decoded = match work {
                    Work::Prepare => {
                        decoder.prepare();
                        latest.update(&*decoder);
                        latest.is_preparing.store(false, Ordering::Relaxed);
                        false
                    }
                    Work::Decode(chunks) => {
                        decoder.decode(&chunks);
                        true
                    }
                    Work::Release => {
                        decoder.release();
                        false
                    }
                };
                latest.update(&*decoder);
                if decoded && finish.send(()).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("bsz-offload".into()).spawn(serve).about("decode threads")?;
        let (finished, timed_out) = (Mutex::new(finished), AtomicBool::new(false));
        Ok(Self { work, finished, state, timed_out })
    }

    /// Whether the device can be used and has always responded in time.
    pub(super) fn is_usable(&self) -> bool {
        self.piece() > 0 && !self.timed_out.load(Ordering::Relaxed)
    }

    /// How many bytes to request at a time.
    pub(super) fn piece(&self) -> u64 {
        self.state.piece.load(Ordering::Relaxed)
    }

    /// Whether the device is ready, or gets ready in time. If not, it continues to get ready, and
    /// the caller does without it.
    pub(super) fn prepare(&self) -> bool {
        let is_ready = || self.state.is_ready.load(Ordering::Relaxed);
        if !is_ready() && !self.state.is_preparing.swap(true, Ordering::Relaxed) {
            let (begun, _) = (Instant::now(), self.work.send(Work::Prepare));
            while !is_ready() && self.is_usable() && begun.elapsed() < PREPARE_TIMEOUT {
                thread::sleep(CHECK_INTERVAL);
            }
        }
        is_ready()
    }

    /// Nothing is requested at present.
    pub(super) fn release(&self) {
        // What is requested next comes after this, and finds the device as it is then.
        self.state.is_ready.store(false, Ordering::Relaxed);
        // If the thread has ended, there is nothing to release.
        let _ = self.work.send(Work::Release);
    }

    /// Decode chunks. Those that are not supplied in time are decoded by the threads of `cache`.
    pub(super) fn decode(&self, cache: &ChunkCache, chunks: Vec<PendingChunk>) {
        let chunks: Arc<[PendingChunk]> = chunks.into();
        let _ = self.work.send(Work::Decode(Arc::clone(&chunks)));
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = || chunks.iter().filter(|chunk| chunk.is_pending()).count();
        let (mut before, mut progress, mut waiting_since) = (pending(), Instant::now(), None);
        // The channel closes only if the thread panics.
        while finished.recv_timeout(CHECK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            let now = pending();
            if now < before || !cache.has_waiters(&chunks) {
                waiting_since = None;
            } else {
                waiting_since.get_or_insert_with(Instant::now);
            }
            if now < before {
                (before, progress) = (now, Instant::now());
            }
            if waiting_since.is_some_and(|since| since.elapsed() > READER_TIMEOUT)
                || progress.elapsed() > IDLE_TIMEOUT
            {
                log::warn!("the prefetch decoder does not respond; using the cores from now on");
                self.timed_out.store(true, Ordering::Relaxed);
                break;
            }
        }
        cache.reclaim(&chunks);
    }
}
