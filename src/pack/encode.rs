//! From the extents of a source to chunks on disk: entropy models first, then chunks encoded in
//! parallel and written in order.
//!
//! While one window of the source is encoded, the previous one is written and the next one read.
//! While one group of extents is encoded, the next group is planned.

use super::{
    Progress,
    plan::{Planned, plan},
    source::Source,
    twins::{BeforeWrite, MIN_TWIN, Piece, Twin, Twins, put},
};
use crate::{
    codec::{self, Coding, EncodeMemory, Encoder},
    error::{Context, Error, ErrorKind, Result},
    format::{
        Chunk, Extent, FOOTER_LEN, Footer, HEADER_LEN, IndexWriter, NO_MODEL, Naming, VERSION,
        header,
    },
    output::{CLONE_BLOCK, Output, mtime},
    sha256::Hasher,
};
use rayon::prelude::*;
use std::{collections::HashMap, ops::Range, os::unix::fs::FileExt, sync::Arc};

/// Bytes of the source that are encoded together. Two windows are in memory at a time, and the
/// encoded chunks of two.
const WINDOW: usize = 16 << 20;
/// Smaller extents are not deduplicated.
const MIN_SHARED: u64 = 64 << 10;

/// Called after each window: up to which byte the source is encoded, and how long the archive is so
/// far. An error ends the encoding.
pub(super) type AfterWindow<'a> = &'a (dyn Fn(u64, u64) -> Result<()> + Sync);

/// What an archive is made from, and how.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) source: &'a Source,
    pub(super) naming: Naming,
    /// Decoded bytes of a chunk.
    pub(super) chunk_size: u32,
    pub(super) after: AfterWindow<'a>,
    pub(super) before: BeforeWrite<'a>,
    /// Archives that equal tensors are cloned from. Large tensors start at blocks then.
    pub(super) twins: Option<&'a dyn Twins>,
}

/// An archive that has been written.
#[derive(Clone, Copy)]
pub(super) struct Written {
    /// Its length in bytes.
    pub(super) stored: u64,
    /// How many of them it shares with other archives.
    pub(super) cloned: u64,
}

/// Write `input` to `output` as an archive.
pub(super) fn archive(input: Input<'_>, output: &Output, p: &dyn Progress) -> Result<Written> {
    let Input { source, naming, chunk_size, .. } = input;
    let extents = source.content().extents()?;
    let mut writer = Writer {
        input,
        output,
        at: 0,
        cloned: 0,
        index: IndexWriter::default(),
        hash: Hasher::default(),
        memory: Arc::default(),
        pending: Vec::new(),
        extents: HashMap::new(),
    };
    writer.write(&header(VERSION))?;
    debug_assert_eq!(writer.at, HEADER_LEN);
    let mut groups = Groups(&extents);
    let read = |start, out: &mut Vec<u8>, len| source.read(start, out, len);
    let plan = |group| plan(&read, group, chunk_size as usize);
    let mut planned = groups.next().map(plan).transpose()?;
    while let Some(group) = planned.take() {
        let following = groups.next();
        let (written, next) =
            rayon::join(|| writer.extents(&group, p), || following.map(plan).transpose());
        written?;
        planned = next?;
    }
    writer.cloned += put(output, writer.pending.drain(..), input.before)?;
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
        base_count: 0,
        bases_len: 0,
    };
    let (index, footer) = std::mem::take(&mut writer.index).finish(footer, &states);
    writer.write(&index)?;
    writer.write(&footer.to_bytes())?;
    debug_assert_eq!(writer.at, footer.index_offset + footer.index_len + FOOTER_LEN);
    Ok(Written { stored: writer.at, cloned: writer.cloned })
}

/// Groups of extents that fit into a window; each has at least one extent.
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

/// The archive that is being written.
struct Writer<'a> {
    input: Input<'a>,
    output: &'a Output,
    /// Where the next bytes belong.
    at: u64,
    /// Bytes shared with other archives so far.
    cloned: u64,
    index: IndexWriter,
    hash: Hasher,
    memory: Arc<EncodeMemory>,
    /// Encoded chunks that are not written yet.
    pending: Vec<Piece>,
    /// The first extent by length and checksum of its first chunk. A later extent with the same key
    /// may share its chunks.
    extents: HashMap<(u64, u64), u64>,
}

/// A part of an extent that becomes a chunk.
struct Part {
    /// The index of the extent in its group.
    extent: usize,
    original: Range<u64>,
}

/// What is known of an extent while its chunks are added to the index.
#[derive(Default)]
struct State {
    /// The number of its model, which it gets when its first chunk uses the model.
    model: Option<u32>,
    twin: Option<Twin>,
}

/// How a part is stored.
enum Stored {
    /// As its own bytes.
    Own(Coding, Vec<u8>),
    /// As an earlier chunk that holds the same bytes.
    Shared(Chunk),
}

