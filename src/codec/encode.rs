//! The encoder: one chunk and its model to stored bytes, whichever coding is smallest.

use super::{
    Coding, LANES, Model, PROB_BITS, ROUND, STATE_LOW, STREAMS,
    decode::{PLANE_RECORD, PlaneMode, STREAM_HEAD},
    model::{BLOCK, MAX_SYMBOLS, MAX_TABLES, TOTAL, Table},
    planes::{pack, packed_len},
};

/// zstd level for chunks that are tried with it: matches matter there, speed hardly.
const ZSTD_LEVEL: i32 = 9;

/// A model prepared for coding.
pub struct Encoder<'a> {
    model: &'a Model,
    planes: Vec<Option<PlaneEncoder>>,
}

struct PlaneEncoder {
    base: u16,
    tables: Vec<TableEncoder>,
    /// What each symbol costs in each table, in bits; infinite where it cannot be coded.
    costs: Box<[[f32; MAX_TABLES]; MAX_SYMBOLS]>,
}

struct TableEncoder {
    steps: [Step; MAX_SYMBOLS],
    /// [`Table::slot_numbers`].
    slots: Box<[u16; TOTAL as usize]>,
}

/// A plane's symbols, and the table of each [`BLOCK`].
struct Symbols {
    symbols: Vec<u8>,
    choices: Vec<u8>,
}

/// What coding one symbol does to a state; `frequency == 0` marks those that cannot be coded.
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

impl PlaneEncoder {
    /// `None` where the plane has no table.
    fn new(tables: &[Table]) -> Option<Self> {
        let mut costs = Box::new([[f32::INFINITY; MAX_TABLES]; MAX_SYMBOLS]);
        for (i, table) in tables.iter().enumerate() {
            for (costs, &f) in costs.iter_mut().zip(table.freqs()) {
                costs[i] = PROB_BITS as f32 - f32::from(f).log2();
            }
        }
        Some(Self {
            base: tables.first()?.base(),
            tables: tables.iter().map(TableEncoder::new).collect(),
            costs,
        })
    }

    /// Symbols of `values` and the best table of each block, or `None` where a value cannot be coded or where coding
    /// would take `limit` bytes.
    fn symbols(&self, values: &[u16], limit: usize) -> Option<Symbols> {
        let mut outside = false;
        for &v in values {
            outside |= v != 0 && !(1..=255).contains(&v.wrapping_sub(self.base));
        }
        if outside {
            return None;
        }
        let symbol = |v: u16| if v == 0 { 0 } else { v.wrapping_sub(self.base) as u8 };
        let symbols: Vec<u8> = values.iter().map(|&v| symbol(v)).collect();
        let mut bits = 0.0;
        let mut choices = Vec::with_capacity(symbols.len().div_ceil(BLOCK));
        for block in symbols.chunks(BLOCK) {
            let costs = self.block_costs(block);
            let best = (0..MAX_TABLES).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap_or(0);
            bits += costs[best];
            choices.push(best as u8);
        }
        (bits as usize / 8 + choices.len() / 4 + STREAM_HEAD < limit).then_some(Symbols { symbols, choices })
    }

    /// What a block costs with each table, in bits.
    fn block_costs(&self, block: &[u8]) -> [f32; MAX_TABLES] {
        // Four sums in turns: additions wait for each other.
        let mut sums = [[0f32; MAX_TABLES]; 4];
        for four in block.chunks(4) {
            for (sum, &s) in sums.iter_mut().zip(four) {
                sum.iter_mut().zip(self.costs[usize::from(s)]).for_each(|(sum, c)| *sum += c);
            }
        }
        std::array::from_fn(|t| sums.iter().map(|s| s[t]).sum())
    }

