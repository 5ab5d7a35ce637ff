//! Values of some elements to their places.
#![allow(unsafe_code)]

use crate::codec::{decode, planes::GROUP};

/// [`Kernel::spread`](crate::codec::decode::Kernel::spread).
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::codec::simd) fn spread(values: &[u8; GROUP], members: u64) -> [u8; GROUP] {
    decode::spread(values, members)
}
