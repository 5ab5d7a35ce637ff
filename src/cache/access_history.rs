//! Which chunks of a file were read completely and when, to detect sequential reads.
//!
//! The history does not track single readers. Many recently read chunks before a request are the
//! trace of a sequential read, however many threads take part and in whatever order their requests
//! arrive. Readers of random chunks leave few such chunks before a request, and readers of random
//! blocks leave them scattered.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The readahead window in bytes: initial, smallest and largest.
const WINDOW: (u64, u64, u64) = (4 << 20, 512 << 10, 64 << 20);

/// Most chunks to remember: those of 16 GiB at the usual chunk size. Where memory is scarce, the
/// second value suffices for [`RECENT`].
const MAX_REMEMBERED: (usize, usize) = (1 << 16, 1 << 10);

/// How many chunks before a request to examine: enough for sixteen threads that take turns with
/// blocks of 2 MiB.
const EXAMINED: usize = 128;
/// A single sequential reader has read nearly all of the last so many chunks.
const NEAREST: usize = 32;
/// A chunk was read recently if it is among the last eighth of the file's chunks that were read,
/// within these bounds.
const RECENT: (u32, u32) = (128, 512);
/// How many chunks to forget when the first of them is read again.
const FORGOTTEN: usize = 128;

pub(super) struct AccessHistory {
    reads: Mutex<CompleteReads>,
    window: AtomicU64,
}

/// The chunks that were read completely.
struct CompleteReads {
    /// Chunks of the file.
    chunks: usize,
    /// How many were read so far.
    count: u32,
    /// For each chunk, its number and the `count` when it was read, or 0. The place of a chunk is
    /// its number modulo `capacity`, so distant chunks displace each other. Allocated on first use.
    read_at: Vec<(u32, u32)>,
    capacity: usize,
}

impl CompleteReads {
    /// The `count` when a chunk was read, or 0.
    fn read_at(&self, id: usize) -> u32 {
        if self.read_at.is_empty() {
            return 0;
        }
        let (chunk, count) = self.read_at[id % self.capacity];
        if chunk as usize == id { count } else { 0 }
    }

    fn contains(&self, id: usize) -> bool {
        self.read_at(id) > 0
    }

    fn contains_recent(&self, id: usize) -> bool {
        let recent = u32::try_from(self.chunks / 8).unwrap_or(u32::MAX).clamp(RECENT.0, RECENT.1);
        let count = self.read_at(id);
        count > 0 && self.count.wrapping_sub(count) < recent
    }

    fn forget(&mut self, ids: Range<usize>) {
        for id in ids {
            let (chunk, count) = &mut self.read_at[id % self.capacity];
            if *chunk as usize == id {
                *count = 0;
            }
        }
    }
}

impl AccessHistory {
    /// The history of a file with so many chunks.
    pub(super) fn new(chunks: usize, memory_is_scarce: bool) -> Self {
        let most = if memory_is_scarce { MAX_REMEMBERED.1 } else { MAX_REMEMBERED.0 };
        let capacity = chunks.min(most);
        let reads = Mutex::new(CompleteReads { chunks, count: 0, read_at: Vec::new(), capacity });
        Self { reads, window: AtomicU64::new(WINDOW.0) }
    }

    /// Record that chunk `id` was read completely.
    pub(super) fn record(&self, id: usize) {
        let mut reads = self.lock();
        if reads.read_at.is_empty() {
            let capacity = reads.capacity;
            reads.read_at.resize(capacity, (0, 0));
        }
        // After 2^32 chunks the oldest look recent, which costs no more than a wrong guess.
        reads.count = reads.count.checked_add(1).unwrap_or(1);
        let (place, count) = (id % reads.capacity, reads.count);
        reads.read_at[place] = (id as u32, count);
    }

    /// Record that chunk `id` is decoded for a reader. If it was read completely before, the chunks
    /// after it may be read again, too.
    pub(super) fn record_miss(&self, id: usize) {
        let mut reads = self.lock();
        if reads.contains(id) {
            let end = reads.chunks.min(id + FORGOTTEN.min(reads.capacity));
            reads.forget(id..end);
        }
    }

    /// If chunk `last` belongs to a sequential read, how many of the [`EXAMINED`] chunks up to it
    /// were read recently.
    ///
    /// A sequential read leaves nearly all of the last few chunks, or half of all of them if
    /// several readers take turns. Readers of random blocks may leave fewer.
    pub(super) fn sequential_run(&self, last: usize) -> Option<usize> {
        let reads = self.lock();
        let recent = |n: usize| {
            let before = (last + 1).saturating_sub(n)..=last;
            before.filter(|&id| reads.contains_recent(id)).count()
        };
        let run = recent(EXAMINED);
        let is_sequential = run >= EXAMINED / 2 || recent(NEAREST) >= NEAREST - NEAREST / 8;
        is_sequential.then_some(run)
    }