    /// Append the coded plane.
    fn encode(&self, plane: &Symbols, out: &mut Vec<u8>) {
        let Symbols { symbols, choices } = plane;
        let mut states = [STATE_LOW; ROUND];
        // Each symbol gives at most one word, and words leave in the reverse of the order in which the decoder
        // wants them, so that they are written from the end down.
        let most = symbols.len().div_ceil(ROUND) * LANES;
        let mut words: [Vec<u16>; STREAMS] = std::array::from_fn(|_| vec![0; most]);
        let mut free = [most; STREAMS];
        for (i, round) in symbols.chunks(ROUND).enumerate().rev() {
            let table = &self.tables[usize::from(choices[i * ROUND / BLOCK])];
            for (stream, lanes) in round.chunks(LANES).enumerate().rev() {
                let states = &mut states[stream * LANES..][..LANES];
                // As many rounds are left as there is room for.
                let room = words[stream][..free[stream]].last_chunk_mut::<LANES>();
                free[stream] -= room.map_or(0, |room| table.encode_round(lanes, states, room));
            }
        }
        if self.tables.len() > 1 {
            out.extend(choices.chunks(4).map(|four| four.iter().rev().fold(0, |byte, c| byte << 2 | c)));
        }
        for free in free {
            out.extend_from_slice(&((most - free) as u32).to_le_bytes());
        }
        states.iter().for_each(|s| out.extend_from_slice(&s.to_le_bytes()));
        for (words, free) in words.iter().zip(free) {
            out.extend(words[free..].iter().flat_map(|w| w.to_le_bytes()));
        }
    }
}

impl TableEncoder {
    fn new(table: &Table) -> Self {
        let mut steps = [Step::default(); MAX_SYMBOLS];
        let mut start = 0;
        for (step, &freq) in steps.iter_mut().zip(table.freqs()) {
            *step = Step::new(start, freq.into());
            start += u32::from(freq);
        }
        Self { steps, slots: table.slot_numbers() }
    }

    /// Code a symbol for each lane of a stream, last lane first; returns how many words were put at the end of `room`.
    #[inline(always)]
    fn encode_round(&self, lanes: &[u8], states: &mut [u32], room: &mut [u16; LANES]) -> usize {
        let mut put = 0;
        for (state, &symbol) in states.iter_mut().zip(lanes).rev() {
            let step = &self.steps[usize::from(symbol)];
            let x = *state;
            let full = u64::from(x) >= u64::from(step.frequency) << (32 - PROB_BITS);
            // No branch on what is as good as random: a word that does not count is written over. The masks change
            // nothing but spare checks.
            room[(LANES - 1 - put) & (LANES - 1)] = x as u16;
            put += usize::from(full);
            let x = x >> (u32::from(full) * 16);
            let quotient = ((u128::from(x) * u128::from(step.reciprocal)) >> 64) as u32 + step.extra;
            let i = step.start + (x - quotient * step.frequency);
            *state = quotient << PROB_BITS | u32::from(self.slots[(i & (TOTAL - 1)) as usize]);
        }
        put
    }
}

impl<'a> Encoder<'a> {
    /// Prepare `model`.
    pub fn new(model: &'a Model) -> Self {
        let planes = model.tables().iter().map(|tables| PlaneEncoder::new(tables)).collect();
        Self { model, planes }
    }

    /// The chunk as [`Coding::Planes`], or `None` where its model cannot express it.
    fn planes(&self, chunk: &[u8]) -> Option<Vec<u8>> {
        let layout = self.model.layout();
        let width = usize::from(layout.width());
        if !chunk.len().is_multiple_of(width) {
            return None;
        }
        let count = chunk.len() / width;
        let mut records = Vec::with_capacity(layout.planes().len() * PLANE_RECORD);
        let mut data = Vec::with_capacity(chunk.len());
        let mut values = Vec::with_capacity(count);
        for (&plane, encoder) in layout.planes().iter().zip(&self.planes) {
            layout.values(plane, chunk, &mut values);
            let stored = if plane.bits <= 8 { packed_len(plane.bits, count) } else { usize::MAX };
            let mut constant = 0;
            let mode = if values.iter().all(|&v| v == values[0]) {
                constant = values[0];
                PlaneMode::Constant
            } else if let Some(encoder) = encoder
                && let Some(symbols) = encoder.symbols(&values, stored)
            {
                encoder.encode(&symbols, &mut data);
                PlaneMode::Coded
            } else if plane.bits <= 8 {
                pack(&values, plane.bits, &mut data);
                PlaneMode::Stored
            } else {
                return None;
            };
            records.extend_from_slice(&[mode as u8, 0]);
            records.extend_from_slice(&constant.to_le_bytes());
        }
        records.append(&mut data);
        Some(records)
    }
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
