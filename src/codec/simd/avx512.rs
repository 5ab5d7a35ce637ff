//! AVX-512: sixteen lanes a vector, two vectors of each of the two streams in flight.
//!
//! With VBMI a table of up to 128 symbols stays in registers, and all 64 lanes look their symbols up at once, as
//! bytes; else tables are read with gathers.
#![allow(unsafe_code)]

use crate::codec::decode::{Kernel, ScalarKernel, Streams, decode_planes};
use crate::codec::model::{DecodeTable, Registers, Slots, TOTAL};
use crate::codec::{ChunkDecoder, Coding, LANES, Model, PROB_BITS, ROUND, STATE_LOW};
use crate::error::Result;
use std::arch::x86_64::*;

/// Vectors of sixteen lanes in a stream.
const VECTORS: usize = 2;
/// Bytes of words that one round of a stream may read past its position: 32 words, and a last vector's load.
const REACH: usize = 2 * LANES + 32;

/// Proof that this machine has AVX-512 as of Skylake's servers, and whether it has VBMI, as of Ice Lake and Zen 4.
#[derive(Clone, Copy)]
pub(super) struct Avx512 {
    bytes: bool,
}

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("popcnt");
        present.then(|| Self { bytes: is_x86_feature_detected!("avx512vbmi") })
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
    fn symbols(self, streams: &mut Streams<'_>, table: &DecodeTable, out: &mut [u8]) -> Result<()> {
        let done = match (self.bytes, &table.registers) {
            // SAFETY: the detected features, VBMI among them.
            (true, Some(registers)) => unsafe { register_rounds(streams, registers, out) },
            // SAFETY: the detected features.
            _ => unsafe { rounds(streams, &table.slots, out) },
        };
        ScalarKernel.symbols(streams, table, &mut out[done..])
    }
}

/// Decode whole rounds while both streams hold enough words for any outcome; returns how many symbols.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
fn rounds(streams: &mut Streams<'_>, slots: &Slots, out: &mut [u8]) -> usize {
    let mut states = load(&streams.states);
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
    store(&states, &mut streams.states);
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
    // SAFETY: the caller vouches for the words.
    unsafe { refill(state, x, words) }
}

/// Give each lane of `x` that falls short a word, and make it the new state; returns how many words were taken.
///
/// # Safety
/// 32 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
unsafe fn refill(state: &mut __m512i, x: __m512i, words: *const u8) -> usize {
    let short = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(STATE_LOW as i32));
    // SAFETY: the caller vouches for 32 bytes.
    let next = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(words.cast()) });
    // Lanes that take a word get the next ones in their order, the others nothing.
    let taken = _mm512_maskz_expand_epi32(short, next);
    *state = _mm512_or_si512(_mm512_mask_slli_epi32::<16>(x, short, x), taken);
    short.count_ones() as usize
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(states: &[u32; ROUND]) -> [[__m512i; VECTORS]; 2] {
    // SAFETY: sixteen states from `16 * i`, of 64, with i < 4.
    let vector = |i: usize| unsafe { _mm512_loadu_si512(states.as_ptr().add(16 * i).cast()) };
    [[vector(0), vector(1)], [vector(2), vector(3)]]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(vectors: &[[__m512i; VECTORS]; 2], states: &mut [u32; ROUND]) {
    for (i, v) in vectors.as_flattened().iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().add(16 * i).cast(), *v) };
    }
}

/// A table of 128 bytes in two registers.
#[derive(Clone, Copy)]
struct Bytes(__m512i, __m512i);

impl Bytes {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(table: &[u8; 128]) -> Self {
        // SAFETY: 128 bytes are two vectors.
        unsafe {
            Self(_mm512_loadu_si512(table.as_ptr().cast()), _mm512_loadu_si512(table.as_ptr().add(64).cast()))
        }
    }

    /// The entries at the low seven bits of each byte of `index`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn at(self, index: __m512i) -> __m512i {
        _mm512_permutex2var_epi8(self.0, index, self.1)
    }
}

/// Indices for the two-register permutations that change the width of elements without changing their order.
struct Widths {
    /// Even 16-bit words of two registers.
    low_words: __m512i,
    /// Even bytes of two registers.
    low_bytes: __m512i,
    /// Bytes 0–31 of one register and of another, in turns.
    first_bytes: __m512i,
    /// Bytes 32–63 likewise.
    last_bytes: __m512i,
}

