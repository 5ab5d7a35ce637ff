//! From a sample of a tensor to its model: which bits are symbols, which values have one, and which tables they share.
//!
//! Nothing here has to be exact: a value that the sample did not hold is escaped, and what a chunk's planes hold is
//! looked at again when it is coded.

use super::{
    LANES,
    alias::BUCKETS,
    classes::{Classes, Histogram, cost},
    encode::{Encoder, encode, zstd_competes},
    model::{EntropyModel, MAX_CHOICES, MAX_CLASSES, MAX_COLUMNS, MAX_VALUES, Table},
    planes::{ElementKind, Layout},
};
use crate::error::Result;

/// A tensor is worth a model where that takes this share of its bytes or less.
const WORTH_MODEL: f64 = 0.99;
/// What several tables to choose from must save of the elements.
const WORTH_CHOICES: f64 = 0.0002;
/// What classes of columns must save: a vector of symbols then needs several tables, which halves the decoding speed.
const WORTH_CLASSES: f64 = 0.003;
/// What planes for bits that are zero in whole blocks must save.
const WORTH_ZEROS: f64 = 0.001;
/// Bits of a table's wire form, about.
const TABLE: f64 = 10.0 * BUCKETS as f64;
/// Bits of a column's class.
const CLASS: f64 = 4.0;
/// Bits of a block's choice.
const CHOICE: f64 = 2.0;
/// Bits of an escaped value.
const ESCAPED: f64 = 16.0;
/// Elements that share a choice: a row, or the greatest part of it up to this. Rows differ more than their parts do.
const MOST_BLOCK: usize = 2048;
/// Elements that share a choice, where rows cannot be cut into whole rounds.
const BLOCK: usize = 512;
/// Fewer blocks are not worth tables to choose from.
const FEWEST_BLOCKS: usize = 64;
/// Fewer rows say too little of a column.
const FEWEST_ROWS: usize = 8;
/// Columns that are looked at to see whether classes may pay.
const TRIED_COLUMNS: usize = 512;

/// Part of a tensor, or all of it: whole rows, one behind the other.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// What the elements are.
    pub kind: ElementKind,
    /// The elements, little-endian.
    pub bytes: &'a [u8],
    /// Elements of a row, if it makes sense to speak of rows: chunks will start where rows do.
    pub row: Option<usize>,
    /// Bytes of the whole tensor.
    pub tensor: u64,
}

/// The model for the tensor of `sample`, or `None` where it is not worth one.
///
/// # Errors
/// None that is known; a model is checked as it is made.
pub fn model(sample: Sample<'_>) -> Result<Option<EntropyModel>> {
    let row = sample.row.filter(|r| (LANES..=MAX_COLUMNS).contains(r));
    let block = row
        .and_then(|r| (LANES..=MOST_BLOCK).rev().step_by(LANES).find(|&b| r.is_multiple_of(b)))
        .unwrap_or(BLOCK);
    let best = cuts(sample)
        .into_iter()
        .filter_map(|cut| Plan::new(&sample, cut, row, block))
        .min_by(|a, b| a.bits.total_cmp(&b.bits));
    let Some(plan) = best else { return Ok(None) };
    let zeros = zeros(&sample, block);
    let saved = zeros.map_or(0.0, |(_, saved)| saved);
    let whole = 8.0 * sample.bytes.len() as f64;
    if plan.bits - saved * whole > WORTH_MODEL * whole {
        return Ok(None);
    }
    let width = sample.kind.width() as u8;
    let layout = Layout::cut(
        width,
        plan.cut.rotated,
        plan.cut.symbol_bits,
        zeros.map_or(0, |(bits, _)| bits),
    );
    EntropyModel::new(layout, plan.cut.values, block, plan.columns, plan.tables).map(Some)
}

/// Whether zstd should be tried on every chunk of a tensor of which `samples` are some.
pub fn should_try_zstd(samples: &[&[u8]], encoder: Option<&Encoder<'_>>) -> bool {
    samples.iter().any(|s| zstd_competes(s, encode(s, encoder, false).1.len()))
}

/// Which bits are symbols.
#[derive(Clone)]
struct Cut {
    rotated: bool,
    symbol_bits: u8,
    values: Vec<u16>,
    /// Bits of the sample with one table.
    bits: f64,
}

