//! Symbol values by symbol, in the forms that decoders look up or compute.

use super::{Differences, EntropyModel, frequencies::ALPHABET};

/// Symbol values by symbol, left-aligned in 16 bits. The escape's does not matter.
pub(crate) struct ValueMap {
    /// Low bytes and high bytes.
    pub bytes: [[u8; ALPHABET]; 2],
    /// The same for kernels that look up 16 bytes at a time.
    pub differences: [Differences; 2],
    /// A formula for the same values, if there is one.
    pub linear: Option<LinearValues>,
}

/// Symbol values that are equally far apart, except for the first few: those are rare, and so have
/// gaps between them. The value of symbol `s` is `first + step * n`, with `n = s + gaps[s]`, or
/// `n = s + gaps[15]` from symbol 15 on.
#[derive(Clone, Copy)]
pub(crate) struct LinearValues {
    pub first: u16,
    pub step: u16,
    /// Values that have no symbol below each of the first symbols.
    pub gaps: [u8; 16],
}

impl ValueMap {
    pub fn new(model: &EntropyModel) -> Self {
        let values = model.aligned_values();
        let bytes = [0, 1].map(|i| values.map(|v| v.to_le_bytes()[i]));
        Self {
            differences: bytes.each_ref().map(Differences::new),
            bytes,
            linear: LinearValues::new(model),
        }
    }
}

impl LinearValues {
    fn new(model: &EntropyModel) -> Option<Self> {
        let values = model.values();
        let first = values[0];
        let mut gaps = [0; 16];
        for (s, &value) in values.iter().enumerate() {
            let gap = u8::try_from(usize::from(value - first) - s).ok()?;
            if s < gaps.len() {
                gaps[s] = gap;
            } else if gap != gaps[15] {
                return None;
            }
        }
        // Kernels compute `n` in a byte.
        let fits = usize::from(gaps[15]) + 64 <= 256;
        let align = 16 - model.layout().symbol_bits();
        fits.then_some(Self { first: first << align, step: 1 << align, gaps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{model::FrequencyTable, planes::Layout};

    fn model(values: Vec<u16>) -> EntropyModel {
        let counts = vec![1; values.len() + 1];
        let tables = vec![FrequencyTable::from_counts(&counts)];
        EntropyModel::new(Layout::cut(2, true, 10, 0), values, 512, vec![], tables).expect("valid")
    }

    /// 63 values that increase by one from `from`, except for gaps.
    fn values(from: u16, gaps: &[(usize, u16)]) -> Vec<u16> {
        let skipped =
            |i: usize| gaps.iter().filter(|(at, _)| *at <= i).map(|(_, gap)| gap).sum::<u16>();
        (0..63).map(|i| from + i as u16 + skipped(i)).collect()
    }

    #[test]
    fn values_are_computed_where_all_gaps_are_among_the_first_symbols() {
        for (values, computed) in [
            (values(430, &[]), true),
            (values(0, &[(1, 3), (2, 40), (15, 1)]), true),
            (values(700, &[(3, 192)]), true),
            (values(700, &[(3, 193)]), false),
            (values(430, &[(16, 1)]), false),
            (values(430, &[(62, 1)]), false),
            (vec![5], true),
            (vec![5, 9, 300], false),
        ] {
            let model = model(values.clone());
            let map = ValueMap::new(&model);
            assert_eq!(map.linear.is_some(), computed, "{values:?}");
            let Some(linear) = map.linear else { continue };
            for (s, &value) in model.aligned_values()[..values.len()].iter().enumerate() {
                let n = s as u8 + linear.gaps[s.min(15)];
                assert_eq!(linear.first.wrapping_add(linear.step.wrapping_mul(n.into())), value);
            }
        }
    }
}
