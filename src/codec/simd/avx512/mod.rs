//! The AVX-512 kernels for decoding and encoding.
#![allow(unsafe_code)]

mod changes;
mod encode;
mod rounds;
mod spread;
mod unpack;

use crate::codec::decode::{RoundTables, Rounds, Stream};
use std::arch::x86_64::{__m512i, _mm512_loadu_si512};

pub(super) use changes::{change16, change32, classes16, classes32};
pub(super) use encode::{costs, rounds as encode_rounds};
pub(super) use spread::spread;
pub(super) use unpack::unpack;

/// Decodes rounds while there are enough words whatever they decode to; returns how many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,popcnt")]
pub(super) fn decode_rounds(
    stream: &mut Stream<'_>,
    tables: &mut RoundTables<'_>,
    out: &mut Rounds<'_>,
) -> usize {
    match (tables.model.classes(), out.want_values) {
        (1, true) => rounds::decode_rounds::<1, true>(stream, tables, out),
        (1, false) => rounds::decode_rounds::<1, false>(stream, tables, out),
        (2, false) => rounds::decode_rounds::<2, false>(stream, tables, out),
        (2, true) => rounds::decode_rounds::<2, true>(stream, tables, out),
        _ => rounds::decode_rounds::<0, true>(stream, tables, out),
    }
}

/// A vector of these bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
