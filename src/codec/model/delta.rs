//! What a model of differences says beyond its tables: from which bytes elements differ, and how
//! differences are cut.

use super::{
    EntropyModel, LANES, Layout, MAX_CHOICES,
    frequencies::{ALPHABET, FrequencyTable},
};
use crate::{
    codec::bytes::{take, take_array},
    error::{Error, Result},
};
use std::{ops::Range, sync::OnceLock};

/// In the first byte of a wire form: the model is one of differences.
pub(super) const FLAG: u8 = 0x80;
/// Classes of elements, by the magnitude of the base's element.
pub const MAX_DELTA_CLASSES: usize = 2;
/// The symbol of differences from 0 to one unit. The other symbols count from it.
pub const ZERO: u8 = 31;
/// Bits of an element above the raw bits that a symbol stands for.
pub(super) const SYMBOL_BITS: u8 = 6;

/// From which bytes the elements of a chunk differ, and how.
///
/// The symbol `s` of an element of class `c` stands for the difference `(s - ZERO) << raw_bits[c]`,
/// to which the element's raw bits are added, and what is escaped if `s` is the last symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The number of the base.
    pub base: u8,
    /// Added to the position of a byte in the original, this gives that of the base's byte.
    pub distance: i64,
    /// Elements are of class 1 where the base's element, without its top bit, is below this. If it
    /// is 0, there is one class.
    pub threshold: u64,
    /// By class: the low bits of a difference that are stored as they are.
    pub raw_bits: [u8; MAX_DELTA_CLASSES],
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
            || delta.raw_bits.iter().any(|&raw| raw > bits - SYMBOL_BITS)
            || (delta.threshold == 0 && delta.raw_bits[1] != 0)
        {
            return bad("a model of differences has a threshold or raw bits out of bounds");
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
        let [low, high] = delta.raw_bits;
        let tables = self.tables().len() as u8;
        out.extend_from_slice(&[FLAG | self.layout().width(), delta.base, tables, low, high]);
        out.extend_from_slice(&[0; 3]);
        out.extend_from_slice(&(self.block() as u32).to_le_bytes());
        out.extend_from_slice(&delta.distance.to_le_bytes());
        out.extend_from_slice(&delta.threshold.to_le_bytes());
        self.tables().iter().for_each(|t| t.write_to(ALPHABET, out));
    }

    /// Reads a wire form whose first byte has the [`FLAG`] and that takes all of `input`.
    pub(super) fn read_differences(mut input: &[u8]) -> Result<Self> {
        let truncated = || Error::corrupt("a model ends too early");
        let input = &mut input;
        let &[width, base, tables, low, high] = take_array(input).ok_or_else(truncated)?;
        if take(input, 3).ok_or_else(truncated)? != [0; 3] {
            return Err(Error::corrupt("a model has reserved bytes set"));
        }
        let block = u32::from_le_bytes(*take_array(input).ok_or_else(truncated)?) as usize;
        let distance = i64::from_le_bytes(*take_array(input).ok_or_else(truncated)?);
        let threshold = u64::from_le_bytes(*take_array(input).ok_or_else(truncated)?);
        if usize::from(tables) > MAX_CHOICES * MAX_DELTA_CLASSES {
            return Err(Error::corrupt("a model's number of tables is out of bounds"));
        }
        let tables = (0..tables)
            .map(|_| FrequencyTable::read_from(input, ALPHABET))
            .collect::<Result<Vec<_>>>()?;
        if !input.is_empty() {
            return Err(Error::corrupt("a model has trailing bytes"));
        }
        let delta = Delta { base, distance, threshold, raw_bits: [low, high] };
        Self::of_differences(delta, width & !FLAG, block, tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(seed: u64) -> FrequencyTable {
        FrequencyTable::from_counts(&(0..64).map(|i| (i + seed) * 31 % 97).collect::<Vec<_>>())
    }

    #[test]
    fn a_model_of_differences_equals_what_is_read_back_from_its_wire_form() {
        for (width, threshold, raw_bits, tables) in [
            (2u8, 0, [0, 0], 0u64),
            (1, 0, [2, 0], 1),
            (2, 0x3c00, [0, 10], 8),
            (4, 0x7fff_ffff, [26, 3], 2),
            (8, 0, [58, 0], 4),
        ] {
            let delta = Delta { base: 3, distance: -(1 << 40), threshold, raw_bits };
            let tables = (0..tables).map(table).collect();
            let model = EntropyModel::of_differences(delta, width, 384, tables).expect("valid");
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
        let good = Delta { base: 0, distance: 0, threshold: 1, raw_bits: [0, 10] };
        let model = |delta, width, block, tables: u64| {
            EntropyModel::of_differences(delta, width, block, (0..tables).map(table).collect())
        };
        assert!(model(good, 2, 128, 2).is_ok());
        assert!(model(Delta { threshold: 0x8000, ..good }, 2, 128, 2).is_err());
        assert!(model(Delta { raw_bits: [11, 0], ..good }, 2, 128, 2).is_err());
        assert!(model(Delta { threshold: 0, ..good }, 2, 128, 2).is_err(), "bits without a class");
        assert!(model(good, 3, 128, 2).is_err() && model(good, 2, 100, 2).is_err());
        assert!(model(good, 2, 0, 2).is_err() && model(good, 2, 128, 3).is_err());
        assert!(model(good, 2, 128, 10).is_err());
    }

    #[test]
    fn a_range_in_the_base_is_within_it() {
        let delta = |distance| Delta { base: 0, distance, threshold: 0, raw_bits: [0; 2] };
        assert_eq!(delta(8).range_in_base(&(0..4), 12), Some(8..12));
        assert_eq!(delta(9).range_in_base(&(0..4), 12), None);
        assert_eq!(delta(-8).range_in_base(&(8..12), 12), Some(0..4));
        assert_eq!(delta(-9).range_in_base(&(8..12), 12), None);
        assert_eq!(delta(i64::MIN).range_in_base(&(8..12), 12), None);
    }
}
