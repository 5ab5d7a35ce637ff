//! The layers that will be read next, decoded before they are: in whichever shards of the model they are.

use super::Prefetch;
use crate::codec::ChunkDecoder;
use crate::error::Result;
use crate::read::{Archive, ChunkCache, Course, LayerMap, header};
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
        shards: Vec<Arc<Archive>>,
        how: Prefetch,
        decoder: &dyn ChunkDecoder,
    ) -> Result<Option<Arc<Model>>> {
        // Locked until the headers are read, so that each is read once.
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|model| model.strong_count() > 0);
        let ids = |shards: &[Arc<Archive>]| shards.iter().map(|shard| shard.id()).collect::<Vec<_>>();
        let wanted = ids(&shards);
        if let Some(known) = models.iter().filter_map(Weak::upgrade).find(|m| ids(&m.shards) == wanted) {
            return Ok(Some(known));
        }
        let model = Model::new(shards, how, decoder)?.map(Arc::new);
        models.extend(model.as_ref().map(Arc::downgrade));
        Ok(model)
    }
}

/// The shards of a model that is being read. It keeps them open as long as one of them is.
pub(super) struct Model {
    shards: Vec<Arc<Archive>>,
    layers: LayerMap,
    course: Mutex<Course>,
    most: u32,
}

impl Model {
    /// Learn the layers from the shards' headers; `None` where there are none, or `how` does not want them.
    ///
    /// # Errors
    /// As [`header`].
    fn new(shards: Vec<Arc<Archive>>, how: Prefetch, decoder: &dyn ChunkDecoder) -> Result<Option<Self>> {
        let most = match how {
            Prefetch::Off => return Ok(None),
            Prefetch::Auto | Prefetch::Cuda => u32::MAX,
            Prefetch::Layers(n) => n,
        };
        let headers = shards.iter().map(|shard| header(shard, decoder)).collect::<Result<Vec<_>>>()?;
        let layers = LayerMap::new(&headers);
        let model = Self { shards, layers, course: Mutex::default(), most };
        Ok((!model.layers.is_empty()).then_some(model))
    }

    /// `len` bytes from `at` on of a shard are read: have the layers behind their layer decoded while nobody reads.
    pub fn is_read(&self, shard: usize, at: u64, len: u64, cache: &Arc<ChunkCache>) {
        let Some(layer) = self.layers.at(shard, at) else { return };
        let size = self.layers.size(layer);
        let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reach) = course.reach(layer, len, size) else { return };
        drop(course);
        // None at all drops what was wrongly wished for.
        let behind = (1..=reach.min(self.most)).map_while(|n| {
            let places = self.layers.places((layer.0, layer.1.checked_add(n)?));
            (!places.is_empty()).then_some(places)
        });
        cache.wish(behind.flatten().map(|(shard, range)| (Arc::clone(&self.shards[*shard]), range.clone())));
    }
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
