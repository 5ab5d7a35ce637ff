//! Decoding of rounds whose lanes share a table. A table of 64 bytes is four shuffles of 16, and 32
//! lanes look their symbols up at once, as bytes.
//!
//! States are kept as their low and their high 16 bits, as in the AVX-512 kernel.
#![allow(unsafe_code)]

use super::{
    lookup::Indices,
    refill::{REACH, take},
    values::{SymbolValues, write},
};
use crate::codec::{
    LANES, PROB_BITS,
    decode::{RoundTables, Rounds, Stream},
    model::DecodeTable,
    simd::prefetch,
};
use std::arch::x86_64::*;

/// Vectors of 16 lanes.
const VECTORS: usize = LANES / 16;

/// The halves of the states from bit `shift`, 16 in each vector.
#[inline]
#[target_feature(enable = "avx2")]
fn load(states: &[u32; LANES], shift: u32) -> [__m256i; VECTORS] {
    let mut vectors = [_mm256_setzero_si256(); VECTORS];
    for (v, states) in vectors.iter_mut().zip(states.as_chunks::<16>().0) {
        let words: [u16; 16] = std::array::from_fn(|i| (states[i] >> shift) as u16);
        // SAFETY: the array is 32 bytes.
        *v = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
    }
    vectors
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(low: &[__m256i; VECTORS], high: &[__m256i; VECTORS], states: &mut [u32; LANES]) {
    for ((states, &l), &h) in states.as_chunks_mut::<16>().0.iter_mut().zip(low).zip(high) {
        let (mut low, mut high) = ([0u16; 16], [0u16; 16]);
        // SAFETY: both arrays are 32 bytes.
        unsafe {
            _mm256_storeu_si256(low.as_mut_ptr().cast(), l);
            _mm256_storeu_si256(high.as_mut_ptr().cast(), h);
        }
        for (state, (low, high)) in states.iter_mut().zip(low.into_iter().zip(high)) {
            *state = u32::from(high) << 16 | u32::from(low);
        }
    }
}

/// Decodes rounds while there are enough words whatever they decode to; returns how many.
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn decode_rounds(
    stream: &mut Stream<'_>,
    tables: &mut RoundTables<'_>,
    map: impl SymbolValues,
    out: &mut Rounds<'_>,
) -> usize {
    let (mut low, mut high) = (load(&stream.states, 0), load(&stream.states, 16));
    let mut done = 0;
    let elements = out.elements_by_round();
    for ((symbols, values), elements) in out.symbols.iter_mut().zip(&mut *out.values).zip(elements)
    {
        if stream.words.len() < REACH {
            break;
        }
        let (of_round, _, next) = tables.next();
        *tables = next;
        prefetch::to_read(stream.words);
        prefetch::to_write(elements);
        let mut taken = 0;
        let out = symbols.as_chunks_mut().0.iter_mut().zip(values.as_chunks_mut().0);
        let states = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0);
        for ((low, high), out) in states.zip(out) {
            // SAFETY: every 64 lanes take at most 64 words, so all are within REACH.
            taken += unsafe {
                next_symbols(
                    low,
                    high,
                    &of_round[0],
                    map,
                    stream.words.as_ptr().add(2 * taken),
                    out,
                )
            };
        }
        stream.words = &stream.words[2 * taken..];
        done += 1;
    }
    store(&low, &high, &mut stream.states);
    done
}

