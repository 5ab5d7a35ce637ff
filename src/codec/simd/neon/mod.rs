//! The NEON kernel, for 64-bit ARM.
#![allow(unsafe_code)]

mod rounds;
mod spread;
mod unpack;

use crate::codec::decode::{RoundTables, Rounds, Stream};

pub(super) use spread::spread;

pub(super) use unpack::unpack;

/// Decodes rounds while there are enough words whatever they decode to; returns how many.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn decode_rounds(
    stream: &mut Stream<'_>,
    tables: &mut RoundTables<'_>,
    out: &mut Rounds<'_>,
) -> usize {
    if tables.model.classes() == 1 {
        rounds::decode_rounds::<false>(stream, tables, out)
    } else {
        rounds::decode_rounds::<true>(stream, tables, out)
    }
}
