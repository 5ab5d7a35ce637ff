//! Which chunks of an archive were read whole, and from that, whether a reader goes through it in order.
//!
//! Nothing is kept of single readers: many chunks behind a request that were read whole are a stream, however many threads
//! read it and in whatever order their requests come. Random readers leave few whole chunks behind.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// How far ahead to look before anything was learned, and at least and at most, in bytes.
const REACH: (u64, u64, u64) = (4 << 20, 512 << 10, 64 << 20);

pub(super) struct Passed {
    /// A bit for each chunk, made when the first is read.
    bits: Mutex<Vec<u64>>,
    reach: AtomicU64,
}

impl Default for Passed {
    fn default() -> Self {
        Self { bits: Mutex::default(), reach: AtomicU64::new(REACH.0) }
    }
}

/// How many chunks behind a reader are looked at: enough for sixteen threads that take turns with blocks of 2 MiB.
const BEHIND: usize = 128;
/// How many of them must nearly all have been read whole by a single reader.
const FEW: usize = 32;
/// Chunks whose bits are cleared when one of them is read again.
const FORGET: usize = 128;

impl Passed {
    /// Chunk `id` of `chunks` was read whole.
    pub(super) fn mark(&self, id: usize, chunks: usize) {
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        if bits.is_empty() {
            bits.resize(chunks.div_ceil(64), 0);
        }
        bits[id / 64] |= 1 << (id % 64);
    }

    /// Chunk `id` is read again: what follows it may be, too.
    pub(super) fn again(&self, id: usize) {
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        let end = (id + FORGET).min(64 * bits.len());
        (id..end).for_each(|i| bits[i / 64] &= !(1 << (i % 64)));
    }

    /// How many of the [`BEHIND`] chunks up to `last` were read whole, if that is the trace of readers who go on: nearly
    /// all of the last few, or half of all, where several readers take turns. Less may be left by a reader of random
    /// blocks.
    pub(super) fn behind(&self, last: usize) -> Option<usize> {
        let bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        let is_set = |i: &usize| bits.get(i / 64).is_some_and(|word| word >> (i % 64) & 1 == 1);
        let among = |n: usize| ((last + 1).saturating_sub(n)..=last).filter(is_set).count();
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
        let bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        range.filter(|i| bits.get(i / 64).is_none_or(|word| word >> (i % 64) & 1 == 0)).collect()
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
        assert_eq!([0, 100, 127, 299].map(|last| passed.behind(last)), [None, None, Some(64), Some(64)]);
        assert_eq!(passed.left(58..63), [59, 61]);
        passed.again(100);
        assert_eq!(passed.left(98..102), [99, 100, 101]);
        assert_eq!(passed.behind(227), None);
        let passed = Passed::default();
        (100..130).for_each(|id| passed.mark(id, 300));
        assert_eq!([126, 127, 131, 150].map(|last| passed.behind(last)), [None, Some(28), Some(30), None]);
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
