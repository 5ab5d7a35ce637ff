//! From a source's extents to chunks on disk: models first, then chunks in parallel, written in order.

use super::{Options, Progress, source::Source};
use crate::{
    codec::{self, Coding, Encoder, Model, Sample, should_try_zstd},
    error::{Context, Result},
    format::{Chunk, Extent, FOOTER_LEN, Footer, HEADER_LEN, IndexWriter, NO_MODEL, Naming, header},
    output::{Attributes, Output},
    sha256::Hasher,
};
use rayon::prelude::*;
use std::{io::Write, ops::Range};

/// Bytes of the source in memory at a time; about as many again are coded.
const WINDOW: usize = 32 << 20;
/// Smaller extents have no model: its table would cost more than it saves.
const MIN_MODELLED: u64 = 8 << 10;

/// Elements of a large tensor that its model is made from, about.
const SAMPLE: usize = 1 << 20;
/// Elements of a piece of the sample, about.
const PIECE: usize = 16 << 10;

/// A tensor, or what lies between tensors, ready to be coded.
struct Planned {
    extent: Extent,
    /// Decoded bytes of its chunks.
    chunk: usize,
    model: Option<Model>,
    try_zstd: bool,
}

/// Write `source` to `output` as an archive; returns the archive's length.
pub(super) fn archive(
    source: &mut Source,
    output: &Output,
    naming: Naming,
    o: &Options,
    p: &dyn Progress,
) -> Result<u64> {
    let extents = source.extents()?;
    let mut writer = Writer { output, at: 0, index: IndexWriter::default(), hash: Hasher::default() };
    writer.write(&header())?;
    debug_assert_eq!(writer.at, HEADER_LEN);
    let mut rest = &extents[..];
    while !rest.is_empty() {
        let (group, after) = rest.split_at(group(rest));
        rest = after;
        let planned = plan(source, group, o.chunk_size as usize)?;
        writer.extents(source, &planned, p)?;
    }
    let attributes = Attributes::of(source.meta());
    let (sha256, states) = std::mem::take(&mut writer.hash).finish();
    let footer = Footer {
        original_len: source.len(),
        sha256,
        mtime: attributes.mtime,
        mode: attributes.mode,
        naming,
        index_offset: writer.at,
        index_len: 0,
        index_checksum: 0,
        chunk_count: 0,
        model_count: 0,
        max_chunk: 0,
    };
    let (index, footer) = std::mem::take(&mut writer.index).finish(footer, &states);
    writer.write(&index)?;
    writer.write(&footer.to_bytes())?;
    debug_assert_eq!(writer.at, footer.index_offset + footer.index_len + FOOTER_LEN);
    Ok(writer.at)
}

/// How many of `extents`, at least one, fit into a window together.
fn group(extents: &[Extent]) -> usize {
    let mut bytes = 0;
    let fit = extents.iter().take_while(|e| {
        bytes += e.len;
        bytes <= WINDOW as u64
    });
    fit.count().max(1)
}

/// Models for a group of extents: many small ones at once, or a large one from parts of it.
fn plan(source: &mut Source, group: &[Extent], chunk: usize) -> Result<Vec<Planned>> {
    if let [extent] = group {
        return Ok(vec![plan_large(source, *extent, chunk)?]);
    }
    let start = group[0].start;
    let data = source.window(start, group.iter().map(|e| e.len as usize).sum())?;
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

fn plan_large(source: &mut Source, extent: Extent, chunk: usize) -> Result<Planned> {
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

fn model(extent: Extent, chunk: usize, sample: &[u8]) -> Result<Option<Model>> {
    let Some(kind) = extent.kind.filter(|_| extent.len >= MIN_MODELLED) else { return Ok(None) };
    let bytes = &sample[..sample.len() / kind.width() * kind.width()];
    codec::model(Sample { kind, bytes, row: short_row(extent, chunk), tensor: extent.len })
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

fn planned(extent: Extent, chunk: usize, model: Option<Model>, samples: &[&[u8]]) -> Planned {
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

/// The archive as far as it is written.
struct Writer<'a> {
    output: &'a Output,
    at: u64,
    index: IndexWriter,
    hash: Hasher,
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.file().write_all(bytes).about_path(self.output.path())?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Code and write a group of neighbouring extents.
    fn extents(&mut self, source: &mut Source, group: &[Planned], p: &dyn Progress) -> Result<()> {
        let encoders: Vec<_> = group.iter().map(|g| g.model.as_ref().map(Encoder::new)).collect();
        // A model gets its number when its first chunk uses it.
        let mut numbers = vec![None; group.len()];
        // The parts of the window, each with the number of its extent.
        let mut parts: Vec<(usize, Range<u64>)> = Vec::new();
        for (i, g) in group.iter().enumerate() {
            let end = g.extent.start + g.extent.len;
            let chunks = (g.extent.start..end).step_by(g.chunk);
            parts.extend(chunks.map(|at| (i, at..end.min(at + g.chunk as u64))));
        }
        let per_window = if group.len() > 1 { parts.len() } else { (WINDOW / group[0].chunk).max(1) };
        for parts in parts.chunks(per_window) {
            let (first, last) = (parts[0].1.start, parts[parts.len() - 1].1.end);
            let data = source.window(first, (last - first) as usize)?;
            let slice = |r: &Range<u64>| &data[(r.start - first) as usize..(r.end - first) as usize];
            let hash = &mut self.hash;
            let (coded, ()) = rayon::join(
                || {
                    parts
                        .par_iter()
                        .map(|(i, range)| {
                            let bytes = slice(range);
                            let (coding, stored) =
                                codec::encode(bytes, encoders[*i].as_ref(), group[*i].try_zstd);
                            p.advance(bytes.len() as u64);
                            (coding, stored, codec::checksum(bytes))
                        })
                        .collect::<Vec<_>>()
                },
                || hash.update(data),
            );
            for ((i, original), (coding, stored, checksum)) in parts.iter().zip(coded) {
                let model = match (coding, &group[*i].model) {
                    (Coding::Planes, Some(model)) => match numbers[*i] {
                        Some(n) => n,
                        None => *numbers[*i].insert(self.index.model(model)?),
                    },
                    _ => NO_MODEL,
                };
                let stored_len = stored.len() as u32;
                let original = original.clone();
                self.index.chunk(&Chunk {
                    original,
                    stored_at: self.at,
                    stored_len,
                    coding,
                    model,
                    checksum,
                });
                self.write(&stored)?;
            }
        }
        Ok(())
    }
}
