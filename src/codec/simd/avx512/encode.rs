//! The encoder's inner loops: sixteen states in each vector. States are divided by the frequencies
//! of their symbols in single-precision floats, which makes the quotient at most one too small.
#![allow(unsafe_code)]

use super::load;
use crate::codec::{
    LANES, PROB_BITS,
    encode::{Costs, TableEncoder, Words, scalar_costs},
    model::MAX_CHOICES,
    simd::features::Avx512,
};
use std::arch::x86_64::*;

/// Vectors of states.
const VECTORS: usize = LANES / 16;

/// [`EncodeKernel::rounds`](crate::codec::encode::EncodeKernel::rounds).
pub(in crate::codec::simd) fn rounds(
    tables: &[&TableEncoder],
    symbols: &[u8],
    states: &mut [u32; LANES],
    words: &mut Words,
) {
    assert!(Avx512::detect().is_some(), "the kernel is chosen only where it can run");
    // SAFETY: the features are present.
    unsafe { encode(tables, symbols, states, words) }
}

/// [`EncodeKernel::costs`](crate::codec::encode::EncodeKernel::costs).
pub(in crate::codec::simd) fn costs(costs: &Costs, symbols: &[u8]) -> [u32; MAX_CHOICES] {
    assert!(Avx512::detect().is_some(), "the kernel is chosen only where it can run");
    let (whole, rest) = symbols.as_chunks();
    // SAFETY: the features are present.
    let mut sums = unsafe { sum(costs, whole) };
    sums.iter_mut().zip(scalar_costs(costs, rest)).for_each(|(s, c)| *s += c);
    sums
}

/// The costs of symbols, 64 at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn sum(costs: &Costs, symbols: &[[u8; 64]]) -> [u32; MAX_CHOICES] {
    let zero = _mm512_setzero_si512();
    let mut sums = [zero; MAX_CHOICES];
    for symbols in symbols {
        let symbols = load(symbols);
        for (sum, costs) in sums.iter_mut().zip(costs) {
            let found = _mm512_permutexvar_epi8(symbols, load(costs));
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
        // Each symbol yields at most one word.
        let Some(room) = words.buffer[..words.free].last_chunk_mut::<LANES>() else { break };
        let mut free = LANES;
        for (x, symbols) in x.iter_mut().zip(symbols.as_chunks::<16>().0).rev() {
            // SAFETY: each of the LANES / 16 vectors yields at most sixteen words.
            free -= unsafe { step(x, table, symbols, room.as_mut_ptr().add(free)) };
        }
        words.free -= LANES - free;
    }
    for (x, states) in x.iter().zip(states.as_chunks_mut::<16>().0) {
        // SAFETY: sixteen states are 64 bytes.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().cast(), *x) };
    }
}

/// Encodes a symbol for each of sixteen states. Writes the words just before `end`; returns how
/// many.
///
/// # Safety
/// There must be room for sixteen words before `end`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn step(x: &mut __m512i, table: &TableEncoder, symbols: &[u8; 16], end: *mut u16) -> usize {
    // SAFETY: the array is 16 bytes.
    let symbol = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(symbols.as_ptr().cast()) });
    let upper = _mm512_test_epi32_mask(symbol, _mm512_set1_epi32(32));
    let look_up = |table: &[u32; 64]| {
        // SAFETY: q < 4, and the table is four times 64 bytes.
        let quarter = |q: usize| unsafe { _mm512_loadu_si512(table.as_ptr().add(16 * q).cast()) };
        let low = _mm512_permutex2var_epi32(quarter(0), symbol, quarter(1));
        let high = _mm512_permutex2var_epi32(quarter(2), symbol, quarter(3));
        _mm512_mask_mov_epi32(low, upper, high)
    };
    let entry = look_up(&table.entries);
    let reciprocal = _mm512_castsi512_ps(look_up(&table.reciprocals));
    let frequency = _mm512_and_si512(entry, _mm512_set1_epi32(0xffff));
    // A state that would overflow first emits its low half.
    let full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32::<{ 32 - PROB_BITS }>(*x), frequency);
    let count = full.count_ones();
    // SAFETY: the caller vouches for sixteen words; `count` are written.
    unsafe {
        let given = _mm256_maskz_compress_epi16(full, _mm512_cvtepi32_epi16(*x));
        _mm256_mask_storeu_epi16(
            end.sub(count as usize).cast(),
            ((1u32 << count) - 1) as u16,
            given,
        );
    }
    let rest = _mm512_mask_srli_epi32::<16>(*x, full, *x);
    // Reciprocals are slightly too small, so the quotient is right or one too small.
    let quotient = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(rest), reciprocal));
    let remainder = _mm512_sub_epi32(rest, _mm512_mullo_epi32(quotient, frequency));
    let more = _mm512_cmpge_epu32_mask(remainder, frequency);
    let quotient = _mm512_mask_add_epi32(quotient, more, quotient, _mm512_set1_epi32(1));
    let remainder = _mm512_mask_sub_epi32(remainder, more, remainder, frequency);
    let number = _mm512_add_epi32(_mm512_srli_epi32::<16>(entry), remainder);
    // The mask changes nothing, but keeps the gather below within the table whatever happens.
    let number = _mm512_and_si512(number, _mm512_set1_epi32((1 << PROB_BITS) - 1));
    // SAFETY: a gather reads four bytes where a slot has two. The table has one entry more than
    // there are numbers for the last read.
    let slot = unsafe { _mm512_i32gather_epi32::<2>(number, table.slots.as_ptr().cast()) };
    let slot = _mm512_and_si512(slot, _mm512_set1_epi32(0xffff));
    *x = _mm512_or_si512(_mm512_slli_epi32::<PROB_BITS>(quotient), slot);
    count as usize
}
