//! The encoder: one chunk and its model to stored bytes, whichever coding is smallest.

use super::{
    Coding, EntropyModel, LANES, PROB_BITS, STATE_LOW,
    alias::{BUCKETS, Buckets},
    decode::{CARRIED, Mode},
    model::{MAX_CHOICES, TOTAL, Table},
    planes::{Plane, pack, packed_len},
    simd,
};

/// zstd level for chunks that are tried with it: matches matter there, speed hardly.
const ZSTD_LEVEL: i32 = 9;

/// A model prepared for coding.
pub struct Encoder<'a> {
    model: &'a EntropyModel,
    /// By value: its symbol.
    symbols: Box<[u8; 1 << 16]>,
    tables: Vec<TableEncoder>,
    /// By class: what symbols cost.
    costs: Vec<Costs>,
    kernel: simd::EncodeKernel,
}

/// By choice and symbol: what it costs in sixteenths of a bit.
pub(super) type Costs = [[u8; BUCKETS]; MAX_CHOICES];

/// A table prepared for coding.
pub(super) struct TableEncoder {
    steps: [Step; BUCKETS],
    /// [`Buckets::numbers`], and one more.
    pub(super) slots: Box<[u16; TOTAL as usize + 1]>,
    /// By symbol: its frequency, and in the upper half where its slots start.
    pub(super) entries: [u32; BUCKETS],
    /// By symbol: a little less than 1 / frequency, as the bits of a float.
    pub(super) reciprocals: [u32; BUCKETS],
    /// The most frequent symbol.
    likely: u8,
}

/// What coding one symbol does to a state.
#[derive(Clone, Copy, Default)]
struct Step {
    /// ⌈2^64 / frequency⌉: division by multiplication, exact for all 32-bit states.
    reciprocal: u64,
    frequency: u32,
    /// Where the symbol's slots start among all symbols' slots.
    start: u32,
    /// Added to the quotient: 1 for a frequency of 1, whose reciprocal would be 2^64 and comes out one too small.
    extra: u32,
}

impl Step {
    fn new(start: u32, frequency: u32) -> Self {
        match frequency {
            0 => Self::default(),
            1 => Self { reciprocal: u64::MAX, frequency, start, extra: 1 },
            f => Self { reciprocal: u64::MAX / u64::from(f) + 1, frequency, start, extra: 0 },
        }
    }
}

impl TableEncoder {
    fn new(table: &Table) -> Self {
        let freqs = table.freqs();
        let mut steps = [Step::default(); BUCKETS];
        let mut start = 0;
        for (step, &freq) in steps.iter_mut().zip(freqs) {
            *step = Step::new(start, freq.into());
            start += u32::from(freq);
        }
        let likely = (0..BUCKETS).max_by_key(|&s| freqs[s]).unwrap_or(0) as u8;
        // Three roundings of 2^-24 each, of the state, of the reciprocal and of their product, must not add up to more.
        let short = 1.0 - f32::EPSILON * 2.0;
        Self {
            slots: Buckets::new(freqs).numbers(freqs),
            entries: steps.map(|s| s.frequency | s.start << 16),
            reciprocals: steps.map(|s| (short / s.frequency.max(1) as f32).to_bits()),
            steps,
            likely,
        }
    }

    /// Code a symbol; returns the word to write if the second value is 1.
    #[inline(always)]
    fn encode(&self, state: &mut u32, symbol: u8) -> (u16, usize) {
        let step = &self.steps[usize::from(symbol)];
        let x = *state;
        let full = u64::from(x) >= u64::from(step.frequency) << (32 - PROB_BITS);
        let word = x as u16;
        let x = if full { x >> 16 } else { x };
        let quotient = ((u128::from(x) * u128::from(step.reciprocal)) >> 64) as u32 + step.extra;
        let i = step.start + (x - quotient * step.frequency);
        // The mask changes nothing but spares a check.
        *state = quotient << PROB_BITS | u32::from(self.slots[(i & (TOTAL - 1)) as usize]);
        (word, full.into())
    }
}

