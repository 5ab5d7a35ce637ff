//! From a source's extents to chunks on disk: models first, then chunks in parallel, written in order.
//!
//! While a window of the source is coded, the one before is written and the next one read; while extents are coded,
//! those that follow are planned.

use super::{
    Options, Progress,
    plan::{Planned, plan},
    source::Source,
};
use crate::{
    codec::{self, Coding, Encoder},
    error::{Context, Result},
    format::{
        Chunk, Extent, FOOTER_LEN, Footer, HEADER_LEN, IndexWriter, NO_MODEL, Naming, header,
    },
    output::{Output, mtime},
    sha256::Hasher,
};
use rayon::prelude::*;
use std::{collections::HashMap, io::Write, ops::Range};

/// Bytes of the source that are coded together. Two windows are in memory at a time, and what two come to when coded.
const WINDOW: usize = 16 << 20;
/// Smaller extents are not looked for among those before them.
const MIN_SHARED: u64 = 64 << 10;

/// Write `source` to `output` as an archive; returns the archive's length.
pub(super) fn archive(
    source: &Source,
    output: &Output,
    naming: Naming,
    o: &Options,
    p: &dyn Progress,
) -> Result<u64> {
    let extents = source.extents()?;
    let mut writer = Writer {
        output,
        at: 0,
        index: IndexWriter::default(),
        hash: Hasher::default(),
        pending: Vec::new(),
        extents: HashMap::new(),
    };
    writer.write(&header())?;
    debug_assert_eq!(writer.at, HEADER_LEN);
    let mut groups = Groups(&extents);
    let plan = |group| plan(source, group, o.chunk_size as usize);
    let mut planned = groups.next().map(plan).transpose()?;
    while let Some(group) = planned.take() {
        let following = groups.next();
        let (written, next) =
            rayon::join(|| writer.extents(source, &group, p), || following.map(plan).transpose());
        written?;
        planned = next?;
    }
    append(output, writer.pending.drain(..))?;
    let (sha256, states) = std::mem::take(&mut writer.hash).finish();
    let footer = Footer {
        original_len: source.len(),
        sha256,
        mtime: mtime(source.stat()),
        mode: source.stat().st_mode & 0o7777,
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

/// Extents in groups that fit into a window, of one at least.
struct Groups<'a>(&'a [Extent]);

impl<'a> Iterator for Groups<'a> {
    type Item = &'a [Extent];

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = 0;
        let fit = self.0.iter().take_while(|e| {
            bytes += e.len;
            bytes <= WINDOW as u64
        });
        let (group, rest) = self.0.split_at(fit.count().max(1).min(self.0.len()));
        self.0 = rest;
        (!group.is_empty()).then_some(group)
    }
}

/// The archive as far as it is written.
struct Writer<'a> {
    output: &'a Output,
    at: u64,
    index: IndexWriter,
    hash: Hasher,
    /// Coded chunks that are not yet written.
    pending: Vec<Vec<u8>>,
    /// The first extent of each length and checksum of its first chunk: one that is the same may share its chunks.
    extents: HashMap<(u64, u64), u64>,
}

/// Part of an extent, to become a chunk.
struct Part {
    /// Which of the group.
    extent: usize,
    original: Range<u64>,
}

