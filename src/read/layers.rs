//! The layers of a model, from the names of its tensors, and where a reader of them will be next.
//!
//! Frameworks compute layer after layer, in the order of their numbers; in a file, `layers.10` stands before `layers.2`,
//! and a layer may be spread over shards.

use crate::format::Header;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// The names behind which the number of a layer stands.
const LAYERS: [&str; 5] = ["layers", "layer", "blocks", "block", "h"];

/// A layer: which of the model's stacks of layers, and its number there.
pub type Layer = (usize, u32);

/// Where a model's layers are.
#[derive(Default)]
pub struct LayerMap {
    /// By shard: where the parts of layers are, in order.
    places: Vec<Vec<(Range<u64>, Layer)>>,
    /// Shards, and ranges in them.
    layers: BTreeMap<Layer, Vec<(usize, Range<u64>)>>,
}

impl LayerMap {
    /// The layers of a model whose shards have these headers.
    pub fn new<'h>(shards: impl IntoIterator<Item = &'h Header>) -> Self {
        let mut stacks: HashMap<&str, usize> = HashMap::new();
        let mut map = Self::default();
        for (shard, header) in shards.into_iter().enumerate() {
            let mut places: Vec<(Range<u64>, Layer)> = Vec::new();
            for tensor in header.tensors.iter().filter(|t| t.start < t.end) {
                let Some((stack, number)) = parse(&tensor.name) else { continue };
                let next = stacks.len();
                let layer = (*stacks.entry(stack).or_insert(next), number);
                match places.last_mut() {
                    Some((range, of)) if *of == layer && range.end == tensor.start => range.end = tensor.end,
                    _ => places.push((tensor.start..tensor.end, layer)),
                }
            }
            for (range, layer) in &places {
                map.layers.entry(*layer).or_default().push((shard, range.clone()));
            }
            map.places.push(places);
        }
        map
    }

    /// The layers of which a shard has some in `range`, and how many bytes of each.
    pub fn within(&self, shard: usize, range: Range<u64>) -> impl Iterator<Item = (Layer, u64)> {
        let places = self.places.get(shard).map_or(&[][..], Vec::as_slice);
        let first = places.partition_point(|(place, _)| place.end <= range.start);
        let overlapping = places[first..].iter().take_while(move |(place, _)| place.start < range.end);
        overlapping
            .map(move |(place, layer)| (*layer, place.end.min(range.end) - place.start.max(range.start)))
    }

    /// Where a layer is: shards, and ranges in them.
    pub fn places(&self, layer: Layer) -> &[(usize, Range<u64>)] {
        self.layers.get(&layer).map_or(&[], Vec::as_slice)
    }

    /// Bytes of a layer.
    pub fn size(&self, layer: Layer) -> u64 {
        self.places(layer).iter().map(|(_, range)| range.end - range.start).sum()
    }

    /// Whether there is nothing in order.
    pub fn is_empty(&self) -> bool {
        self.layers.len() < 2
    }
}

/// What stands before a layer's number in a tensor's name, and the number.
fn parse(name: &str) -> Option<(&str, u32)> {
    let mut start = 0;
    let mut named = false;
    for part in name.split('.') {
        if named && let Ok(number) = part.parse() {
            return Some((&name[..start], number));
        }
        named = LAYERS.iter().any(|l| part == *l || part.ends_with("_blocks") || part.ends_with("_layers"));
        start += part.len() + 1;
    }
    None
}

/// Where the readers of a model are, and whether they have taken its layers in order so far.
#[derive(Default)]
pub struct Course {
    last: Option<Layer>,
    /// Bytes read of layers since the last one was reached.
    read: HashMap<Layer, u64>,
    right: u32,
    wrong: bool,
    /// How many layers behind the last one are likely.
    likely: u32,
}

/// What was read of a layer, and how it is known.
#[derive(Clone, Copy)]
pub struct Read {
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes of the layer.
    pub size: u64,
    /// Whether the reader finds likely layers elsewhere but for a little: the least that is read of one says that it is
    /// reached.
    pub sparse: bool,
}

impl Course {
    /// A layer is reached when this part of it was read: random readers reach none soon.
    const PART: u64 = 8;
    /// And when so many bytes of it were read, or half of them: what the kernel reads ahead of the layer before it in each
    /// shard is no reader.
    const BEYOND: u64 = 4 << 20;
    /// Layers that go back by no more than this are those of other threads.
    const BACK: i64 = 2;

