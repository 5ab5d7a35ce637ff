//! The layers of a model, from the names of its tensors, and where a reader of them will be next.
//!
//! Frameworks compute layer after layer, in the order of their numbers; in a file, `layers.10` stands before `layers.2`,
//! and a layer may be spread over shards.

use crate::error::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
};

/// The names behind which the number of a layer stands.
const LAYERS: [&str; 5] = ["layers", "layer", "blocks", "block", "h"];

/// A layer: which of the model's stacks of layers, and its number there.
pub type Layer = (usize, u32);

/// Parts of layers that are known at once, at most, of all models together. A model has as many as it has layers, or some
/// times that; what has more has no layers that are worth it.
pub const MOST_PLACES: usize = 1 << 15;
/// Stacks of layers of a model, at most.
const MOST_STACKS: usize = 1 << 8;

/// Where a model's layers are.
#[derive(Default)]
pub struct LayerMap {
    /// By shard: where the parts of layers are, in order.
    shards: Vec<Vec<(Range<u64>, Layer)>>,
    layers: BTreeMap<Layer, Parts>,
}

/// The parts of a layer.
#[derive(Default)]
struct Parts {
    /// Shards, and ranges in them.
    places: Vec<(usize, Range<u64>)>,
    /// Bytes of all.
    size: u64,
}

/// Learns where layers are from the headers of a model's shards, one after another.
pub struct LayerMapBuilder {
    map: LayerMap,
    stacks: HashMap<Box<str>, usize>,
    /// How many more parts may be known.
    room: usize,
}

impl LayerMapBuilder {
    /// For a map of no more than so many parts.
    pub fn new(room: usize) -> Self {
        Self { map: LayerMap::default(), stacks: HashMap::new(), room }
    }

    /// Learn from the header, without its length, of the next shard, a file of `file_len` bytes. What is no header tells
    /// nothing.
    ///
    /// # Errors
    /// Invalid argument, where there are too many parts, or too many stacks of layers.
    pub fn shard(&mut self, header: &[u8], file_len: u64) -> Result<()> {
        let data_start = 8 + header.len() as u64;
        let mut tensors = Vec::new();
        let entries = Entries { stacks: &mut self.stacks, tensors: &mut tensors };
        // What stands before a mistake is as true as what is in a header without one.
        let _ = entries.deserialize(&mut serde_json::Deserializer::from_slice(header));
        if self.stacks.len() > MOST_STACKS {
            return Err(Error::invalid("it has too many stacks of layers"));
        }
        tensors.sort_unstable_by_key(|(range, _)| (range.start, range.end));
        let mut places: Vec<(Range<u64>, Layer)> = Vec::new();
        for (range, layer) in tensors {
            let within = |at: u64| data_start.checked_add(at).filter(|&at| at <= file_len);
            let (Some(start), Some(end)) = (within(range.start), within(range.end)) else {
                continue;
            };
            let full = places.len() == self.room;
            match places.last_mut() {
                // What overlaps is not believed.
                Some((last, _)) if start < last.end => {}
                _ if start >= end => {}
                Some((last, of)) if *of == layer && last.end == start => last.end = end,
                _ if full => {
                    return Err(Error::invalid("its layers are in too many parts"));
                }
                _ => places.push((start..end, layer)),
            }
        }
        places.shrink_to_fit();
        self.room -= places.len();
        let shard = self.map.shards.len();
        for (range, layer) in &places {
            let parts = self.map.layers.entry(*layer).or_default();
            parts.size += range.end - range.start;
            parts.places.push((shard, range.clone()));
        }
        self.map.shards.push(places);
        Ok(())
    }

    /// The map of all shards so far.
    pub fn finish(self) -> LayerMap {
        self.map
    }
}

