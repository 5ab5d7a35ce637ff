//! What the chunks of a tensor share: how elements are cut, which symbol values have symbols, and
//! the frequency tables of the symbols.
//!
//! Encoder and decoder use the same type. Its wire form is a record of the archive's index.

mod alias;
mod decode_table;
mod delta;
mod frequencies;
mod value_map;
mod wire;

use super::{LANES, planes::Layout};
use crate::error::{Error, Result};
use std::sync::OnceLock;

pub use alias::Buckets;
pub use decode_table::{DecodeTable, Differences};
pub use delta::{Cut, Delta, MAX_DELTA_CLASSES, MAX_TABLES, ZERO};
pub use frequencies::{ALPHABET, FrequencyTable, TOTAL};
pub(crate) use value_map::{LinearValues, ValueMap};
pub use wire::MAX_WIRE_LEN;

/// Symbol values that have a symbol; all others share the escape.
pub const MAX_VALUES: usize = ALPHABET - 1;
/// Tables that a block chooses from.
pub const MAX_CHOICES: usize = 4;
/// Classes of columns.
pub const MAX_CLASSES: usize = 8;
/// Columns of a tensor whose columns have classes.
pub const MAX_COLUMNS: usize = 1 << 16;

/// Everything besides its own bytes that a chunk needs to be decoded.
#[derive(Clone, Debug)]
pub struct EntropyModel {
    layout: Layout,
    values: Vec<u16>,
    block: usize,
    choices: usize,
    classes: usize,
    /// The class of each column, followed by the first [`LANES`] of them again, so that the classes
    /// of a round are contiguous whatever column it starts in. Empty if there is one class.
    wrapped: Vec<u8>,
    columns: usize,
    tables: Vec<FrequencyTable>,
    decode_tables: OnceLock<Box<[DecodeTable]>>,
    /// Set in a model of differences.
    delta: Option<Delta>,
}

impl PartialEq for EntropyModel {
    fn eq(&self, other: &Self) -> bool {
        (&self.layout, &self.values, self.block) == (&other.layout, &other.values, other.block)
            && (self.columns(), &self.tables) == (other.columns(), &other.tables)
            && self.delta == other.delta
    }
}

impl EntropyModel {
    /// A model of elements cut by `layout`. Symbol `s` stands for the symbol value `values[s]`, the
    /// last symbol, the escape, for all others.
    ///
    /// Blocks of `block` elements, a multiple of [`LANES`], share a choice. `columns` holds the
    /// class of each column, or nothing. Element `i` of a chunk is coded with table `choice *
    /// classes + class`, where `choice` is that of its block and `class` that of column `i mod
    /// columns`.
    ///
    /// # Errors
    /// Corruption if anything is out of bounds.
    pub fn new(
        layout: Layout,
        values: Vec<u16>,
        block: usize,
        columns: Vec<u8>,
        tables: Vec<FrequencyTable>,
    ) -> Result<Self> {
        let bad = |what| Err(Error::corrupt(what));
        if values.is_empty() || values.len() > MAX_VALUES || !values.is_sorted_by(|a, b| a < b) {
            return bad("a model's symbol values are not in ascending order");
        }
        if values.iter().any(|&v| u32::from(v) >= 1 << layout.symbol_bits()) {
            return bad("a model's symbol values have too many bits");
        }
        if block == 0 || !block.is_multiple_of(LANES) {
            return bad("a model's blocks are not whole rounds");
        }
        let classes = columns.iter().max().map_or(1, |&c| usize::from(c) + 1);
        let choices = tables.len() / classes;
        if classes > MAX_CLASSES
            || columns.len() > MAX_COLUMNS
            || (!columns.is_empty() && columns.len() < LANES)
        {
            return bad("a model's number of classes or columns is out of bounds");
        }
        if !(1..=MAX_CHOICES).contains(&choices) || !tables.len().is_multiple_of(classes) {
            return bad("a model's number of tables is out of bounds");
        }
        let mut wrapped = columns;
        let columns = wrapped.len();
        wrapped.extend_from_within(..columns.min(LANES));
        Ok(Self {
            layout,
            values,
            block,
            choices,
            classes,
            wrapped,
            columns,
            tables,
            decode_tables: OnceLock::new(),
            delta: None,
        })
    }

    /// Bytes of memory that the model takes, decode tables included.
    pub fn footprint(&self) -> usize {
        let table = size_of::<FrequencyTable>() + size_of::<DecodeTable>();
        size_of::<Self>()
            + 2 * self.values.capacity()
            + self.wrapped.capacity()
            + self.tables.len() * table
    }

    /// How elements are cut.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The symbol values, by symbol; the escape has none.
    pub fn values(&self) -> &[u16] {
        &self.values
    }

    /// The symbol of all other symbol values.
    pub fn escape(&self) -> u8 {
        self.values.len() as u8
    }

    /// Elements that share a choice of tables.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Tables per class that a block chooses from.
    pub fn choices(&self) -> usize {
        self.choices
    }

    /// Classes of columns.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of each column; empty if there is one class.
    pub fn columns(&self) -> &[u8] {
        &self.wrapped[..self.columns]
    }

    /// The classes of the [`LANES`] columns from `column`, and of any that follow.
    pub(super) fn classes_from(&self, column: usize) -> &[u8] {
        &self.wrapped[column..]
    }

    /// The tables. Those of one choice are contiguous, by class.
    pub fn tables(&self) -> &[FrequencyTable] {
        &self.tables
    }

    /// The tables in the form that decoders use, built on first use.
    pub(crate) fn decode_tables(&self) -> &[DecodeTable] {
        let values = self.aligned_values();
        self.decode_tables.get_or_init(|| {
            self.tables.iter().map(|t| DecodeTable::new(t.frequencies(), &values)).collect()
        })
    }

    /// The symbol values by symbol, left-aligned in 16 bits; 0 for the escape.
    pub(crate) fn aligned_values(&self) -> [u16; ALPHABET] {
        let align = 16 - self.layout.symbol_bits();
        std::array::from_fn(|s| self.values.get(s).map_or(0, |v| v << align))
    }
}
