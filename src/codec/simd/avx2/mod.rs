//! The AVX2 kernel.
#![allow(unsafe_code)]

mod classes;
mod lookup;
mod refill;
mod rounds;
mod spread;
mod unpack;
mod values;

use crate::codec::decode::{RoundTables, Rounds, Stream};
use values::ComputedValues;

pub(super) use spread::spread;
pub(super) use unpack::unpack;

/// Decodes rounds while there are enough words whatever they decode to; returns how many.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn decode_rounds(
    stream: &mut Stream<'_>,
    tables: &mut RoundTables<'_>,
    out: &mut Rounds<'_>,
) -> usize {
    match tables.map.linear {
        _ if tables.model.classes() > 1 => classes::decode_class_rounds(stream, tables, out),
        Some(linear) => rounds::decode_rounds(stream, tables, ComputedValues::new(&linear), out),
        None => {
            let map = tables.map;
            rounds::decode_rounds(stream, tables, map, out)
        }
    }
}
