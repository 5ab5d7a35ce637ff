//! The layers that will be read next, decoded before they are: in whichever shards of the model they are.

use super::Prefetch;
use super::fuse::Said;
use super::tree::{Content, Opened, Tree};
use crate::error::{Context, Result};
use crate::escape;
use crate::read::{
    Archive, ChunkCache, Course, LayerMap, LayerMapBuilder, MOST_PLACES, Read, Wish, header_json,
};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

/// Longest header that layers are learnt from, in bytes: that of a model of some 30,000 tensors in one file.
const LONGEST_HEADER: u64 = 4 << 20;
/// Parts of layers that are looked at for one read: more are no layers that somebody reads one after another.
const MOST_AT_ONCE: usize = 64;
/// Archives whose layers are to be learnt, at most; others are thought of when they are read again.
const QUEUE: usize = 256;

/// Learns the layers of the models that are read, on a thread of its own: nobody waits for it, however long it takes.
pub(super) struct Learner(Option<SyncSender<Weak<Opened>>>);

/// What that thread works with.
struct Learning {
    tree: Arc<Tree>,
    cache: Arc<ChunkCache>,
    prefetch: Prefetch,
    said: Arc<Said>,
    /// The models that are being read.
    models: Vec<Weak<Model>>,
}

impl Learner {
    pub fn start(
        tree: Arc<Tree>,
        cache: Arc<ChunkCache>,
        prefetch: Prefetch,
        said: Arc<Said>,
    ) -> Self {
        if prefetch == Prefetch::Off {
            return Self(None);
        }
        let (seek, sought) = sync_channel(QUEUE);
        let mut learning = Learning { tree, cache, prefetch, said, models: Vec::new() };
        let work = move || learning.work(&sought);
        match thread::Builder::new().name("bsz-layers".into()).spawn(work) {
            Ok(_) => Self(Some(seek)),
            Err(e) => {
                log::warn!("layers are not decoded ahead: {e}");
                Self(None)
            }
        }
    }

    /// Learn which model an open archive is a shard of, if that was not done.
    pub fn seek(&self, opened: &Arc<Opened>) {
        let (Some(seek), Content::Archive { sought, .. }) = (&self.0, &opened.content) else {
            return;
        };
        if sought.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(TrySendError::Full(_)) = seek.try_send(Arc::downgrade(opened)) {
            sought.store(false, Ordering::Relaxed);
        }
    }
}

impl Learning {
    fn work(&mut self, sought: &Receiver<Weak<Opened>>) {
        for opened in sought {
            // It may have been closed.
            let Some(opened) = opened.upgrade() else { continue };
            let Content::Archive { archive, path, shown, model, .. } = &opened.content else {
                continue;
            };
            let this = Shard { archive: archive.clone(), shown: shown.clone() };
            let (shards, this) = self.tree.shards(path, this);
            let found = match self.model_of(shards) {
                Ok(found) => found.map(|model| (model, this)),
                Err(e) => {
                    let what =
                        format!("{}: its layers are not decoded ahead: {e}", escape::path(path));
                    self.said.say(log::Level::Warn, &what);
                    None
                }
            };
            // Nobody else sets it.
            let _ = model.set(found);
        }
    }

    /// The model of these shards, the same for each of them; `None` where it has no layers.
    ///
    /// # Errors
    /// As [`header_json`] and [`LayerMapBuilder::shard`].
    fn model_of(&mut self, shards: Vec<Shard>) -> Result<Option<Arc<Model>>> {
        self.models.retain(|model| model.strong_count() > 0);
        let ids =
            |shards: &[Shard]| shards.iter().map(|shard| shard.archive.id()).collect::<Vec<_>>();
        let wanted = ids(&shards);
        let mut alive = self.models.iter().filter_map(Weak::upgrade);
        if let Some(known) = alive.find(|model| ids(&model.shards) == wanted) {
            return Ok(Some(known));
        }
        let known: usize =
            self.models.iter().filter_map(Weak::upgrade).map(|model| model.layers.len()).sum();
        let model =
            Model::new(shards, MOST_PLACES.saturating_sub(known), self.prefetch, &self.cache)?;
        let model = model.map(Arc::new);
        self.models.extend(model.as_ref().map(Arc::downgrade));
        Ok(model)
    }
}

