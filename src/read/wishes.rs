//! What to decode when nobody reads: a reader that computes leaves the disk and the cores to it, one that streams does not.

use super::{archive::Archive, cache::ChunkCache, elsewhere::Elsewhere};
use crate::error::{Context, Result};
use std::{
    collections::VecDeque,
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

/// Bytes taken on at a time: little enough that a reader who comes back soon has the threads to himself.
const PIECE: u64 = 2 << 20;
/// How often to look whether there is nothing else to do.
const PAUSE: Duration = Duration::from_millis(1);

/// What will be read soon.
pub struct Wish {
    /// Of which archive.
    pub archive: Arc<Archive>,
    /// Where its readers have it from, for a [`Taker`], if they find there what that takes.
    pub shown: Option<Arc<Path>>,
    /// Bytes of the original.
    pub range: Range<u64>,
}

/// Takes what was wished for, once it is decoded or about to be, to where its readers find it sooner than here.
pub trait Taker: Send + Sync {
    /// Take a piece: by reading it, as [`super::cache::Reader::Taker`]. Returns when that is done.
    fn take(&self, piece: &Wish, shown: &Path);

    /// Nothing is wished for at the moment: give back what is not needed.
    fn rest(&self);
}

/// What is wished for, the most wanted first.
#[derive(Default)]
pub(super) struct Wishes {
    left: Mutex<VecDeque<Wish>>,
    more: Condvar,
}

impl Wishes {
    /// Wish for `wishes` instead of all that is left, up to so many bytes.
    pub(super) fn set(&self, wishes: impl IntoIterator<Item = Wish>, most: u64) {
        let mut left = most;
        let mut new = VecDeque::new();
        for mut wish in wishes {
            if left == 0 {
                break;
            }
            wish.range.end = wish.range.end.min(wish.range.start.saturating_add(left));
            left -= wish.range.end.saturating_sub(wish.range.start);
            if !wish.range.is_empty() {
                new.push_back(wish);
            }
        }
        drop(std::mem::replace(&mut *self.lock(), new));
        self.more.notify_one();
    }

    /// Wish no longer for anything of this archive.
    pub(super) fn forget(&self, archive: u64) {
        self.lock().retain(|wish| wish.archive.id() != archive);
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
                let elsewhere = cache.elsewhere().filter(|elsewhere| elsewhere.answers());
                if !wished {
                    elsewhere.inspect(|e| e.rest());
                    cache.taker().inspect(|taker| taker.rest());
                    if cache.is_idle() {
                        cache.rest();
                    }
                    continue;
                }
                while !cache.is_idle() {
                    thread::sleep(PAUSE);
                }
                let Some(piece) = self.next(elsewhere.map_or(PIECE, Elsewhere::piece)) else {
                    continue;
                };
                if !cache.warm(&piece) {
                    // There is no room, and will be none before a reader is farther.
                    self.lock().clear();
                }
            }
        };
        thread::Builder::new()
            .name("bsz-ahead".into())
            .spawn(work)
            .map(drop)
            .about("decode threads")
    }

    /// Wait for a wish; `false` after a second without.
    fn wait(&self) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let waited = self.more.wait_timeout_while(self.lock(), LOOK_AGAIN, |left| left.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    /// The next so many bytes.
    fn next(&self, bytes: u64) -> Option<Wish> {
        let mut left = self.lock();
        let Wish { archive, shown, range } = left.front_mut()?;
        let piece = range.start..range.end.min(range.start + bytes);
        range.start = piece.end;
        let wish = Wish { archive: Arc::clone(archive), shown: shown.clone(), range: piece };
        if range.is_empty() {
            left.pop_front();
        }
        Some(wish)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Wish>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_bytes_are_wished_for_and_given_out_in_pieces() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/bf16.bsz");
        let archive = Arc::new(Archive::open(&golden).expect("an archive"));
        let wish = |range: Range<u64>| Wish { archive: Arc::clone(&archive), shown: None, range };
        let wishes = Wishes::default();
        wishes.set([wish(5..5), wish(10..50), wish(60..60), wish(60..90), wish(0..9)], 55);
        let pieces: Vec<_> =
            std::iter::from_fn(|| wishes.next(20)).map(|piece| piece.range).collect();
        assert_eq!(pieces, [10..30, 30..50, 60..75]);
        wishes.set([wish(0..9)], 0);
        assert!(wishes.next(20).is_none());
        wishes.set([wish(0..9)], 9);
        wishes.forget(archive.id() + 1);
        assert!(wishes.next(1).is_some());
        wishes.forget(archive.id());
        assert!(wishes.next(1).is_none());
    }
}
