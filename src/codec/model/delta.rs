//! What a model of differences says beyond its tables: from which bytes elements differ, and how
//! differences are cut.

use super::{
    EntropyModel, LANES, Layout, MAX_CHOICES, MAX_VALUES,
    frequencies::{ALPHABET, FrequencyTable},
};
use crate::{
    codec::bytes::{take, take_array},
    error::{Error, Result},
};
use std::{ops::Range, sync::OnceLock};

/// In the first byte of a wire form: the model is one of differences.
pub(super) const FLAG: u8 = 0x80;
/// In the byte of a cut: a list of values follows.
const LISTED: u8 = 0x80;
/// Classes of elements, by the magnitude of the base's element.
pub const MAX_DELTA_CLASSES: usize = 2;
/// Tables of a model of differences.
pub const MAX_TABLES: usize = MAX_CHOICES * MAX_DELTA_CLASSES;
/// The symbol of differences from 0 to one unit. The other symbols count from it.
pub const ZERO: u8 = 31;
/// Bits of an element above the raw bits that a symbol stands for.
pub(super) const SYMBOL_BITS: u8 = 6;

/// From which bytes the elements of a chunk differ, and how differences are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The number of the base.
    pub base: u8,
    /// Added to the position of a byte in the original, this gives that of the base's byte.
    pub distance: i64,
    /// Elements are of class 1 where the base's element, without its top bit, is below this. If it
    /// is 0, there is one class.
    pub threshold: u64,
    /// How the differences of the elements that a table codes are cut, by table.
    pub cuts: Vec<Cut>,
}

/// How differences are cut: the symbol `s` stands for `value(s) << raw_bits`, to which an element's
/// raw bits are added, and what is escaped if `s` is the last symbol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The low bits of a difference that are stored as they are.
    pub raw_bits: u8,
    /// The values of the symbols but the last, ascending. If they are absent, they are -31 to 31.
    pub values: Option<Box<[i64; MAX_VALUES]>>,
}

impl Cut {
    /// The value of a symbol. That of the last one, the escape, is as though values went on.
    pub fn value(&self, symbol: u8) -> i64 {
        match &self.values {
            None => i64::from(symbol) - i64::from(ZERO),
            Some(values) => match values.get(usize::from(symbol)) {
                Some(&value) => value,
                None => values[MAX_VALUES - 1].wrapping_add(1),
            },
        }
    }

    /// Whether it can cut differences of `bits` bits.
    fn is_valid(&self, bits: u8) -> bool {
        let fits = |value: i64| value.unsigned_abs() >> (bits - 1 - self.raw_bits) == 0;
        self.raw_bits <= bits - SYMBOL_BITS
            && self.values.as_deref().is_none_or(|values| {
                values.is_sorted_by(|a, b| a < b) && values.iter().all(|&v| fits(v))
            })
    }
}

impl Delta {
    /// Classes of elements.
    pub fn classes(&self) -> usize {
        if self.threshold == 0 { 1 } else { MAX_DELTA_CLASSES }
    }

    /// The range of the base that the bytes of this range of the original differ from, or `None` if
    /// part of it is not within `len` bytes.
    pub fn range_in_base(&self, original: &Range<u64>, len: u64) -> Option<Range<u64>> {
        let at = |offset: u64| offset.checked_add_signed(self.distance).filter(|&at| at <= len);
        Some(at(original.start)?..at(original.end)?)
    }
}

impl EntropyModel {
    /// A model of differences between elements of `width` bytes. Blocks of `block` elements share a
    /// choice; the tables of one choice are contiguous, by class. Without tables, the model is for
    /// chunks that equal the base.
    ///
    /// # Errors
    /// Corruption if anything is out of bounds.
    pub fn of_differences(
        delta: Delta,
        width: u8,
        block: usize,
        tables: Vec<FrequencyTable>,
    ) -> Result<Self> {
        let bad = |what| Err(Error::corrupt(what));
        if !matches!(width, 1 | 2 | 4 | 8) {
            return bad("a model of differences has elements of an unknown width");
        }
        let bits = 8 * width;
        if delta.threshold >> (bits - 1) != 0
            || delta.cuts.len() != tables.len()
            || !delta.cuts.iter().all(|cut| cut.is_valid(bits))
        {
            return bad("a model of differences has a threshold or a cut out of bounds");
        }
        if block == 0 || !block.is_multiple_of(LANES) {
            return bad("a model's blocks are not whole rounds");
        }
        let classes = delta.classes();
        let choices = (tables.len() / classes).max(1);
        if choices > MAX_CHOICES || !tables.len().is_multiple_of(classes) {
            return bad("a model's number of tables is out of bounds");
        }
        Ok(Self {
            layout: Layout::cut(width, false, SYMBOL_BITS, 0),
            values: (0..ALPHABET as u16 - 1).collect(),
            block,
            choices,
            classes,
            wrapped: Vec::new(),
            columns: 0,
            tables,
            decode_tables: OnceLock::new(),
            delta: Some(delta),
        })
    }

    /// From which bytes elements differ, if this is a model of differences.
    pub fn delta(&self) -> Option<&Delta> {
        self.delta.as_ref()
    }

    pub(super) fn write_differences(&self, delta: &Delta, out: &mut Vec<u8>) {
        let (width, tables) = (self.layout().width(), self.tables().len() as u8);
        out.extend_from_slice(&[FLAG | width, delta.base, tables, 0]);
        out.extend_from_slice(&(self.block() as u32).to_le_bytes());
        out.extend_from_slice(&delta.distance.to_le_bytes());
        out.extend_from_slice(&delta.threshold.to_le_bytes());
        for (table, cut) in self.tables().iter().zip(&delta.cuts) {
            out.push(cut.raw_bits | if cut.values.is_some() { LISTED } else { 0 });
            for value in cut.values.iter().flat_map(|values| values.iter()) {
                out.extend_from_slice(&value.to_le_bytes()[..usize::from(width)]);
            }
            table.write_to(ALPHABET, out);
        }
    }

