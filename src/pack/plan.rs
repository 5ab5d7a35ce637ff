//! Decisions about each extent before it is encoded: its entropy model, the length of its chunks,
//! and whether to try zstd.

use super::{
    differences::{Differences, Planes},
    pairs::{MIN_MODELLED, Pairs},
    twins::{fingerprint, sampled_chunks},
};
use crate::{
    codec::{self, Encoder, EntropyModel, Sample, should_try_zstd},
    error::Result,
    format::Extent,
};
use rayon::prelude::*;
use std::ops::Range;

/// The approximate number of elements of a large tensor that its model is built from.
pub(super) const SAMPLE: usize = 1 << 20;
/// The approximate number of elements of one piece of that sample.
const PIECE: usize = 16 << 10;

/// A tensor, or the bytes between tensors, ready to be encoded.
pub(super) struct Planned {
    pub(super) extent: Extent,
    /// Decoded bytes of its chunks.
    pub(super) chunk: usize,
    pub(super) model: Option<EntropyModel>,
    /// How it is stored as differences from a base, if that saves enough.
    pub(super) differences: Option<Differences>,
    pub(super) try_zstd: bool,
    /// By which equal tensors of other archives are found.
    pub(super) fingerprint: u64,
}

/// Reads so many bytes at an offset of the file into a buffer, which is resized to hold them.
pub(super) type Read<'a> = &'a (dyn Fn(u64, &mut Vec<u8>, usize) -> Result<()> + Sync);

/// Plan a group of extents: many small ones at once, or a large one by a sample.
pub(super) fn plan(
    read: Read<'_>,
    group: &[Extent],
    chunk: usize,
    pairs: &Pairs,
) -> Result<Vec<Planned>> {
    if let [extent] = group {
        return Ok(vec![plan_large(read, *extent, chunk, SAMPLE, pairs)?]);
    }
    let start = group[0].start;
    let mut data = Vec::new();
    read(start, &mut data, group.iter().map(|e| e.len as usize).sum())?;
    group
        .par_iter()
        .map(|&extent| {
            let data = &data[(extent.start - start) as usize..][..extent.len as usize];
            let pieces = sampled(extent, SAMPLE).flat_map(|r| &data[r]);
            let sample = pieces.copied().collect::<Vec<u8>>();
            let model = model(extent, chunk, &sample)?;
            let samples = samples(extent.len as usize, chunk_len(extent, chunk)).map(|r| &data[r]);
            let most = SAMPLE;
            planned(&Examined { extent, chunk, most, sample: &sample, samples, pairs }, model)
        })
        .collect()
}

/// Plan an extent by about `most` elements of it and three of its chunks.
pub(super) fn plan_large(
    read: Read<'_>,
    extent: Extent,
    chunk: usize,
    most: usize,
    pairs: &Pairs,
) -> Result<Planned> {
    let read = |range: Range<usize>| {
        let mut data = Vec::new();
        read(extent.start + range.start as u64, &mut data, range.len()).map(|()| data)
    };
    let sample = match extent.kind {
        Some(_) => sampled(extent, most).map(read).collect::<Result<Vec<_>>>()?.concat(),
        None => Vec::new(),
    };
    let model = model(extent, chunk, &sample)?;
    let [a, b, c] = samples(extent.len as usize, chunk_len(extent, chunk)).map(read);
    let samples: [&[u8]; 3] = [&a?, &b?, &c?];
    planned(&Examined { extent, chunk, most, sample: &sample, samples, pairs }, model)
}

/// The bytes of an extent that its model is built from: all, or about `most` elements in evenly
/// spread pieces of whole rows.
fn sampled(extent: Extent, most: usize) -> impl Iterator<Item = Range<usize>> {
    let len = extent.len as usize;
    let width = extent.kind.map_or(1, |k| k.width());
    let (piece, step) = if len / width <= 2 * most {
        (len, len)
    } else {
        let row = extent.row.filter(|&r| r <= most / 8).unwrap_or(PIECE);
        let piece = PIECE.div_ceil(row) * row;
        let rows = len / width / row;
        (piece * width, rows / (most / piece).max(1) * row * width)
    };
    (0..len).step_by(step.max(piece)).map(move |at| at..at + piece).filter(move |r| r.end <= len)
}

fn model(extent: Extent, chunk: usize, sample: &[u8]) -> Result<Option<EntropyModel>> {
    let Some(kind) = extent.kind.filter(|_| extent.len >= MIN_MODELLED) else { return Ok(None) };
    let bytes = &sample[..sample.len() / kind.width() * kind.width()];
    codec::fit(Sample { kind, bytes, row: short_row(extent, chunk), tensor: extent.len })
}

/// The elements of a row of an extent, if rows are short enough for chunks to consist of whole
/// rows.
fn short_row(extent: Extent, chunk: usize) -> Option<usize> {
    extent.row.filter(|&r| extent.kind.is_some_and(|k| r <= chunk / 4 / k.width()))
}

/// The decoded bytes of each chunk of an extent.
fn chunk_len(extent: Extent, chunk: usize) -> usize {
    let row = short_row(extent, chunk).zip(extent.kind).map(|(r, k)| r * k.width());
    row.map_or(chunk, |row| chunk / row * row)
}

/// What is known of an extent.
struct Examined<'a> {
    extent: Extent,
    /// Decoded bytes of a chunk, before it is made to consist of whole rows.
    chunk: usize,
    /// About how many elements the sample has, at most, and its bytes.
    most: usize,
    sample: &'a [u8],
    /// Three chunks.
    samples: [&'a [u8]; 3],
    pairs: &'a Pairs,
}

fn planned(of: &Examined<'_>, model: Option<EntropyModel>) -> Result<Planned> {
    let Examined { extent, samples, .. } = *of;
    let encoder = model.as_ref().map(Encoder::new);
    let try_zstd = extent.len < MIN_MODELLED || should_try_zstd(&samples, encoder.as_ref());
    let differences = differences(of, &Planes { encoder: encoder.as_ref(), try_zstd })?;
    drop(encoder);
    let fingerprint = fingerprint(extent.len, samples.map(codec::checksum));
    let chunk = chunk_len(extent, of.chunk);
    Ok(Planned { extent, chunk, model, differences, try_zstd, fingerprint })
}

/// How an extent is stored as differences, if it has a pair and they save enough.
fn differences(of: &Examined<'_>, planes: &Planes<'_>) -> Result<Option<Differences>> {
    let Examined { extent, chunk, most, sample, samples, pairs } = *of;
    let Some(pair) = pairs.pair(&extent).filter(|_| extent.len >= MIN_MODELLED) else {
        return Ok(None);
    };
    let read = |range: Range<usize>| {
        let mut bytes = vec![0; range.len()];
        pairs.read(pair, extent.start + range.start as u64, &mut bytes).map(|()| bytes)
    };
    let there = sampled(extent, most).map(read).collect::<Result<Vec<_>>>()?.concat();
    let places = self::samples(extent.len as usize, chunk_len(extent, chunk)).map(read);
    let [a, b, c] = places;
    let row = short_row(extent, chunk);
    Differences::of(extent, row, (sample, &there), (samples, [&a?, &b?, &c?]), (pair, planes))
}

/// The first, a middle and the last chunk of an extent of `len` bytes.
fn samples(len: usize, chunk: usize) -> [Range<usize>; 3] {
    sampled_chunks(len.div_ceil(chunk)).map(|i| i * chunk..len.min((i + 1) * chunk))
}
