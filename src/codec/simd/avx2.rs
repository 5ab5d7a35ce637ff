//! AVX2: a table of 64 bytes is four shuffles of 16, and 32 lanes look their symbols up at once, as bytes. Lanes of
//! several classes gather what they need, eight at a time.
//!
//! States are kept as their low and their high 16 bits, as in the AVX-512 kernel.
#![allow(unsafe_code)]

use super::avx2_tables::{Indices, Meaning, OnLine};
use super::prefetch;
use crate::codec::decode::{Kernel, Rounds, ScalarKernel, Stream, Tables, decode_planes};
use crate::codec::model::DecodeTable;
use crate::codec::{ChunkDecoder, Coding, EntropyModel, LANES, PROB_BITS};
use crate::error::Result;
use std::arch::x86_64::*;

/// Bytes of words that a round may look at: a vector for each eight lanes, each behind the words that the ones before
/// it took.
const REACH: usize = 2 * LANES;
/// Vectors of 16 lanes.
const VECTORS: usize = LANES / 16;

/// Proof that this machine has AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")).then_some(Self(()))
    }
}

impl ChunkDecoder for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
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
        // SAFETY: an `Avx2` exists only where the features were detected.
        unsafe { decode(*self, model, payload, out) }
    }
}

/// The shared pipeline, compiled with AVX2 for the sake of its unpacking and merging loops.
#[target_feature(enable = "avx2,popcnt")]
fn decode(
    kernel: Avx2,
    model: Option<&EntropyModel>,
    payload: &[u8],
    out: &mut [u8],
) -> Result<()> {
    decode_planes(kernel, model, payload, out)
}

