//! What the chunks of a tensor share: how elements are cut, which values have symbols, and their frequency tables.
//!
//! One type serves both sides; its wire form is a record of the archive's index.

use super::{
    LANES, PROB_BITS,
    alias::{BUCKETS, Buckets},
    planes::Layout,
};
use crate::error::{Error, Result};
use std::sync::OnceLock;

/// The frequencies of a table add up to this.
pub const TOTAL: u32 = 1 << PROB_BITS;
/// Values that may have a symbol; the rest share the escape.
pub const MAX_VALUES: usize = BUCKETS - 1;
/// Blocks choose among at most this many tables.
pub const MAX_CHOICES: usize = 4;
/// Columns are in at most this many classes.
pub const MAX_CLASSES: usize = 8;
/// Columns of a tensor whose columns are in classes.
pub const MAX_COLUMNS: usize = 1 << 16;
/// No model's wire form has more bytes: 14 of numbers, a plane for each bit of 64, values, classes and tables.
pub const MOST_WIRE: usize =
    14 + 64 + 2 * MAX_VALUES + MAX_COLUMNS / 2 + MAX_CHOICES * MAX_CLASSES * 2 * BUCKETS;

/// Frequencies by symbol, those of values first, then the escape's; 0 behind it.
pub type Freqs = [u16; BUCKETS];

/// The frequencies of symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    freqs: Freqs,
}

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
    /// Frequencies in units of 2^-16, low bytes and high bytes.
    pub scaled: [[u8; BUCKETS]; 2],
    /// By bucket: its own symbol, and the other.
    pub sides: [[Side; 2]; BUCKETS],
}

/// A symbol of a bucket, packed: what to add to a place in the bucket in bits 0–15, signed; the frequency in bits 16–31;
/// what the symbol stands for, at the top of 16 bits, in 32–47; the symbol in 48–55; how many of the bucket's slots are
/// its own symbol's, modulo 256, in 56–63.
pub type Side = u64;

impl Table {
    /// A table of symbols that were counted in `counts`. Every symbol gets a slot, seen or not.
    pub fn from_counts(counts: &[u64]) -> Self {
        Self { freqs: normalise(counts) }
    }

    /// Frequencies by symbol.
    pub fn freqs(&self) -> &Freqs {
        &self.freqs
    }

    fn write_to(&self, symbols: usize, out: &mut Vec<u8>) {
        for &f in &self.freqs[..symbols] {
            let high = (f >> 7) as u8;
            if high == 0 {
                out.push(f as u8);
            } else {
                out.extend_from_slice(&[f as u8 | 0x80, high]);
            }
        }
    }

    fn read_from(input: &mut &[u8], symbols: usize) -> Result<Self> {
        let mut freqs = [0; BUCKETS];
        for freq in &mut freqs[..symbols] {
            let [low] = take(input)?;
            *freq = low.into();
            if low & 0x80 != 0 {
                let [high] = take(input)?;
                *freq = u16::from(low & 0x7f) | u16::from(high) << 7;
            }
        }
        let sum: u32 = freqs.iter().map(|&f| u32::from(f)).sum();
        if sum != TOTAL || freqs.iter().any(|&f| u32::from(f) == TOTAL) {
            return Err(Error::corrupt("the frequencies of a table do not add up"));
        }
        Ok(Self { freqs })
    }
}

impl DecodeTable {
    fn new(freqs: &Freqs, tops: &[u16; BUCKETS]) -> Self {
        let buckets = Buckets::new(freqs);
        let halves = |f: &dyn Fn(usize) -> u16| {
            [0, 1].map(|i| std::array::from_fn(|b| f(b).to_le_bytes()[i]))
        };
        Self {
            own: buckets.own.map(|n| n as u8),
            other: buckets.other,
            shift: halves(&|b| buckets.shift[b]),
            scaled: halves(&|s| freqs[s] << (16 - PROB_BITS)),
            sides: std::array::from_fn(|b| {
                [(b as u8, 0), (buckets.other[b], buckets.shift[b])].map(|(symbol, shift)| {
                    let (freq, top) = (freqs[usize::from(symbol)], tops[usize::from(symbol)]);
                    let high = u32::from(top)
                        | u32::from(symbol) << 16
                        | u32::from(buckets.own[b] as u8) << 24;
                    u64::from(shift) | u64::from(freq) << 16 | u64::from(high) << 32
                })
            }),
        }
    }
}

