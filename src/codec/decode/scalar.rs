//! The scalar kernel: safe code that runs everywhere and defines the bits.

use super::{
    delta::decode_delta,
    kernel::{Kernel, RoundTables, Rounds, Stream, spread},
    pipeline::decode_planes,
};
use crate::codec::{
    ChunkError, EntropyModel, LANES, PROB_BITS, STATE_LOW,
    model::DecodeTable,
    planes::{GROUP, unpack_group},
};

/// The scalar kernel.
#[derive(Clone, Copy)]
pub(in crate::codec) struct ScalarKernel;

impl Kernel for ScalarKernel {
    const NAME: &'static str = "scalar";

    fn decode_planes(
        self,
        model: &EntropyModel,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), ChunkError> {
        decode_planes(self, model, payload, out)
    }

    fn decode_delta(
        self,
        model: &EntropyModel,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), ChunkError> {
        decode_delta(self, model, payload, out)
    }

    #[inline(always)]
    fn symbols(
        self,
        stream: &mut Stream<'_>,
        mut tables: RoundTables<'_>,
        out: Rounds<'_>,
    ) -> Result<(), ChunkError> {
        for (symbols, values) in out.symbols.iter_mut().zip(out.values) {
            let (of_round, classes, next) = tables.next();
            match of_round {
                [only] => round(stream, |_| only, symbols, values)?,
                of_class => {
                    round(stream, |lane| &of_class[usize::from(classes[lane])], symbols, values)?
                }
            }
            tables = next;
        }
        Ok(())
    }

    #[inline(always)]
    fn unpack(self, packed: &[u8], bits: u8, shift: u8, keep: bool, bytes: &mut [u8]) {
        let groups = packed
            .chunks_exact(GROUP / 8 * usize::from(bits))
            .zip(bytes.as_chunks_mut::<GROUP>().0);
        for (packed, bytes) in groups {
            let mut values = [0; GROUP];
            unpack_group(packed, bits, &mut values);
            for (b, v) in bytes.iter_mut().zip(values) {
                *b = v << shift | if keep { *b } else { 0 };
            }
        }
    }

    #[inline(always)]
    fn spread(self, values: &[u8; GROUP], members: u64) -> [u8; GROUP] {
        spread(values, members)
    }
}

/// Decodes one symbol for each lane.
#[inline(always)]
fn round<'t>(
    stream: &mut Stream<'_>,
    table: impl Fn(usize) -> &'t DecodeTable,
    symbols: &mut [u8; LANES],
    values: &mut [u16; LANES],
) -> Result<(), ChunkError> {
    let mut at = 0;
    if let Some(words) = stream.words.as_chunks::<2>().0.first_chunk::<256>() {
        // Whether a lane takes a word is unpredictable. Instead of branching, always read one.
        let mut taken = 0u8;
        let mut halves = [0; LANES];
        let fours = stream.states.as_chunks_mut::<4>().0.iter_mut();
        for (i, (states, halves)) in fours.zip(halves.as_chunks_mut::<4>().0).enumerate() {
            for j in 0..4 {
                let (x, half) = step(states[j], table(4 * i + j));
                halves[j] = half;
                let word = u32::from(u16::from_le_bytes(words[usize::from(taken)]));
                let low = x < STATE_LOW;
                states[j] = std::hint::select_unpredictable(low, x << 16 | word, x);
                // At most one word per lane: this does not overflow.
                taken = taken.wrapping_add(low.into());
            }
        }
        // Separate loops, so that they are vectorised.
        values.iter_mut().zip(halves).for_each(|(v, half)| *v = half as u16);
        symbols.iter_mut().zip(halves).for_each(|(s, half)| *s = (half >> 16) as u8);
        at = 2 * usize::from(taken);
    } else {
        // Near the end of the chunk, check every word.
        let out = symbols.iter_mut().zip(values);
        for (lane, (state, (symbol, value))) in stream.states.iter_mut().zip(out).enumerate() {
            let (x, half) = step(*state, table(lane));
            (*state, *value, *symbol) = (x, half as u16, (half >> 16) as u8);
            if *state < STATE_LOW {
                let word = stream.words.get(at..at + 2).ok_or(ChunkError::Truncated)?;
                *state = *state << 16 | u32::from(u16::from_le_bytes([word[0], word[1]]));
                at += 2;
            }
        }
    }
    stream.words = &stream.words[at..];
    Ok(())
}

/// Decodes one symbol. Returns the state, which may need a word, and the upper half of the symbol's
/// [`BucketEntry`](crate::codec::model::BucketEntry), which holds the symbol and its value.
#[inline(always)]
fn step(x: u32, table: &DecodeTable) -> (u32, u32) {
    let place = x & 255;
    // Read both entries and select one: this is unpredictable, too.
    let [own, other] = table.entries[(x >> 8 & 63) as usize];
    let entry = std::hint::select_unpredictable(u64::from(place) < own >> 56, own, other);
    let freq = entry as u32 >> 16;
    let number = place.wrapping_add(i32::from(entry as i16) as u32);
    (freq.wrapping_mul(x >> PROB_BITS).wrapping_add(number), (entry >> 32) as u32)
}
