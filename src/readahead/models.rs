//! Models that are being read: which files are their shards, and which layers come next.

use super::{
    Prefetch,
    layer_map::{LayerMap, LayerMapBuilder, MAX_EXTENTS},
    layer_tracker::{LayerRead, LayerTracker},
    prefetcher::Prefetcher,
    queue::PrefetchRequest,
};
use crate::{
    cache::{CachedFile, ChunkCache, FileId},
    error::{Context, Result},
    escape,
    log_once::LogOnce,
    read::header_json,
};
use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

/// The longest header to parse for layers, in bytes: about 30,000 tensors in one file.
const MAX_HEADER: u64 = 4 << 20;
/// Most extents to look at for one read. More are not layers that are read one after another.
const MAX_EXTENTS_PER_READ: usize = 64;
/// Most files whose layers wait to be discovered. Others are discovered at a later read.
const QUEUE: usize = 256;

/// An archive that is open for readers.
pub struct OpenArchive {
    file: Arc<CachedFile>,
    path: Arc<Path>,
    shown: Arc<Path>,
    /// The model of which the file is a shard and the index of the shard, once discovered.
    model: OnceLock<Option<(Arc<Model>, usize)>>,
    /// Whether discovery has been requested.
    is_requested: AtomicBool,
}

impl OpenArchive {
    /// An archive at `path` below the source, shown at `shown` below the mountpoint.
    pub fn new(file: Arc<CachedFile>, path: Arc<Path>, shown: Arc<Path>) -> Self {
        let (model, is_requested) = (OnceLock::new(), AtomicBool::new(false));
        Self { file, path, shown, model, is_requested }
    }

    /// The file in the cache.
    pub fn file(&self) -> &Arc<CachedFile> {
        &self.file
    }

    /// The path of the archive below the source.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn shard(&self) -> Shard {
        Shard { file: Arc::clone(&self.file), shown: Arc::clone(&self.shown) }
    }
}

/// A shard of a model.
pub struct Shard {
    /// The file in the cache.
    pub file: Arc<CachedFile>,
    /// Its path below the mountpoint.
    pub shown: Arc<Path>,
}

/// Finds the other shards of the model of an open archive.
pub type FindShards = Box<dyn Fn(&OpenArchive) -> Vec<Shard> + Send>;

/// Discovers the layers of models on a thread of its own, so that no reader waits for it.
pub(super) struct Discovery(Option<SyncSender<Weak<OpenArchive>>>);

/// The state of the discovery thread.
struct Discoverer {
    cache: Arc<ChunkCache>,
    prefetch: Prefetch,
    find_shards: FindShards,
    errors: Arc<LogOnce>,
    /// The models that are being read.
    models: Vec<Weak<Model>>,
}

impl Discovery {
    pub(super) fn start(
        cache: &Arc<ChunkCache>,
        prefetch: Prefetch,
        find_shards: FindShards,
        errors: Arc<LogOnce>,
    ) -> Self {
        if prefetch == Prefetch::Off {
            return Self(None);
        }
        let (send, receive) = sync_channel(QUEUE);
        let (cache, models) = (Arc::clone(cache), Vec::new());
        let mut discoverer = Discoverer { cache, prefetch, find_shards, errors, models };
        let work = move || discoverer.work(&receive);
        match thread::Builder::new().name("bsz-layers".into()).spawn(work) {
            Ok(_) => Self(Some(send)),
            Err(e) => {
                log::warn!("layers are not prefetched: {e}");
                Self(None)
            }
        }
    }

    /// Discover the model of an open archive, unless that was requested before.
    fn request(&self, archive: &Arc<OpenArchive>) {
        let Some(queue) = &self.0 else { return };
        if archive.is_requested.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(TrySendError::Full(_)) = queue.try_send(Arc::downgrade(archive)) {
            archive.is_requested.store(false, Ordering::Relaxed);
        }
    }

    /// Prefetch the layers that follow a read of `range`, once the model is known. `page_cached`:
    /// the page cache is warmed as well.
    pub(super) fn after_read(
        &self,
        archive: &Arc<OpenArchive>,
        range: Range<u64>,
        page_cached: bool,
        prefetcher: &Prefetcher,
    ) {
        match archive.model.get() {
            Some(Some((model, shard))) => model.after_read(*shard, range, page_cached, prefetcher),
            Some(None) => {}
            None => self.request(archive),
        }
    }
}

impl Discoverer {
    fn work(&mut self, requests: &Receiver<Weak<OpenArchive>>) {
        for archive in requests {
            // It may have been closed.
            let Some(archive) = archive.upgrade() else { continue };
            let discovered = self.model_of(&archive).unwrap_or_else(|e| {
                let path = escape::path(archive.path());
                let message = format!("{path}: its layers are not prefetched: {e}");
                self.errors.log(log::Level::Warn, &message);
                None
            });
            // No other thread sets it.
            let _ = archive.model.set(discovered);
        }
    }