impl Kernel for Avx2 {
    #[inline(always)]
    fn symbols(
        self,
        stream: &mut Stream<'_>,
        mut tables: Tables<'_>,
        mut out: Rounds<'_>,
    ) -> Result<()> {
        // SAFETY: an `Avx2` exists only where the features were detected.
        let done = unsafe {
            match tables.map.line {
                _ if tables.model.classes() > 1 => class_rounds(stream, &mut tables, &mut out),
                Some(line) => rounds(stream, &mut tables, OnLine::new(&line), &mut out),
                None => {
                    let map = tables.map;
                    rounds(stream, &mut tables, map, &mut out)
                }
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

/// For each mask of eight lanes that take a word: which bytes of the next eight words each lane takes; those of other
/// lanes are zero.
static TAKE: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut byte) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][2 * lane] = byte;
                table[mask][2 * lane + 1] = byte + 1;
                byte += 2;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// Low or high halves of the states, 16 a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn load(states: &[u32; LANES], shift: u32) -> [__m256i; VECTORS] {
    let mut vectors = [_mm256_setzero_si256(); VECTORS];
    for (v, states) in vectors.iter_mut().zip(states.as_chunks::<16>().0) {
        let words: [u16; 16] = std::array::from_fn(|i| (states[i] >> shift) as u16);
        // SAFETY: the array is 32 bytes.
        *v = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
    }
    vectors
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(low: &[__m256i; VECTORS], high: &[__m256i; VECTORS], states: &mut [u32; LANES]) {
    for ((states, &l), &h) in states.as_chunks_mut::<16>().0.iter_mut().zip(low).zip(high) {
        let (mut low, mut high) = ([0u16; 16], [0u16; 16]);
        // SAFETY: both arrays are 32 bytes.
        unsafe {
            _mm256_storeu_si256(low.as_mut_ptr().cast(), l);
            _mm256_storeu_si256(high.as_mut_ptr().cast(), h);
        }
        for (state, (low, high)) in states.iter_mut().zip(low.into_iter().zip(high)) {
            *state = u32::from(high) << 16 | u32::from(low);
        }
    }
}

/// Decode rounds whose lanes share a table, while there are words for any outcome; returns how many.
#[target_feature(enable = "avx2,popcnt")]
fn rounds(
    stream: &mut Stream<'_>,
    tables: &mut Tables<'_>,
    map: impl Meaning,
    out: &mut Rounds<'_>,
) -> usize {
    let (mut low, mut high) = (load(&stream.states, 0), load(&stream.states, 16));
    let mut done = 0;
    let parts = out.parts();
    for ((symbols, tops), part) in out.symbols.iter_mut().zip(&mut *out.tops).zip(parts) {
        if stream.words.len() < REACH {
            break;
        }
        let (of_round, _, next) = tables.next();
        *tables = next;
        prefetch::to_read(stream.words);
        prefetch::to_write(part);
        let mut taken = 0;
        let out = symbols.as_chunks_mut().0.iter_mut().zip(tops.as_chunks_mut().0);
        let states = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0);
        for ((low, high), out) in states.zip(out) {
            // SAFETY: at most 64 words are taken for every 64 lanes, so that all are within REACH.
            taken += unsafe {
                next_symbols(
                    low,
                    high,
                    &of_round[0],
                    map,
                    stream.words.as_ptr().add(2 * taken),
                    out,
                )
            };
        }
        stream.words = &stream.words[2 * taken..];
        done += 1;
    }
    store(&low, &high, &mut stream.states);
    done
}

/// Decode a symbol for each of 64 lanes; returns how many words were taken.
///
/// Twice 32 lanes take each step together: one after the other, the second would come too late to fill the time in which
/// the first waits.
///
/// # Safety
/// 128 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn next_symbols(
    low: &mut [__m256i; 4],
    high: &mut [__m256i; 4],
    table: &DecodeTable,
    map: impl Meaning,
    words: *const u8,
    (out, tops): (&mut [u8; 64], &mut [u16; 64]),
) -> usize {
    let zero = _mm256_setzero_si256();
    // A slot's low byte is its place in its bucket, the six bits above it the bucket. Packing works within 128-bit
    // halves: eight bytes of one vector, eight of the other.
    let places = low.map(|l| _mm256_and_si256(l, _mm256_set1_epi16(0xff)));
    let upper = low.map(|l| _mm256_srli_epi16::<8>(l));
    let place =
        [_mm256_packus_epi16(places[0], places[1]), _mm256_packus_epi16(places[2], places[3])];
    let bucket = [_mm256_packus_epi16(upper[0], upper[1]), _mm256_packus_epi16(upper[2], upper[3])]
        .map(|b| _mm256_and_si256(b, _mm256_set1_epi8(63)));
    let at = bucket.map(|b| Indices::new(b));
    let own = Indices::of(&at, &table.own);
    let other: [_; 2] =
        std::array::from_fn(|i| _mm256_cmpeq_epi8(_mm256_max_epu8(place[i], own[i]), place[i]));
    let symbols = Indices::of(&at, &table.other);
    let symbols: [_; 2] =
        std::array::from_fn(|i| _mm256_blendv_epi8(bucket[i], symbols[i], other[i]));
    let shift = [Indices::of(&at, &table.shift[0]), Indices::of(&at, &table.shift[1])];
    let at = symbols.map(|s| Indices::new(s));
    let scaled = [Indices::of(&at, &table.scaled[0]), Indices::of(&at, &table.scaled[1])];
    let (outs, all_tops) = (out.as_chunks_mut().0, tops.as_chunks_mut().0);
    for ((out, tops), (&symbols, at)) in outs.iter_mut().zip(all_tops).zip(symbols.iter().zip(at)) {
        write(symbols, at, map, out, tops);
    }
    let mut short = [zero; 4];
    let mut kept = [zero; 4];
    for v in 0..4 {
        let i = v / 2;
        let unpack = |halves: [[__m256i; 2]; 2]| {
            let [l, h] = halves.map(|half| half[i]);
            if v % 2 == 0 { _mm256_unpacklo_epi8(l, h) } else { _mm256_unpackhi_epi8(l, h) }
        };
        let scaled = unpack(scaled);
        let shift = unpack(
            shift.map(|s| [_mm256_and_si256(s[0], other[0]), _mm256_and_si256(s[1], other[1])]),
        );
        // freq * (x >> 14) + number, where x >> 14 is four times the high half and the two top bits of the low one.
        let top = _mm256_and_si256(low[v], _mm256_set1_epi16(-1 << PROB_BITS));
        let number = _mm256_add_epi16(places[v], shift);
        let number = _mm256_add_epi16(number, _mm256_mulhi_epu16(scaled, top));
        let sum = _mm256_add_epi16(_mm256_mullo_epi16(scaled, high[v]), number);
        // All ones where the sum did not overflow.
        let whole = _mm256_cmpeq_epi16(_mm256_max_epu16(sum, number), sum);
        let upper = _mm256_add_epi16(_mm256_mulhi_epu16(scaled, high[v]), _mm256_set1_epi16(1));
        let upper = _mm256_add_epi16(upper, whole);
        short[v] = _mm256_cmpeq_epi16(upper, zero);
        high[v] = _mm256_blendv_epi8(upper, sum, short[v]);
        kept[v] = _mm256_andnot_si256(short[v], sum);
    }
    let mut next = words;
    for (v, low) in low.iter_mut().enumerate() {
        // Two bits a lane.
        let mask = _mm256_movemask_epi8(_mm256_packs_epi16(short[v], zero)) as u32;
        // SAFETY: the caller vouches for 128 bytes, and eight lanes take at most eight words of 16 bytes.
        unsafe {
            let (first, behind) = take(mask as u8, next);
            let (second, behind) = take((mask >> 16) as u8, behind);
            next = behind;
            *low = _mm256_or_si256(kept[v], _mm256_set_m128i(second, first));
        }
    }
    // SAFETY: both point to the same words.
    (unsafe { next.offset_from(words) }) as usize / 2
}