/// The ways to cut elements that are worth a closer look: with the sign among the low bits and in the symbol.
fn cuts(sample: Sample<'_>) -> Vec<Cut> {
    let (width, options): (u8, Vec<Vec<(bool, u8)>>) = match sample.kind {
        ElementKind::Float { width, exponent } => {
            let mantissa = width * 8 - 1 - exponent;
            let of = |rotated: bool| {
                let sign = u8::from(!rotated);
                (0..=mantissa.min(3))
                    .map(|m| (rotated, sign + exponent + m))
                    .filter(|o| o.1 <= 16)
                    .collect()
            };
            (width, vec![of(true), of(false)])
        }
        ElementKind::Bytes { width: 1 } => (1, vec![vec![(false, 6), (false, 7), (false, 8)]]),
        ElementKind::Bytes { .. } => return Vec::new(),
    };
    let best = |options: Vec<(bool, u8)>| {
        let rotated = options.first()?.0;
        let most = options.iter().map(|o| o.1).max()?;
        let mut tops = Vec::new();
        Layout::cut(width, rotated, most, 0).tops(sample.bytes, &mut tops);
        let mut counts = vec![0u64; 1 << most];
        tops.iter().for_each(|&t| counts[usize::from(t)] += 1);
        let cut = |(rotated, symbol_bits): (bool, u8)| {
            let counts: Vec<u64> =
                counts.chunks(1 << (most - symbol_bits)).map(|c| c.iter().sum()).collect();
            cut(counts, width, rotated, symbol_bits)
        };
        options.into_iter().filter_map(cut).min_by(|a, b| a.bits.total_cmp(&b.bits))
    };
    options.into_iter().filter_map(best).collect()
}

/// The cut with symbols for the most frequent values of `counts`.
fn cut(counts: Vec<u64>, width: u8, rotated: bool, symbol_bits: u8) -> Option<Cut> {
    let total: u64 = counts.iter().sum();
    let mut values: Vec<u16> =
        (0..counts.len()).filter(|&v| counts[v] > 0).map(|v| v as u16).collect();
    values.sort_by_key(|&v| std::cmp::Reverse(counts[usize::from(v)]));
    values.truncate(MAX_VALUES);
    let mut histogram = [0.0; BUCKETS];
    histogram.iter_mut().zip(&values).for_each(|(h, &v)| *h = counts[usize::from(v)] as f32);
    let escaped = total - values.iter().map(|&v| counts[usize::from(v)]).sum::<u64>();
    histogram[values.len()] = escaped as f32;
    values.sort_unstable();
    let rest = f64::from(width * 8 - symbol_bits) * total as f64 + ESCAPED * escaped as f64;
    (!values.is_empty()).then(|| Cut {
        rotated,
        symbol_bits,
        values,
        bits: cost(&histogram) + rest,
    })
}

/// How a tensor's symbols share tables.
struct Plan {
    cut: Cut,
    columns: Vec<u8>,
    tables: Vec<Table>,
    /// Bits of the sample, with its share of what the tables take.
    bits: f64,
}

impl Plan {
    fn new(sample: &Sample<'_>, cut: Cut, row: Option<usize>, block: usize) -> Option<Self> {
        let symbols = symbols(sample, &cut);
        if symbols.is_empty() {
            return None;
        }
        // What is stored once weighs less the smaller the sample's part of the tensor is.
        let share = sample.bytes.len() as f64 / sample.tensor.max(1) as f64;
        let whole = 8.0 * sample.bytes.len() as f64;
        let mut one = [0.0; BUCKETS];
        symbols.iter().for_each(|&s| one[usize::from(s)] += 1.0);
        let order0 = cost(&one);
        let rest = cut.bits - order0;
        let live = cut.values.len() + 1;
        let mut best = Self {
            columns: Vec::new(),
            tables: tables(&[vec![one]], live),
            bits: cut.bits + TABLE * share,
            cut,
        };
        if let Some((bits, sums)) = choices(&symbols, block, &[], 1) {
            let bits = rest + bits + TABLE * share * sums.len() as f64;
            if best.bits - bits >= WORTH_CHOICES * whole {
                best.tables = tables(&sums, live);
                best.bits = bits;
            }
        }
        let Some(row) = row.filter(|r| symbols.len() / r >= FEWEST_ROWS) else { return Some(best) };
        let gain = best.bits - rest - WORTH_CLASSES * whole;
        let Some(columns) = classes(&symbols, row, |c| {
            c + CLASS * row as f64 * share < gain + WORTH_CLASSES / 2.0 * whole
        }) else {
            return Some(best);
        };
        let side = CLASS * row as f64 * share;
        let (mut bits, mut sums) =
            (side + columns.cost() + TABLE * share * columns.sums.len() as f64, {
                vec![columns.sums.iter().map(|s| s[0]).collect::<Vec<_>>()]
            });
        if let Some((with, joint)) = choices(&symbols, block, &columns.members, columns.sums.len())
        {
            let with = with + side + TABLE * share * (joint.len() * columns.sums.len()) as f64;
            if bits - with >= WORTH_CHOICES * whole {
                (bits, sums) = (with, joint);
            }
        }
        if bits < gain {
            best.tables = tables(&sums, live);
            best.bits = bits + rest;
            best.columns = columns.members;
        }
        Some(best)
    }
}