    /// The model of an archive and the index of its shard; `None` if the model has no layers. All
    /// shards have the same model.
    ///
    /// # Errors
    /// As [`header_json`] and [`LayerMapBuilder::shard`].
    fn model_of(&mut self, archive: &OpenArchive) -> Result<Option<(Arc<Model>, usize)>> {
        let mut shards = (self.find_shards)(archive);
        let is_this = |shard: &Shard| shard.file.id() == archive.file.id();
        let index = shards.iter().position(is_this).unwrap_or_else(|| {
            shards = vec![archive.shard()];
            0
        });
        self.models.retain(|model| model.strong_count() > 0);
        let ids = |shards: &[Shard]| -> Vec<FileId> {
            shards.iter().map(|shard| shard.file.id()).collect()
        };
        let wanted = ids(&shards);
        let mut known = self.models.iter().filter_map(Weak::upgrade);
        if let Some(model) = known.find(|model| ids(&model.shards) == wanted) {
            return Ok(Some((model, index)));
        }
        let extents = self.models.iter().filter_map(Weak::upgrade).map(|model| model.layers.len());
        let room = MAX_EXTENTS.saturating_sub(extents.sum());
        let model = Model::new(shards, room, self.prefetch, &self.cache)?.map(Arc::new);
        self.models.extend(model.as_ref().map(Arc::downgrade));
        Ok(model.map(|model| (model, index)))
    }
}

/// A model that is being read. All of its shards stay open as long as one of them is.
struct Model {
    shards: Vec<Shard>,
    layers: LayerMap,
    tracker: Mutex<LayerTracker>,
    /// Most layers to prefetch.
    max_layers: u32,
}

impl Model {
    /// Find the layers in the headers of the shards; `None` if there are none. The layers may have
    /// `room` extents.
    ///
    /// # Errors
    /// As [`header_json`] and [`LayerMapBuilder::shard`].
    fn new(
        shards: Vec<Shard>,
        room: usize,
        prefetch: Prefetch,
        cache: &ChunkCache,
    ) -> Result<Option<Self>> {
        let max_layers = match prefetch {
            Prefetch::Off => return Ok(None),
            Prefetch::Auto | Prefetch::Cuda => u32::MAX,
            Prefetch::Layers(n) => n,
        };
        let mut layers = LayerMapBuilder::new(room);
        for Shard { file, shown } in &shards {
            let mut add = || {
                let archive = file.archive();
                let header = header_json(archive, cache.decoder(), MAX_HEADER)?;
                layers.shard(&header.unwrap_or_default(), archive.footer().original_len)
            };
            add().about_path(shown)?;
        }
        let layers = layers.finish();
        let tracker = Mutex::default();
        Ok((!layers.is_empty()).then_some(Self { shards, layers, tracker, max_layers }))
    }

    fn after_read(
        &self,
        shard: usize,
        range: Range<u64>,
        page_cached: bool,
        prefetcher: &Prefetcher,
    ) {
        let mut tracker = self.tracker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = None;
        for (layer, bytes) in self.layers.overlapping(shard, range).take(MAX_EXTENTS_PER_READ) {
            let size = self.layers.size(layer);
            let read = LayerRead { bytes, size, is_sparse: page_cached };
            let predicted = tracker.record(layer, read, self.max_layers);
            reached = predicted.map(|predicted| (layer, predicted)).or(reached);
        }
        drop(tracker);
        let Some(((stack, number), predicted)) = reached else { return };
        log::debug!("layer {number} is reached, and {predicted} after it are predicted");
        // Include the rest of this layer: the kernel's readahead may have reached it before the
        // reader. A prediction of no layers cancels the earlier requests.
        let layers = (0..=predicted).map_while(|n| Some((n, (stack, number.checked_add(n)?))));
        let layers = layers
            .skip(usize::from(predicted == 0))
            .take_while(|(_, layer)| !self.layers.extents(*layer).is_empty());
        prefetcher.request(layers.flat_map(|(n, layer)| {
            let extents = self.layers.extents(layer);
            // The first of the largest extents.
            let largest = extents.iter().rev().max_by_key(|(_, range)| range.end - range.start);
            extents.iter().map(move |extent| {
                let leave_trace = n > 0 && largest == Some(extent);
                self.prefetch_request(extent, page_cached, leave_trace)
            })
        }));
    }

    fn prefetch_request(
        &self,
        (shard, range): &(usize, Range<u64>),
        page_cached: bool,
        leave_trace: bool,
    ) -> PrefetchRequest {
        let Shard { file, shown } = &self.shards[*shard];
        PrefetchRequest {
            file: Arc::clone(file),
            shown: page_cached.then(|| Arc::clone(shown)),
            range: if page_cached && leave_trace { after_first_page(range) } else { range.clone() },
        }
    }
}

/// A layer without its first page. Reads of warmed pages never arrive here, so one page is left out
/// to show when the reader reaches the layer.
fn after_first_page(range: &Range<u64>) -> Range<u64> {
    const PAGE: u64 = 4096;
    let start = range.start.next_multiple_of(PAGE) + PAGE;
    start.min(range.end)..range.end
}

/// What the names of all shards of a model have in common: `model-` and `-of-00030` in
/// `model-00003-of-00030.safetensors`.
pub fn shard_pattern(name: &str) -> Option<(&str, &str)> {
    let stem = name.strip_suffix(".safetensors")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.split_at(rest.rfind('-')? + 1);
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then(|| (prefix, &stem[rest.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_recognized_by_their_names() {
        for (name, expected) in [
            ("model-00003-of-00030.safetensors", Some(("model-", "-of-00030"))),
            ("a-b-1-of-2.safetensors", Some(("a-b-", "-of-2"))),
            ("model.safetensors", None),
            ("model-x-of-00030.safetensors", None),
            ("-of-00030.safetensors", None),
            ("model-00003-of-00030.bin", None),
        ] {
            assert_eq!(shard_pattern(name), expected, "{name}");
        }
    }
}
