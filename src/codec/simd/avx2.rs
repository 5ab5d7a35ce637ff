//! AVX2: eight lanes a vector, tables read with gathers, four vectors of each of the two streams in flight.
#![allow(unsafe_code)]

use crate::{
    codec::{
        ChunkDecoder, Coding, Model, PROB_BITS, ROUND,
        decode::{Kernel, ScalarKernel, Streams, decode_planes},
        model::{DecodeTable, Slots, TOTAL},
    },
    error::Result,
};
use std::arch::x86_64::*;

/// Vectors of eight lanes in a stream.
const VECTORS: usize = 4;
/// Bytes of words that one round of a stream may read past its position: 32 words, and a last vector's load.
const REACH: usize = 2 * 32 + 16;

/// Proof that this machine has AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")).then_some(Self(()))
    }
}

impl ChunkDecoder for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn decode(&self, coding: Coding, model: Option<&Model>, payload: &[u8], out: &mut [u8]) -> Result<()> {
        if crate::codec::decode_simple(coding, payload, out)? {
            return Ok(());
        }
        // SAFETY: an `Avx2` exists only where the features were detected.
        unsafe { decode(*self, model, payload, out) }
    }
}

/// The shared pipeline, compiled with AVX2 for the sake of its unpacking and merging loops.
#[target_feature(enable = "avx2,popcnt")]
fn decode(kernel: Avx2, model: Option<&Model>, payload: &[u8], out: &mut [u8]) -> Result<()> {
    decode_planes(kernel, model, payload, out)
}

impl Kernel for Avx2 {
    #[inline(always)]
    fn symbols(self, streams: &mut Streams<'_>, table: &DecodeTable, out: &mut [u8]) -> Result<()> {
        // SAFETY: an `Avx2` exists only where the features were detected.
        let done = unsafe { rounds(streams, &table.slots, out) };
        ScalarKernel.symbols(streams, table, &mut out[done..])
    }
}

/// For each mask of lanes that take a word: which of the next eight words each lane takes.
static TAKE: [[u32; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut word) = (0, 0);
        while lane < 8 {
            table[mask][lane] = word;
            word += (mask >> lane) as u32 & 1;
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// Decode whole rounds while both streams hold enough words for any outcome; returns how many symbols.
#[target_feature(enable = "avx2,popcnt")]
fn rounds(streams: &mut Streams<'_>, slots: &Slots, out: &mut [u8]) -> usize {
    let mut states = [[_mm256_setzero_si256(); VECTORS]; 2];
    for (i, s) in states.as_flattened_mut().iter_mut().enumerate() {
        // SAFETY: eight states from `8 * i`, of 64, with i < 8.
        *s = unsafe { _mm256_loadu_si256(streams.states.as_ptr().add(8 * i).cast()) };
    }
    let mut at = [0usize; 2];
    let mut done = 0;
    for round in out.chunks_exact_mut(ROUND) {
        if (0..2).any(|s| streams.words[s].len() - at[s] < REACH) {
            break;
        }
        let mut symbols = [[_mm256_setzero_si256(); VECTORS]; 2];
        for v in 0..VECTORS {
            for s in 0..2 {
                // SAFETY: at most 32 words are taken in a round, and REACH bytes are there.
                unsafe {
                    let words = streams.words[s].as_ptr().add(at[s]);
                    at[s] += 2 * step(&mut states[s][v], &mut symbols[s][v], slots, words);
                }
            }
        }
        for (s, half) in round.chunks_exact_mut(32).enumerate() {
            let [a, b, c, d] = symbols[s];
            // Packing works within 128-bit halves: 0 4 1 5 2 6 3 7 in units of four symbols.
            let packed = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
            let packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            // SAFETY: `half` is 32 bytes.
            unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), packed) };
        }
        done += ROUND;
    }
    for (i, s) in states.as_flattened().iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(streams.states.as_mut_ptr().add(8 * i).cast(), *s) };
    }
    for (words, at) in streams.words.iter_mut().zip(at) {
        *words = &words[at..];
    }
    done
}

/// One symbol for each of eight lanes; returns how many words were taken.
///
/// # Safety
/// 16 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn step(state: &mut __m256i, symbols: &mut __m256i, slots: &Slots, words: *const u8) -> usize {
    let x = *state;
    let slot = _mm256_and_si256(x, _mm256_set1_epi32(TOTAL as i32 - 1));
    // SAFETY: slots are below TOTAL, the length of the table.
    let entry = unsafe { _mm256_i32gather_epi32::<4>(slots.as_ptr().cast(), slot) };
    *symbols = _mm256_and_si256(entry, _mm256_set1_epi32(0xff));
    let frequency = _mm256_srli_epi32::<20>(entry);
    let bias = _mm256_and_si256(_mm256_srli_epi32::<8>(entry), _mm256_set1_epi32(0xfff));
    let high = _mm256_srli_epi32::<{ PROB_BITS as i32 }>(x);
    let x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, high), bias);
    let low = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(x), _mm256_setzero_si256());
    let mask = _mm256_movemask_ps(_mm256_castsi256_ps(low)) as usize;
    // SAFETY: the caller vouches for 16 bytes.
    let next = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(words.cast()) });
    // SAFETY: a mask of eight bits is below 256; an entry is 32 bytes.
    let order = unsafe { _mm256_loadu_si256(TAKE.as_ptr().add(mask).cast()) };
    let refilled = _mm256_or_si256(_mm256_slli_epi32::<16>(x), _mm256_permutevar8x32_epi32(next, order));
    *state = _mm256_blendv_epi8(x, refilled, low);
    mask.count_ones() as usize
}
