//! Values of some elements to their places, with AVX-512.
#![allow(unsafe_code)]

use super::load;
use std::arch::x86_64::*;

/// [`Kernel::spread`](crate::codec::decode::Kernel::spread).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
pub(in crate::codec::simd) fn spread(values: &[u8; 64], members: u64) -> [u8; 64] {
    let spread = _mm512_maskz_expand_epi8(members, load(values));
    // SAFETY: both are 64 bytes.
    unsafe { std::mem::transmute(spread) }
}
