//! How ranges of an object are divided into parts, and parts into requests.

use super::blocks::{BLOCK, PartKey};
use std::{collections::VecDeque, ops::Range};

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
    /// The bytes that were read in order up to there.
    run: u64,
    /// The end of what was fetched ahead.
    fetched: u64,
    /// How far ahead the next run ends; 0 if no stream is recognised.
    window: u64,
}

/// Reads that are so far before or beyond the front belong to the stream: several threads read it.
const BEHIND: u64 = 64 << 20;
const AHEAD: u64 = 16 << 20;

/// The same before it is recognised: reads at random are often no farther from each other.
const NEAR: u64 = 1 << 20;

/// So many bytes in order are a stream. Programs read less at random: the kernel divides 256 KiB
/// into two reads, which meet up to three chunks.
const IN_ORDER: u64 = 640 << 10;

impl Stream {
    /// Note a read; returns how it is to be fetched, and what to fetch ahead, up to `most` bytes.
    pub fn read(&mut self, range: &Range<u64>, most: u64, size: u64) -> (Pattern, Range<u64>) {
        // Whoever starts at the start is likely to go on.
        let is_start = range.start == 0;
        if !self.is_near(range) && !is_start {
            let (front, run) = (range.end, range.end - range.start);
            *self = Self { front, run, fetched: front, window: 0 };
        } else {
            self.run += range.end.saturating_sub(self.front.max(range.start));
            self.front = self.front.max(range.end);
        }
        let is_first = self.window == 0;
        if is_first && self.run < IN_ORDER && !is_start {
            return (Pattern::Random, 0..0);
        }
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

    /// What to fetch because `range` will be read soon: of a stream more than that, and elsewhere
    /// nothing if it is short, since a request for it alone is as good.
    pub fn will_read(&mut self, range: Range<u64>, most: u64, size: u64) -> Range<u64> {
        if self.window > 0 && self.is_near(&range) {
            return self.read(&range, most, size).1;
        }
        if range.end - range.start < 2 * BLOCK { 0..0 } else { range }
    }

    fn is_near(&self, range: &Range<u64>) -> bool {
        let (behind, ahead) = if self.window > 0 { (BEHIND, AHEAD) } else { (NEAR, NEAR) };
        let is_known = self.front > 0;
        is_known && range.start + behind >= self.front && range.start <= self.front + ahead
    }
}

/// How many streams of an object are known at once.
const STREAMS: usize = 8;

/// The streams of an object: several programs or threads may read it at different places.
#[derive(Debug, Default)]
pub struct Streams(VecDeque<Stream>);

impl Streams {
    /// As [`Stream::read`]; all streams together fetch up to `most` bytes ahead.
    pub fn read(&mut self, range: &Range<u64>, most: u64, size: u64) -> (Pattern, Range<u64>) {
        let most = self.share(most);
        self.of(range).read(range, most, size)
    }

    /// As [`Stream::will_read`].
    pub fn will_read(&mut self, range: Range<u64>, most: u64, size: u64) -> Range<u64> {
        let most = self.share(most);
        match self.0.iter_mut().find(|stream| stream.is_near(&range)) {
            Some(stream) => stream.will_read(range, most, size),
            None => Stream::default().will_read(range, most, size),
        }
    }

    /// The stream that a read belongs to, or a new one in place of the one that has not been read
    /// for longest.
    fn of(&mut self, range: &Range<u64>) -> &mut Stream {
        let known = self.0.iter().position(|stream| stream.is_near(range));
        let stream = known.and_then(|i| self.0.remove(i)).unwrap_or_default();
        self.0.truncate(STREAMS - 1);
        self.0.push_front(stream);
        &mut self.0[0]
    }

    fn share(&self, most: u64) -> u64 {
        let streams = self.0.iter().filter(|stream| stream.window > 0).count() as u64;
        most / streams.max(1)
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
        let mut stream = Stream::default();
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
    fn several_streams_do_not_disturb_each_other() {
        let mut streams = Streams::default();
        let starts = [0, 1000 * MIB, 2000 * MIB];
        let mut fetched = [0; 3];
        for at in 0..100 {
            for (i, start) in starts.iter().enumerate() {
                let range = start + at * 400_000..start + (at + 1) * 400_000;
                let (pattern, ahead) = streams.read(&range, 96 * MIB, 3000 * MIB);
                assert!(pattern == Pattern::Sequential || at < 2, "{range:?}");
                fetched[i] += u64::from(!ahead.is_empty());
                assert!(ahead.is_empty() || ahead.end <= range.end + 96 * MIB / 2, "{ahead:?}");
            }
        }
        assert!(fetched.iter().all(|requests| (3..15).contains(requests)), "{fetched:?}");
    }

    #[test]
    fn what_will_be_read_extends_a_stream_by_whole_runs() {
        let (size, most) = (200 * MIB, 64 * MIB);
        let mut stream = Stream::default();
        assert_eq!(stream.will_read(50 * MIB..51 * MIB, most, size), 0..0);
        let mut fetched = 0;
        for at in 0..40 {
            stream.read(&(at * MIB..(at + 1) * MIB), most, size);
            let ahead = stream.will_read((at + 1) * MIB..(at + 20) * MIB, most, size);
            if at > 10 && !ahead.is_empty() {
                assert!(ahead.start == fetched && ahead.end % RUN == 0, "{ahead:?}");
            }
            fetched = stream.fetched;
        }
        assert_eq!(stream.will_read(150 * MIB..155 * MIB, most, size), 150 * MIB..155 * MIB);
    }

    #[test]
    fn reads_at_random_are_no_stream() {
        let mut stream = Stream::default();
        let mut read = |range: Range<u64>| stream.read(&range, 64 * MIB, 1000 * MIB);
        for at in [500, 100, 900, 300, 700] {
            // The kernel divides a read.
            for part in 0..3 {
                let start = at * MIB + part * 170_000;
                assert_eq!(read(start..start + 170_000), (Pattern::Random, 0..0));
            }
        }
        let (pattern, ahead) = read(700 * MIB + 510_000..701 * MIB);
        assert!(pattern == Pattern::Sequential && !ahead.is_empty(), "goes on: {ahead:?}");
    }

    #[test]
    fn reads_at_random_in_a_small_object_are_hardly_ever_streams() {
        let (mut streams, size) = (Streams::default(), 700 * MIB);
        let (mut random, mut found) = (1_u64, 0);
        for _ in 0..1000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = (random >> 20) % (size - MIB) + 1;
            let (pattern, _) = streams.read(&(start..start + 344_000), 64 * MIB, size);
            found += usize::from(pattern == Pattern::Sequential);
        }
        assert!(found < 50, "{found} of 1000");
    }
}