    /// Reads a wire form whose first byte has the [`FLAG`] and that takes all of `input`.
    pub(super) fn read_differences(mut input: &[u8]) -> Result<Self> {
        let truncated = || Error::corrupt("a model ends too early");
        let input = &mut input;
        let &[width, base, count, zero] = take_array(input).ok_or_else(truncated)?;
        let width = width & !FLAG;
        let block = u32::from_le_bytes(*take_array(input).ok_or_else(truncated)?) as usize;
        let distance = i64::from_le_bytes(*take_array(input).ok_or_else(truncated)?);
        let threshold = u64::from_le_bytes(*take_array(input).ok_or_else(truncated)?);
        if usize::from(count) > MAX_TABLES || zero != 0 || width > 8 {
            return Err(Error::corrupt("a model's number of tables or its width is out of bounds"));
        }
        let (mut cuts, mut tables) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let &[cut] = take_array(input).ok_or_else(truncated)?;
            let mut values = None;
            if cut & LISTED != 0 {
                let bytes = take(input, MAX_VALUES * usize::from(width)).ok_or_else(truncated)?;
                let value = |i: usize| {
                    let value = &bytes[i * usize::from(width)..(i + 1) * usize::from(width)];
                    let of = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
                    let unused = 64 - 8 * u32::from(width);
                    (value.iter().rev().fold(0, of) << unused) as i64 >> unused
                };
                values = (width > 0).then(|| Box::new(std::array::from_fn(value)));
            }
            cuts.push(Cut { raw_bits: cut & !LISTED, values });
            tables.push(FrequencyTable::read_from(input, ALPHABET)?);
        }
        if !input.is_empty() {
            return Err(Error::corrupt("a model has trailing bytes"));
        }
        Self::of_differences(Delta { base, distance, threshold, cuts }, width, block, tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(seed: u64) -> FrequencyTable {
        FrequencyTable::from_counts(&(0..64).map(|i| (i + seed) * 31 % 97).collect::<Vec<_>>())
    }

    fn cut(raw_bits: u8, listed: bool) -> Cut {
        let values = listed.then(|| Box::new(std::array::from_fn(|i| i as i64 * 2 - 90)));
        Cut { raw_bits, values }
    }

    fn model(delta: &Delta, width: u8, block: usize, tables: usize) -> Result<EntropyModel> {
        let tables = (0..tables as u64).map(table).collect();
        EntropyModel::of_differences(delta.clone(), width, block, tables)
    }

    #[test]
    fn a_model_of_differences_equals_what_is_read_back_from_its_wire_form() {
        for (width, threshold, cuts) in [
            (2u8, 0, vec![]),
            (1, 0, vec![cut(2, false)]),
            (1, 0, vec![cut(0, true)]),
            (2, 0x3c00, (0..8).map(|i| cut(i, i % 3 == 0)).collect()),
            (4, 0x7fff_ffff, vec![cut(26, false), cut(3, true)]),
            (8, 0, vec![cut(58, false), cut(0, true), cut(1, true)]),
        ] {
            let tables = cuts.len();
            let delta = Delta { base: 3, distance: -(1 << 40), threshold, cuts };
            let model = model(&delta, width, 384, tables).expect("valid");
            let mut wire = Vec::new();
            model.write_to(&mut wire);
            let read = EntropyModel::read_from(&wire).expect("reads");
            assert_eq!((read.delta(), &read), (Some(&delta), &model));
            for n in 0..wire.len() {
                assert!(EntropyModel::read_from(&wire[..n]).is_err(), "{n} bytes were enough");
            }
            wire.push(0);
            assert!(EntropyModel::read_from(&wire).is_err(), "a trailing byte was accepted");
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let cuts = vec![cut(0, false), cut(10, false)];
        let good = Delta { base: 0, distance: 0, threshold: 1, cuts };
        let with = |cuts| Delta { cuts, ..good.clone() };
        assert!(model(&good, 2, 128, 2).is_ok());
        assert!(model(&Delta { threshold: 0x8000, ..good.clone() }, 2, 128, 2).is_err());
        assert!(model(&with(vec![cut(11, false), cut(0, false)]), 2, 128, 2).is_err());
        assert!(model(&with(vec![cut(9, true), cut(0, false)]), 2, 128, 2).is_err());
        let mut twice = cut(0, true);
        twice.values.iter_mut().for_each(|values| values[4] = values[5]);
        assert!(model(&with(vec![twice, cut(0, false)]), 2, 128, 2).is_err());
        assert!(model(&good, 3, 128, 2).is_err() && model(&good, 2, 100, 2).is_err());
        assert!(model(&good, 2, 0, 2).is_err() && model(&good, 2, 128, 3).is_err());
        assert!(model(&with(vec![cut(0, false); 3]), 2, 128, 3).is_err());
        assert!(model(&with(vec![cut(0, false); 10]), 2, 128, 10).is_err());
    }

    #[test]
    fn a_range_in_the_base_is_within_it() {
        let delta = |distance| Delta { base: 0, distance, threshold: 0, cuts: vec![] };
        assert_eq!(delta(8).range_in_base(&(0..4), 12), Some(8..12));
        assert_eq!(delta(9).range_in_base(&(0..4), 12), None);
        assert_eq!(delta(-8).range_in_base(&(8..12), 12), Some(0..4));
        assert_eq!(delta(-9).range_in_base(&(8..12), 12), None);
        assert_eq!(delta(i64::MIN).range_in_base(&(8..12), 12), None);
    }
}
