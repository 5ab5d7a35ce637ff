//! Decoding of rounds with AVX-512 with VBMI and VBMI2, as of Ice Lake and Zen 4. A table stays in
//! six registers, and 64 lanes look their symbols up at once, as bytes. The two halves of a round
//! hide each other's latency.
//!
//! A state is kept as its low and its high 16 bits, 32 lanes in each vector: renormalisation then
//! moves whole elements, and the product of a frequency and the upper bits of a state is one of two
//! 16-bit numbers.
#![allow(unsafe_code)]

use super::load;
use crate::codec::{
    LANES, PROB_BITS,
    decode::{RoundTables, Rounds, Stream},
    model::DecodeTable,
    simd::prefetch,
};
use std::arch::x86_64::*;

/// Bytes of words that a round may read: a vector for every 32 lanes, which starts behind the words
/// that the lanes before have taken.
const REACH: usize = 2 * LANES;

/// The states of 64 lanes, as vectors of their low and of their high 16 bits.
#[derive(Clone, Copy)]
struct States {
    low: [__m512i; 2],
    high: [__m512i; 2],
}

impl States {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(states: &[u32]) -> Self {
        let halves = |first: usize, shift: u32| {
            let words: [u16; 32] = std::array::from_fn(|i| (states[first + i] >> shift) as u16);
            // SAFETY: the array is 64 bytes.
            unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
        };
        Self { low: [halves(0, 0), halves(32, 0)], high: [halves(0, 16), halves(32, 16)] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store(self, states: &mut [u32]) {
        for (v, states) in states.chunks_mut(32).enumerate() {
            let (mut low, mut high) = ([0u16; 32], [0u16; 32]);
            // SAFETY: both arrays are 64 bytes.
            unsafe {
                _mm512_storeu_si512(low.as_mut_ptr().cast(), self.low[v]);
                _mm512_storeu_si512(high.as_mut_ptr().cast(), self.high[v]);
            }
            for (state, (low, high)) in states.iter_mut().zip(low.into_iter().zip(high)) {
                *state = u32::from(high) << 16 | u32::from(low);
            }
        }
    }

    /// Decodes a symbol for each of the lanes. So many `CLASSES` exist, or any number if that is
    /// 0; if there are several, `classes` holds that of each lane. Symbol values are written only
    /// if `VALUES`. Returns how many words the lanes took.
    ///
    /// # Safety
    /// 128 bytes must be readable at `words`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,popcnt")]
    unsafe fn next<const CLASSES: usize, const VALUES: bool>(
        &mut self,
        tables: &[DecodeTable],
        classes: &[u8],
        map: [__m512i; 2],
        words: *const u8,
        (out, values): (&mut [u8; 64], &mut [u16; 64]),
    ) -> usize {
        let low_byte = _mm512_set1_epi16(0xff);
        // A slot's low byte is its place in its bucket; the six bits above are the bucket. Packing
        // works within 128-bit parts: eight bytes of one vector, then eight of the other.
        let places =
            [_mm512_and_si512(self.low[0], low_byte), _mm512_and_si512(self.low[1], low_byte)];
        let place = _mm512_packus_epi16(places[0], places[1]);
        let bucket = _mm512_packus_epi16(
            _mm512_srli_epi16::<8>(self.low[0]),
            _mm512_srli_epi16::<8>(self.low[1]),
        );
        let packed = || {
            let class = load(classes.first_chunk().unwrap_or(&[0; 64]));
            _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), class)
        };
        let found = match (CLASSES, tables) {
            (1, [table, ..]) => look_up(table, bucket, place),
            (2, [first, second, ..]) => look_up_two([first, second], packed(), bucket, place),
            _ => look_up_classes(tables, packed(), bucket, place),
        };
        let symbols = _mm512_and_si512(found.symbols, _mm512_set1_epi8(63));
        let in_order = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), symbols);
        // SAFETY: `out` is 64 bytes and `values` 128.
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), in_order);
            if VALUES {
                let [low, high] = map.map(|m| _mm512_permutexvar_epi8(symbols, m));
                let values: *mut __m512i = values.as_mut_ptr().cast();
                _mm512_storeu_si512(values, _mm512_unpacklo_epi8(low, high));
                _mm512_storeu_si512(values.add(1), _mm512_unpackhi_epi8(low, high));
            }
        }
        let [scaled, shift] = [found.scaled, found.shift]
            .map(|[l, h]| [_mm512_unpacklo_epi8(l, h), _mm512_unpackhi_epi8(l, h)]);
        // SAFETY: the caller vouches for 128 bytes, and the first vector takes at most 32 words.
        unsafe {
            let number = _mm512_add_epi16(places[0], shift[0]);
            let first = advance(&mut self.low[0], &mut self.high[0], scaled[0], number, words);
            let number = _mm512_add_epi16(places[1], shift[1]);
            first
                + advance(
                    &mut self.low[1],
                    &mut self.high[1],
                    scaled[1],
                    number,
                    words.add(2 * first),
                )
        }
    }
}