    /// How many bytes to decode ahead of a reader. Each chunk that is used widens the window, and
    /// each chunk that is evicted unused halves it.
    pub(super) fn window(&self) -> u64 {
        self.window.load(Relaxed)
    }

    /// A chunk of so many bytes that was decoded ahead is used.
    pub(super) fn readahead_used(&self, bytes: u64) {
        self.set_window(self.window() + bytes);
    }

    /// A chunk that was decoded ahead is evicted unused.
    pub(super) fn readahead_wasted(&self) {
        self.set_window(self.window() / 2);
    }

    fn set_window(&self, bytes: u64) {
        // Concurrent updates may get lost, which does no harm.
        self.window.store(bytes.clamp(WINDOW.1, WINDOW.2), Relaxed);
    }

    /// The chunks of `range` that were not read completely.
    pub(super) fn unread(&self, range: Range<usize>) -> Vec<usize> {
        let reads = self.lock();
        range.filter(|&id| !reads.contains(id)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, CompleteReads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_counted_and_forgotten_when_it_is_read_again() {
        let history = AccessHistory::new(300, false);
        assert_eq!(history.sequential_run(5), None);
        (0..300).step_by(2).for_each(|id| history.record(id));
        assert_eq!([0, 100, 299].map(|last| history.sequential_run(last)), [None, None, Some(64)]);
        assert_eq!(history.unread(58..63), [59, 61]);
        history.record_miss(99);
        assert_eq!(history.unread(98..102), [99, 101]);
        history.record_miss(100);
        assert_eq!(history.unread(98..102), [99, 100, 101]);
        assert_eq!(history.sequential_run(227), None);
        let history = AccessHistory::new(300, false);
        (100..130).for_each(|id| history.record(id));
        assert_eq!(
            [126, 127, 131, 150].map(|last| history.sequential_run(last)),
            [None, Some(28), Some(30), None]
        );
    }

    #[test]
    fn random_blocks_are_never_a_sequential_read() {
        let chunks = 4200;
        let (threads, blocks) = (8, chunks / 8);
        // Several readers that take turns with adjacent blocks are one sequential read.
        let history = AccessHistory::new(chunks, false);
        for i in 0..100 * threads {
            let (round, thread) = (i / (8 * threads), i % threads);
            history.record((round * threads + thread) * 8 + i / threads % 8);
        }
        assert!(history.sequential_run(599).is_some());
        let history = AccessHistory::new(chunks, false);
        // 173 and the number of blocks have no common divisor.
        for block in (0..blocks).map(|i| i * 173 % blocks) {
            assert_eq!(history.sequential_run(block * 8 + 3), None, "block {block}");
            (block * 8..block * 8 + 8).for_each(|id| history.record(id));
        }
    }

    #[test]
    fn the_window_grows_while_guesses_are_right() {
        let history = AccessHistory::new(300, false);
        history.readahead_used(1 << 20);
        assert_eq!(history.window(), 5 << 20);
        (0..20).for_each(|_| history.readahead_wasted());
        assert_eq!(history.window(), WINDOW.1);
        (0..500).for_each(|_| history.readahead_used(1 << 20));
        assert_eq!(history.window(), WINDOW.2);
    }

    #[test]
    fn distant_chunks_displace_each_other() {
        let history = AccessHistory::new(3 * MAX_REMEMBERED.0, false);
        (0..2 * MAX_REMEMBERED.0).for_each(|id| history.record(id));
        let memory = |history: &AccessHistory| history.lock().read_at.len();
        assert_eq!(memory(&history), MAX_REMEMBERED.0);
        assert_eq!(history.sequential_run(2 * MAX_REMEMBERED.0 - 1), Some(EXAMINED));
        let all = |range: Range<usize>| range.clone().eq(history.unread(range));
        assert!(
            all(0..MAX_REMEMBERED.0)
                && history.unread(MAX_REMEMBERED.0..2 * MAX_REMEMBERED.0).is_empty()
        );
        // Forgetting a chunk does not forget the one that displaced it.
        history.record_miss(5);
        assert!(history.unread(MAX_REMEMBERED.0..MAX_REMEMBERED.0 + FORGOTTEN).is_empty());
        let history = AccessHistory::new(3 * MAX_REMEMBERED.0, true);
        history.record(2 * MAX_REMEMBERED.0 + 1);
        assert_eq!(memory(&history), MAX_REMEMBERED.1);
        assert_eq!(
            history.unread(2 * MAX_REMEMBERED.0..2 * MAX_REMEMBERED.0 + 2),
            [2 * MAX_REMEMBERED.0]
        );
    }
}
