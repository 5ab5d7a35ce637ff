//! The reads of a mount: through the cache, with readahead behind them.

use super::{
    Prefetch,
    models::{Discovery, FindShards, OpenArchive},
    prefetcher::Prefetcher,
    warmer::PageCacheWarmer,
};
use crate::{
    cache::{ChunkCache, Reader, Slice},
    error::Result,
    log_once::LogOnce,
};
use std::sync::Arc;

/// Reads through a cache, and prefetches what is likely to be read next.
pub struct Readahead {
    cache: Arc<ChunkCache>,
    prefetcher: Prefetcher,
    discovery: Discovery,
    warmer: Option<Arc<PageCacheWarmer>>,
}

impl Readahead {
    /// Readahead for a mount. Without a `warmer`, the page cache is not warmed.
    pub fn new(
        cache: Arc<ChunkCache>,
        prefetcher: Prefetcher,
        prefetch: Prefetch,
        find_shards: FindShards,
        warmer: Option<Arc<PageCacheWarmer>>,
        errors: Arc<LogOnce>,
    ) -> Self {
        if let Some(warmer) = &warmer {
            prefetcher.warm_with(Arc::clone(warmer));
        }
        let discovery = Discovery::start(&cache, prefetch, find_shards, errors);
        Self { cache, prefetcher, discovery, warmer }
    }

    /// Whether process `pid` is the page-cache warmer.
    pub fn is_warmer(&self, pid: u32) -> bool {
        self.warmer.as_ref().is_some_and(|warmer| warmer.is_process(pid))
    }

    /// Process `pid` has opened `handle`.
    pub fn opened(&self, pid: u32, handle: u64) {
        if let Some(warmer) = self.warmer.as_ref().filter(|warmer| warmer.is_process(pid)) {
            warmer.opened(handle);
        }
    }

    /// A handle of `archive` is closed. If a program has closed it, prefetching for it ends; other
    /// readers of the archive request anew.
    pub fn closed(&self, handle: u64, archive: Option<&OpenArchive>) {
        let warmer = self.warmer.as_ref();
        if warmer.is_some_and(|warmer| warmer.closed(handle)) {
            return;
        }
        if let Some(archive) = archive {
            self.prefetcher.cancel(archive.file());
            warmer.into_iter().for_each(|warmer| warmer.abandon(archive.file().id()));
        }
    }

    /// Read as [`ChunkCache::read`] for process `pid`, past the page cache if `is_direct`.
    pub fn read(
        &self,
        archive: &Arc<OpenArchive>,
        offset: u64,
        len: usize,
        pid: u32,
        is_direct: bool,
        done: impl FnOnce(Result<Vec<Slice>>) + Send + 'static,
    ) {
        let reader = match is_direct {
            _ if self.is_warmer(pid) => Reader::Warmer,
            true => Reader::Direct,
            false => Reader::PageCached,
        };
        self.cache.read(archive.file(), offset, len, reader, done);
        if reader != Reader::Warmer {
            let range = offset..offset.saturating_add(len as u64);
            self.discovery.after_read(archive, range, !is_direct, &self.prefetcher);
        }
    }
}
