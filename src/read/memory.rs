//! Memory that open archives share: the budget of their indexes, and decoded entropy models.

use crate::{codec::EntropyModel, error::Result, format::IndexMemory};
use lru::LruCache;
use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Shared by all archives that are opened with it.
#[derive(Default)]
pub struct ArchiveMemory {
    indexes: Arc<IndexMemory>,
    models: ModelCache,
    next_id: AtomicU64,
}

impl ArchiveMemory {
    /// Open indexes may use `index_limit` bytes. The parts of an index that do not fit are read
    /// when they are needed.
    pub fn new(index_limit: u64) -> Self {
        Self { indexes: Arc::new(IndexMemory::new(index_limit)), ..Self::default() }
    }

    /// Bytes that open indexes use.
    pub fn index_bytes(&self) -> u64 {
        self.indexes.used()
    }

    pub(super) fn indexes(&self) -> &Arc<IndexMemory> {
        &self.indexes
    }

    /// A key for the models of one archive.
    pub(super) fn archive_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The model with this number of an archive, decoded by `load` unless it is cached.
    pub(super) fn model(
        &self,
        archive: u64,
        number: u32,
        load: impl FnOnce() -> Result<EntropyModel>,
    ) -> Result<Arc<EntropyModel>> {
        let key = (archive, number);
        if let Some(model) = self.models.get(key) {
            return Ok(model);
        }
        let model = Arc::new(load()?);
        self.models.insert(key, Arc::clone(&model));
        Ok(model)
    }
}

/// The models that were used last. A model with its decoding tables takes up to 120 KiB, and an
/// archive may have tens of thousands of models.
struct ModelCache(Mutex<Models>);

struct Models {
    /// By archive and number.
    lru: LruCache<(u64, u32), Arc<EntropyModel>>,
    bytes: usize,
}

impl Default for ModelCache {
    fn default() -> Self {
        Self(Mutex::new(Models { lru: LruCache::new(Self::MAX_MODELS), bytes: 0 }))
    }
}

impl ModelCache {
    const MAX_MODELS: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");
    const MAX_BYTES: usize = 8 << 20;

    fn get(&self, key: (u64, u32)) -> Option<Arc<EntropyModel>> {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.lru.get(&key).cloned()
    }

    fn insert(&self, key: (u64, u32), model: Arc<EntropyModel>) {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.bytes += model.footprint();
        if let Some((_, evicted)) = models.lru.push(key, model) {
            models.bytes -= evicted.footprint();
        }
        while models.bytes > Self::MAX_BYTES
            && let Some((_, evicted)) = models.lru.pop_lru()
        {
            models.bytes -= evicted.footprint();
        }
    }
}
