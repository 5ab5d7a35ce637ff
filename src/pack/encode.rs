//! From the extents of a source to chunks on disk: entropy models first, then chunks encoded in
//! parallel and written in order.
//!
//! While one window of the source is encoded, the previous one is written and the next one read.
//! While one group of extents is encoded, the next group is planned.

use super::{
    Progress,
    bases::{BaseFile, Bases},
    coder::Coder,
    differences::{Differences, from_base, is_shared},
    pairs::Pairs,
    plan::{Planned, plan},
    source::Source,
    twins::{BeforeWrite, MIN_TWIN, Piece, Twin, Twins, put},
    windows::{Groups, Part, WINDOW, parts, range},
};
use crate::{
    codec::{self, Coding, EncodeMemory},
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
    /// What it may be stored as differences from.
    pub(super) bases: &'a Bases,
}

/// An archive that has been written.
#[derive(Clone)]
pub(super) struct Written {
    /// Its length in bytes.
    pub(super) stored: u64,
    /// How many of them it shares with other archives.
    pub(super) cloned: u64,
    /// The bases that it needs.
    pub(super) bases: Vec<Arc<dyn BaseFile>>,
    /// SHA-256 of the original.
    sha256: [u8; 32],
}

/// Write `input` to `output` as an archive.
pub(super) fn archive(input: Input<'_>, output: &Output, p: &dyn Progress) -> Result<Written> {
    let (source, path) = (input.source, output.path());
    let extents = source.content().extents()?;
    let mut bases = input.bases.of(source.path(), source.len())?;
    loop {
        let pairs = Pairs::of(&source.content(), &extents, bases.clone())?;
        let written = write(input, &extents, &pairs, output, p)?;
        // A copy of a base is none of its dependants: who looks for the base may find the copy.
        let sha256 = written.sha256;
        if written.bases.iter().all(|used| used.base().sha256 != sha256) {
            return Ok(written);
        }
        bases.retain(|base| base.base().sha256 != sha256);
        output.file().set_len(0).about_path(&path)?;
    }
}

fn write(
    input: Input<'_>,
    extents: &[Extent],
    pairs: &Pairs,
    output: &Output,
    p: &dyn Progress,
) -> Result<Written> {
    let Input { source, chunk_size, .. } = input;
    let mut writer = Writer {
        input,
        output,
        pairs,
        at: 0,
        cloned: 0,
        index: IndexWriter::default(),
        hash: Hasher::default(),
        memory: Arc::default(),
        pending: Vec::new(),
        extents: HashMap::new(),
        bases: Vec::new(),
        equal: HashMap::new(),
    };
    writer.write(&header(VERSION))?;
    debug_assert_eq!(writer.at, HEADER_LEN);
    let mut groups = Groups(extents);
    let read = |start, out: &mut Vec<u8>, len| source.read(start, out, len);
    let plan = |group| plan(&read, group, chunk_size as usize, pairs);
    let mut planned = groups.next().map(plan).transpose()?;
    while let Some(group) = planned.take() {
        let following = groups.next();
        let (written, next) =
            rayon::join(|| writer.extents(&group, p), || following.map(plan).transpose());
        written?;
        planned = next?;
    }
    writer.finish()
}

/// The archive that is being written.
struct Writer<'a> {
    input: Input<'a>,
    output: &'a Output,
    pairs: &'a Pairs,
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
    /// By its number in the archive: the index of a base.
    bases: Vec<usize>,
    /// By base and distance: the model of tensors that equal the base's.
    equal: HashMap<(usize, i64), u32>,
}

/// What is known of an extent while its chunks are added to the index.
#[derive(Default)]
struct State {
    /// The number of its model, which it gets when its first chunk uses the model.
    model: Option<u32>,
    /// The same for its model of differences.
    differences: Option<u32>,
    twin: Option<Twin>,
}

