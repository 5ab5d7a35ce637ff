//! Chunks of a base, for the archives that differ from it: they come from and go to the same cache
//! as when the base itself is read.
//!
//! A thread that decodes never waits for another one here: if the chunk is not present, it decodes
//! it, even while another thread is at it.

use super::{buffer::Buffer, chunk_cache::ChunkCache, file::CachedFile, store::ChunkStore};
use crate::{
    codec::ChunkDecoder,
    error::Result,
    read::{BaseBytes, IndexedChunk, scratch_len},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// If more chunks of a base than this are needed for one, they are tiny, and not worth keeping.
const MAX_KEPT: usize = 64;

struct CachedBase {
    store: Arc<ChunkStore>,
    file: Arc<CachedFile>,
    path: PathBuf,
}

impl ChunkCache {
    /// The bytes of `file`, which was found at `path`, for those that differ from it.
    pub fn base(&self, file: Arc<CachedFile>, path: PathBuf) -> Arc<dyn BaseBytes> {
        Arc::new(CachedBase { store: Arc::clone(self.store()), file, path })
    }
}

impl CachedBase {
    fn chunk(&self, chunk: &IndexedChunk, decoder: &dyn ChunkDecoder) -> Result<Arc<Buffer>> {
        if let Some(present) = self.store.lock().base_chunk(&self.file, chunk.0) {
            return Ok(present);
        }
        let (len, stored) = (chunk.1.len(), chunk.1.stored_len);
        let mut decoded = self.store.allocate(chunk.1.original.start, len)?;
        let archive = self.file.archive();
        self.store.scratch.with_more(scratch_len(stored as usize), |scratch| {
            archive.read_indexed(chunk, decoder, scratch, &mut decoded)
        })?;
        self.store.counters.decoded(len as u64, stored.into());
        let decoded = Arc::new(decoded);
        self.store.keep_base(&self.file, chunk.0, &decoded);
        Ok(decoded)
    }
}

impl BaseBytes for CachedBase {
    fn read(&self, offset: u64, out: &mut [u8], decoder: &dyn ChunkDecoder) -> Result<()> {
        let archive = self.file.archive();
        let Some(last) = (offset + out.len() as u64).checked_sub(1) else { return Ok(()) };
        let index = archive.index();
        if index.find(last)? - index.find(offset)? >= MAX_KEPT {
            let len = archive.scratch_len();
            return self
                .store
                .scratch
                .with_more(len, |scratch| archive.read_exactly(offset, out, decoder, scratch));
        }
        archive.for_chunks(offset, out, |chunk, part, out| {
            out.copy_from_slice(&self.chunk(chunk, decoder)?[part]);
            Ok(())
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
