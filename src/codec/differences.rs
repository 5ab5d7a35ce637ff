//! Differences between the elements of a chunk and those of its base, and how they are cut.

use super::model::{Cut, MAX_VALUES, ZERO};

/// The difference of each element from that of `base`, sign-extended, and the element's class.
pub(super) fn differences(
    chunk: &[u8],
    base: &[u8],
    width: usize,
    threshold: u64,
) -> Vec<(i64, u8)> {
    macro_rules! differences {
        ($unsigned:ty, $signed:ty) => {{
            let pairs = chunk.as_chunks().0.iter().zip(base.as_chunks().0);
            pairs
                .map(|(&element, &base)| {
                    let base = <$unsigned>::from_le_bytes(base);
                    let difference = <$unsigned>::from_le_bytes(element).wrapping_sub(base);
                    let class = u64::from(base & (<$unsigned>::MAX >> 1)) < threshold;
                    (i64::from(difference as $signed), u8::from(class))
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

impl Cut {
    /// The symbol of a difference, which is the escape if no other symbol stands for it.
    pub(super) fn symbol(&self, difference: i64) -> u8 {
        let value = difference >> self.raw_bits;
        let symbol = match &self.values {
            None => usize::try_from(value.saturating_add(ZERO.into())).ok(),
            Some(values) => values.binary_search(&value).ok(),
        };
        symbol.filter(|&s| s < MAX_VALUES).unwrap_or(MAX_VALUES) as u8
    }

    /// The raw bits of a difference that has this symbol.
    pub(super) fn raw(&self, difference: i64, symbol: u8) -> u64 {
        let raw = difference as u64 & ((1 << self.raw_bits) - 1);
        if usize::from(symbol) == MAX_VALUES { 0 } else { raw }
    }

    /// What is added to the value of the escape to get this difference.
    pub(super) fn escaped(&self, difference: i64) -> u64 {
        difference.wrapping_sub(self.value(MAX_VALUES as u8) << self.raw_bits) as u64
    }
}