/// A shard of a model.
pub(super) struct Shard {
    pub archive: Arc<Archive>,
    /// Its path, relative to the view's root.
    pub shown: Arc<Path>,
}

/// The shards of a model that is being read. It keeps them open as long as one of them is.
pub(super) struct Model {
    shards: Vec<Shard>,
    layers: LayerMap,
    course: Mutex<Course>,
    most: u32,
}

impl Model {
    /// Learn the layers from the shards' headers, in `room` parts at most; `None` where there are none.
    ///
    /// # Errors
    /// As [`header_json`] and [`LayerMapBuilder::shard`].
    fn new(
        shards: Vec<Shard>,
        room: usize,
        how: Prefetch,
        cache: &ChunkCache,
    ) -> Result<Option<Self>> {
        let most = match how {
            Prefetch::Off => return Ok(None),
            Prefetch::Auto | Prefetch::Cuda => u32::MAX,
            Prefetch::Layers(n) => n,
        };
        let mut layers = LayerMapBuilder::new(room);
        for Shard { archive, shown } in &shards {
            let mut learn = || {
                let header = header_json(archive, cache.decoder(), LONGEST_HEADER)?;
                layers.shard(&header.unwrap_or_default(), archive.footer().original_len)
            };
            learn().about_path(shown)?;
        }
        let model = Self { shards, layers: layers.finish(), course: Mutex::default(), most };
        Ok((!model.layers.is_empty()).then_some(model))
    }

    /// `len` bytes from `at` on of a shard are read: have the layers behind their layer decoded while nobody reads, and
    /// pulled into the kernel's page cache where the reader goes through it.
    pub fn is_read(&self, shard: usize, at: u64, len: u64, paged: bool, cache: &Arc<ChunkCache>) {
        let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = None;
        for (layer, bytes) in self.layers.within(shard, at..at + len).take(MOST_AT_ONCE) {
            let read = Read { bytes, size: self.layers.size(layer), sparse: paged };
            reached =
                course.reach(layer, read, self.most).map(|likely| (layer, likely)).or(reached);
        }
        drop(course);
        let Some(((stack, number), likely)) = reached else { return };
        log::debug!("layer {number} is reached: {likely} behind it are likely");
        // None at all drops what was wrongly wished for. The kernel may have asked for the beginning of a layer before its
        // reader did, so what is left of it is wished for, too.
        let layers = (0..=likely).map_while(|n| Some((n, (stack, number.checked_add(n)?))));
        let layers = layers
            .skip(usize::from(likely == 0))
            .take_while(|(_, l)| !self.layers.places(*l).is_empty());
        cache.wish(layers.flat_map(|(n, layer)| {
            let places = self.layers.places(layer);
            // The first of the largest ones.
            let wired = places.iter().rev().max_by_key(|(_, range)| range.end - range.start);
            places.iter().map(move |place| self.wish(place, paged, n > 0 && wired == Some(place)))
        }));
    }

    fn wish(&self, (shard, range): &(usize, Range<u64>), paged: bool, wired: bool) -> Wish {
        let Shard { archive, shown } = &self.shards[*shard];
        Wish {
            archive: Arc::clone(archive),
            shown: paged.then(|| Arc::clone(shown)),
            range: if paged && wired { behind_wire(range) } else { range.clone() },
        }
    }
}

/// All of a layer but its first page: what the reader finds in the page cache, nobody hears of; that page it asks for here,
/// which says how far it is.
fn behind_wire(range: &Range<u64>) -> Range<u64> {
    const PAGE: u64 = 4096;
    let start = range.start.next_multiple_of(PAGE) + PAGE;
    start.min(range.end)..range.end
}

/// What the names of a model's shards have in common: `model-00003-of-00030.safetensors` is `model-` and `-of-00030`.
pub(super) fn shards_of(name: &str) -> Option<(&str, &str)> {
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
    fn shards_are_known_by_their_names() {
        for (name, expected) in [
            ("model-00003-of-00030.safetensors", Some(("model-", "-of-00030"))),
            ("a-b-1-of-2.safetensors", Some(("a-b-", "-of-2"))),
            ("model.safetensors", None),
            ("model-x-of-00030.safetensors", None),
            ("-of-00030.safetensors", None),
            ("model-00003-of-00030.bin", None),
        ] {
            assert_eq!(shards_of(name), expected, "{name}");
        }
    }
}
