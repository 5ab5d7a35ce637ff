//! The layers that will be read next, decoded before they are: in whichever shards of the model they are.

use super::Prefetch;
use crate::codec::ChunkDecoder;
use crate::error::Result;
use crate::read::{Archive, ChunkCache, Course, LayerMap, Read, Wish, header};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The models that are being read.
#[derive(Default)]
pub(super) struct Models(Mutex<Vec<Weak<Model>>>);

impl Models {
    /// The model of these shards, the same for each of them; `None` where it has no layers, or `how` does not want them.
    ///
    /// # Errors
    /// As [`header`].
    pub fn of(
        &self,
        shards: Vec<Shard>,
        how: Prefetch,
        decoder: &dyn ChunkDecoder,
    ) -> Result<Option<Arc<Model>>> {
        // Locked until the headers are read, so that each is read once.
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|model| model.strong_count() > 0);
        let ids = |shards: &[Shard]| shards.iter().map(|shard| shard.archive.id()).collect::<Vec<_>>();
        let wanted = ids(&shards);
        if let Some(known) = models.iter().filter_map(Weak::upgrade).find(|m| ids(&m.shards) == wanted) {
            return Ok(Some(known));
        }
        let model = Model::new(shards, how, decoder)?.map(Arc::new);
        models.extend(model.as_ref().map(Arc::downgrade));
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
    /// Learn the layers from the shards' headers; `None` where there are none, or `how` does not want them.
    ///
    /// # Errors
    /// As [`header`].
    fn new(shards: Vec<Shard>, how: Prefetch, decoder: &dyn ChunkDecoder) -> Result<Option<Self>> {
        let most = match how {
            Prefetch::Off => return Ok(None),
            Prefetch::Auto | Prefetch::Cuda => u32::MAX,
            Prefetch::Layers(n) => n,
        };
        let headers =
            shards.iter().map(|shard| header(&shard.archive, decoder)).collect::<Result<Vec<_>>>()?;
        let layers = LayerMap::new(&headers);
        let model = Self { shards, layers, course: Mutex::default(), most };
        Ok((!model.layers.is_empty()).then_some(model))
    }

    /// `len` bytes from `at` on of a shard are read: have the layers behind their layer decoded while nobody reads, and
    /// pulled into the kernel's page cache where the reader goes through it.
    pub fn is_read(&self, shard: usize, at: u64, len: u64, paged: bool, cache: &Arc<ChunkCache>) {
        let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = None;
        for (layer, bytes) in self.layers.within(shard, at..at + len) {
            let read = Read { bytes, size: self.layers.size(layer), sparse: paged };
            reached = course.reach(layer, read, self.most).map(|likely| (layer, likely)).or(reached);
        }
        drop(course);
        let Some(((stack, number), likely)) = reached else { return };
        log::debug!("layer {number} is reached: {likely} behind it are likely");
        // None at all drops what was wrongly wished for. The kernel may have asked for the beginning of a layer before its
        // reader did, so what is left of it is wished for, too.
        let layers = (0..=likely).map_while(|n| Some((n, (stack, number.checked_add(n)?))));
        let layers =
            layers.skip(usize::from(likely == 0)).take_while(|(_, l)| !self.layers.places(*l).is_empty());
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
