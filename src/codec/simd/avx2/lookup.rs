//! Lookup in tables of 64 bytes: four shuffles of 16 bytes each.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// Indices into tables of 64 bytes.
#[derive(Clone, Copy)]
pub(super) struct Indices {
    index: __m256i,
    /// Bit 4 and bit 5 of each index, moved to the top bit of its byte.
    quarter: [__m256i; 2],
}

impl Indices {
    /// The indices in the bytes of `index`, each below 64.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(index: __m256i) -> Self {
        Self { index, quarter: [_mm256_slli_epi16::<3>(index), _mm256_slli_epi16::<2>(index)] }
    }

    /// The entries of `table` at each of the `indices`. A shuffle of each quarter of the table uses
    /// the low four bits of an index, and blends select the quarter.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn of<const N: usize>(indices: &[Self; N], table: &[u8; 64]) -> [__m256i; N] {
        let quarter = |q: usize| {
            // SAFETY: q < 4, so these 16 bytes are within the 64.
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