/// What 64 lanes look up, as bytes in the order of packed words.
struct Lookup {
    symbols: __m512i,
    /// Low and high bytes of what is added to the place in the bucket.
    shift: [__m512i; 2],
    /// Low and high bytes of the scaled frequency.
    scaled: [__m512i; 2],
}

/// Looks up lanes that share a table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up(table: &DecodeTable, bucket: __m512i, place: __m512i) -> Lookup {
    let other = _mm512_cmpge_epu8_mask(place, _mm512_permutexvar_epi8(bucket, load(&table.own)));
    // Indices count modulo 64, so the upper bits of the slot above the bucket do no harm.
    let symbols = _mm512_mask_permutexvar_epi8(bucket, other, bucket, load(&table.other));
    Lookup {
        symbols,
        shift: [0, 1].map(|i| _mm512_maskz_permutexvar_epi8(other, bucket, load(&table.shift[i]))),
        scaled: [0, 1].map(|i| _mm512_permutexvar_epi8(symbols, load(&table.scaled[i]))),
    }
}

/// Looks up lanes of two classes: the tables of both are one of 128 entries.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_two(
    [first, second]: [&DecodeTable; 2],
    class: __m512i,
    bucket: __m512i,
    place: __m512i,
) -> Lookup {
    let class = _mm512_slli_epi16::<6>(class);
    // The lower six bits of the index, and the class above them.
    let index = |low: __m512i| _mm512_ternarylogic_epi32::<0xea>(low, _mm512_set1_epi8(63), class);
    let both =
        |at: __m512i, a: &[u8; 64], b: &[u8; 64]| _mm512_permutex2var_epi8(load(a), at, load(b));
    let at = index(bucket);
    let other = _mm512_cmpge_epu8_mask(place, both(at, &first.own, &second.own));
    let symbols = _mm512_mask_mov_epi8(bucket, other, both(at, &first.other, &second.other));
    let shift =
        [0, 1].map(|i| _mm512_maskz_mov_epi8(other, both(at, &first.shift[i], &second.shift[i])));
    let at = index(symbols);
    let scaled = [0, 1].map(|i| both(at, &first.scaled[i], &second.scaled[i]));
    Lookup { symbols, shift, scaled }
}