/// Write symbols, packed within 128-bit halves, and what they stand for.
#[inline]
#[target_feature(enable = "avx2")]
fn write(
    symbols: __m256i,
    at: Indices,
    map: impl Meaning,
    out: &mut [u8; 32],
    tops: &mut [u16; 32],
) {
    let [low, high] = map.of(symbols, at);
    // SAFETY: 32 bytes of symbols, and twice as many of what they stand for.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0xd8>(symbols));
        let tops: *mut __m256i = tops.as_mut_ptr().cast();
        _mm256_storeu_si256(tops, low);
        _mm256_storeu_si256(tops.add(1), high);
    }
}

/// The words that eight lanes take, in their places, and what follows them.
///
/// # Safety
/// 16 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn take(mask: u8, words: *const u8) -> (__m128i, *const u8) {
    // SAFETY: an entry is 16 bytes; the caller vouches for the words, of which no more are passed than were read.
    unsafe {
        let order = _mm_loadu_si128(TAKE[usize::from(mask)].as_ptr().cast());
        let taken = _mm_shuffle_epi8(_mm_loadu_si128(words.cast()), order);
        (taken, words.add(2 * mask.count_ones() as usize))
    }
}

/// [`rounds`] where lanes are of several classes.
#[target_feature(enable = "avx2,popcnt")]
fn class_rounds(stream: &mut Stream<'_>, tables: &mut Tables<'_>, out: &mut Rounds<'_>) -> usize {
    let map = tables.map;
    let mut done = 0;
    let parts = out.parts();
    for ((symbols, tops), part) in out.symbols.iter_mut().zip(&mut *out.tops).zip(parts) {
        if stream.words.len() < REACH {
            break;
        }
        let (of_round, classes, next) = tables.next();
        *tables = next;
        prefetch::to_read(stream.words);
        prefetch::to_write(part);
        let mut taken = 0;
        let lanes = stream.states.as_chunks_mut::<8>().0.iter_mut();
        for ((states, classes), out) in
            lanes.zip(classes.as_chunks().0).zip(symbols.as_chunks_mut().0)
        {
            // SAFETY: at most eight words are taken for every eight lanes; classes were checked to have tables.
            taken += unsafe {
                gather(states, of_round, classes, stream.words.as_ptr().add(2 * taken), out)
            };
        }
        stream.words = &stream.words[2 * taken..];
        for (symbols, tops) in symbols.as_chunks_mut().0.iter_mut().zip(tops.as_chunks_mut().0) {
            // SAFETY: the array is 32 bytes.
            let packed = unsafe { _mm256_loadu_si256(symbols.as_ptr().cast()) };
            let packed = _mm256_permute4x64_epi64::<0xd8>(packed);
            write(packed, Indices::new(packed), map, symbols, tops);
        }
        done += 1;
    }
    done
}

