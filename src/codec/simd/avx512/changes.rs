//! The classes of elements by those of the base, and adding differences to these, with AVX-512.
#![allow(unsafe_code)]

use super::load;
use crate::codec::{decode::Changes, model::ALPHABET};
use std::arch::x86_64::*;

/// [`Kernel::classes16`](crate::codec::decode::Kernel::classes16).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::codec::simd) fn classes16(
    base: &[u8; 128],
    threshold: u16,
    classes: &mut [u8; 64],
) -> u64 {
    let threshold = _mm512_set1_epi16(threshold.cast_signed());
    let mut second = 0;
    for (i, base) in base.as_chunks().0.iter().enumerate() {
        let magnitude = _mm512_and_si512(load(base), _mm512_set1_epi16(i16::MAX));
        second |= u64::from(_mm512_cmplt_epu16_mask(magnitude, threshold)) << (32 * i);
    }
    write(second, classes);
    second
}

/// [`Kernel::classes32`](crate::codec::decode::Kernel::classes32).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::codec::simd) fn classes32(
    base: &[u8; 256],
    threshold: u32,
    classes: &mut [u8; 64],
) -> u64 {
    let threshold = _mm512_set1_epi32(threshold.cast_signed());
    let mut second = 0;
    for (i, base) in base.as_chunks().0.iter().enumerate() {
        let magnitude = _mm512_and_si512(load(base), _mm512_set1_epi32(i32::MAX));
        second |= u64::from(_mm512_cmplt_epu32_mask(magnitude, threshold)) << (16 * i);
    }
    write(second, classes);
    second
}

/// Writes 1 for each of the elements whose bits are set, and 0 for the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn write(second: u64, classes: &mut [u8; 64]) {
    store(_mm512_maskz_set1_epi8(second, 1), classes);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(vector: __m512i, bytes: &mut [u8; 64]) {
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) };
}

/// [`Kernel::change16`](crate::codec::decode::Kernel::change16).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::codec::simd) fn change16<const BYTES: usize>(
    out: &mut [u8; 128],
    changes: &Changes<'_, u16, BYTES>,
) {
    // SAFETY: 64 differences are two vectors.
    let tables = changes.cuts.map(|cut| unsafe { vectors::<u16, 2>(&cut.differences) });
    // SAFETY: the array is 32 bytes.
    let widened = |bytes: &[u8; 32]| unsafe {
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.as_ptr().cast()))
    };
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let at = widened(&changes.symbols.as_chunks().0[i]);
        let [first, second] = tables.map(|[a, b]| _mm512_permutex2var_epi16(a, at, b));
        let in_second = (changes.second >> (32 * i)) as u32;
        let mut difference = _mm512_mask_mov_epi16(first, in_second, second);
        for (byte, raw) in changes.raw.iter().enumerate().take(2) {
            let raw = widened(&raw.as_chunks().0[i]);
            let raw = _mm512_sll_epi16(raw, _mm_cvtsi32_si128(8 * byte as i32));
            difference = _mm512_or_si512(difference, raw);
        }
        store(_mm512_add_epi16(load(out), difference), out);
    }
}

/// [`Kernel::change32`](crate::codec::decode::Kernel::change32).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::codec::simd) fn change32<const BYTES: usize>(
    out: &mut [u8; 256],
    changes: &Changes<'_, u32, BYTES>,
) {
    // SAFETY: 64 differences are four vectors.
    let tables = changes.cuts.map(|cut| unsafe { vectors::<u32, 4>(&cut.differences) });
    // SAFETY: the array is 16 bytes.
    let widened =
        |bytes: &[u8; 16]| unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast())) };
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let at = widened(&changes.symbols.as_chunks().0[i]);
        let upper = _mm512_test_epi32_mask(at, _mm512_set1_epi32(32));
        let [first, second] = tables.map(|[a, b, c, d]| {
            let low = _mm512_permutex2var_epi32(a, at, b);
            _mm512_mask_mov_epi32(low, upper, _mm512_permutex2var_epi32(c, at, d))
        });
        let in_second = (changes.second >> (16 * i)) as u16;
        let mut difference = _mm512_mask_mov_epi32(first, in_second, second);
        for (byte, raw) in changes.raw.iter().enumerate().take(4) {
            let raw = widened(&raw.as_chunks().0[i]);
            let raw = _mm512_sll_epi32(raw, _mm_cvtsi32_si128(8 * byte as i32));
            difference = _mm512_or_si512(difference, raw);
        }
        store(_mm512_add_epi32(load(out), difference), out);
    }
}

/// `N` vectors of elements.
///
/// # Safety
/// The elements must be as many bytes as the vectors.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn vectors<T, const N: usize>(elements: &[T; ALPHABET]) -> [__m512i; N] {
    // SAFETY: the caller vouches for the bytes.
    std::array::from_fn(|i| unsafe {
        _mm512_loadu_si512(elements.as_ptr().cast::<u8>().add(64 * i).cast())
    })
}
