//! Unpacking of planes with AVX2.
#![allow(unsafe_code)]

use crate::codec::simd::prefetch;
use std::arch::x86_64::*;

/// [`Kernel::unpack`](crate::codec::decode::Kernel::unpack) of values of `BITS` bits.
#[target_feature(enable = "avx2")]
pub(in crate::codec::simd) fn unpack<const BITS: u8>(
    packed: &[u8],
    shift: u8,
    keep: bool,
    bytes: &mut [u8],
) {
    for (packed, bytes) in packed.chunks_exact(8 * usize::from(BITS)).zip(bytes.as_chunks_mut().0) {
        prefetch::to_read(packed);
        unpack_group::<BITS>(packed, shift, keep, bytes);
    }
}

/// Unpacks one group.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack_group<const BITS: u8>(packed: &[u8], shift: u8, keep: bool, out: &mut [u8; 64]) {
    let out: *mut __m256i = out.as_mut_ptr().cast();
    let zero = _mm256_setzero_si256();
    let mut values = [zero; 2];
    let mut rest = packed;
    let mut at = i32::from(shift);
    // SAFETY: parts of 64, 32, 16 and 8 bytes; `out` is 64.
    unsafe {
        if let (8, Some(part)) = (BITS & 8, rest.first_chunk::<64>()) {
            values = [0, 1].map(|i| _mm256_loadu_si256(part.as_ptr().add(32 * i).cast()));
        }
        if let (4, Some((part, behind))) = (BITS & 4, rest.split_first_chunk::<32>()) {
            let part = _mm256_loadu_si256(part.as_ptr().cast());
            values = [field::<0x0f>(part, at), field::<0x0f>(_mm256_srli_epi64::<4>(part), at)];
            (rest, at) = (behind, at + 4);
        }
        if let (2, Some((part, behind))) = (BITS & 2, rest.split_first_chunk::<16>()) {
            let copies = _mm256_broadcastsi128_si256(_mm_loadu_si128(part.as_ptr().cast()));
            let down = [_mm256_setr_epi64x(0, 0, 2, 2), _mm256_setr_epi64x(4, 4, 6, 6)];
            for (v, down) in values.iter_mut().zip(down) {
                *v = _mm256_or_si256(*v, field::<0x03>(_mm256_srlv_epi64(copies, down), at));
            }
            (rest, at) = (behind, at + 2);
        }
        if let (1, Some(part)) = (BITS & 1, rest.first_chunk::<8>()) {
            let copies = _mm256_set1_epi64x(i64::from_le_bytes(*part));
            let down = [_mm256_setr_epi64x(0, 1, 2, 3), _mm256_setr_epi64x(4, 5, 6, 7)];
            for (v, down) in values.iter_mut().zip(down) {
                *v = _mm256_or_si256(*v, field::<0x01>(_mm256_srlv_epi64(copies, down), at));
            }
        }
        for (i, v) in values.into_iter().enumerate() {
            let kept = if keep { _mm256_loadu_si256(out.add(i)) } else { zero };
            _mm256_storeu_si256(out.add(i), _mm256_or_si256(v, kept));
        }
    }
}

/// `copies`, masked and then shifted left by `up`.
#[inline]
#[target_feature(enable = "avx2")]
fn field<const MASK: i8>(copies: __m256i, up: i32) -> __m256i {
    _mm256_sll_epi64(_mm256_and_si256(copies, _mm256_set1_epi8(MASK)), _mm_cvtsi32_si128(up))
}
