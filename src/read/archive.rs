//! An open archive: positional reads, with the checksum of each chunk verified after decoding.

use super::{
    bases::{BaseBytes, Bases, FindBase, Place},
    memory::ArchiveMemory,
    scratch::{PAGE, Scratch},
    storage::{Fetched, Priority, Storage},
};
#[cfg(feature = "remote")]
use crate::remote::Object;
use crate::{
    codec::{ChunkDecoder, Coding, EntropyModel, verify_checksum},
    error::{Context, Error, ErrorKind, Result},
    format::{Chunk, FOOTER_LEN, Footer, Index, NO_MODEL},
};
use std::{fs::File, ops::Range, sync::Arc};

/// A chunk and its number in the index.
pub type IndexedChunk = (usize, Chunk);

/// The stored bytes of a chunk, with everything needed to decode it.
pub struct StoredChunk {
    coding: Coding,
    model: Option<Arc<EntropyModel>>,
    payload: Vec<u8>,
    len: usize,
    /// What it differs from, and where.
    base: Option<(Arc<dyn BaseBytes>, u64)>,
}

impl StoredChunk {
    /// Length of the decoded chunk in bytes.
    pub fn decoded_len(&self) -> usize {
        self.len
    }

    /// The coding, the entropy model and the stored bytes.
    pub fn parts(&self) -> (Coding, Option<&Arc<EntropyModel>>, &[u8]) {
        (self.coding, self.model.as_ref(), &self.payload)
    }

    /// Decode into `out`, which is as long as the chunk, and what the chunk differs from before.
    /// The checksum is not verified.
    ///
    /// # Errors
    /// As [`ChunkDecoder::decode`]; Io, if a base cannot be read.
    pub fn decode(&self, decoder: &dyn ChunkDecoder, out: &mut [u8]) -> Result<()> {
        if let Some((base, at)) = &self.base {
            base.read(*at, out, decoder)?;
        }
        decoder.decode(self.coding, self.model.as_deref(), &self.payload, out)
    }
}

/// An open archive. It is immutable, and every read is positional.
pub struct Archive {
    storage: Arc<Storage>,
    footer: Footer,
    index: Index,
    bases: Bases,
    memory: Arc<ArchiveMemory>,
    /// The key of its models in `memory`.
    id: u64,
}

impl Archive {
    /// Open an archive, and verify its footer and index.
    ///
    /// # Errors
    /// Corruption, truncation or compatibility: the archive is damaged, or of an unknown version.
    pub fn from_file(file: File) -> Result<Self> {
        Self::from_file_within(file, &Arc::default())
    }

    /// Like [`Archive::from_file`], with memory that other archives share. If it has no room for
    /// the whole index, parts of the index are read when they are needed.
    ///
    /// # Errors
    /// As [`Archive::from_file`]; Io, if there is not even room for a part of the index.
    pub fn from_file_within(file: File, memory: &Arc<ArchiveMemory>) -> Result<Self> {
        Self::within(Storage::local(file), memory)
    }

    /// Open an archive on another machine, as [`Archive::from_file`]. Reads wait for the network.
    ///
    /// # Errors
    /// As [`Archive::from_file`], and those of [`Object::read`].
    #[cfg(feature = "remote")]
    pub fn from_object(object: Arc<Object>) -> Result<Self> {
        Self::from_object_within(object, &Arc::default())
    }

    /// Like [`Archive::from_object`], with memory that other archives share.
    ///
    /// # Errors
    /// As [`Archive::from_object`].
    #[cfg(feature = "remote")]
    pub fn from_object_within(object: Arc<Object>, memory: &Arc<ArchiveMemory>) -> Result<Self> {
        Self::within(Storage::Remote(object), memory)
    }

    fn within(storage: Storage, memory: &Arc<ArchiveMemory>) -> Result<Self> {
        let storage = Arc::new(storage);
        match Self::load(&storage, memory) {
            // A cache or a network may have damaged it.
            Err(e) if e.kind() == ErrorKind::Corruption && storage.forget(0..u64::MAX) => {
                Self::load(&storage, memory)
            }
            loaded => loaded,
        }
    }