/// Words that leave the encoder in the reverse of the order in which the decoder wants them, so that they are written
/// from the end down.
pub(super) struct Words {
    pub(super) buffer: Vec<u16>,
    /// How many are free.
    pub(super) free: usize,
}

/// Code `symbols`, whole rounds, from the last to the first, with the table of each round.
pub(super) fn scalar_rounds(
    tables: &[&TableEncoder],
    symbols: &[u8],
    states: &mut [u32; LANES],
    words: &mut Words,
) {
    for (symbols, table) in symbols.as_chunks().0.iter().zip(tables).rev() {
        round(|_| table, symbols, states, words);
    }
}

/// Code a symbol for each lane, the last one first.
#[inline(always)]
fn round<'t>(
    table: impl Fn(usize) -> &'t TableEncoder,
    symbols: &[u8; LANES],
    states: &mut [u32; LANES],
    words: &mut Words,
) {
    // Each symbol gives at most one word: as many rounds are left as there is room for.
    let Some(room) = words.buffer[..words.free].last_chunk_mut::<LANES>() else { return };
    let mut put = 0;
    for (lane, (state, &symbol)) in states.iter_mut().zip(symbols).enumerate().rev() {
        let (word, count) = table(lane).encode(state, symbol);
        // No branch on what is as good as random: a word that does not count is written over.
        room[(LANES - 1 - put) & (LANES - 1)] = word;
        put += count;
    }
    words.free -= put;
}

impl<'a> Encoder<'a> {
    /// Prepare `model`.
    pub fn new(model: &'a EntropyModel) -> Self {
        let mut symbols = Box::new([model.escape(); 1 << 16]);
        model.values().iter().enumerate().for_each(|(s, &v)| symbols[usize::from(v)] = s as u8);
        let classes = model.classes();
        let mut costs: Vec<Costs> = vec![[[u8::MAX; BUCKETS]; MAX_CHOICES]; classes];
        for (i, table) in model.tables().iter().enumerate() {
            let cost =
                |f: u16| (16.0 * (PROB_BITS as f32 - f32::from(f.max(1)).log2())).round() as u8;
            costs[i % classes][i / classes] = table.freqs().map(cost);
        }
        let tables = model.tables().iter().map(TableEncoder::new).collect();
        Self { model, symbols, tables, costs, kernel: simd::encode_kernel() }
    }

    /// The chunk as [`Coding::Planes`], or `None` where it is not a whole number of elements.
    fn planes(&self, chunk: &[u8]) -> Option<Vec<u8>> {
        let layout = self.model.layout();
        let width = usize::from(layout.width());
        if !chunk.len().is_multiple_of(width) {
            return None;
        }
        let count = chunk.len() / width;
        let mut tops = Vec::with_capacity(count);
        layout.tops(chunk, &mut tops);
        let constant = tops.iter().all(|&t| t == tops[0]);
        let mut head =
            if constant { vec![Mode::Constant as u8, 0] } else { vec![Mode::Stored as u8, 0] };
        head.extend_from_slice(&if constant { tops[0].to_le_bytes() } else { [0, 0] });
        let mut packed = Vec::with_capacity(chunk.len());
        let mut values = Vec::with_capacity(count);
        // Where the end of the last plane that ends in the states is.
        let mut carrier = None;
        for &plane in layout.planes() {
            layout.values(plane, chunk, &mut values);
            let start = packed.len();
            let (mode, value) = self.plane(plane, &values, &mut packed);
            head.extend_from_slice(&[mode as u8, value]);
            if mode == Mode::Stored && packed.len() - start >= CARRIED {
                carrier = Some(packed.len());
            }
        }
        if !constant {
            let carried = carrier.map(|end| packed.drain(end - CARRIED..end).collect::<Vec<u8>>());
            self.symbols(&tops, carried.as_deref(), &mut head);
        }
        head.append(&mut packed);
        Some(head)
    }

