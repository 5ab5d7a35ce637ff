//! What to decode when nobody reads: a reader that computes leaves the disk and the cores to it, one that streams does not.

use super::{archive::Archive, batch::Prefetcher, cache::ChunkCache};
use crate::error::{Context, Result};
use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

/// Bytes taken on at a time: little enough that a reader who comes back soon has the threads to himself.
const PIECE: u64 = 2 << 20;
/// How often to look whether there is nothing else to do.
const PAUSE: Duration = Duration::from_millis(1);

/// Ranges of archives, the most wanted first.
#[derive(Default)]
pub(super) struct Wishes {
    left: Mutex<VecDeque<(Arc<Archive>, Range<u64>)>>,
    more: Condvar,
}

impl Wishes {
    /// Wish for `ranges` instead of all that is left.
    pub(super) fn set(&self, ranges: impl IntoIterator<Item = (Arc<Archive>, Range<u64>)>) {
        let ranges = ranges.into_iter().collect();
        drop(std::mem::replace(&mut *self.lock(), ranges));
        self.more.notify_one();
    }

    /// Start the thread that fulfils the wishes of `cache`, as long as that is there.
    ///
    /// # Errors
    /// Io, where it cannot be started.
    pub(super) fn fulfil(self: Arc<Self>, cache: Weak<ChunkCache>) -> Result<()> {
        let work = move || {
            loop {
                let wished = self.wait();
                let Some(cache) = cache.upgrade() else { return };
                let elsewhere = cache.prefetcher();
                if !wished {
                    elsewhere.inspect(|e| e.rest());
                    if cache.is_idle() {
                        cache.buffers().clear();
                    }
                    continue;
                }
                while !cache.is_idle() {
                    thread::sleep(PAUSE);
                }
                let piece = elsewhere.map_or(PIECE, Prefetcher::piece);
                let Some((archive, piece)) = self.next(piece) else { continue };
                if !cache.warm(&archive, piece) {
                    // There is no room, and will be none before a reader is farther.
                    self.lock().clear();
                }
            }
        };
        thread::Builder::new().name("bsz-ahead".into()).spawn(work).map(drop).about("decode threads")
    }

    /// Wait for a wish; `false` after a second without.
    fn wait(&self) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let waited = self.more.wait_timeout_while(self.lock(), LOOK_AGAIN, |left| left.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    /// The next so many bytes.
    fn next(&self, bytes: u64) -> Option<(Arc<Archive>, Range<u64>)> {
        let mut left = self.lock();
        let (archive, range) = left.front_mut()?;
        let piece = range.start..range.end.min(range.start + bytes);
        range.start = piece.end;
        let archive = Arc::clone(archive);
        if range.is_empty() {
            left.pop_front();
        }
        Some((archive, piece))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Arc<Archive>, Range<u64>)>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
