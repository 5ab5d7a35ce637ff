//! AVX2: tables of 64 bytes, and what symbols stand for, looked up or computed.
#![allow(unsafe_code)]

use crate::codec::map::{Line, Map};
use std::arch::x86_64::*;

/// Indices into tables of 64 bytes.
#[derive(Clone, Copy)]
pub(super) struct Indices {
    index: __m256i,
    /// Bit 4 and bit 5 of each index, in the top bit of its byte.
    quarter: [__m256i; 2],
}

impl Indices {
    /// Of bytes below 64.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(index: __m256i) -> Self {
        Self { index, quarter: [_mm256_slli_epi16::<3>(index), _mm256_slli_epi16::<2>(index)] }
    }

    /// The entries of `table` at each of `indices`: a shuffle takes an index's low four bits, and blends the quarter that
    /// they are in.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn of<const N: usize>(indices: &[Self; N], table: &[u8; 64]) -> [__m256i; N] {
        let quarter = |q: usize| {
            // SAFETY: 16 bytes from `16 q`, of 64, with q < 4.
            let entries = unsafe { _mm_loadu_si128(table.as_ptr().add(16 * q).cast()) };
            _mm256_broadcastsi128_si256(entries)
        };
        let quarters = [quarter(0), quarter(1), quarter(2), quarter(3)];
        let mut found = [_mm256_setzero_si256(); N];
        for (found, i) in found.iter_mut().zip(indices) {
            let [a, b, c, d] = quarters.map(|q| _mm256_shuffle_epi8(q, i.index));
            let [odd, upper] = i.quarter;
            let halves = [_mm256_blendv_epi8(a, b, odd), _mm256_blendv_epi8(c, d, odd)];
            *found = _mm256_blendv_epi8(halves[0], halves[1], upper);
        }
        found
    }
}

/// What symbols stand for.
pub(super) trait Meaning: Copy {
    /// Of symbols below 64.
    fn of(self, symbols: __m256i, at: Indices) -> [__m256i; 2];
}

/// Looked up.
impl Meaning for &Map {
    #[inline(always)]
    fn of(self, _: __m256i, at: Indices) -> [__m256i; 2] {
        // SAFETY: there are `Indices` only where there is AVX2.
        unsafe {
            let ([low], [high]) =
                (Indices::of(&[at], &self.bytes[0]), Indices::of(&[at], &self.bytes[1]));
            [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)]
        }
    }
}

/// Computed.
#[derive(Clone, Copy)]
pub(super) struct OnLine {
    first: __m256i,
    step: __m256i,
    /// Of symbols from 16 on.
    gap: __m256i,
    /// How much less it is for those before.
    less: __m256i,
}

impl OnLine {
    #[target_feature(enable = "avx2")]
    pub(super) fn new(line: &Line) -> Self {
        let gap = line.gaps[15];
        let less = line.gaps.map(|g| g.wrapping_sub(gap));
        // SAFETY: 16 bytes.
        let less = unsafe { _mm_loadu_si128(less.as_ptr().cast()) };
        Self {
            first: _mm256_set1_epi16(line.first.cast_signed()),
            step: _mm256_set1_epi16(line.step.cast_signed()),
            gap: _mm256_set1_epi8(gap.cast_signed()),
            less: _mm256_broadcastsi128_si256(less),
        }
    }
}

impl Meaning for OnLine {
    #[inline(always)]
    fn of(self, symbols: __m256i, _: Indices) -> [__m256i; 2] {
        // SAFETY: there are `Indices` only where there is AVX2.
        unsafe {
            let zero = _mm256_setzero_si256();
            // A shuffle gives zero where the top bit is set.
            let less =
                _mm256_shuffle_epi8(self.less, _mm256_add_epi8(symbols, _mm256_set1_epi8(0x70)));
            let n = _mm256_add_epi8(_mm256_add_epi8(symbols, self.gap), less);
            [_mm256_unpacklo_epi8(n, zero), _mm256_unpackhi_epi8(n, zero)]
                .map(|n| _mm256_add_epi16(_mm256_mullo_epi16(n, self.step), self.first))
        }
    }
}