    /// Some of `layer` is read: how many layers behind it are likely to be next, `most` at most; `None` where it was not
    /// reached by that. As many as were taken in order before, and one where nothing is known yet. After a wrong guess the
    /// first one in order does not count: it is as likely by chance.
    pub fn reach(&mut self, layer: Layer, how: Read, most: u32) -> Option<u32> {
        if self.last == Some(layer) {
            return None;
        }
        let step =
            self.last.filter(|last| last.0 == layer.0).map(|last| i64::from(layer.1) - i64::from(last.1));
        let likely = step.is_some_and(|step| (1..=self.likely.into()).contains(&step));
        if !(how.sparse && likely) {
            let read = self.read.entry(layer).or_default();
            *read += how.bytes;
            if *read < how.size.div_ceil(Self::PART).max(Self::BEYOND.min(how.size / 2)) {
                return None;
            }
        }
        self.read.clear();
        match step {
            Some(step) if (-Self::BACK..0).contains(&step) => return None,
            Some(step) if step == 1 || (how.sparse && likely) => self.right += 1,
            Some(_) => (self.right, self.wrong) = (0, true),
            None => {}
        }
        self.last = Some(layer);
        self.likely = if self.wrong { self.right.saturating_sub(1) } else { self.right + 1 }.min(most);
        Some(self.likely)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Tensor;

    fn header(tensors: &[(&str, Range<u64>)]) -> Header {
        let tensor = |(name, range): &(&str, Range<u64>)| Tensor {
            name: (*name).into(),
            dtype: ::safetensors::Dtype::U8,
            shape: vec![],
            start: range.start,
            end: range.end,
        };
        Header { data_start: 8, tensors: tensors.iter().map(tensor).collect() }
    }

    #[test]
    fn layers_are_found_by_the_names_that_models_use() {
        for (name, expected) in [
            ("model.layers.17.mlp.up_proj.weight", Some(("model.layers.", 17))),
            ("transformer.h.3.attn.c_attn.weight", Some(("transformer.h.", 3))),
            ("encoder.block.0.layer.1.wi.weight", Some(("encoder.block.", 0))),
            ("blk.blocks.12.x", Some(("blk.blocks.", 12))),
            ("bert.encoder.layer.5.output.dense.bias", Some(("bert.encoder.layer.", 5))),
            ("single_transformer_blocks.37.proj.weight", Some(("single_transformer_blocks.", 37))),
            ("layers.x.weight", None),
            ("layers", None),
            ("h.99999999999999999999.w", None),
            ("embed.weight", None),
        ] {
            assert_eq!(parse(name), expected, "{name}");
        }
    }

    #[test]
    fn a_layer_is_found_in_every_shard_and_in_the_order_of_numbers() {
        let a = header(&[
            ("embed", 8..20),
            ("layers.0.a", 20..30),
            ("layers.0.b", 30..40),
            ("layers.1.a", 40..50),
            ("layers.10.a", 50..60),
        ]);
        let b = header(&[("layers.1.b", 8..20), ("layers.2.a", 20..30), ("other.h.1", 30..35)]);
        let map = LayerMap::new([&a, &b]);
        let within = |shard, range| map.within(shard, range).collect::<Vec<_>>();
        let (layer, 1) = within(0, 45..46)[0] else { panic!("one byte of a layer") };
        assert_eq!(map.places(layer), [(0, 40..50), (1, 8..20)]);
        assert_eq!(map.places((layer.0, layer.1 + 1)), [(1, 20..30)]);
        assert_eq!(map.places((layer.0, 0)), [(0, 20..40)]);
        assert_eq!(within(0, 15..45), [((layer.0, 0), 20), (layer, 5)]);
        assert!([within(0, 0..20), within(0, 60..99), within(2, 0..9)].iter().all(Vec::is_empty));
        assert_ne!(within(1, 30..31)[0].0.0, layer.0, "another stack");
        assert!(!map.is_empty() && LayerMap::new([&header(&[("x", 0..1)])]).is_empty());
    }

    #[test]
    fn the_course_trusts_order_as_far_as_it_has_seen_it() {
        let mut course = Course::default();
        let dense = |bytes, size| Read { bytes, size, sparse: false };
        let reaches = |course: &mut Course, layers: &[u32]| -> Vec<Option<u32>> {
            layers.iter().map(|&n| course.reach((0, n), dense(40, 80), 99)).collect()
        };
        // One more each; a second thread that is a little behind changes nothing.
        assert_eq!(reaches(&mut course, &[0, 0, 1, 0, 1, 2]), [Some(1), None, Some(2), None, None, Some(3)]);
        // As names sort: 1, 10, 11, ... 19, 2.
        assert_eq!(reaches(&mut course, &[10, 11, 12, 13, 3]), [0, 0, 1, 2, 0].map(Some));
        assert_eq!(course.reach((1, 0), dense(40, 80), 99), Some(0));
        // Here and there a little.
        let mut random = Course::default();
        assert!((0..900).all(|i| random.reach((0, i * 7 % 100), dense(1, 80), 99).is_none()));
        // The kernel reads on behind layer 1, into layer 10 of two shards.
        let mut ahead = Course::default();
        let read = [(0, 80 << 20), (1, 80 << 20), (10, 1 << 20), (10, 1 << 20), (2, 80 << 20)];
        assert_eq!(
            read.map(|(layer, bytes)| ahead.reach((0, layer), dense(bytes, 6 << 20), 99)),
            [Some(1), Some(2), None, None, Some(3)]
        );
        let mut large = Course::default();
        assert_eq!(
            [10, 20, 30].map(|mib| large.reach((0, 0), dense(mib << 20, 400 << 20), 99)),
            [None, None, Some(1)]
        );
    }

    #[test]
    fn a_little_of_a_likely_layer_says_that_it_is_reached_where_the_rest_is_found_elsewhere() {
        let mut course = Course::default();
        let read = |bytes, sparse| Read { bytes, size: 6 << 20, sparse };
        assert_eq!(course.reach((0, 0), read(6 << 20, true), 3), Some(1));
        // What the kernel reads on behind it is not likely.
        assert_eq!(course.reach((0, 10), read(1 << 20, true), 3), None);
        assert_eq!(course.reach((0, 1), read(4096, false), 3), None);
        assert_eq!(course.reach((0, 1), read(4096, true), 3), Some(2));
        // One went unnoticed.
        assert_eq!(course.reach((0, 3), read(4096, true), 3), Some(3));
        assert_eq!(course.reach((0, 4), read(4096, true), 3), Some(3));
        assert_eq!(course.reach((0, 8), read(4096, true), 3), None);
    }
}