/// The symbols of a sample.
fn symbols(sample: &Sample<'_>, cut: &Cut) -> Vec<u8> {
    let mut tops = Vec::new();
    Layout::cut(sample.kind.width() as u8, cut.rotated, cut.symbol_bits, 0)
        .tops(sample.bytes, &mut tops);
    let mut index = vec![cut.values.len() as u8; 1 << cut.symbol_bits];
    cut.values.iter().enumerate().for_each(|(s, &v)| index[usize::from(v)] = s as u8);
    tops.iter().map(|&t| index[usize::from(t)]).collect()
}

/// Bits with several tables to choose from for each block, and the tables by choice and class of column.
fn choices(
    symbols: &[u8],
    block: usize,
    columns: &[u8],
    classes: usize,
) -> Option<(f64, Vec<Vec<Histogram>>)> {
    let blocks = symbols.len() / block;
    if blocks < FEWEST_BLOCKS {
        return None;
    }
    let mut histograms = vec![[0.0; BUCKETS]; blocks * classes];
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
    // What is left behind the last whole block is coded as well as the rest.
    let scale = symbols.len() as f64 / (blocks * block) as f64;
    Some(((found.cost() + CHOICE * blocks as f64) * scale, found.sums))
}

/// Classes of columns, if a look at some of them says that bits may be few enough.
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
        let mut sums = vec![vec![[0.0; BUCKETS]]; MAX_CLASSES];
        for (h, &m) in all.iter().zip(&classes.members) {
            sums[usize::from(m)][0].iter_mut().zip(h).for_each(|(s, n)| *s += n);
        }
        classes.sums = sums;
    }
    // Classes are numbered without gaps.
    let used: Vec<u8> = (0..MAX_CLASSES as u8).filter(|c| classes.members.contains(c)).collect();
    classes
        .members
        .iter_mut()
        .for_each(|m| *m = used.iter().position(|u| u == m).unwrap_or(0) as u8);
    classes.sums = used.iter().map(|&u| classes.sums[usize::from(u)].clone()).collect();
    (used.len() > 1).then_some(classes)
}

/// Of every `step`-th column.
fn histograms(symbols: &[u8], row: usize, step: usize) -> Vec<Histogram> {
    let mut histograms = vec![[0.0; BUCKETS]; row.div_ceil(step)];
    for row in symbols.chunks_exact(row) {
        for (h, &s) in histograms.iter_mut().zip(row.iter().step_by(step)) {
            h[usize::from(s)] += 1.0;
        }
    }
    histograms
}

/// Tables from what was counted for their symbols, `live` of them.
fn tables(sums: &[Vec<Histogram>], live: usize) -> Vec<Table> {
    // Counts with a prior are no whole numbers.
    let table = |h: &Histogram| {
        Table::from_counts(&h[..live].iter().map(|&c| (c * 256.0) as u64).collect::<Vec<_>>())
    };
    sums.iter().flatten().map(table).collect()
}

/// How many low bits to keep apart because they are zero in whole blocks (as in floats that were widened from narrower
/// ones), and which share of the sample that saves.
fn zeros(sample: &Sample<'_>, block: usize) -> Option<(u8, f64)> {
    let ElementKind::Float { width, .. } = sample.kind else { return None };
    let width = usize::from(width);
    let mut found = [0usize; 65];
    for block in sample.bytes.chunks_exact(block * width) {
        let mut seen = [0u8; 8];
        block.chunks_exact(width).for_each(|e| seen.iter_mut().zip(e).for_each(|(s, b)| *s |= b));
        found[u64::from_le_bytes(seen).trailing_zeros().min(8 * width as u32) as usize] += 1;
    }
    let blocks: usize = found.iter().sum();
    let saved = |z: usize| {
        (found[z..].iter().sum::<usize>() * z) as f64 / (blocks.max(1) * 8 * width) as f64
    };
    let best = (1..8 * width).max_by(|&a, &b| saved(a).total_cmp(&saved(b)))?;
    (saved(best) >= WORTH_ZEROS).then(|| (best as u8, saved(best)))
}
