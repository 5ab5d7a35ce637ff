//! Which chunks of an archive were read whole, and when, and from that, whether a reader goes through it in order.
//!
//! Nothing is kept of single readers: many chunks behind a request that were read whole of late are a stream, however many
//! threads read it and in whatever order their requests come. Random readers leave few such chunks behind, and those who
//! read blocks in random order leave them here and there.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// How far ahead to look before anything was learned, and at least and at most, in bytes.
const REACH: (u64, u64, u64) = (4 << 20, 512 << 10, 64 << 20);

pub(super) struct Passed {
    whole: Mutex<Whole>,
    reach: AtomicU64,
}

/// Chunks that were read whole.
#[derive(Default)]
struct Whole {
    /// How many so far.
    count: u32,
    /// For each chunk, `count` when it was read, or 0; made when the first is read.
    when: Vec<u32>,
}

impl Default for Passed {
    fn default() -> Self {
        Self { whole: Mutex::default(), reach: AtomicU64::new(REACH.0) }
    }
}

/// How many chunks behind a reader are looked at: enough for sixteen threads that take turns with blocks of 2 MiB.
const BEHIND: usize = 128;
/// How many of them must nearly all have been read whole by a single reader.
const FEW: usize = 32;
/// Of late is what is among so many chunks that were read, at least and at most; and among an eighth of the archive.
const OF_LATE: (u32, u32) = (128, 512);
/// Chunks that are forgotten when the first of them is read again.
const FORGET: usize = 128;

impl Whole {
    fn has(&self, id: usize) -> bool {
        self.when.get(id).is_some_and(|&when| when > 0)
    }

    fn has_of_late(&self, id: usize) -> bool {
        let late = u32::try_from(self.when.len() / 8).unwrap_or(u32::MAX).clamp(OF_LATE.0, OF_LATE.1);
        self.has(id) && self.count.wrapping_sub(self.when[id]) < late
    }
}

impl Passed {
    /// Chunk `id` of `chunks` was read whole.
    pub(super) fn mark(&self, id: usize, chunks: usize) {
        let mut whole = self.lock();
        if whole.when.is_empty() {
            whole.when.resize(chunks, 0);
        }
        // After 2^32 chunks the oldest look new: no more than a bad guess.
        whole.count = whole.count.checked_add(1).unwrap_or(1);
        whole.when[id] = whole.count;
    }

    /// Chunk `id` is read. If it was read whole before, what follows it may be read again, too.
    pub(super) fn again(&self, id: usize) {
        let mut whole = self.lock();
        if whole.has(id) {
            whole.when[id..].iter_mut().take(FORGET).for_each(|when| *when = 0);
        }
    }

    /// How many of the [`BEHIND`] chunks up to `last` were read whole of late, if that is the trace of readers who go on:
    /// nearly all of the last few, or half of all, where several readers take turns. Less may be left by a reader of random
    /// blocks.
    pub(super) fn behind(&self, last: usize) -> Option<usize> {
        let whole = self.lock();
        let among = |n: usize| {
            let last_few = (last + 1).saturating_sub(n)..=last;
            last_few.filter(|&id| whole.has_of_late(id)).count()
        };
        let behind = among(BEHIND);
        (behind >= BEHIND / 2 || among(FEW) >= FEW - FEW / 8).then_some(behind)
    }

    /// How far ahead it is worth decoding, in bytes: farther with each chunk that was used, half as far with each that
    /// was dropped.
    pub(super) fn reach(&self) -> u64 {
        self.reach.load(Relaxed)
    }

    /// A chunk decoded ahead was used, of so many bytes, or dropped.
    pub(super) fn guessed(&self, used: Option<u64>) {
        // Two at once may lose one of them, which does no harm.
        let reach = self.reach();
        let now = used.map_or(reach / 2, |len| reach + len);
        self.reach.store(now.clamp(REACH.1, REACH.2), Relaxed);
    }

    /// Those of `range` that were not read whole.
    pub(super) fn left(&self, range: Range<usize>) -> Vec<usize> {
        let whole = self.lock();
        range.filter(|&id| !whole.has(id)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Whole> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_a_reader_is_counted_and_forgotten_when_read_again() {
        let passed = Passed::default();
        assert_eq!(passed.behind(5), None);
        (0..300).step_by(2).for_each(|id| passed.mark(id, 300));
        assert_eq!([0, 100, 299].map(|last| passed.behind(last)), [None, None, Some(64)]);
        assert_eq!(passed.left(58..63), [59, 61]);
        passed.again(99);
        assert_eq!(passed.left(98..102), [99, 101]);
        passed.again(100);
        assert_eq!(passed.left(98..102), [99, 100, 101]);
        assert_eq!(passed.behind(227), None);
        let passed = Passed::default();
        (100..130).for_each(|id| passed.mark(id, 300));
        assert_eq!([126, 127, 131, 150].map(|last| passed.behind(last)), [None, Some(28), Some(30), None]);
    }

    #[test]
    fn blocks_in_random_order_are_no_stream_however_many_were_read() {
        let chunks = 4200;
        let (threads, blocks) = (8, chunks / 8);
        // Several readers who take turns with neighbouring blocks are one.
        let passed = Passed::default();
        for i in 0..100 * threads {
            let (round, thread) = (i / (8 * threads), i % threads);
            passed.mark((round * threads + thread) * 8 + i / threads % 8, chunks);
        }
        assert!(passed.behind(599).is_some());
        let passed = Passed::default();
        // 173 and the number of blocks have no common divisor.
        for block in (0..blocks).map(|i| i * 173 % blocks) {
            assert_eq!(passed.behind(block * 8 + 3), None, "block {block}");
            (block * 8..block * 8 + 8).for_each(|id| passed.mark(id, chunks));
        }
    }

    #[test]
    fn guesses_reach_farther_while_they_are_right() {
        let passed = Passed::default();
        passed.guessed(Some(1 << 20));
        assert_eq!(passed.reach(), 5 << 20);
        (0..20).for_each(|_| passed.guessed(None));
        assert_eq!(passed.reach(), REACH.1);
        (0..500).for_each(|_| passed.guessed(Some(1 << 20)));
        assert_eq!(passed.reach(), REACH.2);
    }
}
