//! Decoding of rounds. One instruction looks up 16 lanes, as bytes, in a table of 64 bytes. Four
//! such vectors, half a round, take each step together: a table is loaded once for them, and they
//! hide each other's latency.
//!
//! States are kept as their low and their high 16 bits, as in the AVX kernels.
#![allow(unsafe_code)]

use crate::codec::{
    LANES, PROB_BITS,
    decode::{RoundTables, Rounds, Stream},
    model::{DecodeTable, ValueMap},
    simd::take::TAKE,
};
use std::{arch::aarch64::*, array::from_fn};

/// Vectors of eight lanes.
const VECTORS: usize = LANES / 8;
/// Bytes of words that a round may read: a vector for every eight lanes, which starts behind the
/// words that the lanes before have taken.
const REACH: usize = 2 * LANES;

/// A byte for each of 64 lanes.
type Bytes = [uint8x16_t; 4];
/// Half a state for each of 64 lanes.
type Halves = [uint16x8_t; 8];

/// Decodes rounds while there are enough words whatever they decode to; returns how many. If
/// `CLASSES`, the lanes have tables of different classes.
#[target_feature(enable = "neon")]
pub(super) fn decode_rounds<const CLASSES: bool>(
    stream: &mut Stream<'_>,
    tables: &mut RoundTables<'_>,
    out: &mut Rounds<'_>,
) -> usize {
    let (mut low, mut high) = load_states(&stream.states);
    let mut done = 0;
    for (symbols, values) in out.symbols.iter_mut().zip(&mut *out.values) {
        if stream.words.len() < REACH {
            break;
        }
        let (of_round, classes, next) = tables.next();
        *tables = next;
        let words = stream.words.as_ptr();
        let mut taken = 0;
        let mut classes = classes.as_chunks().0.iter();
        let states = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0);
        let out = symbols.as_chunks_mut().0.iter_mut().zip(values.as_chunks_mut().0);
        for ((low, high), (symbols, values)) in states.zip(out) {
            let class = classes.next().unwrap_or(&[0; 64]);
            let found = look_up::<CLASSES>(of_round, class, low);
            write(&found.symbols, tables.map, symbols, values);
            // SAFETY: every 64 lanes take at most 64 words, so all are within REACH.
            taken += unsafe { advance(low, high, &found, words.add(2 * taken)) };
        }
        stream.words = &stream.words[2 * taken..];
        done += 1;
    }
    store_states(&low, &high, &mut stream.states);
    done
}

/// The low and the high halves of the states.
#[inline]
#[target_feature(enable = "neon")]
fn load_states(states: &[u32; LANES]) -> ([uint16x8_t; VECTORS], [uint16x8_t; VECTORS]) {
    // SAFETY: eight states are 32 bytes.
    let pairs: [_; VECTORS] =
        from_fn(|v| unsafe { vld2q_u16(states[8 * v..][..8].as_ptr().cast()) });
    (pairs.map(|p| p.0), pairs.map(|p| p.1))
}

#[inline]
#[target_feature(enable = "neon")]
fn store_states(
    low: &[uint16x8_t; VECTORS],
    high: &[uint16x8_t; VECTORS],
    states: &mut [u32; LANES],
) {
    for ((states, &low), &high) in states.as_chunks_mut::<8>().0.iter_mut().zip(low).zip(high) {
        // SAFETY: as above.
        unsafe { vst2q_u16(states.as_mut_ptr().cast(), uint16x8x2_t(low, high)) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 64]) -> uint8x16x4_t {
    // SAFETY: the array is 64 bytes.
    unsafe { vld1q_u8_x4(bytes.as_ptr()) }
}

/// What 64 lanes look up, as bytes.
struct Lookup {
    /// The places in their buckets.
    place: Bytes,
    symbols: Bytes,
    /// Low and high bytes of what is added to the place in the bucket.
    shift: [Bytes; 2],
    /// Low and high bytes of the scaled frequency.
    scaled: [Bytes; 2],
}

/// Looks up lanes whose states have these low halves.
#[inline]
#[target_feature(enable = "neon")]
fn look_up<const CLASSES: bool>(tables: &[DecodeTable], class: &[u8; 64], low: &Halves) -> Lookup {
    let find = |of: fn(&DecodeTable) -> &[u8; 64], at: Bytes, absent: Option<Bytes>| {
        if CLASSES {
            find_in_classes(tables.iter().map(of), class, at, absent)
        } else {
            find(of(&tables[0]), at, absent)
        }
    };
    // A slot's low byte is its place in its bucket; the six bits above are the bucket.
    let low = low.map(|l| vreinterpretq_u8_u16(l));
    let place: Bytes = from_fn(|i| vuzp1q_u8(low[2 * i], low[2 * i + 1]));
    let bucket: Bytes =
        from_fn(|i| vandq_u8(vuzp2q_u8(low[2 * i], low[2 * i + 1]), vdupq_n_u8(63)));
    let own = find(|t| &t.own, bucket, None);
    // Out of range where the slot belongs to the bucket's own symbol.
    let at = from_fn(|i| vornq_u8(bucket[i], vcgeq_u8(place[i], own[i])));
    let symbols = find(|t| &t.other, at, Some(bucket));
    Lookup {
        place,
        symbols,
        shift: [find(|t| &t.shift[0], at, None), find(|t| &t.shift[1], at, None)],
        scaled: [find(|t| &t.scaled[0], symbols, None), find(|t| &t.scaled[1], symbols, None)],
    }
}

/// The entries of a table of 64 bytes at indices. Where an index is out of range, that is `absent`,
/// or zero.
#[inline]
#[target_feature(enable = "neon")]
fn find(table: &[u8; 64], at: Bytes, absent: Option<Bytes>) -> Bytes {
    let table = load(table);
    match absent {
        None => at.map(|at| vqtbl4q_u8(table, at)),
        Some(absent) => from_fn(|i| vqtbx4q_u8(absent[i], table, at[i])),
    }
}

/// The same, with the table of each lane's class.
#[inline]
#[target_feature(enable = "neon")]
fn find_in_classes<'a>(
    tables: impl Iterator<Item = &'a [u8; 64]>,
    class: &[u8; 64],
    at: Bytes,
    absent: Option<Bytes>,
) -> Bytes {
    let uint8x16x4_t(a, b, c, d) = load(class);
    let class = [a, b, c, d];
    let mut found = absent.unwrap_or([vdupq_n_u8(0); 4]);
    for (n, table) in (0..).zip(tables) {
        // Out of range where the lane is of another class.
        let at = from_fn(|i| vornq_u8(at[i], vceqq_u8(class[i], vdupq_n_u8(n))));
        found = find(table, at, Some(found));
    }
    found
}

