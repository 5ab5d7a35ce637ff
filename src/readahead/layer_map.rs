//! Where the layers of a model are, according to the names of its tensors.
//!
//! Frameworks compute the layers in numerical order. In a file, `layers.10` precedes `layers.2`,
//! and a layer may be spread over several shards.

use crate::error::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
};

/// The parts of tensor names that precede the number of a layer.
const LAYER_NAMES: [&str; 5] = ["layers", "layer", "blocks", "block", "h"];

/// A layer: the index of its stack in the model, and its number in the stack.
pub type Layer = (usize, u32);

/// Most extents of layers to know, of all models together. A model has a few for each layer; one
/// that has more is not laid out by layers.
pub const MAX_EXTENTS: usize = 1 << 15;
/// Most stacks of layers of a model.
const MAX_STACKS: usize = 1 << 8;

/// The extents of the layers of a model.
#[derive(Default)]
pub struct LayerMap {
    /// For each shard, its extents in order, and their layers.
    shards: Vec<Vec<(Range<u64>, Layer)>>,
    layers: BTreeMap<Layer, Extents>,
}

/// The extents of a layer.
#[derive(Default)]
struct Extents {
    /// The index of a shard, and a range of it.
    extents: Vec<(usize, Range<u64>)>,
    /// Bytes of all extents.
    size: u64,
}

/// Builds a [`LayerMap`] from the headers of a model's shards.
pub struct LayerMapBuilder {
    map: LayerMap,
    stacks: HashMap<Box<str>, usize>,
    /// How many more extents to accept.
    room: usize,
}

impl LayerMapBuilder {
    /// A map of at most `room` extents.
    pub fn new(room: usize) -> Self {
        Self { map: LayerMap::default(), stacks: HashMap::new(), room }
    }

    /// Add the next shard, a file of `file_len` bytes with this header (without its length field).
    /// A malformed header adds no layers.
    ///
    /// # Errors
    /// Invalid argument, if there are too many extents or stacks.
    pub fn shard(&mut self, header: &[u8], file_len: u64) -> Result<()> {
        let data_start = 8 + header.len() as u64;
        let mut tensors = Vec::new();
        let entries = Entries { stacks: &mut self.stacks, tensors: &mut tensors };
        // Entries before a syntax error are as good as those of a correct header.
        let _ = entries.deserialize(&mut serde_json::Deserializer::from_slice(header));
        if self.stacks.len() > MAX_STACKS {
            return Err(Error::invalid("too many stacks of layers"));
        }
        tensors.sort_unstable_by_key(|(range, _)| (range.start, range.end));
        let mut extents: Vec<(Range<u64>, Layer)> = Vec::new();
        for (range, layer) in tensors {
            let within = |at: u64| data_start.checked_add(at).filter(|&at| at <= file_len);
            let (Some(start), Some(end)) = (within(range.start), within(range.end)) else {
                continue;
            };
            let is_full = extents.len() == self.room;
            match extents.last_mut() {
                // Ignore overlapping tensors.
                Some((last, _)) if start < last.end => {}
                _ if start >= end => {}
                Some((last, of)) if *of == layer && last.end == start => last.end = end,
                _ if is_full => {
                    return Err(Error::invalid("its layers have too many extents"));
                }
                _ => extents.push((start..end, layer)),
            }
        }
        extents.shrink_to_fit();
        self.room -= extents.len();
        let shard = self.map.shards.len();
        for (range, layer) in &extents {
            let known = self.map.layers.entry(*layer).or_default();
            known.size += range.end - range.start;
            known.extents.push((shard, range.clone()));
        }
        self.map.shards.push(extents);
        Ok(())
    }

    /// The map of the shards added so far.
    pub fn finish(self) -> LayerMap {
        self.map
    }
}

/// Deserializes a header, and keeps the extents of tensors that belong to layers.
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
        struct Entry {
            data_offsets: (u64, u64),
        }
        while let Some(layer) = entries.next_key_seed(Name(self.stacks))? {
            match layer {
                Some(layer) => {
                    let Entry { data_offsets: (start, end) } = entries.next_value()?;
                    self.tensors.push((start..end, layer));
                }
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Deserializes the name of a tensor as its layer, if it belongs to one.
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
        let Some((stack, number)) = layer_of(name) else { return Ok(None) };
        if let Some(&known) = self.0.get(stack) {
            return Ok(Some((known, number)));
        }
        let new = self.0.len();
        // The entry beyond the limit records that there are too many.
        if new <= MAX_STACKS {
            self.0.insert(stack.into(), new);
        }
        Ok(Some((new, number)))
    }
}

