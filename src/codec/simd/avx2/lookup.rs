//! Lookup in tables of 64 bytes: four shuffles of 16 bytes each.
#![allow(unsafe_code)]

use crate::codec::model::Differences;
use std::arch::x86_64::*;

/// Indices into tables of 64 bytes, less 0, 16, 32 and 48. Where the difference is negative, a
/// shuffle gives zero.
#[derive(Clone, Copy)]
pub(super) struct Indices([__m256i; 4]);

impl Indices {
    /// The indices in the bytes of `index`, each below 64.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(index: __m256i) -> Self {
        Self([0, 16, 32, 48].map(|first| _mm256_sub_epi8(index, _mm256_set1_epi8(first))))
    }

    /// The entries of a table at each of the `indices`: the XOR of those of the differences up to
    /// the quarter of the index.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn of<const N: usize>(indices: &[Self; N], table: &Differences) -> [__m256i; N] {
        let mut found = [_mm256_setzero_si256(); N];
        for q in 0..4 {
            // SAFETY: q < 4, so these 16 bytes are within the 64.
            let quarter = unsafe { _mm_loadu_si128(table.0.as_ptr().add(16 * q).cast()) };
            let quarter = _mm256_broadcastsi128_si256(quarter);
            for (found, Self(indices)) in found.iter_mut().zip(indices) {
                let part = _mm256_shuffle_epi8(quarter, indices[q]);
                *found = if q == 0 { part } else { _mm256_xor_si256(*found, part) };
            }
        }
        found
    }
}
