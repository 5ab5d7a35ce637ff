//! A frequency table in the forms that encoders use.

use crate::codec::{
    PROB_BITS,
    model::{ALPHABET, Buckets, FrequencyTable, MAX_CHOICES, TOTAL},
};

/// By choice and symbol: the cost of the symbol in sixteenths of a bit.
pub(in crate::codec) type Costs = [[u8; ALPHABET]; MAX_CHOICES];

/// A table prepared for encoding.
pub(in crate::codec) struct TableEncoder {
    steps: [Step; ALPHABET],
    /// [`Buckets::slots_by_symbol`].
    pub slots: Box<[u16; TOTAL as usize + 1]>,
    /// By symbol: its frequency and, in the upper half, where its slots start.
    pub entries: [u32; ALPHABET],
    /// By symbol: slightly less than 1 / frequency, as the bits of a float.
    pub reciprocals: [u32; ALPHABET],
    /// The most frequent symbol.
    pub likely: u8,
}

/// What encoding a symbol does to a state.
#[derive(Clone, Copy, Default)]
struct Step {
    /// ⌈2^64 / frequency⌉: division by multiplication, exact for all 32-bit states.
    reciprocal: u64,
    frequency: u32,
    /// Where the symbol's slots start among those of all symbols.
    start: u32,
    /// Added to the quotient. It is 1 for a frequency of 1, whose reciprocal would be 2^64: with
    /// 2^64 - 1 instead, the quotient comes out one too small.
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
    pub fn new(table: &FrequencyTable) -> Self {
        let freqs = table.frequencies();
        let mut steps = [Step::default(); ALPHABET];
        let mut start = 0;
        for (step, &freq) in steps.iter_mut().zip(freqs) {
            *step = Step::new(start, freq.into());
            start += u32::from(freq);
        }
        let likely = (0..ALPHABET).max_by_key(|&s| freqs[s]).unwrap_or(0) as u8;
        // The state, the reciprocal and their product are each rounded by up to 2^-24. Even if all
        // three add up, the quotient must not come out too large.
        let short = 1.0 - f32::EPSILON * 2.0;
        Self {
            slots: Buckets::new(freqs).slots_by_symbol(freqs),
            entries: steps.map(|s| s.frequency | s.start << 16),
            reciprocals: steps.map(|s| (short / s.frequency.max(1) as f32).to_bits()),
            steps,
            likely,
        }
    }

    /// Encodes a symbol. Returns a word, and 1 if it is to be written, else 0.
    #[inline(always)]
    pub fn encode(&self, state: &mut u32, symbol: u8) -> (u16, usize) {
        let step = &self.steps[usize::from(symbol)];
        let x = *state;
        let full = u64::from(x) >= u64::from(step.frequency) << (32 - PROB_BITS);
        let word = x as u16;
        let x = if full { x >> 16 } else { x };
        let quotient = ((u128::from(x) * u128::from(step.reciprocal)) >> 64) as u32 + step.extra;
        let i = step.start + (x - quotient * step.frequency);
        // The mask changes nothing but saves a bounds check.
        *state = quotient << PROB_BITS | u32::from(self.slots[(i & (TOTAL - 1)) as usize]);
        (word, full.into())
    }
}