impl Widths {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        let words: [u16; 32] = std::array::from_fn(|i| 2 * i as u16);
        let bytes = |f: fn(u8) -> u8| -> [u8; 64] { std::array::from_fn(|i| f(i as u8)) };
        // SAFETY: each array is 64 bytes.
        let vector = |bytes: [u8; 64]| unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        Self {
            // SAFETY: the array is 64 bytes.
            low_words: unsafe { _mm512_loadu_si512(words.as_ptr().cast()) },
            low_bytes: vector(bytes(|i| 2 * i)),
            first_bytes: vector(bytes(|i| i / 2 + 64 * (i % 2))),
            last_bytes: vector(bytes(|i| 32 + i / 2 + 64 * (i % 2))),
        }
    }
}

/// [`rounds`] with the table in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,popcnt")]
fn register_rounds(streams: &mut Streams<'_>, table: &Registers, out: &mut [u8]) -> usize {
    let (own, other) = (Bytes::new(&table.own), Bytes::new(&table.other));
    let shift = [Bytes::new(&table.shift[0]), Bytes::new(&table.shift[1])];
    let freqs = [Bytes::new(&table.freqs[0]), Bytes::new(&table.freqs[1])];
    let w = Widths::new();
    let places = _mm512_set1_epi16(31);
    let [[mut a, mut b], [mut c, mut d]] = load(&streams.states);
    let mut at = [0usize; 2];
    let mut done = 0;
    for round in out.chunks_exact_mut(ROUND) {
        if (0..2).any(|s| streams.words[s].len() - at[s] < REACH) {
            break;
        }
        // A slot's low five bits are its place in its bucket, the next seven the bucket.
        let slots =
            [_mm512_permutex2var_epi16(a, w.low_words, b), _mm512_permutex2var_epi16(c, w.low_words, d)];
        let buckets = slots.map(|s| _mm512_srli_epi16::<5>(s));
        let bucket = _mm512_permutex2var_epi8(buckets[0], w.low_bytes, buckets[1]);
        let slot = _mm512_permutex2var_epi8(slots[0], w.low_bytes, slots[1]);
        let beyond = _mm512_cmpge_epu8_mask(_mm512_and_si512(slot, _mm512_set1_epi8(31)), own.at(bucket));
        let bucket = _mm512_and_si512(bucket, _mm512_set1_epi8(127));
        let symbol = _mm512_mask_mov_epi8(bucket, beyond, other.at(bucket));
        // SAFETY: a round is 64 bytes.
        unsafe { _mm512_storeu_si512(round.as_mut_ptr().cast(), symbol) };
        let [low, high] = freqs.map(|t| t.at(symbol));
        let freq = [w.first_bytes, w.last_bytes].map(|half| _mm512_permutex2var_epi8(low, half, high));
        let [low, high] = shift.map(|t| _mm512_maskz_mov_epi8(beyond, t.at(bucket)));
        let number = [
            _mm512_add_epi16(
                _mm512_permutex2var_epi8(low, w.first_bytes, high),
                _mm512_and_si512(slots[0], places),
            ),
            _mm512_add_epi16(
                _mm512_permutex2var_epi8(low, w.last_bytes, high),
                _mm512_and_si512(slots[1], places),
            ),
        ];
        let x = [
            next(a, _mm512_castsi512_si256(freq[0]), _mm512_castsi512_si256(number[0])),
            next(b, _mm512_extracti64x4_epi64::<1>(freq[0]), _mm512_extracti64x4_epi64::<1>(number[0])),
            next(c, _mm512_castsi512_si256(freq[1]), _mm512_castsi512_si256(number[1])),
            next(d, _mm512_extracti64x4_epi64::<1>(freq[1]), _mm512_extracti64x4_epi64::<1>(number[1])),
        ];
        let words = [0, 1].map(|s| streams.words[s].as_ptr());
        // SAFETY: at most 32 words are taken in a round, and REACH bytes are there.
        unsafe {
            let taken_a = 2 * refill(&mut a, x[0], words[0].add(at[0]));
            let taken_c = 2 * refill(&mut c, x[2], words[1].add(at[1]));
            let taken_b = 2 * refill(&mut b, x[1], words[0].add(at[0] + taken_a));
            let taken_d = 2 * refill(&mut d, x[3], words[1].add(at[1] + taken_c));
            at[0] += taken_a + taken_b;
            at[1] += taken_c + taken_d;
        }
        done += ROUND;
    }
    store(&[[a, b], [c, d]], &mut streams.states);
    for (words, at) in streams.words.iter_mut().zip(at) {
        *words = &words[at..];
    }
    done
}

/// The states after a symbol of these frequencies and slot numbers, before they are refilled.
#[inline]
#[target_feature(enable = "avx512f")]
fn next(x: __m512i, freq: __m256i, number: __m256i) -> __m512i {
    let product = _mm512_mullo_epi32(_mm512_cvtepu16_epi32(freq), _mm512_srli_epi32::<{ PROB_BITS }>(x));
    _mm512_add_epi32(product, _mm512_cvtepu16_epi32(number))
}
