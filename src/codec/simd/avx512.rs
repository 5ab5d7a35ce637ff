//! AVX-512: sixteen lanes a vector, tables read with gathers, two vectors of each of the two streams in flight.
#![allow(unsafe_code)]

use crate::codec::decode::{Kernel, ScalarKernel, Streams, decode_planes};
use crate::codec::model::{Slots, TOTAL};
use crate::codec::{ChunkDecoder, Coding, LANES, Model, PROB_BITS, ROUND, STATE_LOW};
use crate::error::Result;
use std::arch::x86_64::*;

/// Vectors of sixteen lanes in a stream.
const VECTORS: usize = 2;
/// Bytes of words that one round of a stream may read past its position: 32 words, and a last vector's load.
const REACH: usize = 2 * LANES + 32;

/// Proof that this machine has AVX-512 as of Skylake's servers and Zen 4.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("popcnt");
        present.then_some(Self(()))
    }
}

impl ChunkDecoder for Avx512 {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn decode(&self, coding: Coding, model: Option<&Model>, payload: &[u8], out: &mut [u8]) -> Result<()> {
        if crate::codec::decode_simple(coding, payload, out)? {
            return Ok(());
        }
        // SAFETY: an `Avx512` exists only where the features were detected.
        unsafe { decode(*self, model, payload, out) }
    }
}

/// The shared pipeline, compiled with AVX-512 for the sake of its unpacking and merging loops.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
fn decode(kernel: Avx512, model: Option<&Model>, payload: &[u8], out: &mut [u8]) -> Result<()> {
    decode_planes(kernel, model, payload, out)
}

impl Kernel for Avx512 {
    #[inline(always)]
    fn symbols(self, streams: &mut Streams<'_>, slots: &Slots, out: &mut [u8]) -> Result<()> {
        // SAFETY: an `Avx512` exists only where the features were detected.
        let done = unsafe { rounds(streams, slots, out) };
        ScalarKernel.symbols(streams, slots, &mut out[done..])
    }
}

/// Decode whole rounds while both streams hold enough words for any outcome; returns how many symbols.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
fn rounds(streams: &mut Streams<'_>, slots: &Slots, out: &mut [u8]) -> usize {
    let mut states = [[_mm512_setzero_si512(); VECTORS]; 2];
    for (i, s) in states.as_flattened_mut().iter_mut().enumerate() {
        // SAFETY: sixteen states from `16 * i`, of 64, with i < 4.
        *s = unsafe { _mm512_loadu_si512(streams.states.as_ptr().add(16 * i).cast()) };
    }
    let mut at = [0usize; 2];
    let mut done = 0;
    for round in out.chunks_exact_mut(ROUND) {
        if (0..2).any(|s| streams.words[s].len() - at[s] < REACH) {
            break;
        }
        let mut symbols = [[_mm_setzero_si128(); VECTORS]; 2];
        for v in 0..VECTORS {
            for s in 0..2 {
                // SAFETY: at most 32 words are taken in a round, and REACH bytes are there.
                unsafe {
                    let words = streams.words[s].as_ptr().add(at[s]);
                    at[s] += 2 * step(&mut states[s][v], &mut symbols[s][v], slots, words);
                }
            }
        }
        for (sixteen, symbols) in round.chunks_exact_mut(16).zip(symbols.as_flattened()) {
            // SAFETY: `sixteen` is 16 bytes.
            unsafe { _mm_storeu_si128(sixteen.as_mut_ptr().cast(), *symbols) };
        }
        done += ROUND;
    }
    for (i, s) in states.as_flattened().iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(streams.states.as_mut_ptr().add(16 * i).cast(), *s) };
    }
    for (words, at) in streams.words.iter_mut().zip(at) {
        *words = &words[at..];
    }
    done
}

/// One symbol for each of sixteen lanes; returns how many words were taken.
///
/// # Safety
/// 32 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
unsafe fn step(state: &mut __m512i, symbols: &mut __m128i, slots: &Slots, words: *const u8) -> usize {
    let x = *state;
    let slot = _mm512_and_si512(x, _mm512_set1_epi32(TOTAL as i32 - 1));
    // SAFETY: slots are below TOTAL, the length of the table.
    let entry = unsafe { _mm512_i32gather_epi32::<4>(slot, slots.as_ptr().cast()) };
    *symbols = _mm512_cvtepi32_epi8(entry);
    let frequency = _mm512_srli_epi32::<20>(entry);
    let bias = _mm512_and_si512(_mm512_srli_epi32::<8>(entry), _mm512_set1_epi32(0xfff));
    let high = _mm512_srli_epi32::<{ PROB_BITS }>(x);
    let x = _mm512_add_epi32(_mm512_mullo_epi32(frequency, high), bias);
    let short = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(STATE_LOW as i32));
    // SAFETY: the caller vouches for 32 bytes.
    let next = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(words.cast()) });
    // Lanes that take a word get the next ones in their order, the others nothing.
    let taken = _mm512_maskz_expand_epi32(short, next);
    *state = _mm512_or_si512(_mm512_mask_slli_epi32::<16>(x, short, x), taken);
    short.count_ones() as usize
}