/// How a part is stored.
enum Stored {
    /// As these bytes.
    Own(Coding, Vec<u8>),
    /// As this chunk, which holds the same.
    Shared(Chunk),
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.file().write_all(bytes).about_path(&self.output.path())?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Code and write a group of neighbouring extents.
    fn extents(&mut self, source: &Source, group: &[Planned], p: &dyn Progress) -> Result<()> {
        let encoders: Vec<_> = group.iter().map(|g| g.model.as_ref().map(Encoder::new)).collect();
        let twins = group.iter().map(|g| self.twin(source, g)).collect::<Result<Vec<_>>>()?;
        let mut parts = Vec::new();
        for (extent, g) in group.iter().enumerate() {
            let end = g.extent.start + g.extent.len;
            let chunks = (g.extent.start..end).step_by(g.chunk);
            parts.extend(
                chunks.map(|at| Part { extent, original: at..end.min(at + g.chunk as u64) }),
            );
        }
        let per_window =
            if group.len() > 1 { parts.len() } else { (WINDOW / group[0].chunk).max(1) };
        let windows: Vec<&[Part]> = parts.chunks(per_window).collect();
        let range = |parts: &[Part]| parts[0].original.start..parts[parts.len() - 1].original.end;
        let read = |parts: &[Part], data: &mut Vec<u8>| {
            let range = range(parts);
            source.read(range.start, data, (range.end - range.start) as usize)
        };
        // A model gets its number when its first chunk uses it.
        let mut numbers = vec![None; group.len()];
        let (mut data, mut next) = (Vec::new(), Vec::new());
        let mut pending = std::mem::take(&mut self.pending);
        read(windows[0], &mut data)?;
        for (i, parts) in windows.iter().enumerate() {
            let start = range(parts).start;
            let index = &self.index;
            let code = |part: &Part| -> Result<(u64, Stored)> {
                let planned = &group[part.extent];
                let local = |at: u64| (at - start) as usize;
                let bytes = &data[local(part.original.start)..local(part.original.end)];
                let checksum = codec::checksum(bytes);
                let twin =
                    twins[part.extent].map(|t| t + part.original.start - planned.extent.start);
                let stored = match shared(source, index, twin, bytes, checksum)? {
                    Some(chunk) => Stored::Shared(chunk),
                    None => {
                        let (coding, stored) =
                            codec::encode(bytes, encoders[part.extent].as_ref(), planned.try_zstd);
                        Stored::Own(coding, stored)
                    }
                };
                p.advance(bytes.len() as u64);
                Ok((checksum, stored))
            };
            let (hash, output) = (&mut self.hash, self.output);
            let (coded, beside) = rayon::join(
                || parts.par_iter().map(code).collect::<Result<Vec<_>>>(),
                || {
                    hash.update(&data);
                    append(output, pending.drain(..))?;
                    windows.get(i + 1).map_or(Ok(()), |parts| read(parts, &mut next))
                },
            );
            beside?;
            for (part, (checksum, stored)) in parts.iter().zip(coded?) {
                let number = &mut numbers[part.extent];
                pending.extend(self.describe(
                    part,
                    checksum,
                    stored,
                    &group[part.extent],
                    number,
                )?);
            }
            std::mem::swap(&mut data, &mut next);
        }
        self.pending = pending;
        Ok(())
    }

    /// Put a part into the index; returns the bytes that are to be written for it.
    fn describe(
        &mut self,
        part: &Part,
        checksum: u64,
        stored: Stored,
        planned: &Planned,
        number: &mut Option<u32>,
    ) -> Result<Option<Vec<u8>>> {
        let original = part.original.clone();
        let (coding, bytes) = match stored {
            Stored::Shared(chunk) => {
                self.index.chunk(&Chunk { original, ..chunk });
                return Ok(None);
            }
            Stored::Own(coding, bytes) => (coding, bytes),
        };
        let model = match (coding, &planned.model, *number) {
            (Coding::Planes, _, Some(n)) => n,
            (Coding::Planes, Some(model), None) => *number.insert(self.index.model(model)?),
            _ => NO_MODEL,
        };
        let stored_len = bytes.len() as u32;
        self.index.chunk(&Chunk {
            original,
            stored_at: self.at,
            stored_len,
            coding,
            model,
            checksum,
        });
        self.at += u64::from(stored_len);
        Ok(Some(bytes))
    }

    /// Where an extent of an earlier group starts that may hold the same bytes.
    fn twin(&mut self, source: &Source, planned: &Planned) -> Result<Option<u64>> {
        let Extent { start, len, .. } = planned.extent;
        if len < MIN_SHARED {
            return Ok(None);
        }
        let mut first = Vec::new();
        source.read(start, &mut first, planned.chunk.min(len as usize))?;
        let earliest = *self.extents.entry((len, codec::checksum(&first))).or_insert(start);
        Ok((earliest != start).then_some(earliest))
    }
}

/// Append to the archive.
fn append(output: &Output, chunks: impl IntoIterator<Item = Vec<u8>>) -> Result<()> {
    chunks.into_iter().try_for_each(|c| output.file().write_all(&c).about_path(&output.path()))
}

/// The chunk that starts at `twin`, if it holds the same `bytes`.
fn shared(
    source: &Source,
    index: &IndexWriter,
    twin: Option<u64>,
    bytes: &[u8],
    checksum: u64,
) -> Result<Option<Chunk>> {
    let Some(chunk) = twin.and_then(|at| index.find(at)) else { return Ok(None) };
    if chunk.checksum != checksum || chunk.len() != bytes.len() {
        return Ok(None);
    }
    let mut there = Vec::new();
    source.read(chunk.original.start, &mut there, bytes.len())?;
    Ok((there == bytes).then_some(chunk))
}
