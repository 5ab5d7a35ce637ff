//! What to do with each extent, before it is coded: its model, the length of its chunks, whether zstd may do as well.

use super::source::Source;
use crate::{
    codec::{self, Encoder, EntropyModel, Sample, should_try_zstd},
    error::Result,
    format::Extent,
};
use rayon::prelude::*;
use std::ops::Range;

/// Smaller extents have no model: its table would cost more than it saves.
const MIN_MODELLED: u64 = 8 << 10;
/// Elements of a large tensor that its model is made from, about.
const SAMPLE: usize = 1 << 20;
/// Elements of a piece of the sample, about.
const PIECE: usize = 16 << 10;

/// A tensor, or what lies between tensors, ready to be coded.
pub(super) struct Planned {
    pub(super) extent: Extent,
    /// Decoded bytes of its chunks.
    pub(super) chunk: usize,
    pub(super) model: Option<EntropyModel>,
    pub(super) try_zstd: bool,
}

/// Models for a group of extents: many small ones at once, or a large one from parts of it.
pub(super) fn plan(source: &Source, group: &[Extent], chunk: usize) -> Result<Vec<Planned>> {
    if let [extent] = group {
        return Ok(vec![plan_large(source, *extent, chunk)?]);
    }
    let start = group[0].start;
    let mut data = Vec::new();
    source.read(start, &mut data, group.iter().map(|e| e.len as usize).sum())?;
    group
        .par_iter()
        .map(|&extent| {
            let data = &data[(extent.start - start) as usize..][..extent.len as usize];
            let sample = sampled(extent).flat_map(|r| &data[r]).copied().collect::<Vec<u8>>();
            let model = model(extent, chunk, &sample)?;
            let chunk = chunk_len(extent, chunk);
            let samples = samples(extent.len as usize, chunk).map(|r| &data[r]);
            Ok(planned(extent, chunk, model, &samples))
        })
        .collect()
}

fn plan_large(source: &Source, extent: Extent, chunk: usize) -> Result<Planned> {
    let read = |range: Range<usize>| {
        let mut data = Vec::new();
        source.read(extent.start + range.start as u64, &mut data, range.len()).map(|()| data)
    };
    let sample = match extent.kind {
        Some(_) => sampled(extent).map(read).collect::<Result<Vec<_>>>()?.concat(),
        None => Vec::new(),
    };
    let model = model(extent, chunk, &sample)?;
    let chunk = chunk_len(extent, chunk);
    let [a, b, c] = samples(extent.len as usize, chunk).map(read);
    Ok(planned(extent, chunk, model, &[&a?, &b?, &c?]))
}

/// Which bytes of an extent its model is made from: all, or pieces of whole rows, evenly spread.
fn sampled(extent: Extent) -> impl Iterator<Item = Range<usize>> {
    let len = extent.len as usize;
    let width = extent.kind.map_or(1, |k| k.width());
    let (piece, step) = if len / width <= 2 * SAMPLE {
        (len, len)
    } else {
        let row = extent.row.filter(|&r| r <= SAMPLE / 8).unwrap_or(PIECE);
        let piece = PIECE.div_ceil(row) * row;
        let rows = len / width / row;
        (piece * width, rows / (SAMPLE / piece).max(1) * row * width)
    };
    (0..len).step_by(step.max(piece)).map(move |at| at..at + piece).filter(move |r| r.end <= len)
}

fn model(extent: Extent, chunk: usize, sample: &[u8]) -> Result<Option<EntropyModel>> {
    let Some(kind) = extent.kind.filter(|_| extent.len >= MIN_MODELLED) else { return Ok(None) };
    let bytes = &sample[..sample.len() / kind.width() * kind.width()];
    codec::fit(Sample { kind, bytes, row: short_row(extent, chunk), tensor: extent.len })
}

/// Elements of an extent's rows, if they are short enough for chunks to consist of whole ones.
fn short_row(extent: Extent, chunk: usize) -> Option<usize> {
    extent.row.filter(|&r| extent.kind.is_some_and(|k| r <= chunk / 4 / k.width()))
}

/// Decoded bytes of an extent's chunks.
fn chunk_len(extent: Extent, chunk: usize) -> usize {
    let row = short_row(extent, chunk).zip(extent.kind).map(|(r, k)| r * k.width());
    row.map_or(chunk, |row| chunk / row * row)
}

fn planned(
    extent: Extent,
    chunk: usize,
    model: Option<EntropyModel>,
    samples: &[&[u8]],
) -> Planned {
    let encoder = model.as_ref().map(Encoder::new);
    let try_zstd = extent.len < MIN_MODELLED || should_try_zstd(samples, encoder.as_ref());
    drop(encoder);
    Planned { extent, chunk, model, try_zstd }
}

/// The first, a middle and the last chunk of an extent of `len` bytes.
fn samples(len: usize, chunk: usize) -> [Range<usize>; 3] {
    let last = (len - 1) / chunk;
    [0, last / 2, last].map(|i| i * chunk..len.min((i + 1) * chunk))
}
