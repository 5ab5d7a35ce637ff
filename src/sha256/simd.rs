//! SHA-256's compression function on sixteen streams at once, one in each 32-bit lane of AVX-512
//! registers.
#![allow(unsafe_code)]

use super::{BLOCK, State};
use std::{arch::x86_64::*, array::from_fn};

/// Streams that are compressed at once.
pub(super) const LANES: usize = 16;

/// The round constants (FIPS 180-4, 4.2.2).
#[rustfmt::skip]
static K: [[u32; 16]; 4] = [[
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
], [
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
], [
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
], [
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
]];

/// Truth tables for `_mm512_ternarylogic_epi32`, indexed by the bits of the three operands.
const XOR: i32 = 0b1001_0110;
const CHOOSE: i32 = 0b1100_1010;
const MAJORITY: i32 = 0b1110_1000;

/// The compression of sixteen streams. A value exists only if the CPU has the features.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sha256x16(());

impl Sha256x16 {
    /// `None` if the CPU lacks AVX-512.
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"))
            .then_some(Self(()))
    }

    /// Advances each state over its blocks.
    ///
    /// # Panics
    /// If the slices differ in length, or if the length is not a multiple of [`BLOCK`].
    pub(super) fn compress(self, states: &mut [State; LANES], blocks: [&[u8]; LANES]) {
        let len = blocks[0].len();
        assert!(
            len.is_multiple_of(BLOCK) && blocks.iter().all(|b| b.len() == len),
            "whole blocks of one length"
        );
        // SAFETY: `new` has detected the features.
        unsafe { compress(states, blocks.map(|b| b.as_chunks().0)) }
    }
}

/// Repeats a macro for the sixteen words of a block.
#[rustfmt::skip]
macro_rules! sixteen {
    ($m:ident) => {
        $m!(0); $m!(1); $m!(2); $m!(3); $m!(4); $m!(5); $m!(6); $m!(7);
        $m!(8); $m!(9); $m!(10); $m!(11); $m!(12); $m!(13); $m!(14); $m!(15);
    };
}

/// Each stream must have the same number of blocks. Vectors are handled in loops, not in closures:
/// `from_fn` is compiled without the features, so closures passed to it are not always inlined.
#[target_feature(enable = "avx512f,avx512bw")]
fn compress(states: &mut [State; LANES], blocks: [&[[u8; BLOCK]]; LANES]) {
    let mut state = [_mm512_setzero_si512(); 8];
    for (word, state) in state.iter_mut().enumerate() {
        *state = load(&from_fn(|lane| states[lane][word]));
    }
    let count = blocks[0].len();
    for at in 0..count {
        let mut s = state;
        // Move word j of stream i to lane i of vector j: within four streams, then across the
        // fours.
        let mut four = [[state[0]; 4]; 4];
        for (four, [a, b, c, d]) in four.iter_mut().zip(blocks.as_chunks().0) {
            *four = transpose_words([words(&a[at]), words(&b[at]), words(&c[at]), words(&d[at])]);
        }
        let mut w = [state[0]; 16];
        for p in 0..4 {
            [w[p], w[p + 4], w[p + 8], w[p + 12]] =
                transpose_quarters([four[0][p], four[1][p], four[2][p], four[3][p]]);
        }
        // One round. Instead of the values, the positions of a..h in `s` rotate.
        macro_rules! round {
            ($k:expr, $i:literal) => {
                let [a, b, c, d, e, f, g, h]: [usize; 8] =
                    [0, 1, 2, 3, 4, 5, 6, 7].map(|v: usize| (v + 16 - $i) % 8);
                let sum1 = xor(
                    _mm512_ror_epi32(s[e], 6),
                    _mm512_ror_epi32(s[e], 11),
                    _mm512_ror_epi32(s[e], 25),
                );
                let choice = _mm512_ternarylogic_epi32(s[e], s[f], s[g], CHOOSE);
                let kw = add(w[$i], _mm512_set1_epi32($k[$i] as i32));
                let t1 = add(add(add(s[h], kw), choice), sum1);
                let sum0 = xor(
                    _mm512_ror_epi32(s[a], 2),
                    _mm512_ror_epi32(s[a], 13),
                    _mm512_ror_epi32(s[a], 22),
                );
                let majority = _mm512_ternarylogic_epi32(s[a], s[b], s[c], MAJORITY);
                s[d] = add(s[d], t1);
                s[h] = add(add(t1, majority), sum0);
            };
        }
        for k in &K[..3] {
            // One round, which replaces its word by that of the round sixteen later.
            macro_rules! step {
                ($i:literal) => {
                    round!(k, $i);
                    let (x, y) = (w[($i + 1) % 16], w[($i + 14) % 16]);
                    let sigma0 = xor(
                        _mm512_ror_epi32(x, 7),
                        _mm512_ror_epi32(x, 18),
                        _mm512_srli_epi32(x, 3),
                    );
                    let sigma1 = xor(
                        _mm512_ror_epi32(y, 17),
                        _mm512_ror_epi32(y, 19),
                        _mm512_srli_epi32(y, 10),
                    );
                    w[$i] = add(add(w[$i], w[($i + 9) % 16]), add(sigma0, sigma1));
                };
            }
            sixteen!(step);
        }
        macro_rules! step {
            ($i:literal) => {
                round!(K[3], $i);
            };
        }
        sixteen!(step);
        for (state, s) in state.iter_mut().zip(s) {
            *state = add(*state, s);
        }
    }
    for (word, lanes) in state.into_iter().enumerate() {
        // SAFETY: both types have 64 bytes, and any bits are valid for either.
        let lanes: [u32; LANES] = unsafe { std::mem::transmute(lanes) };
        states.iter_mut().zip(lanes).for_each(|(state, lane)| state[word] = lane);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[u32; LANES]) -> __m512i {
    // SAFETY: the array is 64 bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// The sixteen words of a block, in native byte order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words(block: &[u8; BLOCK]) -> __m512i {
    // SAFETY: as in `load`.
    let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(swap))
}

/// Within each 128 bits, word j of vector i becomes word i of vector j.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_words([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ef, gh),
        _mm512_unpackhi_epi64(ef, gh),
    ]
}

/// 128-bit part j of vector i becomes part i of vector j.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let (ab, cd) = (_mm512_shuffle_i32x4(a, b, EVEN), _mm512_shuffle_i32x4(c, d, EVEN));
    let (ef, gh) = (_mm512_shuffle_i32x4(a, b, ODD), _mm512_shuffle_i32x4(c, d, ODD));
    [
        _mm512_shuffle_i32x4(ab, cd, EVEN),
        _mm512_shuffle_i32x4(ef, gh, EVEN),
        _mm512_shuffle_i32x4(ab, cd, ODD),
        _mm512_shuffle_i32x4(ef, gh, ODD),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32(a, b, c, XOR)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}
