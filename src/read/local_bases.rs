//! Bases in directories of this machine, read without a cache of their own but for a few chunks.

use super::{
    archive::{Archive, IndexedChunk},
    base_search::{Candidate, Search, SearchDir, named_directories},
    bases::{BaseBytes, FindBase},
    memory::ArchiveMemory,
    scratch::Scratch,
};
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, Result},
    format::{Base, read_exact},
    input,
};
use lru::LruCache;
use std::{
    cell::Cell,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Most bytes of decoded chunks that are kept of a base. A chunk whose bytes differ from parts of
/// two chunks of the base is followed by one that differs from the rest of the second.
const MAX_KEPT: usize = 64 << 20;

impl Archive {
    /// Open the archive at `path`. Its bases are looked for beside it, and where the user says.
    ///
    /// # Errors
    /// Io; invalid argument, if the file is not an archive; and as [`Archive::from_file`].
    pub fn open(path: &Path) -> Result<Self> {
        let archive = input::open(path).and_then(Self::from_file).about_path(path)?;
        Ok(archive.beside(path))
    }

    /// Look for the archive's bases in the directory of `path`, and where the user says.
    pub fn beside(self, path: &Path) -> Self {
        match self.index().bases().is_empty() {
            true => self,
            false => self.with_bases(Arc::new(LocalBases::beside(path))),
        }
    }
}

/// Refuses an archive that cannot be a base because it has bases itself.
///
/// # Errors
/// Invalid argument.
pub(crate) fn check_base(archive: &Archive) -> Result<()> {
    match archive.index().bases() {
        [] => Ok(()),
        [base, ..] => Err(Error::invalid(format!(
            "is itself stored as differences, from {}, and so cannot be a base",
            super::bases::shown(base)
        ))),
    }
}

/// Finds bases in directories.
pub struct LocalBases {
    dirs: Vec<SearchDir>,
    memory: Arc<ArchiveMemory>,
}

impl LocalBases {
    /// Looks in the directory of the archive at `path`, in that of the file that `path` leads to,
    /// and in those that the user names.
    pub fn beside(path: &Path) -> Self {
        let parent = |path: &Path| match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut dirs = vec![parent(path)];
        if let (Ok(dir), Ok(real)) = (dirs[0].canonicalize(), path.canonicalize())
            && dir != parent(&real)
        {
            dirs.push(parent(&real));
        }
        dirs.extend(named_directories());
        let dirs = dirs.iter().map(|dir| SearchDir::at(dir)).collect();
        Self { dirs, memory: Arc::default() }
    }

    /// Looks in the directories that the user names, and nowhere else.
    #[cfg(feature = "remote")]
    pub(crate) fn named() -> Self {
        let dirs = named_directories().iter().map(|dir| SearchDir::at(dir)).collect();
        Self { dirs, memory: Arc::default() }
    }

    fn open(&self, found: Candidate) -> Result<Arc<dyn BaseBytes>> {
        let Candidate { file, path, is_archive, .. } = found;
        if !is_archive {
            return Ok(Arc::new(PlainBase::new(file, path)));
        }
        let archive = Archive::from_file_within(file, &self.memory)?;
        check_base(&archive)?;
        Ok(Arc::new(ArchiveBase::new(archive, path)))
    }
}

impl FindBase for LocalBases {
    fn find(&self, base: &Base, with_plain: bool) -> Result<Arc<dyn BaseBytes>> {
        Search::new(base, with_plain, &|found| self.open(found)).run(&self.dirs)
    }
}

/// A base that is a plain file.
pub(crate) struct PlainBase {
    file: File,
    path: PathBuf,
}

impl PlainBase {
    pub(crate) fn new(file: File, path: PathBuf) -> Self {
        Self { file, path }
    }
}

impl BaseBytes for PlainBase {
    fn read(&self, offset: u64, out: &mut [u8], _: &dyn ChunkDecoder) -> Result<()> {
        read_exact(&self.file, out, offset)
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn is_plain(&self) -> bool {
        true
    }
}

/// A base that is an archive.
pub(crate) struct ArchiveBase {
    archive: Archive,
    path: PathBuf,
    kept: Mutex<Kept>,
}

/// The chunks that were used last.
struct Kept {
    chunks: LruCache<usize, Arc<Vec<u8>>>,
    bytes: usize,
}

impl ArchiveBase {
    pub(crate) fn new(archive: Archive, path: PathBuf) -> Self {
        let kept = Kept { chunks: LruCache::unbounded(), bytes: 0 };
        Self { archive, path, kept: Mutex::new(kept) }
    }

    /// A chunk, from those that are kept if it is among them. It is decoded without a lock: two
    /// threads may do that at once.
    fn chunk(&self, chunk: &IndexedChunk, decoder: &dyn ChunkDecoder) -> Result<Arc<Vec<u8>>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(decoded) = kept().chunks.get(&chunk.0) {
            return Ok(Arc::clone(decoded));
        }
        let mut decoded = vec![0; chunk.1.len()];
        self.decode(chunk, decoder, &mut decoded)?;
        let decoded = Arc::new(decoded);
        let mut kept = kept();
        if let Some((_, old)) = kept.chunks.push(chunk.0, Arc::clone(&decoded)) {
            kept.bytes -= old.len();
        }
        kept.bytes += decoded.len();
        while kept.bytes > MAX_KEPT
            && let Some((_, old)) = kept.chunks.pop_lru()
        {
            kept.bytes -= old.len();
        }
        Ok(decoded)
    }

    fn decode(
        &self,
        chunk: &IndexedChunk,
        decoder: &dyn ChunkDecoder,
        out: &mut [u8],
    ) -> Result<()> {
        thread_local! {
            static SCRATCH: Cell<Scratch> = Cell::default();
        }
        let mut scratch = SCRATCH.take();
        let done = self.archive.read_indexed(chunk, decoder, &mut scratch, out);
        SCRATCH.set(scratch);
        done
    }
}

impl BaseBytes for ArchiveBase {
    fn read(&self, offset: u64, out: &mut [u8], decoder: &dyn ChunkDecoder) -> Result<()> {
        self.archive.for_chunks(offset, out, |chunk, part, out| {
            if out.len() == chunk.1.len() {
                return self.decode(chunk, decoder, out);
            }
            out.copy_from_slice(&self.chunk(chunk, decoder)?[part]);
            Ok(())
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Archive {
    /// Call `each` for the chunks that hold the bytes of `out`, which are at `offset`: with the
    /// chunk, the part of it, and where that goes in `out`.
    ///
    /// # Errors
    /// Truncated, if the original ends before; as [`crate::format::Index::chunk`]; those of `each`.
    pub(crate) fn for_chunks(
        &self,
        offset: u64,
        mut out: &mut [u8],
        mut each: impl FnMut(&IndexedChunk, Range<usize>, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let index = self.index();
        let mut id = index.find(offset)?;
        let mut at = offset;
        while !out.is_empty() {
            if id == index.len() {
                return Err(Error::truncated("the original ends before the bytes that are needed"));
            }
            let chunk = index.chunk(id)?;
            let skip = (at - chunk.original.start) as usize;
            let here = out.len().min(chunk.len() - skip);
            let (part, rest) = std::mem::take(&mut out).split_at_mut(here);
            each(&(id, chunk), skip..skip + here, part)?;
            out = rest;
            (id, at) = (id + 1, at + here as u64);
        }
        Ok(())
    }
}
