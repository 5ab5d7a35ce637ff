//! How a tensor's symbols share tables: one for all, several that blocks choose from, one for each
//! class of columns, or both.

use super::{
    Sample,
    classes::{Classes, Histogram, cost},
    cut::{Cut, symbols},
};
use crate::codec::model::{ALPHABET, FrequencyTable, MAX_CHOICES, MAX_CLASSES};

/// The share of the sample that several tables to choose from must save.
pub(super) const WORTH_CHOICES: f64 = 0.0002;
/// The share that classes of columns must save: a vector of symbols then needs several tables,
/// which halves the decoding speed.
pub(super) const WORTH_CLASSES: f64 = 0.003;
/// The share that a second length of blocks must save.
const WORTH_BLOCKS: f64 = 0.001;
/// Bits of a table's wire form, approximately, if all symbols are in use.
pub(super) const TABLE: f64 = 10.0 * ALPHABET as f64;
/// Bits of a column's class.
const CLASS: f64 = 4.0;
/// Bits of a block's choice.
pub(super) const CHOICE: f64 = 2.0;
/// Fewer blocks are not worth tables to choose from.
pub(super) const MIN_BLOCKS: usize = 64;
/// Fewer rows say too little about a column.
const MIN_ROWS: usize = 8;
/// Columns that are looked at first, to estimate whether classes may pay.
const TRIED_COLUMNS: usize = 512;

/// How a tensor's symbols share tables.
pub(super) struct Plan {
    pub cut: Cut,
    /// Elements that share a choice of tables.
    pub block: usize,
    /// The class of each column; empty if there is one class.
    pub columns: Vec<u8>,
    pub tables: Vec<FrequencyTable>,
    /// Estimated bits of the sample, with its share of what the tables take.
    pub bits: f64,
}

/// The quantities that plans are estimated from.
struct Estimate {
    symbols: Vec<u8>,
    /// Symbols in use, the escape included.
    live: usize,
    /// The sample's share of the tensor. What is stored once per tensor is weighted by it.
    share: f64,
    /// The sample's share of a table, in bits.
    table: f64,
    /// Bits of the sample as it is.
    whole: f64,
    /// Bits of the sample that do not depend on the tables.
    rest: f64,
}

impl Plan {
    /// The best plan for the sample cut by `cut`, or `None` if it has no elements. Blocks have the
    /// first of the lengths in `blocks`, unless another one is worth it.
    pub(super) fn new(
        sample: &Sample<'_>,
        cut: Cut,
        row: Option<usize>,
        blocks: &[usize],
    ) -> Option<Self> {
        let symbols = symbols(sample, &cut);
        if symbols.is_empty() {
            return None;
        }
        let mut one = [0.0; ALPHABET];
        symbols.iter().for_each(|&s| one[usize::from(s)] += 1.0);
        let share = sample.bytes.len() as f64 / sample.tensor.max(1) as f64;
        let live = cut.values.len() + 1;
        let estimate = Estimate {
            symbols,
            live,
            share,
            table: TABLE * live as f64 / ALPHABET as f64 * share,
            whole: 8.0 * sample.bytes.len() as f64,
            rest: cut.bits - cost(&one),
        };
        let mut best = Self {
            block: *blocks.first()?,
            columns: Vec::new(),
            tables: tables(&[vec![one]], estimate.live),
            bits: cut.bits + estimate.table,
            cut,
        };
        let mut worth = WORTH_CHOICES;
        for &block in blocks {
            best.try_choices(&estimate, block, worth);
            worth = WORTH_BLOCKS;
        }
        if let Some(row) = row.filter(|r| estimate.symbols.len() / r >= MIN_ROWS) {
            best.try_classes(&estimate, row);
        }
        Some(best)
    }

    /// Takes several tables for blocks of `block` elements to choose from if these save `worth`.
    fn try_choices(&mut self, e: &Estimate, block: usize, worth: f64) {
        if let Some((bits, sums)) = choices(&e.symbols, block, &[], 1) {
            let bits = e.rest + bits + e.table * sums.len() as f64;
            if self.bits - bits >= worth * e.whole {
                self.block = block;
                self.tables = tables(&sums, e.live);
                self.bits = bits;
            }
        }
    }

