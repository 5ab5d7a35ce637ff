//! The encoder's inner loops with AVX-512: sixteen states a vector, each divided by its symbol's frequency by way of
//! single-precision floats, which are off by at most one.
#![allow(unsafe_code)]

use crate::codec::encode::{Costs, TableEncoder, Words, scalar_costs};
use crate::codec::model::MAX_CHOICES;
use crate::codec::{LANES, PROB_BITS};
use std::arch::x86_64::*;

/// Vectors of states.
const VECTORS: usize = LANES / 16;

/// Whether this machine has what is needed here.
pub(super) fn present() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("popcnt")
}

/// [`super::EncodeKernel::rounds`] for machines for which [`present`] holds.
pub(super) fn rounds(
    tables: &[&TableEncoder],
    symbols: &[u8],
    states: &mut [u32; LANES],
    words: &mut Words,
) {
    assert!(present(), "the caller has asked");
    // SAFETY: the features are there.
    unsafe { encode(tables, symbols, states, words) }
}

/// [`super::EncodeKernel::costs`] likewise.
pub(super) fn costs(costs: &Costs, symbols: &[u8]) -> [u32; MAX_CHOICES] {
    assert!(present(), "the caller has asked");
    let (whole, rest) = symbols.as_chunks();
    // SAFETY: the features are there.
    let mut sums = unsafe { sum(costs, whole) };
    sums.iter_mut().zip(scalar_costs(costs, rest)).for_each(|(s, c)| *s += c);
    sums
}

/// What 64 symbols at a time cost.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn sum(costs: &Costs, symbols: &[[u8; 64]]) -> [u32; MAX_CHOICES] {
    // SAFETY: each array is 64 bytes.
    let vector = |bytes: &[u8; 64]| unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    let zero = _mm512_setzero_si512();
    let mut sums = [zero; MAX_CHOICES];
    for symbols in symbols {
        let symbols = vector(symbols);
        for (sum, costs) in sums.iter_mut().zip(costs) {
            let found = _mm512_permutexvar_epi8(symbols, vector(costs));
            *sum = _mm512_add_epi64(*sum, _mm512_sad_epu8(found, zero));
        }
    }
    sums.map(|s| _mm512_reduce_add_epi64(s) as u32)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
fn encode(tables: &[&TableEncoder], symbols: &[u8], states: &mut [u32; LANES], words: &mut Words) {
    let mut x = [_mm512_setzero_si512(); VECTORS];
    for (x, states) in x.iter_mut().zip(states.as_chunks::<16>().0) {
        // SAFETY: sixteen states are 64 bytes.
        *x = unsafe { _mm512_loadu_si512(states.as_ptr().cast()) };
    }
    for (symbols, table) in symbols.as_chunks::<LANES>().0.iter().zip(tables).rev() {
        // Each symbol gives at most one word.
        let Some(room) = words.buffer[..words.free].last_chunk_mut::<LANES>() else { break };
        let mut free = LANES;
        for (x, symbols) in x.iter_mut().zip(symbols.as_chunks::<16>().0).rev() {
            // SAFETY: at most sixteen words are put for each vector, of which there are LANES / 16.
            free -= unsafe { step(x, table, symbols, room.as_mut_ptr().add(free)) };
        }
        words.free -= LANES - free;
    }
    for (x, states) in x.iter().zip(states.as_chunks_mut::<16>().0) {
        // SAFETY: sixteen states are 64 bytes.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().cast(), *x) };
    }
}

/// Code a symbol for each of sixteen states; puts words just before `end` and returns how many.
///
/// # Safety
/// There must be room for sixteen words before `end`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn step(x: &mut __m512i, table: &TableEncoder, symbols: &[u8; 16], end: *mut u16) -> usize {
    // SAFETY: 16 bytes.
    let symbol = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(symbols.as_ptr().cast()) });
    let upper = _mm512_test_epi32_mask(symbol, _mm512_set1_epi32(32));
    let look_up = |table: &[u32; 64]| {
        // SAFETY: four times 64 bytes.
        let quarter = |q: usize| unsafe { _mm512_loadu_si512(table.as_ptr().add(16 * q).cast()) };
        let low = _mm512_permutex2var_epi32(quarter(0), symbol, quarter(1));
        let high = _mm512_permutex2var_epi32(quarter(2), symbol, quarter(3));
        _mm512_mask_mov_epi32(low, upper, high)
    };
    let entry = look_up(&table.entries);
    let reciprocal = _mm512_castsi512_ps(look_up(&table.reciprocals));
    let frequency = _mm512_and_si512(entry, _mm512_set1_epi32(0xffff));
    // A state that would grow too large gives its low half away.
    let full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32::<{ 32 - PROB_BITS }>(*x), frequency);
    let count = full.count_ones();
    // SAFETY: the caller vouches for sixteen words, of which `count` are written.
    unsafe {
        let given = _mm256_maskz_compress_epi16(full, _mm512_cvtepi32_epi16(*x));
        _mm256_mask_storeu_epi16(
            end.sub(count as usize).cast(),
            ((1u32 << count) - 1) as u16,
            given,
        );
    }
    let rest = _mm512_mask_srli_epi32::<16>(*x, full, *x);
    // Reciprocals are a little too small, so that the quotient is right or one too small.
    let quotient = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(rest), reciprocal));
    let remainder = _mm512_sub_epi32(rest, _mm512_mullo_epi32(quotient, frequency));
    let more = _mm512_cmpge_epu32_mask(remainder, frequency);
    let quotient = _mm512_mask_add_epi32(quotient, more, quotient, _mm512_set1_epi32(1));
    let remainder = _mm512_mask_sub_epi32(remainder, more, remainder, frequency);
    let number = _mm512_add_epi32(_mm512_srli_epi32::<16>(entry), remainder);
    // The mask changes nothing, but keeps the numbers within the table whatever happens.
    let number = _mm512_and_si512(number, _mm512_set1_epi32((1 << PROB_BITS) - 1));
    // SAFETY: the table has an entry more than numbers go, for the two bytes that are read behind the one asked for.
    let slot = unsafe { _mm512_i32gather_epi32::<2>(number, table.slots.as_ptr().cast()) };
    let slot = _mm512_and_si512(slot, _mm512_set1_epi32(0xffff));
    *x = _mm512_or_si512(_mm512_slli_epi32::<PROB_BITS>(quotient), slot);
    count as usize
}