/// Scale counts of at least two symbols to frequencies that add up to [`TOTAL`], each at least 1.
pub(super) fn normalise(counts: &[u64]) -> Freqs {
    let total: u64 = counts.iter().sum();
    let scale = f64::from(TOTAL) / total.max(1) as f64;
    let mut freqs = [0; BUCKETS];
    for (f, &c) in freqs.iter_mut().zip(counts) {
        *f = ((c as f64 * scale).round() as u16).clamp(1, TOTAL as u16 - 1);
    }
    let mut sum: i64 = freqs.iter().map(|&f| i64::from(f)).sum();
    // Give or take single slots where that changes the coded size least.
    while sum != i64::from(TOTAL) {
        let grow = sum < i64::from(TOTAL);
        let delta = |i: usize| {
            let (c, f) = (counts[i] as f64, f64::from(freqs[i]));
            if grow { -c * ((f + 1.0) / f).log2() } else { c * (f / (f - 1.0)).log2() }
        };
        let best = (0..counts.len())
            .filter(|&i| grow || freqs[i] > 1)
            .min_by(|&a, &b| delta(a).total_cmp(&delta(b)));
        let Some(best) = best else {
            unreachable!("64 symbols cannot fill 2^14 slots with one each")
        };
        if grow {
            freqs[best] += 1;
            sum += 1;
        } else {
            freqs[best] -= 1;
            sum -= 1;
        }
    }
    freqs
}

/// Everything a chunk needs, besides its own bytes, to be decoded.
#[derive(Clone, Debug)]
pub struct EntropyModel {
    layout: Layout,
    values: Vec<u16>,
    block: usize,
    choices: usize,
    classes: usize,
    /// The class of each column, and of the first ones again, so that a round that starts in any column has all of
    /// its classes in a row; none where there is one class.
    wrapped: Vec<u8>,
    columns: usize,
    tables: Vec<Table>,
    decoder: OnceLock<Box<[DecodeTable]>>,
}

impl PartialEq for EntropyModel {
    fn eq(&self, other: &Self) -> bool {
        (&self.layout, &self.values, self.block) == (&other.layout, &other.values, other.block)
            && (self.columns(), &self.tables) == (other.columns(), &other.tables)
    }
}

impl EntropyModel {
    /// A model of `layout` whose symbols stand for `values` and, the last one, for all others.
    ///
    /// Blocks of `block` elements, a multiple of [`LANES`], share a choice. `columns` holds the class of each column,
    /// or nothing. Element `i` of a chunk is coded with table `choice * classes + class` of its block and of column
    /// `i mod columns`.
    ///
    /// # Errors
    /// Corruption, where anything is out of its bounds.
    pub fn new(
        layout: Layout,
        values: Vec<u16>,
        block: usize,
        columns: Vec<u8>,
        tables: Vec<Table>,
    ) -> Result<Self> {
        let bad = |what| Err(Error::corrupt(what));
        if values.is_empty() || values.len() > MAX_VALUES || !values.is_sorted_by(|a, b| a < b) {
            return bad("a model's values are not in order");
        }
        if values.iter().any(|&v| u32::from(v) >= 1 << layout.symbol_bits()) {
            return bad("a model's values do not fit its symbols");
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
            return bad("a model has more classes or columns than it may");
        }
        if !(1..=MAX_CHOICES).contains(&choices) || !tables.len().is_multiple_of(classes) {
            return bad("a model has more or fewer tables than it may");
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
            decoder: OnceLock::new(),
        })
    }

    /// Bytes of memory that it takes, with the tables that decoders use.
    pub fn footprint(&self) -> usize {
        let table = size_of::<Table>() + size_of::<DecodeTable>();
        size_of::<Self>()
            + 2 * self.values.capacity()
            + self.wrapped.capacity()
            + self.tables.len() * table
    }

    /// How elements are cut.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the symbols stand for, except the last one, the escape.
    pub fn values(&self) -> &[u16] {
        &self.values
    }

    /// The symbol of all other values.
    pub fn escape(&self) -> u8 {
        self.values.len() as u8
    }

    /// Elements that share a choice.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Among how many tables, for each class, a block chooses.
    pub fn choices(&self) -> usize {
        self.choices
    }

    /// How many classes of columns there are.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of each column; empty where there is one class.
    pub fn columns(&self) -> &[u8] {
        &self.wrapped[..self.columns]
    }

    /// The classes of the [`LANES`] columns from `column` on, and of any behind them.
    pub(super) fn classes_from(&self, column: usize) -> &[u8] {
        &self.wrapped[column..]
    }

    /// The tables: those of a choice next to each other, by class.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The tables as decoders use them, made on first use.
    pub(crate) fn decoder(&self) -> &[DecodeTable] {
        let tops = self.tops();
        self.decoder
            .get_or_init(|| self.tables.iter().map(|t| DecodeTable::new(&t.freqs, &tops)).collect())
    }

    /// What each symbol stands for, at the top of 16 bits; 0 for the escape.
    pub(crate) fn tops(&self) -> [u16; BUCKETS] {
        let align = 16 - self.layout.symbol_bits();
        std::array::from_fn(|s| self.values.get(s).map_or(0, |v| v << align))
    }

    /// Append the wire form (`docs/FORMAT.md`, "Models").
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let l = &self.layout;
        out.extend_from_slice(&[
            l.width(),
            l.rotated().into(),
            l.symbol_bits(),
            l.planes().len() as u8,
        ]);
        out.extend_from_slice(&(self.block as u32).to_le_bytes());
        out.extend_from_slice(&(self.columns as u32).to_le_bytes());
        out.extend_from_slice(&[self.tables.len() as u8, self.values.len() as u8]);
        out.extend(l.planes().iter().map(|p| p.bits));
        out.extend(self.values.iter().flat_map(|v| v.to_le_bytes()));
        out.extend(self.columns().chunks(2).map(|c| c[0] | c.get(1).map_or(0, |c| c << 4)));
        self.tables.iter().for_each(|t| t.write_to(self.values.len() + 1, out));
    }

    /// Read one wire form and nothing behind it.
    ///
    /// # Errors
    /// Corruption, where anything is out of its bounds.
    pub fn read_from(mut input: &[u8]) -> Result<Self> {
        let input = &mut input;
        let [width, rotated, symbol_bits, planes] = take(input)?;
        if rotated > 1 {
            return Err(Error::corrupt("a model has unknown flags"));
        }
        let block = u32::from_le_bytes(take(input)?) as usize;
        let columns = u32::from_le_bytes(take(input)?) as usize;
        let [tables, values] = take(input)?;
        let layout =
            Layout::new(width, rotated == 1, symbol_bits, take_slice(input, planes.into())?)?;
        if usize::from(values) > MAX_VALUES
            || usize::from(tables) > MAX_CHOICES * MAX_CLASSES
            || columns > MAX_COLUMNS
        {
            return Err(Error::corrupt("a model has more values, tables or columns than it may"));
        }
        let values: Vec<u16> = take_slice(input, 2 * usize::from(values))?
            .as_chunks()
            .0
            .iter()
            .map(|&v| u16::from_le_bytes(v))
            .collect();
        let mut classes: Vec<u8> =
            take_slice(input, columns.div_ceil(2))?.iter().flat_map(|c| [c & 15, c >> 4]).collect();
        if classes[columns..].iter().any(|&c| c != 0) {
            return Err(Error::corrupt("a model has more columns than it says"));
        }
        classes.truncate(columns);
        let tables = (0..tables)
            .map(|_| Table::read_from(input, values.len() + 1))
            .collect::<Result<Vec<_>>>()?;
        if !input.is_empty() {
            return Err(Error::corrupt("a model has trailing bytes"));
        }
        Self::new(layout, values, block, classes, tables)
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = input.split_first_chunk().ok_or_else(short)?;
    *input = rest;
    Ok(*head)
}

