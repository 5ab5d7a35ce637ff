//! The words that lanes take when their states fall below the lower bound.
#![allow(unsafe_code)]

use crate::codec::{LANES, simd::take::TAKE};
use std::arch::x86_64::*;

/// Bytes of words that a round may read: a vector for every eight lanes, which starts behind the
/// words that the lanes before have taken.
pub(super) const REACH: usize = 2 * LANES;

/// The words that the lanes in `mask` take, moved to their lanes.
///
/// # Safety
/// 16 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn take(mask: u8, words: *const u8) -> __m128i {
    // SAFETY: an entry is 16 bytes. The caller vouches for the words.
    unsafe {
        let order = _mm_loadu_si128(TAKE[usize::from(mask)].as_ptr().cast());
        _mm_shuffle_epi8(_mm_loadu_si128(words.cast()), order)
    }
}

/// The words that 16 lanes take, moved to their lanes, and a pointer behind these words. `masks`
/// are those of eight lanes each.
///
/// # Safety
/// 16 bytes must be readable at `words`, and also behind the words of the first eight lanes.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn take_pair(masks: [u8; 2], words: *const u8) -> (__m256i, *const u8) {
    let [first, second] = masks;
    // SAFETY: an entry is 16 bytes. The caller vouches for the words.
    unsafe {
        let behind = words.add(2 * first.count_ones() as usize);
        let pair = |a: *const u8, b: *const u8| {
            let a = _mm256_castsi128_si256(_mm_loadu_si128(a.cast()));
            _mm256_inserti128_si256::<1>(a, _mm_loadu_si128(b.cast()))
        };
        let order = pair(TAKE[usize::from(first)].as_ptr(), TAKE[usize::from(second)].as_ptr());
        let taken = _mm256_shuffle_epi8(pair(words, behind), order);
        (taken, behind.add(2 * second.count_ones() as usize))
    }
}
