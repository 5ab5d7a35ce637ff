//! AVX-512 with VBMI and VBMI2, as of Ice Lake and Zen 4: a table stays in six registers, and 64 lanes look their
//! symbols up at once, as bytes. Two such halves of a round hide each other's latency.
//!
//! A state is kept as its low and its high 16 bits, 32 lanes a vector: renormalisation then moves whole elements, and
//! the product of a frequency and a state's upper bits is that of two 16-bit numbers.
#![allow(unsafe_code)]

use super::prefetch;
use crate::codec::decode::{Kernel, Rounds, ScalarKernel, Stream, Tables, decode_planes};
use crate::codec::model::DecodeTable;
use crate::codec::{ChunkDecoder, Coding, EntropyModel, LANES, PROB_BITS};
use crate::error::Result;
use std::arch::x86_64::*;

/// Bytes of words that a round may look at: a vector for each 32 lanes, each behind the words that the ones before it
/// took.
const REACH: usize = 2 * LANES;

/// Proof that this machine has what the kernel needs.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("popcnt");
        present.then_some(Self(()))
    }
}

impl ChunkDecoder for Avx512 {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        if crate::codec::decode_simple(coding, payload, out)? {
            return Ok(());
        }
        // SAFETY: an `Avx512` exists only where the features were detected.
        unsafe { decode(*self, model, payload, out) }
    }
}

/// The shared pipeline, compiled with AVX-512 for the sake of its unpacking and merging loops.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,popcnt")]
fn decode(
    kernel: Avx512,
    model: Option<&EntropyModel>,
    payload: &[u8],
    out: &mut [u8],
) -> Result<()> {
    decode_planes(kernel, model, payload, out)
}

impl Kernel for Avx512 {
    #[inline(always)]
    fn symbols(
        self,
        stream: &mut Stream<'_>,
        mut tables: Tables<'_>,
        mut out: Rounds<'_>,
    ) -> Result<()> {
        // SAFETY: an `Avx512` exists only where the features were detected.
        let done = unsafe {
            if tables.model.classes() == 1 {
                rounds::<false>(stream, &mut tables, &mut out)
            } else {
                rounds::<true>(stream, &mut tables, &mut out)
            }
        };
        ScalarKernel.symbols(stream, tables, out.after(done))
    }

    #[inline(always)]
    fn unpack(self, packed: &[u8], bits: u8, shift: u8, keep: bool, bytes: &mut [u8]) {
        // SAFETY: as above.
        unsafe {
            match bits {
                1 => unpack::<1>(packed, shift, keep, bytes),
                2 => unpack::<2>(packed, shift, keep, bytes),
                3 => unpack::<3>(packed, shift, keep, bytes),
                4 => unpack::<4>(packed, shift, keep, bytes),
                5 => unpack::<5>(packed, shift, keep, bytes),
                6 => unpack::<6>(packed, shift, keep, bytes),
                7 => unpack::<7>(packed, shift, keep, bytes),
                _ => unpack::<8>(packed, shift, keep, bytes),
            }
        }
    }
}

/// The states of 64 lanes, as vectors of their low and of their high 16 bits.
#[derive(Clone, Copy)]
struct States {
    low: [__m512i; 2],
    high: [__m512i; 2],
}

