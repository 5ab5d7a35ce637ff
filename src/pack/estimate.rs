//! What packing a model would save, from samples of it.
//!
//! The samples are planned and encoded as they are when the file is packed, only fewer of them.

use super::{
    content::{Content, Kind},
    pairs::Pairs,
    plan::{Planned, SAMPLE, plan_large},
};
use crate::{
    codec::{self, ElementKind, Encoder},
    error::Result,
    format::{DEFAULT_CHUNK, Extent, FOOTER_LEN, HEADER_LEN},
};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    path::Path,
};

/// Files of at most so many bytes are encoded whole.
const WHOLE: u64 = 16 << 20;
/// The number of samples of larger files. Each takes at most 1.5 MiB of reading.
const POINTS: u64 = 10;
/// Approximate bytes that the entropy model of a sample is built from.
const MODELLED: usize = 512 << 10;
/// The smallest extents that are compared with others of their length.
const MIN_TWIN: u64 = 1 << 20;
/// The most extents that are compared.
const MAX_TWINS: usize = 256;
/// Bytes of an extent that are compared.
const PROBE: usize = 4096;
/// Bytes of the index for each chunk, and for each MiB of the original.
const INDEXED: u64 = 32;

/// The sizes of a model and of its archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes of the model.
    pub original: u64,
    /// Approximate bytes of its archive.
    pub stored: u64,
}

impl Estimate {
    /// The share of the original that packing saves; negative if the archive is larger.
    pub fn saving(&self) -> f64 {
        1.0 - self.stored as f64 / self.original.max(1) as f64
    }
}

/// Estimate the size of the archive of `file`, which has `len` bytes and is called `path`. `None`
/// if it is not a complete model. About 16 MiB of it are read, whatever its length, besides its
/// header.
///
/// # Errors
/// Io.
pub fn estimate(file: &File, path: &Path, len: u64) -> Result<Option<Estimate>> {
    let content = Content { file, path, len, place: None };
    match content.kind(path.file_name().unwrap_or_default())? {
        Kind::Model => of_model(&content).map(Some),
        _ => Ok(None),
    }
}

/// The estimate for a complete model.
pub(super) fn of_model(content: &Content<'_>) -> Result<Estimate> {
    let mut extents = content.extents()?;
    without_twins(content, &mut extents)?;
    let whole = content.len <= WHOLE;
    let samples = if whole {
        extents.iter().map(|e| (*e, Vec::new())).collect()
    } else {
        points(&mut extents)
    };
    let trials: Vec<Trial> = samples
        .par_iter()
        .map(|(extent, points)| trial(content, *extent, points))
        .collect::<Result<_>>()?;
    let mut classes: BTreeMap<Class, (f64, f64)> = BTreeMap::new();
    for trial in &trials {
        let (weight, stored) = classes.entry(class(&trial.extent)).or_default();
        *weight += trial.weight;
        *stored += trial.weight * trial.ratio;
    }
    // What has no sample is too little to matter; it is counted as it is.
    let ratio = |e: &Extent| classes.get(&class(e)).map_or(1.0, |(weight, sum)| sum / weight);
    let stored: f64 = extents.iter().map(|e| e.len as f64 * ratio(e)).sum();
    let chunks: u64 = extents.iter().map(|e| e.len.div_ceil(DEFAULT_CHUNK.into())).sum();
    let index = INDEXED * (chunks + (content.len >> 20)) + HEADER_LEN + FOOTER_LEN;
    Ok(Estimate { original: content.len, stored: stored as u64 + index })
}

/// Extents whose bytes are of the same kind, as a key by which they are sorted.
type Class = (u8, u8);

fn class(extent: &Extent) -> Class {
    match extent.kind {
        None => (0, 0),
        Some(ElementKind::Float { width, exponent }) => (width, exponent),
        Some(ElementKind::Bytes { width }) => (width, 0),
    }
}

