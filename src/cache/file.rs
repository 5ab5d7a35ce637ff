//! What a cache knows of an open archive.

use super::access_history::AccessHistory;
use crate::read::Archive;
use lru::LruCache;
use std::{
    hash::Hash,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// Identifies the chunks of one file in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(u64);

impl FileId {
    /// An id that no other file of this process has.
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An archive that is read through a cache, and its access history.
pub struct CachedFile {
    archive: Archive,
    id: FileId,
    history: AccessHistory,
}

impl CachedFile {
    /// A file whose chunks are not cached yet.
    pub fn new(archive: Archive) -> Arc<Self> {
        Self::with_id(archive, FileId::next())
    }

    fn with_id(archive: Archive, id: FileId) -> Arc<Self> {
        let index = archive.index();
        let history = AccessHistory::new(index.len(), index.is_in_parts());
        Arc::new(Self { archive, id, history })
    }

    /// The archive.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// The id of the file's chunks in a cache.
    pub fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn history(&self) -> &AccessHistory {
        &self.history
    }

    /// How many of the chunks up to `last` were read recently, if that chunk belongs to a
    /// sequential read.
    pub(crate) fn sequential_run(&self, last: usize) -> Option<usize> {
        self.history.sequential_run(last)
    }

    /// How many bytes to decode ahead of a sequential reader.
    pub(crate) fn readahead_window(&self) -> u64 {
        self.history.window()
    }
}

/// The open files by identity, and the ids of files that were open before. `I` is equal for two
/// openings only if their content is the same.
pub struct FileTable<I>(Mutex<LruCache<I, (FileId, Weak<CachedFile>)>>);

impl<I: Hash + Eq> FileTable<I> {
    /// How many files to remember.
    const CAPACITY: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

    /// The open file with this identity.
    pub fn get(&self, identity: &I) -> Option<Arc<CachedFile>> {
        self.lock().get(identity).and_then(|(_, file)| file.upgrade())
    }

    /// Add an archive that has just been opened, unless another thread has added it: that one is
    /// returned then. A file reuses the id of its previous opening, so that its cached chunks stay
    /// valid. An identity of `None` is not remembered.
    pub fn insert(&self, identity: Option<I>, archive: Archive) -> Arc<CachedFile> {
        let Some(identity) = identity else { return CachedFile::new(archive) };
        let mut files = self.lock();
        let previous = files.get(&identity).map(|(id, file)| (*id, file.upgrade()));
        let file = match previous {
            Some((_, Some(open))) => return open,
            Some((id, None)) => CachedFile::with_id(archive, id),
            None => CachedFile::new(archive),
        };
        files.put(identity, (file.id(), Arc::downgrade(&file)));
        file
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<I, (FileId, Weak<CachedFile>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: Hash + Eq> Default for FileTable<I> {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(Self::CAPACITY)))
    }
}
