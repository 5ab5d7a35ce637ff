//! One open archive: positional reads, chunks checked as they are decoded.

use super::{pages, passed::Passed, scratch::Scratch, storage::Storage};
use crate::{
    codec::{ChunkDecoder, Coding, EntropyModel, verify_checksum},
    error::{Context, Error, Result},
    format::{Chunk, FOOTER_LEN, Footer, Index, IndexMemory, NO_MODEL, peek},
    input,
};
use lru::LruCache;
use std::{
    fs::File,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The models last used, of all archives. With its decoders' tables a model takes up to 120 KiB, and an archive may have
/// tens of thousands.
static MODELS: LazyLock<Mutex<Models>> = LazyLock::new(Mutex::default);

/// Models, by archive and number.
struct Models {
    kept: LruCache<(u64, u32), Arc<EntropyModel>>,
    bytes: usize,
}

impl Default for Models {
    fn default() -> Self {
        Self { kept: LruCache::new(Self::MOST), bytes: 0 }
    }
}

impl Models {
    /// How many are kept.
    const MOST: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");
    /// And bytes of these.
    const MOST_BYTES: usize = 8 << 20;

    fn keep(&mut self, key: (u64, u32), model: Arc<EntropyModel>) {
        self.bytes += model.footprint();
        if let Some((_, dropped)) = self.kept.push(key, model) {
            self.bytes -= dropped.footprint();
        }
        while self.bytes > Self::MOST_BYTES
            && let Some((_, dropped)) = self.kept.pop_lru()
        {
            self.bytes -= dropped.footprint();
        }
    }
}

/// A chunk and its number.
pub(super) type Numbered = (usize, Chunk);

/// Chunks that [`Archive::read_at`] reads at once, and decoded bytes of these if they are several.
const RUN: (usize, usize) = (512, 512 << 10);

/// A chunk in memory as it is stored, with what it takes to decode it.
pub struct StoredChunk {
    coding: Coding,
    model: Option<Arc<EntropyModel>>,
    payload: Vec<u8>,
    len: usize,
}

impl StoredChunk {
    /// Decoded bytes.
    pub fn decoded_len(&self) -> usize {
        self.len
    }

    /// How it is coded, its model, and its stored bytes.
    pub fn parts(&self) -> (Coding, Option<&Arc<EntropyModel>>, &[u8]) {
        (self.coding, self.model.as_ref(), &self.payload)
    }

    /// Decode into all of `out`, which is as long as the chunk. No checksum is looked at.
    ///
    /// # Errors
    /// As [`ChunkDecoder::decode`].
    pub fn decode(&self, decoder: &dyn ChunkDecoder, out: &mut [u8]) -> Result<()> {
        decoder.decode(self.coding, self.model.as_deref(), &self.payload, out)
    }
}

/// An open archive. Shared freely; every read is positional.
pub struct Archive {
    storage: Arc<Storage>,
    passed: Passed,
    footer: Footer,
    index: Index,
    id: u64,
}

impl Archive {
    /// Open the archive at `path`.
    ///
    /// # Errors
    /// Io; invalid argument, where it is no archive; and as [`Archive::from_file`].
    pub fn open(path: &Path) -> Result<Self> {
        input::open(path).and_then(Self::from_file).about_path(path)
    }

    /// Open an archive, and check its footer and index.
    ///
    /// # Errors
    /// Corruption, truncation, compatibility: the archive is not whole or not known.
    pub fn from_file(file: File) -> Result<Self> {
        Self::from_file_within(file, &Arc::default())
    }

    /// The same, with an index that takes its share of `memory`: where there is not enough for all of it, it is read in
    /// parts when it is needed.
    ///
    /// # Errors
    /// As [`Archive::from_file`]; Io, where there is no memory left even for that.
    pub fn from_file_within(file: File, memory: &Arc<IndexMemory>) -> Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let footer = peek(&file)?.ok_or_else(|| Error::invalid("not a .bsz archive"))?;
        let storage = Arc::new(Storage::new(file));
        let index = {
            let (storage, start) = (Arc::clone(&storage), footer.index_offset);
            let source = move |at: u64, out: &mut [u8]| storage.read_aside(start + at, out);
            Index::read(Box::new(source), &footer, memory)?
        };
        Ok(Self {
            storage,
            passed: Passed::new(index.len(), index.is_in_parts()),
            footer,
            index,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The original's size, times and so on.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The chunks.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// A number no other archive of this process has or had, but one that was [this very file](Archive::be_again).
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Take the number that an archive had which was this very file: what is cached of that one is of this one then.
    pub fn be_again(&mut self, id: u64) {
        self.id = id;
    }

    /// Bytes of the archive itself.
    pub fn stored_len(&self) -> u64 {
        self.footer.index_offset + self.footer.index_len + FOOTER_LEN
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.storage.file()
    }

    /// Read stored bytes around the page cache from now on, unless most of them are in it or it cannot be done: for
    /// who reads them once, and gives what they decode to a cache.
    pub fn read_directly(&self) {
        self.storage.prefer_direct();
    }

    /// Which chunks were read whole.
    pub(super) fn passed(&self) -> &Passed {
        &self.passed
    }

    /// Decode chunk `id` into all of `out`, which is as long as the chunk, and verify its checksum.
    /// `scratch` holds the stored bytes meanwhile and is best reused.
    ///
    /// # Errors
    /// Io; corruption, naming the chunk; `out` then holds nothing that may be used.
    pub fn read_chunk(
        &self,
        id: usize,
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<()> {
        self.read_numbered(&(id, self.index.chunk(id)?), decoder, scratch, out)
    }

    pub(super) fn read_numbered(
        &self,
        (id, chunk): &Numbered,
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<()> {
        let stored = self.storage.read(chunk.stored_at, chunk.stored_len as usize, scratch);
        of_chunk(stored.and_then(|stored| self.decode(chunk, stored, decoder, out)), *id, chunk)
    }

    /// The stored bytes of `first` and all chunks after it, up to `last`, where these follow each other on the disk.
    pub(super) fn stored<'s>(
        &self,
        first: &Chunk,
        last: &Chunk,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8]> {
        let end = last.stored_at + u64::from(last.stored_len);
        self.storage.read(first.stored_at, (end - first.stored_at) as usize, scratch)
    }

    /// [`Archive::read_chunk`] of a chunk whose stored bytes were read.
    pub(super) fn decode_chunk(
        &self,
        (id, chunk): &Numbered,
        stored: &[u8],
        decoder: &dyn ChunkDecoder,
        out: &mut [u8],
    ) -> Result<()> {
        of_chunk(self.decode(chunk, stored, decoder, out), *id, chunk)
    }

    fn decode(
        &self,
        chunk: &Chunk,
        stored: &[u8],
        decoder: &dyn ChunkDecoder,
        out: &mut [u8],
    ) -> Result<()> {
        let model = self.model_of(chunk)?;
        decoder.decode(chunk.coding, model.as_deref(), stored, out)?;
        Ok(verify_checksum(out, chunk.checksum)?)
    }

    /// Chunk `id` as it is stored, for decoding without the archive.
    ///
    /// # Errors
    /// Io; corruption, where its model is malformed.
    pub fn stored_chunk(&self, id: usize) -> Result<StoredChunk> {
        let chunk = self.index.chunk(id)?;
        let mut payload = vec![0; chunk.stored_len as usize];
        let model = self
            .storage
            .read_to(chunk.stored_at, &mut payload)
            .and_then(|()| self.model_of(&chunk));
        let (coding, len) = (chunk.coding, chunk.len());
        of_chunk(model, id, &chunk).map(|model| StoredChunk { coding, model, payload, len })
    }

    /// The stored bytes of chunk `id`, to all of `out`, which is as long as they are.
    ///
    /// # Errors
    /// Io.
    pub fn read_stored(&self, id: usize, out: &mut [u8]) -> Result<()> {
        let chunk = self.index.chunk(id)?;
        of_chunk(self.storage.read_to(chunk.stored_at, out), id, &chunk)
    }

    /// The model of a chunk of this archive, if it has one.
    ///
    /// # Errors
    /// Corruption, where it is malformed.
    pub fn model_of(&self, chunk: &Chunk) -> Result<Option<Arc<EntropyModel>>> {
        if chunk.model == NO_MODEL { Ok(None) } else { self.model(chunk.model).map(Some) }
    }

    fn model(&self, number: u32) -> Result<Arc<EntropyModel>> {
        let key = (self.id, number);
        let models = || MODELS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models().kept.get(&key) {
            return Ok(Arc::clone(model));
        }
        let model = Arc::new(self.index.model(number)?);
        models().keep(key, Arc::clone(&model));
        Ok(model)
    }

    /// Read the original's bytes from `offset` on into `out`, up to the original's end; returns how many.
    ///
    /// # Errors
    /// As [`Archive::read_chunk`].
    pub fn read_at(
        &self,
        offset: u64,
        out: &mut [u8],
        decoder: &dyn ChunkDecoder,
    ) -> Result<usize> {
        self.read_with(offset, out, decoder, &mut Scratch::default())
    }

    /// Bytes of scratch that [`Archive::read_with`] needs, at most.
    pub(super) fn scratch_len(&self) -> usize {
        stored_room(RUN.1.max(self.footer.max_chunk as usize))
    }

    pub(super) fn read_with(
        &self,
        offset: u64,
        out: &mut [u8],
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
    ) -> Result<usize> {
        let mut decoded = Vec::new();
        let end = offset.saturating_add(out.len() as u64).min(self.footer.original_len);
        let mut next = self.index.find(offset)?;
        let mut at = offset;
        while at < end {
            let run = self.run(&mut next, end)?;
            let (Some(first), Some(last)) = (run.first(), run.last()) else { break };
            // Where all cannot be read at once, the chunk that is to blame is named.
            let stored = self.stored(&first.1, &last.1, scratch).ok();
            let mut one = Scratch::default();
            for numbered in &run {
                let chunk = &numbered.1;
                decoded.resize(chunk.len(), 0);
                match stored {
                    Some(stored) => {
                        let from = (chunk.stored_at - first.1.stored_at) as usize;
                        let stored = &stored[from..from + chunk.stored_len as usize];
                        self.decode_chunk(numbered, stored, decoder, &mut decoded)?;
                    }
                    None => self.read_numbered(numbered, decoder, &mut one, &mut decoded)?,
                }
                let stop = end.min(chunk.original.end);
                let part =
                    (at - chunk.original.start) as usize..(stop - chunk.original.start) as usize;
                let place = (at - offset) as usize..(stop - offset) as usize;
                out[place].copy_from_slice(&decoded[part]);
                at = stop;
            }
        }
        Ok((at - offset) as usize)
    }

    /// The chunks from `next` on that are read in one piece, before `end` of the original; moves `next` behind them.
    fn run(&self, next: &mut usize, end: u64) -> Result<Vec<Numbered>> {
        let mut run: Vec<Numbered> = Vec::new();
        let mut bytes = 0;
        while *next < self.index.len() && run.len() < RUN.0 {
            let chunk = self.index.chunk(*next)?;
            bytes += chunk.len();
            let goes_on =
                run.last().is_none_or(|(_, last)| follows(last, &chunk) && bytes <= RUN.1);
            if chunk.original.start >= end || !goes_on {
                break;
            }
            run.push((*next, chunk));
            *next += 1;
        }
        Ok(run)
    }
}

/// Bytes of scratch that reading so many stored ones takes, wherever they are in a file's pages.
pub(super) fn stored_room(len: usize) -> usize {
    len + 2 * pages::SMALL
}

/// Whether a chunk's bytes, decoded and stored, follow those of another.
pub(super) fn follows(a: &Chunk, b: &Chunk) -> bool {
    a.original.end == b.original.start && a.stored_at + u64::from(a.stored_len) == b.stored_at
}

/// The result, with an error said of chunk `id`.
fn of_chunk<T>(result: Result<T>, id: usize, chunk: &Chunk) -> Result<T> {
    result.about(format_args!("chunk {id} (bytes {}–{})", chunk.original.start, chunk.original.end))
}
