//! How ranges of an object are divided into parts, and parts into requests.

use super::blocks::{BLOCK, PartKey};
use std::ops::Range;

/// The most bytes of a request. Requests for more parts of a stream end at multiples of it, which
/// is also how uploads are divided.
pub const RUN: u64 = 8 << 20;

/// The most bytes of one part of a read at random.
const EXACT: u64 = 4 << 20;

/// How a range is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Its neighbours will be read as well.
    Sequential,
    /// It alone is wanted.
    Random,
}

/// Whether somebody waits for what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody does.
    Demand,
    /// It is read ahead: after all that somebody waits for.
    Ahead,
}

/// The blocks that hold `range` of an object of `size` bytes.
pub fn blocks(object: u128, range: &Range<u64>, size: u64) -> Vec<PartKey> {
    let first = range.start / BLOCK * BLOCK;
    let end = range.end.min(size);
    let starts = (first..end).step_by(BLOCK as usize);
    starts.map(|start| PartKey { object, start, len: (size - start).min(BLOCK) as u32 }).collect()
}

/// Exactly `range`, in few parts.
pub fn exact(object: u128, range: &Range<u64>) -> Vec<PartKey> {
    let starts = (range.start..range.end).step_by(EXACT as usize);
    starts
        .map(|start| PartKey { object, start, len: (range.end - start).min(EXACT) as u32 })
        .collect()
}

/// The bytes of `range` in a part.
pub fn within(part: &PartKey, range: &Range<u64>) -> Range<usize> {
    let start = range.start.max(part.start) - part.start;
    let end = range.end.min(part.end()) - part.start;
    start as usize..end as usize
}

/// Group adjacent parts into requests.
pub fn runs(parts: Vec<PartKey>) -> Vec<Vec<PartKey>> {
    let mut runs: Vec<Vec<PartKey>> = Vec::new();
    for part in parts {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| belongs(last, &part)) => run.push(part),
            _ => runs.push(vec![part]),
        }
    }
    runs
}

fn belongs(last: &PartKey, next: &PartKey) -> bool {
    last.end() == next.start && !next.start.is_multiple_of(RUN)
}

/// Recognises a stream of reads of an object, and tells what to fetch ahead of it.
#[derive(Debug, Default)]
pub struct Stream {
    /// The end of what was read.
    front: u64,
    /// The end of what was fetched ahead.
    fetched: u64,
    /// How far ahead the next run ends; 0 if no stream is recognised.
    window: u64,
}

/// Reads that are so far before or beyond the front belong to the stream: several threads read it.
const BEHIND: u64 = 64 << 20;
const AHEAD: u64 = 16 << 20;

impl Stream {
    /// Note a read; returns how it is to be fetched, and what to fetch ahead, up to `most` bytes.
    pub fn read(&mut self, range: &Range<u64>, most: u64, size: u64) -> (Pattern, Range<u64>) {
        let near = range.start + BEHIND >= self.front && range.start <= self.front + AHEAD;
        if !near {
            *self = Self { front: range.end, fetched: range.end, window: 0 };
            return (Pattern::Random, 0..0);
        }
        let is_first = self.window == 0;
        self.front = self.front.max(range.end);
        if is_first {
            self.window = BLOCK;
            self.fetched = range.start / BLOCK * BLOCK;
        }
        // Half of the window is left when the next run is asked for.
        if self.front + self.window / 2 <= self.fetched && !is_first {
            return (Pattern::Sequential, 0..0);
        }
        let from = self.fetched.max(range.start / BLOCK * BLOCK);
        let step = self.window.min(RUN);
        self.fetched = (self.front + self.window).next_multiple_of(step).min(size).max(from);
        self.window = (self.window * 2).min(most).max(BLOCK);
        (Pattern::Sequential, from..self.fetched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn parts_cover_a_range_up_to_the_end_of_the_object() {
        let range = MIB - 1..3 * MIB + 5;
        let parts = blocks(1, &range, 3 * MIB + 7);
        let lengths: Vec<u32> = parts.iter().map(|part| part.len).collect();
        assert_eq!(lengths, [1 << 20, 1 << 20, 1 << 20, 7]);
        let covered: usize = parts.iter().map(|part| within(part, &range).len()).sum();
        assert_eq!(covered as u64, range.end - range.start);
        let exact = exact(1, &(5..10 * MIB));
        assert_eq!((exact.len(), exact[0].start, exact[2].end()), (3, 5, 10 * MIB));
    }

    #[test]
    fn runs_are_adjacent_and_end_at_multiples_of_8_mib() {
        let of = |range: Range<u64>| blocks(1, &range, 100 * MIB);
        let parts = [of(5 * MIB..20 * MIB), of(30 * MIB..31 * MIB)].concat();
        let lengths: Vec<usize> = runs(parts).iter().map(Vec::len).collect();
        assert_eq!(lengths, [3, 8, 4, 1]);
    }

    #[test]
    fn a_stream_starts_small_doubles_and_fetches_whole_runs() {
        let (size, most, read) = (200 * MIB, 64 * MIB, 170 << 10);
        let mut stream = Stream { front: 0, ..Stream::default() };
        let mut fetched = Vec::new();
        let mut at = 0;
        while at < size {
            let range = at..(at + read).min(size);
            let (pattern, ahead) = stream.read(&range, most, size);
            assert_eq!(pattern, Pattern::Sequential);
            assert!(ahead.is_empty() || ahead.end - range.end <= most + RUN);
            fetched.extend((!ahead.is_empty()).then_some(ahead));
            at = range.end;
        }
        assert!(fetched[0].end <= 2 * MIB, "{fetched:?}");
        assert!(fetched.windows(2).all(|two| two[0].end == two[1].start), "{fetched:?}");
        assert_eq!(fetched.last().expect("some").end, size);
        let whole = fetched.iter().filter(|range| range.end % RUN == 0).count();
        assert!(fetched.len() - whole <= 5, "{fetched:?}");
    }

    #[test]
    fn reads_at_random_are_no_stream() {
        let mut stream = Stream::default();
        stream.read(&(500 * MIB..501 * MIB), 64 * MIB, 1000 * MIB);
        for at in [100, 900, 300, 700] {
            let range = at * MIB..at * MIB + 170_000;
            assert_eq!(stream.read(&range, 64 * MIB, 1000 * MIB), (Pattern::Random, 0..0));
        }
    }
}
