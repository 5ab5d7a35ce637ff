//! Fits an entropy model to a sample of a tensor: which bits are the symbol value, which values get
//! a symbol, and which tables the symbols share.
//!
//! Nothing here has to be exact. A value that the sample lacks is escaped, and the encoder decides
//! anew how to store each plane of a chunk.

mod classes;
mod cut;
mod detect;
mod differences;
mod plan;

pub use detect::{Detected, detect};
pub use differences::{DifferenceSample, fit_differences};

use super::{
    EntropyModel, LANES,
    encode::{Encoder, encode, zstd_competes},
    model::MAX_COLUMNS,
    planes::{ElementKind, Layout},
};
use crate::error::Result;
use cut::{cuts, zero_bits};
use plan::Plan;

/// A tensor gets a model if that reduces it to this share of its bytes or less.
const WORTH_MODEL: f64 = 0.99;
/// The longest block that is a row or an even part of it, in elements. Rows differ more than their
/// parts do.
const MAX_ROW_BLOCK: usize = 2048;
/// Elements of a block where rows cannot be cut into whole rounds.
const DEFAULT_BLOCK: usize = 512;
/// The same for bytes that seem to be scales of blocks of weights. Their rows are short, and differ
/// as the rows of the weights do.
const SHORT_BLOCK: usize = LANES;
/// The share of bytes that is left of scales: weights of eight bits or less keep more.
const MOST_OF_SCALES: f64 = 0.75;

/// Part of a tensor, or all of it: contiguous whole rows.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// The element type.
    pub kind: ElementKind,
    /// The elements, little-endian.
    pub bytes: &'a [u8],
    /// Elements of a row, if chunks will start at rows.
    pub row: Option<usize>,
    /// Bytes of the whole tensor.
    pub tensor: u64,
}

/// The model for the tensor of `sample`, or `None` if it is not worth one.
///
/// # Errors
/// None is known: a fitted model is valid. It is validated nevertheless.
pub fn fit(sample: Sample<'_>) -> Result<Option<EntropyModel>> {
    let row = sample.row.filter(|r| (LANES..=MAX_COLUMNS).contains(r));
    let block = block_of(row);
    let whole = 8.0 * sample.bytes.len() as f64;
    let best = cuts(&sample)
        .into_iter()
        .filter_map(|cut| {
            let scales = sample.kind.width() == 1 && cut.bits < MOST_OF_SCALES * whole;
            let blocks = [block, SHORT_BLOCK];
            Plan::new(&sample, cut, row, &blocks[..if scales { 2 } else { 1 }])
        })
        .min_by(|a, b| a.bits.total_cmp(&b.bits));
    let Some(plan) = best else { return Ok(None) };
    let zeros = zero_bits(&sample, plan.block);
    let saved = zeros.map_or(0.0, |(_, saved)| saved);
    if plan.bits - saved * whole > WORTH_MODEL * whole {
        return Ok(None);
    }
    let width = sample.kind.width() as u8;
    let zeros = zeros.map_or(0, |(bits, _)| bits);
    let layout = Layout::cut(width, plan.cut.rotated, plan.cut.symbol_bits, zeros);
    EntropyModel::new(layout, plan.cut.values, plan.block, plan.columns, plan.tables).map(Some)
}

/// Elements of a block of a tensor with rows of this length.
fn block_of(row: Option<usize>) -> usize {
    row.and_then(|r| (LANES..=MAX_ROW_BLOCK).rev().step_by(LANES).find(|&b| r.is_multiple_of(b)))
        .unwrap_or(DEFAULT_BLOCK)
}

/// Whether zstd should be tried on every chunk of the tensor that `samples` are from.
pub fn should_try_zstd(samples: &[&[u8]], encoder: Option<&Encoder<'_>>) -> bool {
    samples.iter().any(|s| zstd_competes(s, encode(s, encoder, false).1.len()))
}
