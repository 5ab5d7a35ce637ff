//! Decoding of rounds whose lanes share a table. A table of 64 bytes is four shuffles of 16, and 32
//! lanes look their symbols up at once, as bytes. Two such vectors take each step together, to hide
//! each other's latency.
//!
//! States are kept as their low and their high 16 bits, as in the AVX-512 kernel.
#![allow(unsafe_code)]

use super::{
    lookup::Indices,
    refill::{REACH, take_pair},
    values::{SymbolValues, write},
};
use crate::codec::{
    LANES, PROB_BITS,
    decode::{RoundTables, Rounds, Stream},
    model::DecodeTable,
    simd::prefetch,
};
use std::{arch::x86_64::*, hint::black_box};

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
        let words = stream.words.as_ptr();
        let mut taken = 0;
        let out = symbols.as_chunks_mut().0.iter_mut().zip(values.as_chunks_mut().0);
        let states = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0);
        for ((low, high), out) in states.zip(out) {
            // Otherwise, the compiler loads the table once for both halves of a round, into more
            // registers than there are.
            let table = black_box(&of_round[0]);
            // SAFETY: every 64 lanes take at most 64 words, so all are within REACH.
            taken += unsafe { next_symbols(low, high, table, map, words.add(2 * taken), out) };
        }
        stream.words = &stream.words[2 * taken..];
        done += 1;
    }
    store(&low, &high, &mut stream.states);
    done
}

/// What 64 lanes look up, as bytes in the order of packed words.
struct Lookup {
    symbols: [__m256i; 2],
    at_symbols: [Indices; 2],
    /// Low and high bytes of what is added to the place in the bucket.
    shift: [[__m256i; 2]; 2],
    /// Low and high bytes of the scaled frequency.
    scaled: [[__m256i; 2]; 2],
}

#[inline]
#[target_feature(enable = "avx2")]
fn look_up(table: &DecodeTable, bucket: [__m256i; 2], place: [__m256i; 2]) -> Lookup {
    let [own, other, shift_low, shift_high, scaled_low, scaled_high] = &table.differences;
    let at = bucket.map(|b| Indices::new(b));
    let own = Indices::of(&at, own);
    let is_other: [_; 2] =
        std::array::from_fn(|i| _mm256_cmpeq_epi8(_mm256_max_epu8(place[i], own[i]), place[i]));
    let other = Indices::of(&at, other);
    let symbols: [_; 2] =
        std::array::from_fn(|i| _mm256_blendv_epi8(bucket[i], other[i], is_other[i]));
    let shift = [shift_low, shift_high].map(|t| {
        let [a, b] = Indices::of(&at, t);
        [_mm256_and_si256(a, is_other[0]), _mm256_and_si256(b, is_other[1])]
    });
    let at_symbols = symbols.map(|s| Indices::new(s));
    let scaled = [scaled_low, scaled_high].map(|t| Indices::of(&at_symbols, t));
    Lookup { symbols, at_symbols, shift, scaled }
}

/// Decodes a symbol for each of 64 lanes. Returns how many words the lanes took.
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
    // A slot's low byte is its place in its bucket; the six bits above are the bucket. Packing
    // works within 128-bit halves: eight bytes of one vector, then eight of the other.
    let places = low.map(|l| _mm256_and_si256(l, _mm256_set1_epi16(0xff)));
    let upper = low.map(|l| _mm256_srli_epi16::<8>(l));
    let place =
        [_mm256_packus_epi16(places[0], places[1]), _mm256_packus_epi16(places[2], places[3])];
    let bucket = [_mm256_packus_epi16(upper[0], upper[1]), _mm256_packus_epi16(upper[2], upper[3])]
        .map(|b| _mm256_and_si256(b, _mm256_set1_epi8(63)));
    let found = look_up(table, bucket, place);
    let (outs, all_values) = (out.as_chunks_mut().0, values.as_chunks_mut().0);
    let symbols = found.symbols.into_iter().zip(found.at_symbols);
    for ((out, values), (symbols, at)) in outs.iter_mut().zip(all_values).zip(symbols) {
        write(symbols, at, map, out, values);
    }
    let mut next = words;
    for i in 0..2 {
        let unpack = |halves: &[[__m256i; 2]; 2]| {
            let [l, h] = [halves[0][i], halves[1][i]];
            [_mm256_unpacklo_epi8(l, h), _mm256_unpackhi_epi8(l, h)]
        };
        let (shift, scaled) = (unpack(&found.shift), unpack(&found.scaled));
        let (mut short, mut kept) = ([_mm256_setzero_si256(); 2], [_mm256_setzero_si256(); 2]);
        for j in 0..2 {
            let v = 2 * i + j;
            let number = _mm256_add_epi16(places[v], shift[j]);
            (short[j], kept[j]) = advance(low[v], &mut high[v], scaled[j], number);
        }
        // A bit for each lane: of the first vector in the bytes 0 and 2, of the second in 1 and 3.
        let mask = _mm256_movemask_epi8(_mm256_packs_epi16(short[0], short[1])) as u32;
        let masks = mask.to_le_bytes();
        // SAFETY: the caller vouches for a word for each lane.
        unsafe {
            let (first, behind) = take_pair([masks[0], masks[2]], next);
            let (second, behind) = take_pair([masks[1], masks[3]], behind);
            next = behind;
            low[2 * i] = _mm256_or_si256(kept[0], first);
            low[2 * i + 1] = _mm256_or_si256(kept[1], second);
        }
    }
    // SAFETY: both point to the same words.
    (unsafe { next.offset_from(words) }) as usize / 2
}

/// Advances 16 states by one symbol. Returns which of them take a word, and the low halves of the
/// others.
#[inline]
#[target_feature(enable = "avx2")]
fn advance(
    low: __m256i,
    high: &mut __m256i,
    scaled: __m256i,
    number: __m256i,
) -> (__m256i, __m256i) {
    // frequency * (x >> 14) + number. The quotient x >> 14 is four times the state's high half plus
    // the two top bits of its low half.
    let top = _mm256_and_si256(low, _mm256_set1_epi16(-1 << PROB_BITS));
    let number = _mm256_add_epi16(number, _mm256_mulhi_epu16(scaled, top));
    let sum = _mm256_add_epi16(_mm256_mullo_epi16(scaled, *high), number);
    // All ones where the sum did not overflow.
    let whole = _mm256_cmpeq_epi16(_mm256_max_epu16(sum, number), sum);
    let upper = _mm256_add_epi16(_mm256_mulhi_epu16(scaled, *high), _mm256_set1_epi16(1));
    let upper = _mm256_add_epi16(upper, whole);
    let short = _mm256_cmpeq_epi16(upper, _mm256_setzero_si256());
    *high = _mm256_blendv_epi8(upper, sum, short);
    (short, _mm256_andnot_si256(short, sum))
}