impl LayerMap {
    /// The layers that overlap `range` of a shard, and by how many bytes.
    pub fn overlapping(
        &self,
        shard: usize,
        range: Range<u64>,
    ) -> impl Iterator<Item = (Layer, u64)> {
        let extents = self.shards.get(shard).map_or(&[][..], Vec::as_slice);
        let first = extents.partition_point(|(extent, _)| extent.end <= range.start);
        let overlapping =
            extents[first..].iter().take_while(move |(extent, _)| extent.start < range.end);
        overlapping.map(move |(extent, layer)| {
            (*layer, extent.end.min(range.end) - extent.start.max(range.start))
        })
    }

    /// The extents of a layer: indexes of shards, and ranges of them.
    pub fn extents(&self, layer: Layer) -> &[(usize, Range<u64>)] {
        self.layers.get(&layer).map_or(&[], |layer| &layer.extents)
    }

    /// Bytes of a layer.
    pub fn size(&self, layer: Layer) -> u64 {
        self.layers.get(&layer).map_or(0, |layer| layer.size)
    }

    /// The number of extents.
    pub fn len(&self) -> usize {
        self.shards.iter().map(Vec::len).sum()
    }

    /// Whether there are no layers to read one after another.
    pub fn is_empty(&self) -> bool {
        self.layers.len() < 2
    }
}

/// The part of a tensor's name before the number of its layer, and the number; `None` if it belongs
/// to no layer.
pub fn layer_of(name: &str) -> Option<(&str, u32)> {
    let mut start = 0;
    let mut named = false;
    for part in name.split('.') {
        if named && let Ok(number) = part.parse() {
            return Some((&name[..start], number));
        }
        named = LAYER_NAMES
            .iter()
            .any(|l| part == *l || part.ends_with("_blocks") || part.ends_with("_layers"));
        start += part.len() + 1;
    }
    None
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

    /// The map of these headers, and the length of each with its length field.
    fn map<const N: usize>(headers: [&str; N]) -> (LayerMap, [u64; N]) {
        let mut builder = LayerMapBuilder::new(99);
        headers.iter().for_each(|header| builder.shard(header.as_bytes(), 1 << 20).expect("few"));
        (builder.finish(), headers.map(|header| 8 + header.len() as u64))
    }

    #[test]
    fn layers_are_recognized_in_the_names_of_real_models() {
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
            assert_eq!(layer_of(name), expected, "{name}");
        }
    }

    #[test]
    fn a_layer_has_extents_in_every_shard_and_sorts_by_number() {
        let a = header(&[
            ("embed", 8..20),
            // Sorted by data, whatever the order of the names.
            ("layers.10.a", 50..60),
            ("layers.0.a", 20..30),
            ("layers.0.b", 30..40),
            ("layers.1.a", 40..50),
        ]);
        let b = header(&[("layers.1.b", 8..20), ("layers.2.a", 20..30), ("other.h.1", 30..35)]);
        let (map, [a, b]) = map([&a, &b]);
        let overlapping = |shard, range: Range<u64>| {
            let before = [a, b, 0][shard];
            map.overlapping(shard, before + range.start..before + range.end).collect::<Vec<_>>()
        };
        let (layer, 1) = overlapping(0, 45..46)[0] else { panic!("one byte of a layer") };
        assert_eq!(map.extents(layer), [(0, a + 40..a + 50), (1, b + 8..b + 20)]);
        assert_eq!(map.extents((layer.0, layer.1 + 1)), [(1, b + 20..b + 30)]);
        assert_eq!(map.extents((layer.0, 0)), [(0, a + 20..a + 40)]);
        assert_eq!((map.size(layer), map.size((9, 9)), map.len()), (22, 0, 6));
        assert_eq!(overlapping(0, 15..45), [((layer.0, 0), 20), (layer, 5)]);
        assert!(
            [overlapping(0, 0..20), overlapping(0, 60..99), overlapping(2, 0..9)]
                .iter()
                .all(Vec::is_empty)
        );
        assert_ne!(overlapping(1, 30..31)[0].0.0, layer.0, "another stack");
        assert!(!map.is_empty() && self::map([&header(&[("x", 0..1)])]).0.is_empty());
    }

    #[test]
    fn impossible_extents_in_a_header_are_ignored() {
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
        let known = map.overlapping(0, 0..1 << 50).map(|(layer, _)| layer.1).collect::<Vec<_>>();
        assert_eq!((known, map.extents((0, 7))), (vec![1, 7], &[(0, start + 50..start + 60)][..]));
        // A truncated header, and headers that are none.
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
    fn a_map_stays_within_its_limit() {
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
        assert_eq!(builder.stacks.len(), MAX_STACKS + 1);
    }
}
