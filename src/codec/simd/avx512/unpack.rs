//! Unpacking of planes with AVX-512.
#![allow(unsafe_code)]

use super::load;
use crate::codec::simd::prefetch;
use std::arch::x86_64::*;

/// [`Kernel::unpack`](crate::codec::decode::Kernel::unpack) of values of `BITS` bits.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn unpack_group<const BITS: u8>(packed: &[u8], shift: u8, keep: bool, out: &mut [u8; 64]) {
    let out: *mut __m512i = out.as_mut_ptr().cast();
    let mut values = _mm512_setzero_si512();
    let mut rest = packed;
    let mut at = u32::from(shift);
    // Copies of each part fill the vector. Each copy is shifted to its values, masked, and shifted
    // to the position of the part.
    if let (8, Some(part)) = (BITS & 8, rest.first_chunk::<64>()) {
        values = load(part);
    }
    if let (4, Some((part, behind))) = (BITS & 4, rest.split_first_chunk::<32>()) {
        // SAFETY: the part is 32 bytes.
        let copies = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(part.as_ptr().cast()) });
        values = field::<0x0f>(copies, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4), at);
        (rest, at) = (behind, at + 4);
    }
    if let (2, Some((part, behind))) = (BITS & 2, rest.split_first_chunk::<16>()) {
        // SAFETY: the part is 16 bytes.
        let copies = _mm512_broadcast_i64x2(unsafe { _mm_loadu_si128(part.as_ptr().cast()) });
        let field = field::<0x03>(copies, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6), at);
        values = _mm512_or_si512(values, field);
        (rest, at) = (behind, at + 2);
    }
    if let (1, Some(part)) = (BITS & 1, rest.first_chunk::<8>()) {
        let copies = _mm512_set1_epi64(i64::from_le_bytes(*part));
        let field = field::<0x01>(copies, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), at);
        values = _mm512_or_si512(values, field);
    }
    // SAFETY: `out` is 64 bytes.
    unsafe {
        if keep {
            values = _mm512_or_si512(values, _mm512_loadu_si512(out));
        }
        _mm512_storeu_si512(out, values);
    }
}

/// `copies`, each shifted right by its element of `down`, masked, and then shifted left by `up`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn field<const MASK: i8>(copies: __m512i, down: __m512i, up: u32) -> __m512i {
    let field = _mm512_and_si512(_mm512_srlv_epi64(copies, down), _mm512_set1_epi8(MASK));
    _mm512_sll_epi64(field, _mm_cvtsi32_si128(up as i32))
}
