//! Differences between the elements of a chunk and those of its base, and how they are cut.

use super::model::ZERO;

/// The symbol of differences that no other symbol stands for.
const ESCAPE: u8 = 63;

/// The difference of each element from that of `base`, sign-extended, and the element's class.
pub(super) fn differences(
    chunk: &[u8],
    base: &[u8],
    width: usize,
    threshold: u64,
) -> Vec<(i64, u8)> {
    macro_rules! differences {
        ($unsigned:ty, $signed:ty) => {{
            let elements = |bytes: &'_ [u8]| {
                let elements = bytes.as_chunks().0.to_vec();
                elements.into_iter().map(<$unsigned>::from_le_bytes)
            };
            let pairs = elements(chunk).zip(elements(base));
            pairs
                .map(|(element, base)| {
                    let class = u64::from(base & (<$unsigned>::MAX >> 1)) < threshold;
                    (i64::from(element.wrapping_sub(base) as $signed), u8::from(class))
                })
                .collect()
        }};
    }
    match width {
        1 => differences!(u8, i8),
        2 => differences!(u16, i16),
        4 => differences!(u32, i32),
        _ => differences!(u64, i64),
    }
}

/// A difference, cut.
pub(super) struct Cut {
    /// The symbol.
    pub symbol: u8,
    /// The raw bits.
    pub raw: u64,
    /// What is added to the difference that the symbol and the raw bits stand for.
    pub escape: Option<u64>,
}

impl Cut {
    /// Cuts a difference of elements of `width` bytes, `raw_bits` of whose bits are raw.
    pub(super) fn new(difference: i64, raw_bits: u8, width: usize) -> Self {
        let zero = i64::from(ZERO);
        let units = difference >> raw_bits;
        if (-zero..=zero).contains(&units) {
            let raw = difference as u64 & ((1 << raw_bits) - 1);
            return Self { symbol: (units + zero) as u8, raw, escape: None };
        }
        let of_symbol = (i64::from(ESCAPE) - zero) << raw_bits;
        let mask = u64::MAX >> (64 - 8 * width);
        let escape = difference.wrapping_sub(of_symbol) as u64 & mask;
        Self { symbol: ESCAPE, raw: 0, escape: Some(escape) }
    }
}