    /// Append a plane in the smallest way.
    fn plane(&self, plane: Plane, values: &[u8], out: &mut Vec<u8>) -> (Mode, u8) {
        if values.iter().all(|&v| v == values[0]) {
            return (Mode::Constant, values[0]);
        }
        let block = self.model.block();
        let present: Vec<bool> =
            values.chunks(block).map(|b| b.iter().fold(0, |any, v| any | v) != 0).collect();
        let absent = present.iter().filter(|p| !**p).count();
        if absent * packed_len(plane.bits, block) <= present.len().div_ceil(8) {
            pack(values, plane.bits, out);
            return (Mode::Stored, 0);
        }
        let bits = |eight: &[bool]| eight.iter().rev().fold(0, |byte, &p| byte << 1 | u8::from(p));
        out.extend(present.chunks(8).map(bits));
        for (block, _) in values.chunks(block).zip(&present).filter(|(_, p)| **p) {
            pack(block, plane.bits, out);
        }
        (Mode::Sparse, 0)
    }

    /// Append the coded symbols of elements whose top bits are `tops`; the states start with what is `carried`.
    fn symbols(&self, tops: &[u16], carried: Option<&[u8]>, out: &mut Vec<u8>) {
        let rounds = tops.len().div_ceil(LANES);
        let mut symbols = Vec::with_capacity(rounds * LANES);
        symbols.extend(tops.iter().map(|&t| self.symbols[usize::from(t)]));
        let escape = self.model.escape();
        let mut escapes = Vec::new();
        for (symbols, tops) in symbols.chunks(LANES).zip(tops.chunks(LANES)) {
            if symbols.iter().fold(false, |any, &s| any | (s == escape)) {
                let escaped = symbols.iter().zip(tops).filter(|(s, _)| **s == escape);
                escapes.extend(escaped.flat_map(|(_, t)| t.to_le_bytes()));
            }
        }
        let choices = self.choices(&symbols);
        let per_block = self.model.block() / LANES;
        let classes = self.model.classes();
        let first_table = |round: usize| usize::from(choices[round / per_block]) * classes;
        let columns = self.model.columns();
        while symbols.len() < rounds * LANES {
            // Elements that are not there cost little.
            let class =
                columns.get(symbols.len() % columns.len().max(1)).map_or(0, |&c| usize::from(c));
            symbols.push(self.tables[first_table(rounds - 1) + class].likely);
        }
        let mut states = [STATE_LOW; LANES];
        if let Some(carried) = carried {
            let halves = carried.as_chunks().0.iter();
            states
                .iter_mut()
                .zip(halves)
                .for_each(|(s, &c)| *s |= u32::from(u16::from_le_bytes(c)));
        }
        let mut words = Words { buffer: vec![0; symbols.len()], free: symbols.len() };
        if classes == 1 {
            let tables: Vec<&TableEncoder> =
                (0..rounds).map(|r| &self.tables[first_table(r)]).collect();
            (self.kernel.rounds)(&tables, &symbols, &mut states, &mut words);
        } else {
            for (i, symbols) in symbols.as_chunks().0.iter().enumerate().rev() {
                let tables = &self.tables[first_table(i)..];
                let class = self.model.classes_from(i * LANES % columns.len());
                round(|lane| &tables[usize::from(class[lane])], symbols, &mut states, &mut words);
            }
        }
        let words = &words.buffer[words.free..];
        out.extend_from_slice(&(words.len() as u32).to_le_bytes());
        out.extend_from_slice(&(escapes.len() as u32 / 2).to_le_bytes());
        if self.model.choices() > 1 {
            out.extend(
                choices.chunks(4).map(|four| four.iter().rev().fold(0, |byte, c| byte << 2 | c)),
            );
        }
        states.iter().for_each(|s| out.extend_from_slice(&s.to_le_bytes()));
        out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        out.append(&mut escapes);
    }

    /// The best choice for each block.
    fn choices(&self, symbols: &[u8]) -> Vec<u8> {
        let block = self.model.block();
        if self.model.choices() == 1 {
            return vec![0; symbols.len().div_ceil(block)];
        }
        let columns = self.model.columns();
        let best = |costs: [u32; MAX_CHOICES]| {
            (0..self.model.choices()).min_by_key(|&choice| costs[choice]).unwrap_or(0) as u8
        };
        if columns.is_empty() {
            return symbols
                .chunks(block)
                .map(|b| best((self.kernel.costs)(&self.costs[0], b)))
                .collect();
        }
        let mut column = 0;
        let blocks = symbols.chunks(block).map(|symbols| {
            let mut sums = [0; MAX_CHOICES];
            for &s in symbols {
                let costs = &self.costs[usize::from(columns[column])];
                sums.iter_mut()
                    .zip(costs)
                    .for_each(|(sum, c)| *sum += u32::from(c[usize::from(s & 63)]));
                column = if column + 1 == columns.len() { 0 } else { column + 1 };
            }
            best(sums)
        });
        blocks.collect()
    }
}