/// Looks up lanes of several classes, each in the table of its class.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_classes(
    tables: &[DecodeTable],
    class: __m512i,
    bucket: __m512i,
    place: __m512i,
) -> Lookup {
    let zero = _mm512_setzero_si512();
    let mut own = zero;
    let mut found = Lookup { symbols: zero, shift: [zero; 2], scaled: [zero; 2] };
    for (c, table) in tables.iter().enumerate() {
        let here = _mm512_cmpeq_epi8_mask(class, _mm512_set1_epi8(c as i8));
        own = _mm512_mask_permutexvar_epi8(own, here, bucket, load(&table.own));
        found.symbols =
            _mm512_mask_permutexvar_epi8(found.symbols, here, bucket, load(&table.other));
        for i in 0..2 {
            found.shift[i] =
                _mm512_mask_permutexvar_epi8(found.shift[i], here, bucket, load(&table.shift[i]));
        }
    }
    let other = _mm512_cmpge_epu8_mask(place, own);
    found.symbols = _mm512_mask_mov_epi8(bucket, other, found.symbols);
    found.shift = found.shift.map(|s| _mm512_maskz_mov_epi8(other, s));
    for (c, table) in tables.iter().enumerate() {
        let here = _mm512_cmpeq_epi8_mask(class, _mm512_set1_epi8(c as i8));
        for i in 0..2 {
            found.scaled[i] = _mm512_mask_permutexvar_epi8(
                found.scaled[i],
                here,
                found.symbols,
                load(&table.scaled[i]),
            );
        }
    }
    found
}

/// Decodes rounds while there are enough words whatever they decode to; returns how many.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,popcnt")]
pub(super) fn decode_rounds<const CLASSES: usize, const VALUES: bool>(
    stream: &mut Stream<'_>,
    tables: &mut RoundTables<'_>,
    out: &mut Rounds<'_>,
) -> usize {
    let map = [load(&tables.map.bytes[0]), load(&tables.map.bytes[1])];
    // Two variables instead of an array, so that they stay in registers.
    let (mut first, mut second) =
        (States::load(&stream.states[..64]), States::load(&stream.states[64..]));
    let mut done = 0;
    let elements = out.elements_by_round();
    for ((symbols, values), elements) in out.symbols.iter_mut().zip(&mut *out.values).zip(elements)
    {
        let ([s0, s1], [t0, t1]) =
            (symbols.as_chunks_mut::<64>().0, values.as_chunks_mut::<64>().0)
        else {
            break;
        };
        if stream.words.len() < REACH {
            break;
        }
        let (of_round, classes, next) = tables.next();
        *tables = next;
        prefetch::to_read(stream.words);
        prefetch::to_write(elements);
        let words = stream.words.as_ptr();
        // SAFETY: the first half takes at most 64 words, so both halves are within REACH.
        let taken = unsafe {
            let taken = first.next::<CLASSES, VALUES>(of_round, classes, map, words, (s0, t0));
            let classes = classes.get(64..).unwrap_or_default();
            taken
                + second.next::<CLASSES, VALUES>(
                    of_round,
                    classes,
                    map,
                    words.add(2 * taken),
                    (s1, t1),
                )
        };
        stream.words = &stream.words[2 * taken..];
        done += 1;
    }
    first.store(&mut stream.states[..64]);
    second.store(&mut stream.states[64..]);
    done
}

/// Advances 32 states by one symbol. Returns how many of the `words` they took.
///
/// # Safety
/// 64 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
unsafe fn advance(
    low: &mut __m512i,
    high: &mut __m512i,
    scaled: __m512i,
    number: __m512i,
    words: *const u8,
) -> usize {
    // frequency * (x >> 14) + number. The quotient x >> 14 is four times the state's high half plus
    // the two top bits of its low half.
    let top = _mm512_and_si512(*low, _mm512_set1_epi16(-1 << PROB_BITS));
    let number = _mm512_add_epi16(number, _mm512_mulhi_epu16(scaled, top));
    let product = _mm512_mullo_epi16(scaled, *high);
    let sum = _mm512_add_epi16(product, number);
    // The carry out of the sum's top bit. A comparison into a mask would have a longer latency.
    let carry = _mm512_srli_epi16::<15>(_mm512_ternarylogic_epi32::<0xd4>(product, number, sum));
    let upper = _mm512_add_epi16(_mm512_mulhi_epu16(scaled, *high), carry);
    let short = _mm512_testn_epi16_mask(upper, upper);
    *high = _mm512_mask_mov_epi16(upper, short, sum);
    // SAFETY: the caller vouches for 64 bytes.
    *low = _mm512_mask_expand_epi16(sum, short, unsafe { _mm512_loadu_si512(words.cast()) });
    short.count_ones() as usize
}