/// Reads a header entry by entry, and keeps of each tensor that is of a layer no more than where it is.
struct Entries<'e> {
    stacks: &'e mut HashMap<Box<str>, usize>,
    tensors: &'e mut Vec<(Range<u64>, Layer)>,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, header: D) -> std::result::Result<(), D::Error> {
        header.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<(), A::Error> {
        #[derive(serde::Deserialize)]
        struct Place {
            data_offsets: (u64, u64),
        }
        while let Some(layer) = entries.next_key_seed(Name(self.stacks))? {
            match layer {
                Some(layer) => {
                    let Place { data_offsets: (start, end) } = entries.next_value()?;
                    self.tensors.push((start..end, layer));
                }
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Reads the name of a tensor: its layer, if it is of one.
struct Name<'n>(&'n mut HashMap<Box<str>, usize>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<Layer>;
    fn deserialize<D: Deserializer<'de>>(
        self,
        name: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        name.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<Layer>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> std::result::Result<Self::Value, E> {
        let Some((stack, number)) = parse(name) else { return Ok(None) };
        if let Some(&known) = self.0.get(stack) {
            return Ok(Some((known, number)));
        }
        let new = self.0.len();
        // One more says that there are too many.
        if new <= MOST_STACKS {
            self.0.insert(stack.into(), new);
        }
        Ok(Some((new, number)))
    }
}

impl LayerMap {
    /// The layers of which a shard has some in `range`, and how many bytes of each.
    pub fn within(&self, shard: usize, range: Range<u64>) -> impl Iterator<Item = (Layer, u64)> {
        let places = self.shards.get(shard).map_or(&[][..], Vec::as_slice);
        let first = places.partition_point(|(place, _)| place.end <= range.start);
        let overlapping =
            places[first..].iter().take_while(move |(place, _)| place.start < range.end);
        overlapping.map(move |(place, layer)| {
            (*layer, place.end.min(range.end) - place.start.max(range.start))
        })
    }

    /// Where a layer is: shards, and ranges in them.
    pub fn places(&self, layer: Layer) -> &[(usize, Range<u64>)] {
        self.layers.get(&layer).map_or(&[], |parts| &parts.places)
    }

    /// Bytes of a layer.
    pub fn size(&self, layer: Layer) -> u64 {
        self.layers.get(&layer).map_or(0, |parts| parts.size)
    }

    /// How many parts are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(Vec::len).sum()
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
        named = LAYERS
            .iter()
            .any(|l| part == *l || part.ends_with("_blocks") || part.ends_with("_layers"));
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
        let step = self
            .last
            .filter(|last| last.0 == layer.0)
            .map(|last| i64::from(layer.1) - i64::from(last.1));
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
        self.likely =
            if self.wrong { self.right.saturating_sub(1) } else { self.right + 1 }.min(most);
        Some(self.likely)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn header(tensors: &[(&str, Range<u64>)]) -> String {
        let entry = |(name, range): &(&str, Range<u64>)| {
            format!(
                r#""{name}":{{"dtype":"U8","data_offsets":[{},{}],"shape":[1]}}"#,
                range.start, range.end
            )
        };
        format!("{{{}}}", tensors.iter().map(entry).collect::<Vec<_>>().join(","))
    }

    /// The map of these headers, and how long each is, with its length before it.
    fn map<const N: usize>(headers: [&str; N]) -> (LayerMap, [u64; N]) {
        let mut builder = LayerMapBuilder::new(99);
        headers.iter().for_each(|header| builder.shard(header.as_bytes(), 1 << 20).expect("few"));
        (builder.finish(), headers.map(|header| 8 + header.len() as u64))
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
            // In the order of their data, whichever order their names are in.
            ("layers.10.a", 50..60),
            ("layers.0.a", 20..30),
            ("layers.0.b", 30..40),
            ("layers.1.a", 40..50),
        ]);
        let b = header(&[("layers.1.b", 8..20), ("layers.2.a", 20..30), ("other.h.1", 30..35)]);
        let (map, [a, b]) = map([&a, &b]);
        let within = |shard, range: Range<u64>| {
            let before = [a, b, 0][shard];
            map.within(shard, before + range.start..before + range.end).collect::<Vec<_>>()
        };
        let (layer, 1) = within(0, 45..46)[0] else { panic!("one byte of a layer") };
        assert_eq!(map.places(layer), [(0, a + 40..a + 50), (1, b + 8..b + 20)]);
        assert_eq!(map.places((layer.0, layer.1 + 1)), [(1, b + 20..b + 30)]);
        assert_eq!(map.places((layer.0, 0)), [(0, a + 20..a + 40)]);
        assert_eq!((map.size(layer), map.size((9, 9)), map.len()), (22, 0, 6));
        assert_eq!(within(0, 15..45), [((layer.0, 0), 20), (layer, 5)]);
        assert!([within(0, 0..20), within(0, 60..99), within(2, 0..9)].iter().all(Vec::is_empty));
        assert_ne!(within(1, 30..31)[0].0.0, layer.0, "another stack");
        assert!(!map.is_empty() && self::map([&header(&[("x", 0..1)])]).0.is_empty());
    }

    #[test]
    fn what_a_header_says_wrongly_of_tensors_is_not_believed() {
        let all = header(&[
            ("h.1", 0..10),
            ("h.2", 5..15),
            ("h.3", 20..20),
            ("h.4", Range { start: 30, end: 25 }),
            ("h.5", 40..1 << 40),
            ("h.6", u64::MAX - 9..u64::MAX),
            ("h.7", 50..60),
        ]);
        let (map, [start]) = map([&all]);
        let known = map.within(0, 0..1 << 50).map(|(layer, _)| layer.1).collect::<Vec<_>>();
        assert_eq!((known, map.places((0, 7))), (vec![1, 7], &[(0, start + 50..start + 60)][..]));
        // Cut short, or no header at all.
        assert_eq!(self::map([&all[..all.len() - 9]]).0.len(), 1);
        for bad in [
            "",
            "[]",
            "7",
            "{",
            r#"{"h.1":7}"#,
            &"[".repeat(99_999),
            r#"{"h.1":{"data_offsets":[0]}}"#,
        ] {
            assert!(self::map([bad]).0.is_empty(), "{bad:.20}");
        }
    }

    #[test]
    fn a_map_is_no_larger_than_it_may_be() {
        let names: Vec<String> = (0..300).map(|i| format!("layers.{}.{i}", i % 2)).collect();
        let tensors: Vec<_> =
            (0..).zip(&names).map(|(i, name)| (name.as_str(), i..i + 1)).collect();
        for (room, fits) in [(300, true), (299, false)] {
            let mut builder = LayerMapBuilder::new(room);
            assert_eq!(builder.shard(header(&tensors).as_bytes(), 1 << 20).is_ok(), fits);
            assert!(builder.finish().len() <= room);
        }
        let names: Vec<String> = (0..300).map(|i| format!("s{i}.layers.0")).collect();
        let tensors: Vec<_> =
            (0..).zip(&names).map(|(i, name)| (name.as_str(), i..i + 1)).collect();
        let mut builder = LayerMapBuilder::new(999);
        assert!(builder.shard(header(&tensors).as_bytes(), 1 << 20).is_err());
        assert_eq!(builder.stacks.len(), MOST_STACKS + 1);
    }

    #[test]
    fn the_course_trusts_order_as_far_as_it_has_seen_it() {
        let mut course = Course::default();
        let dense = |bytes, size| Read { bytes, size, sparse: false };
        let reaches = |course: &mut Course, layers: &[u32]| -> Vec<Option<u32>> {
            layers.iter().map(|&n| course.reach((0, n), dense(40, 80), 99)).collect()
        };
        // One more each; a second thread that is a little behind changes nothing.
        assert_eq!(
            reaches(&mut course, &[0, 0, 1, 0, 1, 2]),
            [Some(1), None, Some(2), None, None, Some(3)]
        );
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