/// Leave out the extents that seem to hold the same bytes as an earlier one: an archive stores
/// those once.
fn without_twins(content: &Content<'_>, extents: &mut Vec<Extent>) -> Result<()> {
    let mut large: Vec<Extent> = extents.iter().filter(|e| e.len >= MIN_TWIN).copied().collect();
    large.sort_by_key(|e| (std::cmp::Reverse(e.len), e.start));
    let (mut seen, mut twins) = (HashSet::new(), HashSet::new());
    let mut probe = Vec::new();
    for same in large
        .chunk_by(|a, b| a.len == b.len)
        .filter(|same| same.len() > 1)
        .flatten()
        .take(MAX_TWINS)
    {
        content.read(same.start + same.len / 2, &mut probe, PROBE)?;
        if !seen.insert((same.len, codec::checksum(&probe))) {
            twins.insert(same.start);
        }
    }
    extents.retain(|e| !twins.contains(&e.start));
    Ok(())
}

/// Offsets that are evenly spread over the extents, sorted by kind and length: each extent that is
/// hit, and the offsets in it.
fn points(extents: &mut [Extent]) -> Vec<(Extent, Vec<u64>)> {
    extents.sort_by_key(|e| (class(e), e.len, e.start));
    let total: u64 = extents.iter().map(|e| e.len).sum();
    let mut hit: Vec<(Extent, Vec<u64>)> = Vec::new();
    let (mut i, mut before) = (0, 0);
    for point in (0..POINTS).map(|n| total / POINTS * n + total / POINTS / 2) {
        while before + extents[i].len <= point {
            before += extents[i].len;
            i += 1;
        }
        match hit.last_mut() {
            Some((extent, points)) if extent.start == extents[i].start => {
                points.push(point - before);
            }
            _ => hit.push((extents[i], vec![point - before])),
        }
    }
    hit
}

/// How much smaller some chunks of an extent became.
struct Trial {
    extent: Extent,
    /// How much it counts.
    weight: f64,
    /// Stored bytes for each byte of the original.
    ratio: f64,
}

/// Encode the chunks of an extent that hold the `points`, or all of them if there are none.
fn trial(content: &Content<'_>, extent: Extent, points: &[u64]) -> Result<Trial> {
    let width = extent.kind.map_or(1, |k| k.width());
    let sample = if points.is_empty() { SAMPLE } else { MODELLED / width };
    let read = |start, out: &mut Vec<u8>, len| content.read(start, out, len);
    let planned = plan_large(&read, extent, DEFAULT_CHUNK as usize, sample, &Pairs::default())?;
    let chunk = planned.chunk as u64;
    let mut starts: Vec<u64> = points.iter().map(|point| point / chunk * chunk).collect();
    if points.is_empty() {
        starts = (0..extent.len).step_by(planned.chunk).collect();
    }
    starts.dedup();
    let (encoded, stored) = encode(content, &planned, &starts)?;
    let mut model = Vec::new();
    planned.model.iter().for_each(|m| m.write_to(&mut model));
    let weight = if points.is_empty() { extent.len as f64 } else { points.len() as f64 };
    // An extent has one model, however many chunks it has.
    let ratio = stored as f64 / encoded as f64 + model.len() as f64 / extent.len as f64;
    Ok(Trial { extent, weight, ratio })
}

/// Encode the chunks at `starts` of an extent; returns their lengths before and after.
fn encode(content: &Content<'_>, planned: &Planned, starts: &[u64]) -> Result<(u64, u64)> {
    let encoder = planned.model.as_ref().map(Encoder::new);
    let (mut encoded, mut stored) = (0, 0);
    let mut bytes = Vec::new();
    for start in starts {
        let len = (planned.extent.len - start).min(planned.chunk as u64);
        content.read(planned.extent.start + start, &mut bytes, len as usize)?;
        encoded += len;
        stored += codec::encode(&bytes, encoder.as_ref(), planned.try_zstd).1.len() as u64;
    }
    Ok((encoded, stored))
}