impl States {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(states: &[u32]) -> Self {
        let part = |first: usize, shift: u32| {
            let words: [u16; 32] = std::array::from_fn(|i| (states[first + i] >> shift) as u16);
            // SAFETY: the array is 64 bytes.
            unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
        };
        Self { low: [part(0, 0), part(32, 0)], high: [part(0, 16), part(32, 16)] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store(self, states: &mut [u32]) {
        for (v, states) in states.chunks_mut(32).enumerate() {
            let (mut low, mut high) = ([0u16; 32], [0u16; 32]);
            // SAFETY: both arrays are 64 bytes.
            unsafe {
                _mm512_storeu_si512(low.as_mut_ptr().cast(), self.low[v]);
                _mm512_storeu_si512(high.as_mut_ptr().cast(), self.high[v]);
            }
            for (state, (low, high)) in states.iter_mut().zip(low.into_iter().zip(high)) {
                *state = u32::from(high) << 16 | u32::from(low);
            }
        }
    }

    /// Decode a symbol for each of the lanes, whose `classes` follow each other if there are several `tables`. Returns
    /// how many `words` were taken.
    ///
    /// # Safety
    /// 128 bytes must be readable at `words`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,popcnt")]
    unsafe fn next<const CLASSES: bool>(
        &mut self,
        tables: &[DecodeTable],
        classes: &[u8],
        map: [__m512i; 2],
        words: *const u8,
        (out, tops): (&mut [u8; 64], &mut [u16; 64]),
    ) -> usize {
        let low_byte = _mm512_set1_epi16(0xff);
        // A slot's low byte is its place in its bucket, the six bits above it the bucket. Packing works within 128-bit
        // parts: eight bytes of one vector, eight of the other.
        let places =
            [_mm512_and_si512(self.low[0], low_byte), _mm512_and_si512(self.low[1], low_byte)];
        let place = _mm512_packus_epi16(places[0], places[1]);
        let bucket = _mm512_packus_epi16(
            _mm512_srli_epi16::<8>(self.low[0]),
            _mm512_srli_epi16::<8>(self.low[1]),
        );
        let found = if CLASSES {
            let class = bytes(classes.first_chunk().unwrap_or(&[0; 64]));
            let packed = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), class);
            look_up_classes(tables, packed, bucket, place)
        } else {
            look_up(&tables[0], bucket, place)
        };
        let symbols = _mm512_and_si512(found.symbols, _mm512_set1_epi8(63));
        let in_order = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), symbols);
        let [low, high] = map.map(|m| _mm512_permutexvar_epi8(symbols, m));
        // SAFETY: 64 bytes of symbols, and twice as many of what they stand for.
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), in_order);
            let tops: *mut __m512i = tops.as_mut_ptr().cast();
            _mm512_storeu_si512(tops, _mm512_unpacklo_epi8(low, high));
            _mm512_storeu_si512(tops.add(1), _mm512_unpackhi_epi8(low, high));
        }
        let [scaled, shift] = [found.scaled, found.shift]
            .map(|[l, h]| [_mm512_unpacklo_epi8(l, h), _mm512_unpackhi_epi8(l, h)]);
        // SAFETY: the caller vouches for `words`, and at most 32 are taken for the first vector.
        unsafe {
            let number = _mm512_add_epi16(places[0], shift[0]);
            let first = advance(&mut self.low[0], &mut self.high[0], scaled[0], number, words);
            let number = _mm512_add_epi16(places[1], shift[1]);
            first
                + advance(
                    &mut self.low[1],
                    &mut self.high[1],
                    scaled[1],
                    number,
                    words.add(2 * first),
                )
        }
    }
}

/// What 64 lanes look up: bytes, in the order of packed words.
struct Found {
    symbols: __m512i,
    /// Low and high bytes of what is added to the place in the bucket.
    shift: [__m512i; 2],
    /// Low and high bytes of the scaled frequency.
    scaled: [__m512i; 2],
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(table: &[u8; 64]) -> __m512i {
    // SAFETY: the table is 64 bytes.
    unsafe { _mm512_loadu_si512(table.as_ptr().cast()) }
}

/// Look up lanes that share a table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up(table: &DecodeTable, bucket: __m512i, place: __m512i) -> Found {
    let other = _mm512_cmpge_epu8_mask(place, _mm512_permutexvar_epi8(bucket, bytes(&table.own)));
    // Indices count modulo 64: a bucket's own symbol may have the slot's upper bits on top.
    let symbols = _mm512_mask_permutexvar_epi8(bucket, other, bucket, bytes(&table.other));
    Found {
        symbols,
        shift: [0, 1].map(|i| _mm512_maskz_permutexvar_epi8(other, bucket, bytes(&table.shift[i]))),
        scaled: [0, 1].map(|i| _mm512_permutexvar_epi8(symbols, bytes(&table.scaled[i]))),
    }
}

/// Look up lanes of several classes, each with its table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_classes(
    tables: &[DecodeTable],
    class: __m512i,
    bucket: __m512i,
    place: __m512i,
) -> Found {
    let zero = _mm512_setzero_si512();
    let mut own = zero;
    let mut found = Found { symbols: zero, shift: [zero; 2], scaled: [zero; 2] };
    for (c, table) in tables.iter().enumerate() {
        let here = _mm512_cmpeq_epi8_mask(class, _mm512_set1_epi8(c as i8));
        own = _mm512_mask_permutexvar_epi8(own, here, bucket, bytes(&table.own));
        found.symbols =
            _mm512_mask_permutexvar_epi8(found.symbols, here, bucket, bytes(&table.other));
        for i in 0..2 {
            found.shift[i] =
                _mm512_mask_permutexvar_epi8(found.shift[i], here, bucket, bytes(&table.shift[i]));
        }
    }
    let other = _mm512_cmpge_epu8_mask(place, own);
    found.symbols = _mm512_mask_mov_epi8(bucket, other, found.symbols);
    found.shift = found.shift.map(|s| _mm512_maskz_mov_epi8(other, s));
    for (c, table) in tables.iter().enumerate() {
        let here = _mm512_cmpeq_epi8_mask(class, _mm512_set1_epi8(c as i8));
        for i in 0..2 {
            found.scaled[i] = _mm512_mask_permutexvar_epi8(
                found.scaled[i],
                here,
                found.symbols,
                bytes(&table.scaled[i]),
            );
        }
    }
    found
}

