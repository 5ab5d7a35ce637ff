//! What symbols stand for, in the form that decoders use.

use super::model::EntropyModel;

/// What symbols stand for, in the top bits of 16. What the escape stands for does not matter.
pub(crate) struct Map {
    /// Low bytes and high bytes.
    pub bytes: [[u8; 64]; 2],
    /// The same, to be computed, if it can be.
    pub line: Option<Line>,
}

/// What symbols stand for where they are equally far apart, but for the first few, which are rare and so have gaps
/// between them: `first + step * n`, with `n = s + gaps[15]` for symbol `s`, or `s + gaps[s]`.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    pub first: u16,
    pub step: u16,
    /// Symbols up to the last one of these may be anywhere.
    pub gaps: [u8; 16],
}

impl Map {
    pub fn new(model: &EntropyModel) -> Self {
        let tops = model.tops();
        Self { bytes: [0, 1].map(|i| tops.map(|t| t.to_le_bytes()[i])), line: Line::new(model) }
    }
}

impl Line {
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
        // The sum is a byte.
        let fits = usize::from(gaps[15]) + 64 <= 256;
        let align = 16 - model.layout().symbol_bits();
        fits.then_some(Self { first: first << align, step: 1 << align, gaps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, Coding, Encoder, model::Table, planes::Layout};

    fn model(values: Vec<u16>) -> EntropyModel {
        let counts = vec![1; values.len() + 1];
        EntropyModel::new(
            Layout::cut(2, true, 10, 0),
            values,
            512,
            vec![],
            vec![Table::from_counts(&counts)],
        )
        .expect("valid")
    }

    /// Values one apart from `from` on, but for gaps.
    fn values(from: u16, gaps: &[(usize, u16)]) -> Vec<u16> {
        let behind =
            |i: usize| gaps.iter().filter(|(at, _)| *at <= i).map(|(_, gap)| gap).sum::<u16>();
        (0..63).map(|i| from + i as u16 + behind(i)).collect()
    }

    #[test]
    fn what_symbols_stand_for_is_computed_where_gaps_are_among_the_first_and_decodes_to_the_same() {
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
            let map = Map::new(&model);
            assert_eq!(map.line.is_some(), computed, "{values:?}");
            if let Some(line) = map.line {
                for (s, &top) in model.tops()[..values.len()].iter().enumerate() {
                    let n = s as u8 + line.gaps[s.min(15)];
                    assert_eq!(line.first.wrapping_add(line.step.wrapping_mul(n.into())), top);
                }
            }
            // Values that have a symbol, and every 50th one that may not.
            let value = |i: usize| {
                if i.is_multiple_of(50) {
                    (i % 1024) as u16
                } else {
                    values[i * 7919 % values.len()]
                }
            };
            let element =
                |i: usize| (value(i) << 6 | (i % 64) as u16).rotate_right(1).to_le_bytes();
            let bytes: Vec<u8> = (0..20_000).flat_map(element).collect();
            let (coding, stored) = codec::encode(&bytes, Some(&Encoder::new(&model)), false);
            assert!(coding == Coding::Planes || values.len() < 63, "{values:?}");
            if coding != Coding::Planes {
                continue;
            }
            for decoder in codec::decoders() {
                let mut out = vec![0; bytes.len()];
                decoder.decode(coding, Some(&model), &stored, &mut out).expect("decodes");
                assert!(out == bytes, "{}: {values:?}", decoder.name());
            }
        }
    }
}
