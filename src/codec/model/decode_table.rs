//! A frequency table in the forms that decoders look up.

use super::{
    alias::{BUCKETS, Buckets},
    frequencies::{ALPHABET, Frequencies},
};
use crate::codec::PROB_BITS;

/// A table in the forms that decoders use.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct DecodeTable {
    /// [`Buckets::own`], modulo 256.
    pub own: [u8; BUCKETS],
    /// [`Buckets::other`].
    pub other: [u8; BUCKETS],
    /// [`Buckets::shift`], low bytes and high bytes.
    pub shift: [[u8; BUCKETS]; 2],
    /// Frequencies by symbol in units of 2^-16, low bytes and high bytes.
    pub scaled: [[u8; ALPHABET]; 2],
    /// `own`, `other`, `shift` and `scaled` for kernels that look up 16 bytes at a time.
    pub differences: [Differences; 6],
    /// By bucket: its own symbol and the other one.
    pub entries: [[BucketEntry; 2]; BUCKETS],
}

/// A table of 64 bytes, each quarter but the first XORed with the quarter before it. Entry `i` is
/// the XOR of the entries `i % 16` of the quarters up to its own, which takes no selection among
/// the quarters.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Differences(pub [u8; 64]);

impl Differences {
    /// The differences of `table`.
    pub fn new(table: &[u8; 64]) -> Self {
        Self(std::array::from_fn(|i| if i < 16 { table[i] } else { table[i] ^ table[i - 16] }))
    }
}

/// One of a bucket's two symbols, packed:
///
/// | bits | field |
/// |---|---|
/// | 0–15 | added to a place in the bucket: the slot's number among those of the symbol, signed |
/// | 16–31 | the frequency |
/// | 32–47 | the symbol value, left-aligned |
/// | 48–55 | the symbol |
/// | 56–63 | how many slots of the bucket belong to its own symbol, modulo 256 |
pub type BucketEntry = u64;

impl DecodeTable {
    /// The table of `frequencies` for symbols with these left-aligned values.
    pub(super) fn new(frequencies: &Frequencies, values: &[u16; ALPHABET]) -> Self {
        let buckets = Buckets::new(frequencies);
        let halves = |f: &dyn Fn(usize) -> u16| {
            [0, 1].map(|i| std::array::from_fn(|b| f(b).to_le_bytes()[i]))
        };
        let entry = |bucket: usize, symbol: u8, shift: u16| {
            let (freq, value) = (frequencies[usize::from(symbol)], values[usize::from(symbol)]);
            let own = buckets.own[bucket] as u8;
            let high = u32::from(value) | u32::from(symbol) << 16 | u32::from(own) << 24;
            u64::from(shift) | u64::from(freq) << 16 | u64::from(high) << 32
        };
        let own = buckets.own.map(|n| n as u8);
        let shift = halves(&|b| buckets.shift[b]);
        let scaled = halves(&|s| frequencies[s] << (16 - PROB_BITS));
        let differences = [&own, &buckets.other, &shift[0], &shift[1], &scaled[0], &scaled[1]];
        Self {
            own,
            other: buckets.other,
            shift,
            scaled,
            differences: differences.map(Differences::new),
            entries: std::array::from_fn(|b| {
                [entry(b, b as u8, 0), entry(b, buckets.other[b], buckets.shift[b])]
            }),
        }
    }
}
