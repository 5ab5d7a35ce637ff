//! Unpacking of planes with NEON.
#![allow(unsafe_code)]

use std::{arch::aarch64::*, array::from_fn};

/// [`Kernel::unpack`](crate::codec::decode::Kernel::unpack) of values of `BITS` bits.
#[target_feature(enable = "neon")]
pub(in crate::codec::simd) fn unpack<const BITS: u8>(
    packed: &[u8],
    shift: u8,
    keep: bool,
    bytes: &mut [u8],
) {
    for (packed, bytes) in packed.chunks_exact(8 * usize::from(BITS)).zip(bytes.as_chunks_mut().0) {
        unpack_group::<BITS>(packed, shift, keep, bytes);
    }
}

/// Unpacks one group.
#[inline]
#[target_feature(enable = "neon")]
fn unpack_group<const BITS: u8>(packed: &[u8], shift: u8, keep: bool, out: &mut [u8; 64]) {
    let mut values = [vdupq_n_u8(0); 4];
    let mut rest = packed;
    let mut at = shift.cast_signed();
    // SAFETY: parts of 64, 32, 16 and 8 bytes; `out` is 64.
    unsafe {
        if keep {
            values = from_fn(|i| vld1q_u8(out.as_ptr().add(16 * i)));
        }
        if let (8, Some(part)) = (BITS & 8, rest.first_chunk::<64>()) {
            values = from_fn(|i| vorrq_u8(values[i], vld1q_u8(part.as_ptr().add(16 * i))));
        }
        if let (4, Some((part, behind))) = (BITS & 4, rest.split_first_chunk::<32>()) {
            let part: [_; 2] = from_fn(|i| vld1q_u8(part.as_ptr().add(16 * i)));
            values = from_fn(|i| {
                let down = vdupq_n_s8(if i < 2 { 0 } else { -4 });
                vorrq_u8(values[i], field::<0x0f>(part[i % 2], down, at))
            });
            (rest, at) = (behind, at + 4);
        }
        if let (2, Some((part, behind))) = (BITS & 2, rest.split_first_chunk::<16>()) {
            let part = vld1q_u8(part.as_ptr());
            values =
                from_fn(|i| vorrq_u8(values[i], field::<0x03>(part, vdupq_n_s8(-2 * i as i8), at)));
            (rest, at) = (behind, at + 2);
        }
        if let (1, Some(part)) = (BITS & 1, rest.first_chunk::<8>()) {
            let part = vld1_u8(part.as_ptr());
            let copies = vcombine_u8(part, part);
            values = from_fn(|i| {
                let down = [0, -1].map(|d| vdup_n_s8(d - 2 * i as i8));
                vorrq_u8(values[i], field::<0x01>(copies, vcombine_s8(down[0], down[1]), at))
            });
        }
        for (i, v) in values.into_iter().enumerate() {
            vst1q_u8(out.as_mut_ptr().add(16 * i), v);
        }
    }
}

/// The bytes of `copies`, each shifted right by its element of `-down`, masked, and then shifted
/// left by `up`.
#[inline]
#[target_feature(enable = "neon")]
fn field<const MASK: u8>(copies: uint8x16_t, down: int8x16_t, up: i8) -> uint8x16_t {
    vshlq_u8(vandq_u8(vshlq_u8(copies, down), vdupq_n_u8(MASK)), vdupq_n_s8(up))
}
