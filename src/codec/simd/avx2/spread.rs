//! Values of some elements to their places, eight at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// By eight bits: for each that is set, how many are set below it; otherwise a number that makes a
/// shuffle write 0.
static PLACES: [[u8; 8]; 256] = {
    let mut places = [[0x80; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let (mut i, mut next) = (0, 0);
        while i < 8 {
            if bits >> i & 1 == 1 {
                places[bits][i] = next;
                next += 1;
            }
            i += 1;
        }
        bits += 1;
    }
    places
};

/// [`Kernel::spread`](crate::codec::decode::Kernel::spread).
#[inline]
#[target_feature(enable = "avx2,popcnt")]
pub(in crate::codec::simd) fn spread(values: &[u8; 64], members: u64) -> [u8; 64] {
    let mut group = [0; 64];
    let mut next = 0;
    for (members, group) in members.to_le_bytes().into_iter().zip(group.as_chunks_mut::<8>().0) {
        // At most eight values are taken for each eight elements, so that eight are left here.
        let Some(values) = values[next..].first_chunk::<8>() else { break };
        // SAFETY: all three arrays are 8 bytes.
        unsafe {
            let values = _mm_loadl_epi64(values.as_ptr().cast());
            let places = _mm_loadl_epi64(PLACES[usize::from(members)].as_ptr().cast());
            let group: *mut __m128i = group.as_mut_ptr().cast();
            _mm_storel_epi64(group, _mm_shuffle_epi8(values, places));
        }
        next += members.count_ones() as usize;
    }
    group
}