/// Decodes a symbol for each of 64 lanes. Returns how many words the lanes took.
///
/// Both groups of 32 lanes take each step together: if one group finished before the other started,
/// the other could not hide its latency.
///
/// # Safety
/// 128 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn next_symbols(
    low: &mut [__m256i; 4],
    high: &mut [__m256i; 4],
    table: &DecodeTable,
    map: impl SymbolValues,
    words: *const u8,
    (out, values): (&mut [u8; 64], &mut [u16; 64]),
) -> usize {
    let zero = _mm256_setzero_si256();
    // A slot's low byte is its place in its bucket; the six bits above are the bucket. Packing
    // works within 128-bit halves: eight bytes of one vector, then eight of the other.
    let places = low.map(|l| _mm256_and_si256(l, _mm256_set1_epi16(0xff)));
    let upper = low.map(|l| _mm256_srli_epi16::<8>(l));
    let place =
        [_mm256_packus_epi16(places[0], places[1]), _mm256_packus_epi16(places[2], places[3])];
    let bucket = [_mm256_packus_epi16(upper[0], upper[1]), _mm256_packus_epi16(upper[2], upper[3])]
        .map(|b| _mm256_and_si256(b, _mm256_set1_epi8(63)));
    let at = bucket.map(|b| Indices::new(b));
    let own = Indices::of(&at, &table.own);
    let other: [_; 2] =
        std::array::from_fn(|i| _mm256_cmpeq_epi8(_mm256_max_epu8(place[i], own[i]), place[i]));
    let symbols = Indices::of(&at, &table.other);
    let symbols: [_; 2] =
        std::array::from_fn(|i| _mm256_blendv_epi8(bucket[i], symbols[i], other[i]));
    let shift = [Indices::of(&at, &table.shift[0]), Indices::of(&at, &table.shift[1])];
    let at = symbols.map(|s| Indices::new(s));
    let scaled = [Indices::of(&at, &table.scaled[0]), Indices::of(&at, &table.scaled[1])];
    let (outs, all_values) = (out.as_chunks_mut().0, values.as_chunks_mut().0);
    for ((out, values), (&symbols, at)) in
        outs.iter_mut().zip(all_values).zip(symbols.iter().zip(at))
    {
        write(symbols, at, map, out, values);
    }
    let mut short = [zero; 4];
    let mut kept = [zero; 4];
    for v in 0..4 {
        let i = v / 2;
        let unpack = |halves: [[__m256i; 2]; 2]| {
            let [l, h] = halves.map(|half| half[i]);
            if v % 2 == 0 { _mm256_unpacklo_epi8(l, h) } else { _mm256_unpackhi_epi8(l, h) }
        };
        let scaled = unpack(scaled);
        let shift = unpack(
            shift.map(|s| [_mm256_and_si256(s[0], other[0]), _mm256_and_si256(s[1], other[1])]),
        );
        // frequency * (x >> 14) + number. The quotient x >> 14 is four times the state's high half
        // plus the two top bits of its low half.
        let top = _mm256_and_si256(low[v], _mm256_set1_epi16(-1 << PROB_BITS));
        let number = _mm256_add_epi16(places[v], shift);
        let number = _mm256_add_epi16(number, _mm256_mulhi_epu16(scaled, top));
        let sum = _mm256_add_epi16(_mm256_mullo_epi16(scaled, high[v]), number);
        // All ones where the sum did not overflow.
        let whole = _mm256_cmpeq_epi16(_mm256_max_epu16(sum, number), sum);
        let upper = _mm256_add_epi16(_mm256_mulhi_epu16(scaled, high[v]), _mm256_set1_epi16(1));
        let upper = _mm256_add_epi16(upper, whole);
        short[v] = _mm256_cmpeq_epi16(upper, zero);
        high[v] = _mm256_blendv_epi8(upper, sum, short[v]);
        kept[v] = _mm256_andnot_si256(short[v], sum);
    }
    let mut next = words;
    for (v, low) in low.iter_mut().enumerate() {
        // Two bits per lane.
        let mask = _mm256_movemask_epi8(_mm256_packs_epi16(short[v], zero)) as u32;
        // SAFETY: the caller vouches for 128 bytes, and eight lanes take at most eight words, 16
        // bytes.
        unsafe {
            let (first, behind) = take(mask as u8, next);
            let (second, behind) = take((mask >> 16) as u8, behind);
            next = behind;
            *low = _mm256_or_si256(kept[v], _mm256_set_m128i(second, first));
        }
    }
    // SAFETY: both point to the same words.
    (unsafe { next.offset_from(words) }) as usize / 2
}