/// Decode a symbol for each of eight lanes, each with the table of its class; returns how many words were taken.
///
/// # Safety
/// 16 bytes must be readable at `words`; each class must be below the number of `tables`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn gather(
    states: &mut [u32; 8],
    tables: &[DecodeTable],
    classes: &[u8; 8],
    words: *const u8,
    out: &mut [u8; 8],
) -> usize {
    const SIDES: usize = std::mem::offset_of!(DecodeTable, sides);
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
    // Two sides of eight bytes a bucket; the second, if the place is not one of the bucket's own.
    let at = _mm256_add_epi32(table, _mm256_slli_epi32::<4>(bucket));
    // SAFETY: sides are eight bytes, and there are 128 in each table.
    let (low, high) = unsafe {
        let sides = base.add(SIDES);
        let own = _mm256_srli_epi32::<24>(_mm256_i32gather_epi32::<1>(sides.add(4).cast(), at));
        let other = _mm256_andnot_si256(_mm256_cmpgt_epi32(own, place), _mm256_set1_epi32(8));
        let at = _mm256_add_epi32(at, other);
        (
            _mm256_i32gather_epi32::<1>(sides.cast(), at),
            _mm256_i32gather_epi32::<1>(sides.add(4).cast(), at),
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
        let (taken, _) = take(mask, words);
        let refilled = _mm256_or_si256(_mm256_slli_epi32::<16>(x), _mm256_cvtepu16_epi32(taken));
        _mm256_storeu_si256(states.as_mut_ptr().cast(), _mm256_blendv_epi8(x, refilled, short));
    }
    mask.count_ones() as usize
}

/// [`Kernel::unpack`].
#[target_feature(enable = "avx2")]
fn unpack<const BITS: u8>(packed: &[u8], shift: u8, keep: bool, bytes: &mut [u8]) {
    for (packed, bytes) in packed.chunks_exact(8 * usize::from(BITS)).zip(bytes.as_chunks_mut().0) {
        prefetch::to_read(packed);
        unpack_group::<BITS>(packed, shift, keep, bytes);
    }
}

/// [`Kernel::unpack`] for one group.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack_group<const BITS: u8>(packed: &[u8], shift: u8, keep: bool, out: &mut [u8; 64]) {
    let out: *mut __m256i = out.as_mut_ptr().cast();
    let zero = _mm256_setzero_si256();
    let mut values = [zero; 2];
    let mut rest = packed;
    let mut at = i32::from(shift);
    // SAFETY: parts of 64, 32, 16 and 8 bytes; `out` is 64.
    unsafe {
        if let (8, Some(part)) = (BITS & 8, rest.first_chunk::<64>()) {
            values = [0, 1].map(|i| _mm256_loadu_si256(part.as_ptr().add(32 * i).cast()));
        }
        if let (4, Some((part, behind))) = (BITS & 4, rest.split_first_chunk::<32>()) {
            let part = _mm256_loadu_si256(part.as_ptr().cast());
            values = [field::<0x0f>(part, at), field::<0x0f>(_mm256_srli_epi64::<4>(part), at)];
            (rest, at) = (behind, at + 4);
        }
        if let (2, Some((part, behind))) = (BITS & 2, rest.split_first_chunk::<16>()) {
            let copies = _mm256_broadcastsi128_si256(_mm_loadu_si128(part.as_ptr().cast()));
            let down = [_mm256_setr_epi64x(0, 0, 2, 2), _mm256_setr_epi64x(4, 4, 6, 6)];
            for (v, down) in values.iter_mut().zip(down) {
                *v = _mm256_or_si256(*v, field::<0x03>(_mm256_srlv_epi64(copies, down), at));
            }
            (rest, at) = (behind, at + 2);
        }
        if let (1, Some(part)) = (BITS & 1, rest.first_chunk::<8>()) {
            let copies = _mm256_set1_epi64x(i64::from_le_bytes(*part));
            let down = [_mm256_setr_epi64x(0, 1, 2, 3), _mm256_setr_epi64x(4, 5, 6, 7)];
            for (v, down) in values.iter_mut().zip(down) {
                *v = _mm256_or_si256(*v, field::<0x01>(_mm256_srlv_epi64(copies, down), at));
            }
        }
        for (i, v) in values.into_iter().enumerate() {
            let kept = if keep { _mm256_loadu_si256(out.add(i)) } else { zero };
            _mm256_storeu_si256(out.add(i), _mm256_or_si256(v, kept));
        }
    }
}

/// `copies`, masked, and `up` bits up.
#[inline]
#[target_feature(enable = "avx2")]
fn field<const MASK: i8>(copies: __m256i, up: i32) -> __m256i {
    _mm256_sll_epi64(_mm256_and_si256(copies, _mm256_set1_epi8(MASK)), _mm_cvtsi32_si128(up))
}