impl Stored {
    fn own(bytes: &[u8], encoder: Option<&Encoder>, planned: &Planned) -> Self {
        let (coding, stored) = codec::encode(bytes, encoder, planned.try_zstd);
        Self::Own(coding, stored)
    }
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        (self.input.before)()?;
        self.output.file().write_all_at(bytes, self.at).about_path(&self.output.path())?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Code and write a group of neighbouring extents.
    fn extents(&mut self, group: &[Planned], p: &dyn Progress) -> Result<()> {
        let Input { source, after, before, .. } = self.input;
        let memory = Arc::clone(&self.memory);
        let encoder = |model| Encoder::with_memory(model, &memory);
        let encoders: Vec<_> = group.iter().map(|g| g.model.as_ref().map(encoder)).collect();
        let twins = group.iter().map(|g| self.twin(g)).collect::<Result<Vec<_>>>()?;
        let parts = parts(group);
        let per_window =
            if group.len() > 1 { parts.len() } else { (WINDOW / group[0].chunk).max(1) };
        let windows: Vec<&[Part]> = parts.chunks(per_window).collect();
        let read = |parts: &[Part], data: &mut Vec<u8>| {
            let range = range(parts);
            source.read(range.start, data, (range.end - range.start) as usize)
        };
        let mut states: Vec<_> = group.iter().map(|_| State::default()).collect();
        let (mut data, mut next) = (Vec::new(), Vec::new());
        let mut pending = std::mem::take(&mut self.pending);
        read(windows[0], &mut data)?;
        for (i, parts) in windows.iter().enumerate() {
            let start = range(parts).start;
            let index = &self.index;
            let encode = |part: &Part| -> Result<(u64, Stored)> {
                if p.is_cancelled() {
                    return Err(Error::new(ErrorKind::Io, "packing was interrupted"));
                }
                let Range { start: from, end: to } = part.original;
                let bytes = &data[(from - start) as usize..(to - start) as usize];
                let planned = &group[part.extent];
                let twin = twins[part.extent].map(|twin| twin + from - planned.extent.start);
                let checksum = codec::checksum(bytes);
                let stored = match shared(source, index, twin, bytes, checksum)? {
                    Some(chunk) => Stored::Shared(chunk),
                    None => Stored::own(bytes, encoders[part.extent].as_ref(), planned),
                };
                p.advance(bytes.len() as u64);
                Ok((checksum, stored))
            };
            let (hash, output) = (&mut self.hash, self.output);
            let (coded, beside) = rayon::join(
                || parts.par_iter().map(encode).collect::<Result<Vec<_>>>(),
                || {
                    hash.update(&data);
                    let cloned = put(output, pending.drain(..), before)?;
                    let more = windows.get(i + 1);
                    more.map_or(Ok(()), |parts| read(parts, &mut next)).map(|()| cloned)
                },
            );
            self.cloned += beside?;
            for (part, (checksum, stored)) in parts.iter().zip(coded?) {
                let (planned, state) = (&group[part.extent], &mut states[part.extent]);
                pending.extend(self.describe(part, checksum, stored, planned, state)?);
            }
            std::mem::swap(&mut data, &mut next);
            after(range(parts).end, self.at)?;
        }
        self.pending = pending;
        Ok(())
    }

    /// Add a part to the index; returns the bytes to write for it, if any.
    fn describe(
        &mut self,
        part: &Part,
        checksum: u64,
        stored: Stored,
        planned: &Planned,
        state: &mut State,
    ) -> Result<Option<Piece>> {
        let original = part.original.clone();
        let (coding, bytes) = match stored {
            Stored::Shared(chunk) => {
                self.index.chunk(&Chunk { original, ..chunk });
                return Ok(None);
            }
            Stored::Own(coding, bytes) => (coding, bytes),
        };
        if part.original.start == planned.extent.start {
            state.twin = self.twin_elsewhere(planned);
        }
        let model = match (coding, &planned.model, state.model) {
            (Coding::Planes, _, Some(n)) => n,
            (Coding::Planes, Some(model), None) => *state.model.insert(self.index.model(model)?),
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
        let at = self.at;
        self.at += u64::from(stored_len);
        Ok(Some(Piece { at, bytes, twin: state.twin.clone() }))
    }

    /// Start a large tensor at a block, and find another archive that may hold it.
    fn twin_elsewhere(&mut self, planned: &Planned) -> Option<Twin> {
        let twins = self.input.twins.filter(|_| planned.extent.kind.is_some())?;
        if planned.extent.len < MIN_TWIN {
            return None;
        }
        self.at = self.at.next_multiple_of(CLONE_BLOCK);
        twins.find(planned.fingerprint).map(|found| Twin::new(found, self.at))
    }

    /// The start of an extent of an earlier group that may hold the same bytes.
    fn twin(&mut self, planned: &Planned) -> Result<Option<u64>> {
        let Extent { start, len, .. } = planned.extent;
        if len < MIN_SHARED {
            return Ok(None);
        }
        let mut first = Vec::new();
        self.input.source.read(start, &mut first, planned.chunk.min(len as usize))?;
        let earliest = *self.extents.entry((len, codec::checksum(&first))).or_insert(start);
        Ok((earliest != start).then_some(earliest))
    }
}

/// The parts of a group of extents, in order.
fn parts(group: &[Planned]) -> Vec<Part> {
    let parts = group.iter().enumerate().flat_map(|(extent, g)| {
        let end = g.extent.start + g.extent.len;
        let chunks = (g.extent.start..end).step_by(g.chunk);
        chunks.map(move |at| Part { extent, original: at..end.min(at + g.chunk as u64) })
    });
    parts.collect()
}

/// The range of the original that neighbouring parts cover.
fn range(parts: &[Part]) -> Range<u64> {
    parts[0].original.start..parts[parts.len() - 1].original.end
}

/// The chunk that starts at `twin`, if it holds exactly `bytes`.
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
