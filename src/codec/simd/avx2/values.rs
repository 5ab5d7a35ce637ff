//! Symbol values, looked up or computed.
#![allow(unsafe_code)]

use super::lookup::Indices;
use crate::codec::model::{LinearValues, ValueMap};
use std::arch::x86_64::*;

/// How symbols are turned into symbol values.
pub(super) trait SymbolValues: Copy {
    /// The left-aligned symbol values of `symbols`, which `at` holds as indices. Those of the lower
    /// and of the upper eight symbols of each 128-bit half are in a vector each.
    fn of(self, symbols: __m256i, at: Indices) -> [__m256i; 2];
}

/// Looked up.
impl SymbolValues for &ValueMap {
    #[inline(always)]
    fn of(self, _: __m256i, at: Indices) -> [__m256i; 2] {
        // SAFETY: `Indices` exist only where AVX2 does.
        unsafe {
            let ([low], [high]) = (
                Indices::of(&[at], &self.differences[0]),
                Indices::of(&[at], &self.differences[1]),
            );
            [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)]
        }
    }
}

/// Computed, which takes fewer instructions. See [`LinearValues`].
#[derive(Clone, Copy)]
pub(super) struct ComputedValues {
    first: __m256i,
    step: __m256i,
    /// The gap of the symbols from 15.
    gap: __m256i,
    /// What to add to it, modulo 256, for the first 16 symbols.
    correction: __m256i,
}

impl ComputedValues {
    #[target_feature(enable = "avx2")]
    pub(super) fn new(linear: &LinearValues) -> Self {
        let gap = linear.gaps[15];
        let correction = linear.gaps.map(|g| g.wrapping_sub(gap));
        // SAFETY: the array is 16 bytes.
        let correction = unsafe { _mm_loadu_si128(correction.as_ptr().cast()) };
        Self {
            first: _mm256_set1_epi16(linear.first.cast_signed()),
            step: _mm256_set1_epi16(linear.step.cast_signed()),
            gap: _mm256_set1_epi8(gap.cast_signed()),
            correction: _mm256_broadcastsi128_si256(correction),
        }
    }
}

impl SymbolValues for ComputedValues {
    #[inline(always)]
    fn of(self, symbols: __m256i, _: Indices) -> [__m256i; 2] {
        // SAFETY: `Indices` exist only where AVX2 does.
        unsafe {
            let zero = _mm256_setzero_si256();
            // Adding 0x70 sets the top bit of symbols from 16; the shuffle gives zero for these.
            let index = _mm256_add_epi8(symbols, _mm256_set1_epi8(0x70));
            let correction = _mm256_shuffle_epi8(self.correction, index);
            let n = _mm256_add_epi8(_mm256_add_epi8(symbols, self.gap), correction);
            [_mm256_unpacklo_epi8(n, zero), _mm256_unpackhi_epi8(n, zero)]
                .map(|n| _mm256_add_epi16(_mm256_mullo_epi16(n, self.step), self.first))
        }
    }
}

/// Writes symbols, which are packed within 128-bit halves, and their symbol values.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn write(
    symbols: __m256i,
    at: Indices,
    map: impl SymbolValues,
    out: &mut [u8; 32],
    values: &mut [u16; 32],
) {
    let [low, high] = map.of(symbols, at);
    // SAFETY: `out` is 32 bytes and `values` 64.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0xd8>(symbols));
        let values: *mut __m256i = values.as_mut_ptr().cast();
        _mm256_storeu_si256(values, low);
        _mm256_storeu_si256(values.add(1), high);
    }
}
