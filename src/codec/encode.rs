//! The encoder: one chunk and its model to stored bytes, whichever coding is smallest.

use super::{
    Coding, LANES, Model, PROB_BITS, ROUND, STATE_LOW, STREAMS,
    decode::{PLANE_RECORD, PlaneMode, STREAM_HEAD},
    model::Table,
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
    /// Symbol by value; meaningful where the symbol has a frequency.
    symbols: Vec<u8>,
    steps: Vec<Step>,
    /// [`Table::slot_numbers`].
    slots: Vec<u16>,
    costs: Vec<f32>,
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
    fn new(table: &Table, bits: u8) -> Self {
        let mut symbols = vec![0; 1 << bits];
        let mut steps = vec![Step::default(); 256];
        let mut start = 0;
        for (symbol, &freq) in table.freqs().iter().enumerate() {
            steps[symbol] = Step::new(start, freq.into());
            start += u32::from(freq);
            symbols[usize::from(table.value(symbol as u8))] = symbol as u8;
        }
        let mut costs = table.costs();
        // A value outside the window must not pass for symbol 0.
        costs.resize(256, f32::INFINITY);
        Self { symbols, steps, slots: table.slot_numbers(), costs }
    }

    /// Symbols of `values`, or `None` where one of them has none or where coding would take `limit` bytes.
    fn symbols(&self, table: &Table, values: &[u16], limit: usize) -> Option<Vec<u8>> {
        let symbols: Vec<u8> = values.iter().map(|&v| self.symbols[usize::from(v)]).collect();
        let mut outside = 0;
        for (&s, &v) in symbols.iter().zip(values) {
            outside |= table.value(s) ^ v;
        }
        if outside != 0 {
            return None;
        }
        let mut counts = [[0u32; 256]; 4];
        for quad in symbols.chunks(4) {
            quad.iter().zip(&mut counts).for_each(|(&s, c)| c[usize::from(s)] += 1);
        }
        let bits: f32 = (0..256)
            .map(|s| (counts.iter().map(|c| c[s]).sum::<u32>(), self.costs[s]))
            .filter(|&(n, _)| n > 0)
            .map(|(n, cost)| n as f32 * cost)
            .sum();
        (bits as usize / 8 + STREAM_HEAD < limit).then_some(symbols)
    }

    /// Append the coded plane.
    fn encode(&self, symbols: &[u8], out: &mut Vec<u8>) {
        let mut states = [STATE_LOW; ROUND];
        // Each symbol gives at most one word, and words leave in the reverse of the order in which the decoder
        // wants them, so that they are written from the end down.
        let most = symbols.len().div_ceil(ROUND) * LANES;
        let mut words: [Vec<u16>; STREAMS] = std::array::from_fn(|_| vec![0; most + 1]);
        let mut at = [most; STREAMS];
        for round in symbols.chunks(ROUND).rev() {
            for (stream, lanes) in round.chunks(LANES).enumerate().rev() {
                let (states, words, at) =
                    (&mut states[stream * LANES..], &mut words[stream], &mut at[stream]);
                for (state, &symbol) in states[..lanes.len()].iter_mut().zip(lanes).rev() {
                    let step = &self.steps[usize::from(symbol)];
                    let mut x = *state;
                    let full = u64::from(x) >= u64::from(step.frequency) << (32 - PROB_BITS);
                    words[*at] = x as u16;
                    *at -= usize::from(full);
                    x >>= u32::from(full) * 16;
                    let quotient = ((u128::from(x) * u128::from(step.reciprocal)) >> 64) as u32 + step.extra;
                    let i = step.start + (x - quotient * step.frequency);
                    *state = quotient << PROB_BITS | u32::from(self.slots[i as usize]);
                }
            }
        }
        for at in at {
            out.extend_from_slice(&((most - at) as u32).to_le_bytes());
        }
        states.iter().for_each(|s| out.extend_from_slice(&s.to_le_bytes()));
        for (words, at) in words.iter().zip(at) {
            // The word at `at` is not one that was taken.
            out.extend(words[at + 1..].iter().flat_map(|w| w.to_le_bytes()));
        }
    }
}

impl<'a> Encoder<'a> {
    /// Prepare `model`.
    pub fn new(model: &'a Model) -> Self {
        let planes = model
            .tables()
            .iter()
            .zip(model.layout().planes())
            .map(|(table, plane)| table.as_ref().map(|t| PlaneEncoder::new(t, plane.bits)))
            .collect();
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
        for ((&plane, table), encoder) in layout.planes().iter().zip(self.model.tables()).zip(&self.planes) {
            layout.values(plane, chunk, &mut values);
            let stored = if plane.bits <= 8 { packed_len(plane.bits, count) } else { usize::MAX };
            let mut constant = 0;
            let mode = if values.iter().all(|&v| v == values[0]) {
                constant = values[0];
                PlaneMode::Constant
            } else if let (Some(table), Some(encoder)) = (table, encoder)
                && let Some(symbols) = encoder.symbols(table, &values, stored)
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