/// Writes symbols and their symbol values.
#[inline]
#[target_feature(enable = "neon")]
fn write(symbols: &Bytes, map: &ValueMap, out: &mut [u8; 64], values: &mut [u16; 64]) {
    let [low, high] = map.bytes.each_ref().map(|table| find(table, *symbols, None));
    let chunks = out.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks_mut::<16>().0);
    for (i, (out, values)) in chunks.enumerate() {
        // SAFETY: `out` is 16 bytes and `values` 32.
        unsafe {
            vst1q_u8(out.as_mut_ptr(), symbols[i]);
            let values: *mut u8 = values.as_mut_ptr().cast();
            vst1q_u8(values, vzip1q_u8(low[i], high[i]));
            vst1q_u8(values.add(16), vzip2q_u8(low[i], high[i]));
        }
    }
}

/// Advances 64 states by one symbol. Returns how many of the `words` they took.
///
/// # Safety
/// 128 bytes must be readable at `words`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn advance(low: &mut Halves, high: &mut Halves, found: &Lookup, words: *const u8) -> usize {
    let short = from_fn(|i| {
        let halves = |[l, h]: &[Bytes; 2]| {
            [vzip1q_u8(l[i], h[i]), vzip2q_u8(l[i], h[i])].map(|v| vreinterpretq_u16_u8(v))
        };
        let (shift, scaled, place) = (halves(&found.shift), halves(&found.scaled), found.place[i]);
        let number = [vaddw_u8(shift[0], vget_low_u8(place)), vaddw_high_u8(shift[1], place)];
        let [first, second] = [0, 1].map(|j| {
            let v = 2 * i + j;
            multiply(&mut low[v], &mut high[v], scaled[j], number[j])
        });
        vuzp1q_u8(first, second)
    });
    let masks = masks(short);
    // Adds up the counts of the vectors before each. The last sum is that of all.
    let taken = vget_lane_u64::<0>(vreinterpret_u64_u8(vcnt_u8(masks)));
    let behind = taken.wrapping_mul(0x0101_0101_0101_0101);
    let masks = vget_lane_u64::<0>(vreinterpret_u64_u8(masks)).to_le_bytes();
    for (low, (mask, before)) in
        low.iter_mut().zip(masks.into_iter().zip((behind << 8).to_le_bytes()))
    {
        // SAFETY: the vectors before took at most a word for each lane; an entry is 16 bytes.
        let (words, order) = unsafe {
            let order = TAKE[usize::from(mask)].as_ptr();
            (vld1q_u8(words.add(2 * usize::from(before))), vld1q_u8(order))
        };
        *low = vorrq_u16(*low, vreinterpretq_u16_u8(vqtbl1q_u8(words, order)));
    }
    (behind >> 56) as usize
}

/// Advances eight states by one symbol, except for the word that they may take: their low halves
/// are then zero. Returns which of them take one.
#[inline]
#[target_feature(enable = "neon")]
fn multiply(
    low: &mut uint16x8_t,
    high: &mut uint16x8_t,
    scaled: uint16x8_t,
    number: uint16x8_t,
) -> uint8x16_t {
    // frequency * (x >> 14) + number. The quotient x >> 14 is four times the state's high half plus
    // the two top bits of its low half.
    const UNSCALE: i32 = 16 - PROB_BITS as i32;
    let top = vshrq_n_u16::<{ PROB_BITS as i32 }>(*low);
    let number = vmlaq_u16(number, vshrq_n_u16::<UNSCALE>(scaled), top);
    let sums = [
        vmlal_u16(vmovl_u16(vget_low_u16(number)), vget_low_u16(scaled), vget_low_u16(*high)),
        vmlal_high_u16(vmovl_high_u16(number), scaled, *high),
    ]
    .map(|sum| vreinterpretq_u16_u32(sum));
    let (lower, upper) = (vuzp1q_u16(sums[0], sums[1]), vuzp2q_u16(sums[0], sums[1]));
    let short = vceqzq_u16(upper);
    *high = vbslq_u16(short, lower, upper);
    *low = vbicq_u16(lower, short);
    vreinterpretq_u8_u16(short)
}

/// By vector of eight lanes, a bit for each lane that is all ones.
#[inline]
#[target_feature(enable = "neon")]
fn masks(lanes: Bytes) -> uint8x8_t {
    const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    // SAFETY: the array is 16 bytes.
    let bits = unsafe { vld1q_u8(BITS.as_ptr()) };
    let [a, b, c, d] = lanes.map(|lanes| vandq_u8(lanes, bits));
    // Three sums of adjacent bytes add up eight.
    let fours = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
    vpadd_u8(vget_low_u8(fours), vget_high_u8(fours))
}
