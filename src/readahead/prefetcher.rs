//! Decodes requested ranges while no program reads: a reader that computes leaves the disk and the
//! processor to the prefetcher, and a reader that streams does not.

use super::{
    offload::{Offload, OffloadDecoder},
    queue::{PrefetchQueue, PrefetchRequest},
    warmer::PageCacheWarmer,
};
use crate::cache::{CachedFile, ChunkCache};
use crate::error::{Context, Result};
use std::{
    ops::Range,
    sync::{Arc, OnceLock, Weak},
    thread,
    time::Duration,
};

/// Bytes to prefetch at a time: few enough that a reader soon has the threads to itself.
pub const LOCAL_PIECE: u64 = 2 << 20;
/// Over a network, few long requests are better, and demand overtakes them.
pub const REMOTE_PIECE: u64 = 12 << 20;
/// Most chunks to prefetch at a time. Only tiny chunks reach this limit.
const MAX_CHUNKS: usize = 1 << 12;
/// How long the queue must be empty until resources are released.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// Prefetches through a cache, on a thread of its own.
pub struct Prefetcher {
    cache: Arc<ChunkCache>,
    shared: Arc<Shared>,
}

struct Shared {
    piece: u64,
    queue: PrefetchQueue,
    offload: OnceLock<Offload>,
    warmer: OnceLock<Arc<PageCacheWarmer>>,
}

impl Prefetcher {
    /// Start the thread, which ends when `cache` is dropped. It prefetches `piece` bytes at a time:
    /// [`LOCAL_PIECE`] or [`REMOTE_PIECE`].
    ///
    /// # Errors
    /// Io, if the thread cannot be started.
    pub fn start(cache: &Arc<ChunkCache>, piece: u64) -> Result<Self> {
        let (queue, offload, warmer) = Default::default();
        let shared = Arc::new(Shared { piece, queue, offload, warmer });
        let (cache, weak) = (Arc::clone(cache), Arc::downgrade(cache));
        let working = Arc::clone(&shared);
        let named = thread::Builder::new().name("bsz-prefetch".into());
        named.spawn(move || working.work(&weak)).about("decode threads")?;
        Ok(Self { cache, shared })
    }

    /// Prefetch these ranges, up to half of the cache, in place of earlier requests.
    pub fn request(&self, requests: impl IntoIterator<Item = PrefetchRequest>) {
        self.shared.queue.replace(requests, self.cache.capacity() / 2);
    }

    /// Cancel the requests for a file.
    pub fn cancel(&self, file: &CachedFile) {
        self.shared.queue.cancel(file.id());
    }

    /// Decode with `decoder` from now on, as long as it responds in time.
    ///
    /// # Errors
    /// Io, if its thread cannot be started.
    pub fn offload_to(&self, decoder: Box<dyn OffloadDecoder>) -> Result<()> {
        // The first decoder stays.
        let _ = self.shared.offload.set(Offload::start(decoder)?);
        Ok(())
    }

    /// Warm the page cache with prefetched data from now on.
    pub fn warm_with(&self, warmer: Arc<PageCacheWarmer>) {
        // The first warmer stays.
        let _ = self.shared.warmer.set(warmer);
    }
}

impl Shared {
    fn work(&self, cache: &Weak<ChunkCache>) {
        loop {
            let has_work = self.queue.wait(RELEASE_AFTER);
            let Some(cache) = cache.upgrade() else { return };
            if !has_work {
                self.release(&cache);
                continue;
            }
            cache.wait_until_idle();
            let offload = self.offload().filter(|offload| offload.prepare());
            let piece = offload.map_or(self.piece, Offload::piece);
            let Some(request) = self.queue.pop(piece) else { continue };
            if !self.prefetch(&cache, offload, &request) {
                // The cache has no room until the readers proceed, and request anew.
                self.queue.clear();
            }
        }
    }

    fn offload(&self) -> Option<&Offload> {
        self.offload.get().filter(|offload| offload.is_usable())
    }

    /// Release what is not needed while nothing is requested.
    fn release(&self, cache: &ChunkCache) {
        self.offload().inspect(|offload| offload.release());
        self.warmer.get().inspect(|warmer| warmer.release());
        if cache.is_idle() {
            cache.trim();
        }
    }

    /// Decode the chunks of a request, and warm the page cache with them; `false` if the cache had
    /// no room for all of them.
    fn prefetch(
        &self,
        cache: &ChunkCache,
        offload: Option<&Offload>,
        request: &PrefetchRequest,
    ) -> bool {
        let file = &request.file;
        let ids = chunks_of(file, &request.range);
        let ids = cache.candidates().among(file, ids);
        let claimed = match offload {
            None => cache.prefetch(file, &ids),
            Some(offload) => {
                let (pending, claimed) = cache.prefetch_pending(file, &ids);
                if claimed.any {
                    offload.decode(cache, pending);
                }
                claimed
            }
        };
        if claimed.any
            && let (Some(warmer), Some(shown)) = (self.warmer.get(), &request.shown)
        {
            warmer.warm(file.id(), shown, &request.range);
        }
        claimed.all
    }
}

/// The chunks of a range; none if there are too many, or the index is damaged.
fn chunks_of(file: &CachedFile, range: &Range<u64>) -> Range<usize> {
    let index = file.archive().index();
    match (index.find(range.start), index.find(range.end - 1)) {
        (Ok(first), Ok(last)) if last - first < MAX_CHUNKS => first..(last + 1).min(index.len()),
        _ => 0..0,
    }
}