    fn load(storage: &Arc<Storage>, memory: &Arc<ArchiveMemory>) -> Result<Self> {
        let footer = storage.footer()?.ok_or_else(|| Error::invalid("not a .bsz archive"))?;
        storage.will_read(footer.index_offset..footer.index_offset + footer.index_len);
        let index = {
            let (storage, start) = (Arc::clone(storage), footer.index_offset);
            let source = move |at: u64, out: &mut [u8]| storage.read_aside(start + at, out);
            Index::read(Box::new(source), &footer, memory.indexes())?
        };
        let (id, memory) = (memory.archive_id(), Arc::clone(memory));
        let bases = Bases::new(index.bases().len());
        Ok(Self { storage: Arc::clone(storage), footer, index, bases, id, memory })
    }

    /// Look for the bases of the archive with `finder`, when they are needed.
    #[must_use]
    pub fn with_bases(mut self, finder: Arc<dyn FindBase>) -> Self {
        self.bases.find_with(finder);
        self
    }

    /// The bytes of base `number` of the index.
    ///
    /// # Errors
    /// As [`FindBase::find`].
    ///
    /// # Panics
    /// If there is no such base.
    pub fn base(&self, number: usize) -> Result<Arc<dyn BaseBytes>> {
        self.bases.find(number, &self.index.bases()[number])
    }

    /// The footer: size, mode and time of the original, and so on.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The index of chunks.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Size of the archive in bytes.
    pub fn stored_len(&self) -> u64 {
        self.footer.index_offset + self.footer.index_len + FOOTER_LEN
    }

    /// The open file, unless the archive is on another machine.
    pub fn file(&self) -> Option<&File> {
        self.storage.file()
    }

    /// The open file of an archive that was opened by its path or as a file.
    ///
    /// # Panics
    /// If the archive is on another machine.
    pub fn local_file(&self) -> &File {
        self.file().expect("the caller opened a file")
    }

    /// Whether reads wait for a network. Who must not wait uses [`Archive::fetch`].
    pub(crate) fn is_remote(&self) -> bool {
        self.storage.is_remote()
    }

    /// Fetch stored bytes, and call `done` with them: on this thread if they are at hand, else on
    /// one that must not be held up.
    pub(crate) fn fetch(
        &self,
        range: Range<u64>,
        priority: Priority,
        done: impl FnOnce(Result<Fetched>) + Send + 'static,
    ) {
        self.storage.fetch(range, priority, done);
    }

    /// Somebody waits for stored bytes that are being fetched ahead.
    pub(crate) fn hurry(&self, range: &Range<u64>) {
        self.storage.hurry(range);
    }

    /// These stored bytes will be read soon.
    pub(crate) fn will_read(&self, range: Range<u64>) {
        self.storage.will_read(range);
    }

    /// Have the kernel start to read these stored bytes of a local file.
    pub(super) fn read_ahead(&self, range: &Range<u64>) {
        self.storage.read_ahead(range);
    }

    /// These stored bytes were found to be damaged. Returns whether they may be right when they are
    /// fetched again.
    pub(crate) fn forget(&self, range: Range<u64>) -> bool {
        self.storage.forget(range)
    }

