//! The wire form of a model (`docs/FORMAT.md`, "Models").

use super::{
    EntropyModel, MAX_CHOICES, MAX_CLASSES, MAX_COLUMNS, MAX_VALUES, delta,
    frequencies::{ALPHABET, FrequencyTable},
};
use crate::{
    codec::{
        bytes::{take, take_array},
        planes::Layout,
    },
    error::{Error, Result},
};

/// The longest wire form, in bytes: 14 of numbers, a plane for each bit of 64, symbol values,
/// classes and tables.
pub const MAX_WIRE_LEN: usize =
    14 + 64 + 2 * MAX_VALUES + MAX_COLUMNS / 2 + MAX_CHOICES * MAX_CLASSES * 2 * ALPHABET;

impl EntropyModel {
    /// Appends the wire form.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        if let Some(delta) = self.delta() {
            return self.write_differences(delta, out);
        }
        let (l, values, columns) = (self.layout(), self.values(), self.columns());
        out.extend_from_slice(&[
            l.width(),
            l.rotated().into(),
            l.symbol_bits(),
            l.planes().len() as u8,
        ]);
        out.extend_from_slice(&(self.block() as u32).to_le_bytes());
        out.extend_from_slice(&(columns.len() as u32).to_le_bytes());
        out.extend_from_slice(&[self.tables().len() as u8, values.len() as u8]);
        out.extend(l.planes().iter().map(|p| p.bits));
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        out.extend(columns.chunks(2).map(|c| c[0] | c.get(1).map_or(0, |c| c << 4)));
        self.tables().iter().for_each(|t| t.write_to(values.len() + 1, out));
    }

    /// Reads a wire form that takes all of `input`.
    ///
    /// # Errors
    /// Corruption if anything is out of bounds.
    pub fn read_from(mut input: &[u8]) -> Result<Self> {
        if input.first().is_some_and(|&first| first & delta::FLAG != 0) {
            return Self::read_differences(input);
        }
        let input = &mut input;
        let &[width, rotated, symbol_bits, planes] = take_array(input).ok_or_else(truncated)?;
        if rotated > 1 {
            return Err(Error::corrupt("a model has unknown flags"));
        }
        let block = u32::from_le_bytes(*take_array(input).ok_or_else(truncated)?) as usize;
        let columns = u32::from_le_bytes(*take_array(input).ok_or_else(truncated)?) as usize;
        let &[tables, values] = take_array(input).ok_or_else(truncated)?;
        let planes = take(input, planes.into()).ok_or_else(truncated)?;
        let layout = Layout::new(width, rotated == 1, symbol_bits, planes)?;
        if usize::from(values) > MAX_VALUES
            || usize::from(tables) > MAX_CHOICES * MAX_CLASSES
            || columns > MAX_COLUMNS
        {
            return Err(Error::corrupt(
                "a model's number of symbol values, tables or columns is out of bounds",
            ));
        }
        let values = take(input, 2 * usize::from(values)).ok_or_else(truncated)?;
        let values: Vec<u16> =
            values.as_chunks().0.iter().map(|&v| u16::from_le_bytes(v)).collect();
        let packed = take(input, columns.div_ceil(2)).ok_or_else(truncated)?;
        let mut classes: Vec<u8> = packed.iter().flat_map(|c| [c & 15, c >> 4]).collect();
        if classes[columns..].iter().any(|&c| c != 0) {
            return Err(Error::corrupt("a model has a class for a column that does not exist"));
        }
        classes.truncate(columns);
        let tables = (0..tables)
            .map(|_| FrequencyTable::read_from(input, values.len() + 1))
            .collect::<Result<Vec<_>>>()?;
        if !input.is_empty() {
            return Err(Error::corrupt("a model has trailing bytes"));
        }
        Self::new(layout, values, block, classes, tables)
    }
}

fn truncated() -> Error {
    Error::corrupt("a model ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_equals_what_is_read_back_from_its_wire_form() {
        let values: Vec<u16> = (0..50).map(|i| 400 + i * 3).collect();
        let table = |seed: u64| {
            let counts: Vec<u64> = (0..51).map(|i| (i + seed) * 31 % 97).collect();
            FrequencyTable::from_counts(&counts)
        };
        for (columns, tables) in [(0u32, 1), (0, 4), (131, 6), (200, 3)] {
            let columns: Vec<u8> = (0..columns).map(|i| (i % 3) as u8).collect();
            let tables = (0..tables).map(table).collect();
            let layout = Layout::cut(2, true, 10, 0);
            let model =
                EntropyModel::new(layout, values.clone(), 384, columns, tables).expect("valid");
            let mut wire = Vec::new();
            model.write_to(&mut wire);
            assert_eq!(EntropyModel::read_from(&wire).expect("reads"), model);
            for n in 0..wire.len() {
                assert!(EntropyModel::read_from(&wire[..n]).is_err(), "{n} bytes were enough");
            }
            wire.push(0);
            assert!(EntropyModel::read_from(&wire).is_err(), "a trailing byte was accepted");
        }
    }
}