fn take_slice<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (head, rest) = input.split_at_checked(n).ok_or_else(short)?;
    *input = rest;
    Ok(head)
}

fn short() -> Error {
    Error::corrupt("a model ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_always_add_up_and_cover_every_symbol() {
        for counts in [
            vec![1u64, 1],
            vec![0, 1_000_000_000],
            vec![0, 0],
            (0..64).map(|i| u64::from(i % 3 == 0)).collect(),
            (0..64).map(|i| 1u64 << (i / 2)).collect(),
            (0..64).map(|i| if i == 7 { u32::MAX.into() } else { 1 }).collect(),
        ] {
            let freqs = normalise(&counts);
            assert_eq!(freqs.iter().map(|&f| u32::from(f)).sum::<u32>(), TOTAL);
            assert!(freqs[..counts.len()].iter().all(|&f| f > 0 && u32::from(f) < TOTAL));
            assert!(freqs[counts.len()..].iter().all(|&f| f == 0));
        }
    }

    #[test]
    fn a_model_is_its_wire_form() {
        let values: Vec<u16> = (0..50).map(|i| 400 + i * 3).collect();
        let table = |seed: u64| {
            Table::from_counts(&(0..51).map(|i| (i + seed) * 31 % 97).collect::<Vec<_>>())
        };
        for (columns, tables) in [(0u32, 1), (0, 4), (131, 6), (200, 3)] {
            let columns: Vec<u8> = (0..columns).map(|i| (i % 3) as u8).collect();
            let tables = (0..tables).map(table).collect();
            let model = EntropyModel::new(
                Layout::cut(2, true, 10, 0),
                values.clone(),
                384,
                columns,
                tables,
            )
            .expect("valid");
            let mut wire = Vec::new();
            model.write_to(&mut wire);
            assert_eq!(EntropyModel::read_from(&wire).expect("reads"), model);
            for n in 0..wire.len() {
                assert!(
                    EntropyModel::read_from(&wire[..n]).is_err(),
                    "{n} bytes of a model were enough"
                );
            }
            wire.push(0);
            assert!(EntropyModel::read_from(&wire).is_err(), "a trailing byte was accepted");
        }
    }
}