    /// Run `job` on a thread that may wait for the network of a remote archive; for a local one,
    /// return it.
    pub(crate) fn spawn<J: FnOnce() + Send + 'static>(&self, job: J) -> Option<J> {
        self.storage.spawn(job)
    }

    /// Check the first bytes, which are not needed to read it.
    pub(super) fn check_start(&self) -> Result<()> {
        self.storage.check_start()
    }

    /// Bypass the page cache from now on, unless most of the file is in it, or the file system
    /// cannot do that. For readers that cache the decoded bytes instead.
    pub fn read_directly(&self) {
        self.storage.prefer_direct();
    }

    /// Decode chunk `id` into `out`, which is as long as the chunk, and verify its checksum.
    /// `scratch` holds the stored bytes meanwhile, and should be reused.
    ///
    /// # Errors
    /// Io; corruption, naming the chunk. The content of `out` must not be used then.
    pub fn read_chunk(
        &self,
        id: usize,
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<()> {
        self.read_indexed(&(id, self.index.chunk(id)?), decoder, scratch, out)
    }

    /// [`Archive::read_chunk`] of a chunk whose entry is known.
    pub(crate) fn read_indexed(
        &self,
        (id, chunk): &IndexedChunk,
        decoder: &dyn ChunkDecoder,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<()> {
        let mut read = || {
            let stored = self.storage.read(chunk.stored_at, chunk.stored_len as usize, scratch)?;
            self.decode(chunk, stored, decoder, out)
        };
        let mut done = read();
        if done.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corruption)
            && self.storage.forget(stored_range(chunk, chunk))
        {
            done = read();
        }
        name_chunk(done, *id, chunk)
    }

    /// The stored bytes of the chunks from `first` to `last`, which are adjacent in the archive.
    pub(crate) fn stored<'s>(
        &self,
        first: &Chunk,
        last: &Chunk,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8]> {
        let Range { start, end } = stored_range(first, last);
        self.storage.read(start, (end - start) as usize, scratch)
    }

    /// [`Archive::read_chunk`] of a chunk whose stored bytes have been read.
    pub(crate) fn decode_chunk(
        &self,
        (id, chunk): &IndexedChunk,
        stored: &[u8],
        decoder: &dyn ChunkDecoder,
        out: &mut [u8],
    ) -> Result<()> {
        name_chunk(self.decode(chunk, stored, decoder, out), *id, chunk)
    }

    fn decode(
        &self,
        chunk: &Chunk,
        stored: &[u8],
        decoder: &dyn ChunkDecoder,
        out: &mut [u8],
    ) -> Result<()> {
        let model = self.model_of(chunk)?;
        let decode = |out: &mut [u8]| {
            decoder.decode(chunk.coding, model.as_deref(), stored, out)?;
            Ok(verify_checksum(out, chunk.checksum)?)
        };
        match self.place_of(chunk, model.as_deref())? {
            Some(place) => self.bases.decode(&place, decoder, out, &decode),
            None => decode(out),
        }
    }

    /// From where a chunk differs, if it is stored so.
    fn place_of(&self, chunk: &Chunk, model: Option<&EntropyModel>) -> Result<Option<Place<'_>>> {
        match model.and_then(EntropyModel::delta) {
            Some(delta) if chunk.coding == Coding::Delta => {
                Place::of(delta, &chunk.original, self.index.bases()).map(Some)
            }
            // A chunk of differences without a model of them is for the decoder to refuse.
            _ => Ok(None),
        }
    }

    /// The stored bytes of chunk `id`, to decode them without the archive.
    ///
    /// # Errors
    /// Io, also if its base is missing; corruption, if its model is malformed.
    pub fn stored_chunk(&self, id: usize) -> Result<StoredChunk> {
        let chunk = self.index.chunk(id)?;
        let read = || {
            let mut payload = vec![0; chunk.stored_len as usize];
            self.storage.read_to(chunk.stored_at, &mut payload)?;
            let model = self.model_of(&chunk)?;
            let base = match self.place_of(&chunk, model.as_deref())? {
                Some(place) => Some((self.bases.get(&place)?, place.range.start)),
                None => None,
            };
            Ok(StoredChunk { coding: chunk.coding, model, payload, len: chunk.len(), base })
        };
        name_chunk(read(), id, &chunk)
    }

    /// Read the stored bytes of chunk `id` into `out`, which is as long as they are.
    ///
    /// # Errors
    /// Io.
    pub fn read_stored(&self, id: usize, out: &mut [u8]) -> Result<()> {
        let chunk = self.index.chunk(id)?;
        name_chunk(self.storage.read_to(chunk.stored_at, out), id, &chunk)
    }

    /// The entropy model of a chunk of this archive, if it has one.
    ///
    /// # Errors
    /// Corruption, if the model is malformed.
    pub fn model_of(&self, chunk: &Chunk) -> Result<Option<Arc<EntropyModel>>> {
        if chunk.model == NO_MODEL {
            return Ok(None);
        }
        self.memory.model(self.id, chunk.model, || self.index.model(chunk.model)).map(Some)
    }
}

/// Scratch memory for `len` stored bytes at any offset: direct reads cover whole pages.
pub(crate) fn scratch_len(len: usize) -> usize {
    len + 2 * PAGE
}

/// Whether the decoded and the stored bytes of `b` follow those of `a`.
pub(crate) fn are_adjacent(a: &Chunk, b: &Chunk) -> bool {
    a.original.end == b.original.start && a.stored_at + u64::from(a.stored_len) == b.stored_at
}

/// Where the stored bytes of the chunks from `first` to `last`, which are adjacent, are.
pub(crate) fn stored_range(first: &Chunk, last: &Chunk) -> Range<u64> {
    first.stored_at..last.stored_at + u64::from(last.stored_len)
}

/// Name chunk `id` in an error.
fn name_chunk<T>(result: Result<T>, id: usize, chunk: &Chunk) -> Result<T> {
    result.about(format_args!("chunk {id} (bytes {}–{})", chunk.original.start, chunk.original.end))
}