/// How a part is stored.
enum Stored {
    /// As its own bytes.
    Own((Coding, Vec<u8>)),
    /// As an earlier chunk that holds the same bytes.
    Shared(Chunk),
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        (self.input.before)()?;
        self.output.file().write_all_at(bytes, self.at).about_path(&self.output.path())?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Write what follows the chunks.
    fn finish(mut self) -> Result<Written> {
        let Input { source, naming, before, .. } = self.input;
        self.cloned += put(self.output, self.pending.drain(..), before)?;
        let (sha256, states) = std::mem::take(&mut self.hash).finish();
        let footer = Footer {
            original_len: source.len(),
            sha256,
            mtime: mtime(source.stat()),
            mode: source.stat().st_mode & 0o7777,
            naming,
            index_offset: self.at,
            index_len: 0,
            index_checksum: 0,
            chunk_count: 0,
            model_count: 0,
            max_chunk: 0,
            base_count: 0,
            bases_len: 0,
        };
        let (index, footer) = std::mem::take(&mut self.index).finish(footer, &states);
        self.write(&index)?;
        self.write(&footer.to_bytes())?;
        debug_assert_eq!(self.at, footer.index_offset + footer.index_len + FOOTER_LEN);
        let stored = self.at;
        if footer.version() != VERSION {
            self.at = 0;
            self.write(&header(footer.version()))?;
        }
        let bases = self.bases.iter().map(|&i| Arc::clone(&self.pairs.bases[i])).collect();
        Ok(Written { stored, cloned: self.cloned, bases, sha256 })
    }

    /// Code and write a group of neighbouring extents.
    fn extents(&mut self, group: &[Planned], p: &dyn Progress) -> Result<()> {
        let Input { source, after, before, .. } = self.input;
        let memory = Arc::clone(&self.memory);
        let coders: Vec<_> = group.iter().map(|planned| Coder::new(planned, &memory)).collect();
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
            let (index, pairs) = (&self.index, self.pairs);
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
                    None => Stored::Own(coders[part.extent].encode(pairs, planned, from, bytes)?),
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
            Stored::Own(own) => own,
        };
        if part.original.start == planned.extent.start {
            state.twin = self.twin_elsewhere(planned);
        }
        let model = match (coding, &planned.model, state.model) {
            (Coding::Planes, _, Some(n)) => n,
            (Coding::Planes, Some(model), None) => *state.model.insert(self.index.model(model)?),
            (Coding::Delta, ..) => self.model_of_differences(planned, state)?,
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

    /// The number of the model by which an extent differs from a base.
    fn model_of_differences(&mut self, planned: &Planned, state: &mut State) -> Result<u32> {
        let (None, Some(Differences { pair, model, .. })) =
            (state.differences, &planned.differences)
        else {
            return Ok(state.differences.unwrap_or(NO_MODEL));
        };
        let equal = (pair.base, pair.distance);
        let known = self.equal.get(&equal).filter(|_| is_shared(model)).copied();
        let n = match known {
            Some(n) => n,
            None => {
                let base = self.index.base(self.pairs.bases[pair.base].base())?;
                if usize::from(base) == self.bases.len() {
                    self.bases.push(pair.base);
                }
                self.index.model(&from_base(model, base)?)?
            }
        };
        if is_shared(model) {
            self.equal.insert(equal, n);
        }
        Ok(*state.differences.insert(n))
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

/// The chunk that starts at `twin`, if it holds exactly `bytes`.
fn shared(
    source: &Source,
    index: &IndexWriter,
    twin: Option<u64>,
    bytes: &[u8],
    checksum: u64,
) -> Result<Option<Chunk>> {
    let Some(chunk) = twin.and_then(|at| index.find(at)) else { return Ok(None) };
    // Differences are from a place in the base that belongs to one place of the original.
    let moves = chunk.coding != Coding::Delta;
    if chunk.checksum != checksum || chunk.len() != bytes.len() || !moves {
        return Ok(None);
    }
    let mut there = Vec::new();
    source.read(chunk.original.start, &mut there, bytes.len())?;
    Ok((there == bytes).then_some(chunk))
}
