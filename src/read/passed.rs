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

/// How many chunks are remembered: those of 16 GiB, if they are of the usual size. Where that is too much, enough for what
/// is [of late](OF_LATE).
const REMEMBERED: (usize, usize) = (1 << 16, 1 << 10);

pub(super) struct Passed {
    whole: Mutex<Whole>,
    reach: AtomicU64,
}

/// Chunks that were read whole.
struct Whole {
    /// Chunks of the archive.
    chunks: usize,
    /// How many so far.
    count: u32,
    /// For each chunk, its number and `count` when it was read, or 0; at its number modulo this length, so that one takes
    /// the place of another if they are far apart. Made when the first is read.
    when: Vec<(u32, u32)>,
    /// The length of that.
    most: usize,
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
    /// When a chunk was read, or 0.
    fn when(&self, id: usize) -> u32 {
        if self.when.is_empty() {
            return 0;
        }
        let (of, when) = self.when[id % self.most];
        if of as usize == id { when } else { 0 }
    }

    fn has(&self, id: usize) -> bool {
        self.when(id) > 0
    }

    fn has_of_late(&self, id: usize) -> bool {
        let late = u32::try_from(self.chunks / 8).unwrap_or(u32::MAX).clamp(OF_LATE.0, OF_LATE.1);
        let when = self.when(id);
        when > 0 && self.count.wrapping_sub(when) < late
    }

    fn forget(&mut self, ids: Range<usize>) {
        for id in ids {
            let (of, when) = &mut self.when[id % self.most];
            if *of as usize == id {
                *when = 0;
            }
        }
    }
}

impl Passed {
    /// Of an archive of so many chunks; with less memory if `sparing`.
    pub(super) fn new(chunks: usize, sparing: bool) -> Self {
        let most = chunks.min(if sparing { REMEMBERED.1 } else { REMEMBERED.0 });
        let whole = Mutex::new(Whole { chunks, count: 0, when: Vec::new(), most });
        Self { whole, reach: AtomicU64::new(REACH.0) }
    }

    /// Chunk `id` was read whole.
    pub(super) fn mark(&self, id: usize) {
        let mut whole = self.lock();
        if whole.when.is_empty() {
            let most = whole.most;
            whole.when.resize(most, (0, 0));
        }
        // After 2^32 chunks the oldest look new: no more than a bad guess.
        whole.count = whole.count.checked_add(1).unwrap_or(1);
        let (place, count) = (id % whole.most, whole.count);
        whole.when[place] = (id as u32, count);
    }

    /// Chunk `id` is read. If it was read whole before, what follows it may be read again, too.
    pub(super) fn again(&self, id: usize) {
        let mut whole = self.lock();
        if whole.has(id) {
            let end = whole.chunks.min(id + FORGET.min(whole.most));
            whole.forget(id..end);
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
        let passed = Passed::new(300, false);
        assert_eq!(passed.behind(5), None);
        (0..300).step_by(2).for_each(|id| passed.mark(id));
        assert_eq!([0, 100, 299].map(|last| passed.behind(last)), [None, None, Some(64)]);
        assert_eq!(passed.left(58..63), [59, 61]);
        passed.again(99);
        assert_eq!(passed.left(98..102), [99, 101]);
        passed.again(100);
        assert_eq!(passed.left(98..102), [99, 100, 101]);
        assert_eq!(passed.behind(227), None);
        let passed = Passed::new(300, false);
        (100..130).for_each(|id| passed.mark(id));
        assert_eq!(
            [126, 127, 131, 150].map(|last| passed.behind(last)),
            [None, Some(28), Some(30), None]
        );
    }

    #[test]
    fn blocks_in_random_order_are_no_stream_however_many_were_read() {
        let chunks = 4200;
        let (threads, blocks) = (8, chunks / 8);
        // Several readers who take turns with neighbouring blocks are one.
        let passed = Passed::new(chunks, false);
        for i in 0..100 * threads {
            let (round, thread) = (i / (8 * threads), i % threads);
            passed.mark((round * threads + thread) * 8 + i / threads % 8);
        }
        assert!(passed.behind(599).is_some());
        let passed = Passed::new(chunks, false);
        // 173 and the number of blocks have no common divisor.
        for block in (0..blocks).map(|i| i * 173 % blocks) {
            assert_eq!(passed.behind(block * 8 + 3), None, "block {block}");
            (block * 8..block * 8 + 8).for_each(|id| passed.mark(id));
        }
    }

    #[test]
    fn guesses_reach_farther_while_they_are_right() {
        let passed = Passed::new(300, false);
        passed.guessed(Some(1 << 20));
        assert_eq!(passed.reach(), 5 << 20);
        (0..20).for_each(|_| passed.guessed(None));
        assert_eq!(passed.reach(), REACH.1);
        (0..500).for_each(|_| passed.guessed(Some(1 << 20)));
        assert_eq!(passed.reach(), REACH.2);
    }

    #[test]
    fn chunks_that_are_far_apart_take_each_others_place() {
        let passed = Passed::new(3 * REMEMBERED.0, false);
        (0..2 * REMEMBERED.0).for_each(|id| passed.mark(id));
        let memory = |passed: &Passed| passed.lock().when.len();
        assert_eq!(memory(&passed), REMEMBERED.0);
        assert_eq!(passed.behind(2 * REMEMBERED.0 - 1), Some(BEHIND));
        let all = |range: Range<usize>| range.clone().eq(passed.left(range));
        assert!(all(0..REMEMBERED.0) && passed.left(REMEMBERED.0..2 * REMEMBERED.0).is_empty());
        // What is forgotten of one is not forgotten of another.
        passed.again(5);
        assert!(passed.left(REMEMBERED.0..REMEMBERED.0 + FORGET).is_empty());
        let passed = Passed::new(3 * REMEMBERED.0, true);
        passed.mark(2 * REMEMBERED.0 + 1);
        assert_eq!(memory(&passed), REMEMBERED.1);
        assert_eq!(passed.left(2 * REMEMBERED.0..2 * REMEMBERED.0 + 2), [2 * REMEMBERED.0]);
    }
}