/// What `symbols` cost with each choice, in sixteenths of a bit.
pub(super) fn scalar_costs(costs: &Costs, symbols: &[u8]) -> [u32; MAX_CHOICES] {
    // Counted first: one addition a symbol instead of four.
    let mut counts = [0u32; BUCKETS];
    symbols.iter().for_each(|&s| counts[usize::from(s & 63)] += 1);
    costs.map(|c| c.iter().zip(counts).map(|(&c, n)| u32::from(c) * n).sum())
}

/// Code a chunk in the smallest way: by its model's planes, with zstd if `try_zstd`, or as it is.
pub fn encode(chunk: &[u8], encoder: Option<&Encoder<'_>>, try_zstd: bool) -> (Coding, Vec<u8>) {
    let mut best = (Coding::Raw, None);
    let mut size = chunk.len();
    if let Some(planes) = encoder.and_then(|e| e.planes(chunk)).filter(|p| p.len() < size) {
        size = planes.len();
        best = (Coding::Planes, Some(planes));
    }
    if try_zstd
        && let Ok(z) = zstd::bulk::compress(chunk, ZSTD_LEVEL)
        && z.len() < size
    {
        best = (Coding::Zstd, Some(z));
    }
    (best.0, best.1.unwrap_or_else(|| chunk.to_vec()))
}

/// Whether zstd does about as well on a chunk as the model, which takes `planes` bytes, or better: the question to
/// ask of a few chunks of a tensor before all are tried.
pub(super) fn zstd_competes(chunk: &[u8], planes: usize) -> bool {
    let most = (planes + planes / 20).min(chunk.len() - chunk.len() / 50);
    zstd::bulk::compress(chunk, 1).is_ok_and(|z| z.len() < most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables of all shapes, and symbols that follow them, and symbols that do not.
    #[test]
    fn the_fast_inner_loop_gives_the_same_words_and_states() {
        let simd::EncodeKernel { rounds: fast, costs } = simd::encode_kernel();
        let mut seed = 7u64;
        let mut random = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            seed >> 33
        };
        for shape in 0..60u64 {
            let live = 2 + (random() % 63) as usize;
            let counts: Vec<u64> = (0..live as u64)
                .map(|s| match shape % 4 {
                    0 => 1,
                    1 => 1 << (s % 30),
                    2 => {
                        if s == shape % live as u64 {
                            1 << 40
                        } else {
                            1
                        }
                    }
                    _ => random() % 1000,
                })
                .collect();
            let table = TableEncoder::new(&Table::from_counts(&counts));
            let symbols: Vec<u8> = (0..LANES * 40)
                .map(|i| if i % 3 == 0 { (random() as usize % live) as u8 } else { table.likely })
                .collect();
            let mut results = [scalar_rounds as simd::EncodeRounds, fast].map(|rounds| {
                let mut states: [u32; LANES] = std::array::from_fn(|i| STATE_LOW + 511 * i as u32);
                let mut words = Words { buffer: vec![0; symbols.len()], free: symbols.len() };
                rounds(&[&table; 40], &symbols, &mut states, &mut words);
                (words.buffer[words.free..].to_vec(), states)
            });
            let (a, b) = results.split_at_mut(1);
            assert!(a[0] == b[0], "shape {shape} of {live} symbols");
            let prices: Costs = std::array::from_fn(|_| std::array::from_fn(|_| random() as u8));
            for len in [0, 1, 63, 64, 65, 384, 2048] {
                assert_eq!(costs(&prices, &symbols[..len]), scalar_costs(&prices, &symbols[..len]));
            }
        }
    }
}
