//! Chunks that are decoded elsewhere than on the cache's threads, as long as that answers.
//!
//! What decodes elsewhere has a thread of its own, and may never come back from a call: a driver can hang. What it owes is
//! taken back then, and it is not asked again.

use super::{
    batch::{Owed, Prefetcher},
    cache::ChunkCache,
};
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

/// How long somebody waits, and nothing comes, before what is owed is taken back.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where nobody waits: the first call starts a driver, which takes seconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// How often to look whether somebody waits.
const LOOK: Duration = Duration::from_millis(50);

enum Work {
    Decode(Arc<[Owed]>),
    Rest,
}

/// A [`Prefetcher`] on its thread.
pub(super) struct Elsewhere {
    work: Sender<Work>,
    /// Hears of each [`Work::Decode`] that is over.
    over: Mutex<Receiver<()>>,
    /// What [`Prefetcher::piece`] said last.
    piece: Arc<AtomicU64>,
    late: AtomicBool,
}

impl Elsewhere {
    /// Start its thread.
    ///
    /// # Errors
    /// Io, where that cannot be.
    pub(super) fn start(prefetcher: Box<dyn Prefetcher>) -> Result<Self> {
        let (work, todo) = channel();
        let (done, over) = channel();
        let piece = Arc::new(AtomicU64::new(prefetcher.piece()));
        let said = Arc::clone(&piece);
        let serve = move || {
            for work in todo {
                let decoded = match work {
                    Work::Decode(owed) => {
                        prefetcher.decode(&owed);
                        true
                    }
                    Work::Rest => {
                        prefetcher.rest();
                        false
                    }
                };
                said.store(prefetcher.piece(), Ordering::Relaxed);
                if decoded && done.send(()).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("bsz-elsewhere".into()).spawn(serve).about("decode threads")?;
        Ok(Self { work, over: Mutex::new(over), piece, late: AtomicBool::new(false) })
    }

    /// Whether it goes on decoding, and has always answered in time.
    pub(super) fn answers(&self) -> bool {
        self.piece() > 0 && !self.late.load(Ordering::Relaxed)
    }

    /// How many bytes are worth its while at a time.
    pub(super) fn piece(&self) -> u64 {
        self.piece.load(Ordering::Relaxed)
    }

    /// Nothing is wished for at the moment.
    pub(super) fn rest(&self) {
        // If its thread has ended, there is nothing to give back.
        let _ = self.work.send(Work::Rest);
    }

    /// Have chunks decoded, and what is not supplied in time decoded by the threads of `cache`.
    pub(super) fn decode(&self, cache: &ChunkCache, owed: Vec<Owed>) {
        let owed: Arc<[Owed]> = owed.into();
        let _ = self.work.send(Work::Decode(Arc::clone(&owed)));
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let left = || owed.iter().filter(|owed| owed.is_open()).count();
        let (mut before, mut came, mut waited) = (left(), Instant::now(), None);
        // An end without an answer is one of the thread, by a panic.
        while over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let now = left();
            if now < before || !cache.is_awaited(&owed) {
                waited = None;
            } else {
                waited.get_or_insert_with(Instant::now);
            }
            if now < before {
                (before, came) = (now, Instant::now());
            }
            if waited.is_some_and(|since| since.elapsed() > PATIENCE) || came.elapsed() > DEADLINE {
                log::warn!("what decodes ahead does not answer; from now on the cores do");
                self.late.store(true, Ordering::Relaxed);
                break;
            }
        }
        cache.take_back(&owed);
    }
}
