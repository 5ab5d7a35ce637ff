//! Decoding of rounds whose lanes have tables of different classes: eight lanes at a time gather
//! what they need.
#![allow(unsafe_code)]

use super::{
    lookup::Indices,
    refill::{REACH, take},
    values::write,
};
use crate::codec::{
    PROB_BITS,
    decode::{RoundTables, Rounds, Stream},
    model::DecodeTable,
    simd::prefetch,
};
use std::arch::x86_64::*;

/// Decodes rounds while there are enough words whatever they decode to; returns how many.
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn decode_class_rounds(
    stream: &mut Stream<'_>,
    tables: &mut RoundTables<'_>,
    out: &mut Rounds<'_>,
) -> usize {
    let map = tables.map;
    let mut done = 0;
    let elements = out.elements_by_round();
    for ((symbols, values), elements) in out.symbols.iter_mut().zip(&mut *out.values).zip(elements)
    {
        if stream.words.len() < REACH {
            break;
        }
        let (of_round, classes, next) = tables.next();
        *tables = next;
        prefetch::to_read(stream.words);
        prefetch::to_write(elements);
        let mut taken = 0;
        let lanes = stream.states.as_chunks_mut::<8>().0.iter_mut();
        for ((states, classes), out) in
            lanes.zip(classes.as_chunks().0).zip(symbols.as_chunks_mut().0)
        {
            // SAFETY: every eight lanes take at most eight words, so all are within REACH; the
            // model has tables for all of its classes.
            taken += unsafe {
                gather(states, of_round, classes, stream.words.as_ptr().add(2 * taken), out)
            };
        }
        stream.words = &stream.words[2 * taken..];
        for (symbols, values) in symbols.as_chunks_mut().0.iter_mut().zip(values.as_chunks_mut().0)
        {
            // SAFETY: the array is 32 bytes.
            let packed = unsafe { _mm256_loadu_si256(symbols.as_ptr().cast()) };
            let packed = _mm256_permute4x64_epi64::<0xd8>(packed);
            write(packed, Indices::new(packed), map, symbols, values);
        }
        done += 1;
    }
    done
}

/// Decodes a symbol for each of eight lanes with the table of its class. Returns how many words the
/// lanes took.
///
/// # Safety
/// 16 bytes must be readable at `words`, and each class must be below the number of `tables`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn gather(
    states: &mut [u32; 8],
    tables: &[DecodeTable],
    classes: &[u8; 8],
    words: *const u8,
    out: &mut [u8; 8],
) -> usize {
    const ENTRIES: usize = std::mem::offset_of!(DecodeTable, entries);
    let base: *const u8 = tables.as_ptr().cast();
    // SAFETY: the arrays are 8 and 32 bytes.
    let (class, x) = unsafe {
        (
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(classes.as_ptr().cast())),
            _mm256_loadu_si256(states.as_ptr().cast()),
        )
    };
    let table = _mm256_mullo_epi32(class, _mm256_set1_epi32(size_of::<DecodeTable>() as i32));
    let place = _mm256_and_si256(x, _mm256_set1_epi32(0xff));
    let bucket = _mm256_and_si256(_mm256_srli_epi32::<8>(x), _mm256_set1_epi32(63));
    // A bucket has two entries of eight bytes. The second is for places that are not the bucket's
    // own.
    let at = _mm256_add_epi32(table, _mm256_slli_epi32::<4>(bucket));
    // SAFETY: an entry is eight bytes, and each table has 128 of them.
    let (low, high) = unsafe {
        let entries = base.add(ENTRIES);
        let own = _mm256_srli_epi32::<24>(_mm256_i32gather_epi32::<1>(entries.add(4).cast(), at));
        let other = _mm256_andnot_si256(_mm256_cmpgt_epi32(own, place), _mm256_set1_epi32(8));
        let at = _mm256_add_epi32(at, other);
        (
            _mm256_i32gather_epi32::<1>(entries.cast(), at),
            _mm256_i32gather_epi32::<1>(entries.add(4).cast(), at),
        )
    };
    let frequency = _mm256_srli_epi32::<16>(low);
    let shift = _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(low));
    let product = _mm256_mullo_epi32(frequency, _mm256_srli_epi32::<{ PROB_BITS as i32 }>(x));
    let x = _mm256_add_epi32(product, _mm256_add_epi32(place, shift));
    let symbols = _mm256_and_si256(_mm256_srli_epi32::<16>(high), _mm256_set1_epi32(0xff));
    let symbols = _mm256_packus_epi16(_mm256_packus_epi32(symbols, symbols), symbols);
    // SAFETY: two times four of the eight bytes of `out`.
    unsafe {
        let out: *mut i32 = out.as_mut_ptr().cast();
        out.write_unaligned(_mm256_extract_epi32::<0>(symbols));
        out.add(1).write_unaligned(_mm256_extract_epi32::<4>(symbols));
    }
    let short = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(x), _mm256_setzero_si256());
    let mask = _mm256_movemask_ps(_mm256_castsi256_ps(short)) as u8;
    // SAFETY: the caller vouches for the words; `states` is 32 bytes.
    unsafe {
        let taken = take(mask, words);
        let refilled = _mm256_or_si256(_mm256_slli_epi32::<16>(x), _mm256_cvtepu16_epi32(taken));
        _mm256_storeu_si256(states.as_mut_ptr().cast(), _mm256_blendv_epi8(x, refilled, short));
    }
    mask.count_ones() as usize
}