/// Decode rounds while there are words for any outcome; returns how many.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,popcnt")]
fn rounds<const CLASSES: bool>(
    stream: &mut Stream<'_>,
    tables: &mut Tables<'_>,
    out: &mut Rounds<'_>,
) -> usize {
    let map = [bytes(&tables.map.bytes[0]), bytes(&tables.map.bytes[1])];
    // Apart, so that they stay in registers.
    let (mut first, mut second) =
        (States::load(&stream.states[..64]), States::load(&stream.states[64..]));
    let mut done = 0;
    let parts = out.parts();
    for ((symbols, tops), part) in out.symbols.iter_mut().zip(&mut *out.tops).zip(parts) {
        let ([s0, s1], [t0, t1]) = (symbols.as_chunks_mut::<64>().0, tops.as_chunks_mut::<64>().0)
        else {
            break;
        };
        if stream.words.len() < REACH {
            break;
        }
        let (of_round, classes, next) = tables.next();
        *tables = next;
        prefetch::to_read(stream.words);
        prefetch::to_write(part);
        let words = stream.words.as_ptr();
        // SAFETY: at most 64 words are taken for the first half, so that both are within REACH.
        let taken = unsafe {
            let taken = first.next::<CLASSES>(of_round, classes, map, words, (s0, t0));
            let classes = classes.get(64..).unwrap_or_default();
            taken + second.next::<CLASSES>(of_round, classes, map, words.add(2 * taken), (s1, t1))
        };
        stream.words = &stream.words[2 * taken..];
        done += 1;
    }
    first.store(&mut stream.states[..64]);
    second.store(&mut stream.states[64..]);
    done
}

/// Take 32 states from one symbol to the next; returns how many of `words` they took.
///
/// # Safety
/// 64 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
unsafe fn advance(
    low: &mut __m512i,
    high: &mut __m512i,
    scaled: __m512i,
    number: __m512i,
    words: *const u8,
) -> usize {
    // freq * (x >> 14) + number, where x >> 14 is four times the high half and the two top bits of the low one.
    let top = _mm512_and_si512(*low, _mm512_set1_epi16(-1 << PROB_BITS));
    let number = _mm512_add_epi16(number, _mm512_mulhi_epu16(scaled, top));
    let product = _mm512_mullo_epi16(scaled, *high);
    let sum = _mm512_add_epi16(product, number);
    // The carry out of the sum's top bit: a mask would take longer to come by.
    let carry = _mm512_srli_epi16::<15>(_mm512_ternarylogic_epi32::<0xd4>(product, number, sum));
    let upper = _mm512_add_epi16(_mm512_mulhi_epu16(scaled, *high), carry);
    let short = _mm512_testn_epi16_mask(upper, upper);
    *high = _mm512_mask_mov_epi16(upper, short, sum);
    // SAFETY: the caller vouches for 64 bytes.
    *low = _mm512_mask_expand_epi16(sum, short, unsafe { _mm512_loadu_si512(words.cast()) });
    short.count_ones() as usize
}

/// [`Kernel::unpack`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn unpack<const BITS: u8>(packed: &[u8], shift: u8, keep: bool, bytes: &mut [u8]) {
    for (packed, bytes) in packed.chunks_exact(8 * usize::from(BITS)).zip(bytes.as_chunks_mut().0) {
        prefetch::to_read(packed);
        unpack_group::<BITS>(packed, shift, keep, bytes);
    }
}

/// [`Kernel::unpack`] for one group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn unpack_group<const BITS: u8>(packed: &[u8], shift: u8, keep: bool, out: &mut [u8; 64]) {
    let out: *mut __m512i = out.as_mut_ptr().cast();
    let mut values = _mm512_setzero_si512();
    let mut rest = packed;
    let mut at = u32::from(shift);
    // Each part is spread over the vector, each copy shifted to its values, and masked: it may end up `at` bits up.
    if let (8, Some(part)) = (BITS & 8, rest.first_chunk::<64>()) {
        values = bytes(part);
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

/// `copies`, each shifted down by its part of `down`, masked, and `up` bits up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn field<const MASK: i8>(copies: __m512i, down: __m512i, up: u32) -> __m512i {
    let field = _mm512_and_si512(_mm512_srlv_epi64(copies, down), _mm512_set1_epi8(MASK));
    _mm512_sll_epi64(field, _mm_cvtsi32_si128(up as i32))
}
