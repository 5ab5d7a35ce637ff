//! The words that lanes take when their states fall below the lower bound.
#![allow(unsafe_code)]

use crate::codec::LANES;
use std::arch::x86_64::*;

/// Bytes of words that a round may read: a vector for every eight lanes, which starts behind the
/// words that the lanes before have taken.
pub(super) const REACH: usize = 2 * LANES;

/// By mask of the lanes, out of eight, that take a word: the shuffle that moves the next words to
/// these lanes and zeroes the others.
static TAKE: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut byte) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][2 * lane] = byte;
                table[mask][2 * lane + 1] = byte + 1;
                byte += 2;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// The words that the lanes in `mask` take, moved to their lanes, and a pointer behind these words.
///
/// # Safety
/// 16 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn take(mask: u8, words: *const u8) -> (__m128i, *const u8) {
    // SAFETY: an entry is 16 bytes. The caller vouches for 16 bytes of words, and the pointer moves
    // over eight words at most.
    unsafe {
        let order = _mm_loadu_si128(TAKE[usize::from(mask)].as_ptr().cast());
        let taken = _mm_shuffle_epi8(_mm_loadu_si128(words.cast()), order);
        (taken, words.add(2 * mask.count_ones() as usize))
    }
}