    /// Takes classes of columns, with or without tables to choose from, if they save enough.
    fn try_classes(&mut self, e: &Estimate, row: usize) {
        let limit = self.bits - e.rest - WORTH_CLASSES * e.whole;
        let Some(columns) = classes(&e.symbols, row, |c| {
            c + CLASS * row as f64 * e.share < limit + WORTH_CLASSES / 2.0 * e.whole
        }) else {
            return;
        };
        let count = columns.sums.len();
        let side = CLASS * row as f64 * e.share;
        let mut bits = side + columns.cost() + e.table * count as f64;
        let mut sums = vec![columns.sums.iter().map(|s| s[0]).collect::<Vec<_>>()];
        if let Some((with, joint)) = choices(&e.symbols, self.block, &columns.members, count) {
            let with = with + side + e.table * (joint.len() * count) as f64;
            if bits - with >= WORTH_CHOICES * e.whole {
                (bits, sums) = (with, joint);
            }
        }
        if bits < limit {
            self.tables = tables(&sums, e.live);
            self.bits = bits + e.rest;
            self.columns = columns.members;
        }
    }
}

/// The bits of the symbols if each block chooses from several tables, and the symbol counts of the
/// tables by choice and class of column. `None` if there are too few blocks.
fn choices(
    symbols: &[u8],
    block: usize,
    columns: &[u8],
    classes: usize,
) -> Option<(f64, Vec<Vec<Histogram>>)> {
    let blocks = symbols.len() / block;
    if blocks < MIN_BLOCKS {
        return None;
    }
    let mut histograms = vec![[0.0; ALPHABET]; blocks * classes];
    let mut column = 0;
    for (symbols, histograms) in symbols.chunks_exact(block).zip(histograms.chunks_mut(classes)) {
        if columns.is_empty() {
            symbols.iter().for_each(|&s| histograms[0][usize::from(s)] += 1.0);
        } else {
            for &s in symbols {
                histograms[usize::from(columns[column])][usize::from(s)] += 1.0;
                column = if column + 1 == columns.len() { 0 } else { column + 1 };
            }
        }
    }
    let found = Classes::new(&histograms, classes, MAX_CHOICES);
    // Assume that the symbols after the last whole block cost as much as the others.
    let scale = symbols.len() as f64 / (blocks * block) as f64;
    Some(((found.cost() + CHOICE * blocks as f64) * scale, found.sums))
}

/// Classes of columns, if an estimate from some of the columns is `enough`.
fn classes(symbols: &[u8], row: usize, enough: impl Fn(f64) -> bool) -> Option<Classes> {
    let step = row.div_ceil(TRIED_COLUMNS);
    let some = histograms(symbols, row, step);
    let mut classes = Classes::new(&some, 1, MAX_CLASSES);
    let share = some.iter().flatten().sum::<f32>() / symbols.len() as f32;
    if !enough(classes.cost() / f64::from(share)) {
        return None;
    }
    if step > 1 {
        let all = histograms(symbols, row, 1);
        classes.assign(&all, 1);
        let mut sums = vec![vec![[0.0; ALPHABET]]; MAX_CLASSES];
        for (h, &m) in all.iter().zip(&classes.members) {
            sums[usize::from(m)][0].iter_mut().zip(h).for_each(|(s, n)| *s += n);
        }
        classes.sums = sums;
    }
    // Renumber the classes without gaps.
    let used: Vec<u8> = (0..MAX_CLASSES as u8).filter(|c| classes.members.contains(c)).collect();
    classes
        .members
        .iter_mut()
        .for_each(|m| *m = used.iter().position(|u| u == m).unwrap_or(0) as u8);
    classes.sums = used.iter().map(|&u| classes.sums[usize::from(u)].clone()).collect();
    (used.len() > 1).then_some(classes)
}

/// The histogram of every `step`-th column.
fn histograms(symbols: &[u8], row: usize, step: usize) -> Vec<Histogram> {
    let mut histograms = vec![[0.0; ALPHABET]; row.div_ceil(step)];
    for row in symbols.chunks_exact(row) {
        for (h, &s) in histograms.iter_mut().zip(row.iter().step_by(step)) {
            h[usize::from(s)] += 1.0;
        }
    }
    histograms
}

/// Tables of the first `live` symbols, from their counts.
pub(super) fn tables(sums: &[Vec<Histogram>], live: usize) -> Vec<FrequencyTable> {
    // Counts with a prior are fractions.
    let table = |h: &Histogram| {
        FrequencyTable::from_counts(
            &h[..live].iter().map(|&c| (c * 256.0) as u64).collect::<Vec<_>>(),
        )
    };
    sums.iter().flatten().map(table).collect()
}
