//! The decoder that defines the bits: scalar and safe. Other decoders replace its [`Kernel`] only.

use super::{
    ChunkDecoder, Coding, LANES, Model, PROB_BITS, ROUND, STATE_LOW, STREAMS,
    model::{BLOCK, DecodeTable, Slots, TOTAL, Table},
    planes::{Plane, packed_len, unpack_round},
};
use crate::error::{Error, Result};

/// How a plane of one chunk is stored, as numbered on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PlaneMode {
    /// Packed, see [`unpack_round`].
    Stored = 0,
    /// One value for all elements.
    Constant = 1,
    /// rANS with the model's table.
    Coded = 2,
}

/// Bytes of a plane's record at the head of a chunk.
pub(crate) const PLANE_RECORD: usize = 4;
/// Bytes before the words of a coded plane: a word count and a state for each lane.
pub(crate) const STREAM_HEAD: usize = 4 * STREAMS + 4 * ROUND;

/// The elements that are decoded before they are merged: their planes stay in the first-level cache.
const MERGED: usize = 32 * ROUND;

/// Where a coded plane's decoding stands.
pub(crate) struct Streams<'a> {
    /// Lanes of stream 0, then of stream 1.
    pub states: [u32; ROUND],
    /// 16-bit words not yet consumed, little-endian.
    pub words: [&'a [u8]; STREAMS],
}

impl<'a> Streams<'a> {
    fn parse(input: &mut &'a [u8]) -> Result<Self> {
        let head: [u8; STREAM_HEAD] = *take(input, STREAM_HEAD)?.first_chunk().ok_or_else(short)?;
        let word =
            |i: usize| u32::from_le_bytes([head[4 * i], head[4 * i + 1], head[4 * i + 2], head[4 * i + 3]]);
        let mut words: [&[u8]; STREAMS] = [&[]; STREAMS];
        for (i, w) in words.iter_mut().enumerate() {
            *w = take(input, (word(i) as usize).checked_mul(2).ok_or_else(short)?)?;
        }
        Ok(Self { states: std::array::from_fn(|i| word(STREAMS + i)), words })
    }

    /// All words were used and every lane is back where the encoder started.
    fn finish(&self) -> Result<()> {
        if self.words.iter().any(|w| !w.is_empty()) || self.states.iter().any(|&s| s != STATE_LOW) {
            return Err(Error::corrupt("an entropy-coded stream does not end where it should"));
        }
        Ok(())
    }
}

/// The inner loop: decodes symbols of a coded plane.
pub(crate) trait Kernel: Copy {
    /// Fill `out` with the next symbols; only the last call may ask for a number that is not a multiple of
    /// [`ROUND`].
    ///
    /// # Errors
    /// Corruption, where a stream has too few words.
    fn symbols(self, streams: &mut Streams<'_>, table: &DecodeTable, out: &mut [u8]) -> Result<()>;
}

/// The scalar kernel.
#[derive(Clone, Copy)]
pub(crate) struct ScalarKernel;

impl Kernel for ScalarKernel {
    #[inline(always)]
    fn symbols(self, streams: &mut Streams<'_>, table: &DecodeTable, out: &mut [u8]) -> Result<()> {
        let slots = &table.slots;
        let mut done = 0;
        for round in out.as_chunks_mut::<ROUND>().0 {
            if streams.words.iter().any(|w| w.len() < 2 * LANES) {
                break;
            }
            for (stream, out) in round.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                lanes(&mut streams.states[stream * LANES..], &mut streams.words[stream], slots, out);
            }
            done += ROUND;
        }
        // Near the streams' ends every word is asked for.
        for (i, out) in out[done..].iter_mut().enumerate() {
            let lane = i % ROUND;
            let x = step(streams.states[lane], slots, out);
            streams.states[lane] = if x < STATE_LOW {
                let words = &mut streams.words[lane / LANES];
                let (word, rest) = words.split_first_chunk().ok_or_else(short)?;
                *words = rest;
                x << 16 | u32::from(u16::from_le_bytes(*word))
            } else {
                x
            };
        }
        Ok(())
    }
}

/// Decode one symbol; the state returned may need a word.
#[inline(always)]
fn step(x: u32, slots: &Slots, out: &mut u8) -> u32 {
    let entry = slots[(x & (TOTAL - 1)) as usize];
    *out = entry as u8;
    (entry >> 20).wrapping_mul(x >> PROB_BITS).wrapping_add(entry >> 8 & 0xfff)
}

/// One symbol for each lane of a stream that has words for all. Whether a lane takes a word is as good as random:
/// no branch, a word is read in any case.
#[inline(always)]
fn lanes(states: &mut [u32], words: &mut &[u8], slots: &Slots, out: &mut [u8; LANES]) {
    let Some(next) = words.first_chunk::<{ 2 * LANES }>() else { return };
    let mut at = 0;
    for (state, out) in states.iter_mut().zip(out) {
        let x = step(*state, slots, out);
        let short = u32::from(x < STATE_LOW);
        // At most one word a lane: the mask changes nothing but spares the check.
        let i = at & (2 * LANES - 2);
        let word = u32::from(u16::from_le_bytes([next[i], next[i + 1]]));
        *state = x << (16 * short) | word & short.wrapping_neg();
        at += 2 * short as usize;
    }
    *words = &words[at..];
}

/// [`super::reference`].
pub(crate) struct Scalar;

impl ChunkDecoder for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn decode(&self, coding: Coding, model: Option<&Model>, payload: &[u8], out: &mut [u8]) -> Result<()> {
        if super::decode_simple(coding, payload, out)? {
            return Ok(());
        }
        decode_planes(ScalarKernel, model, payload, out)
    }
}

/// Where a plane's values come from.
enum Source<'a> {
    Stored(&'a [u8]),
    Constant(u16),
    Coded(Coded<'a>),
}

/// A coded plane.
struct Coded<'a> {
    tables: &'a [Table],
    /// Where there are several tables: the number of each [`BLOCK`]'s, two bits each, lowest first.
    choices: &'a [u8],
    streams: Box<Streams<'a>>,
}

impl<'a> Coded<'a> {
    fn parse(tables: &'a [Table], input: &mut &'a [u8], count: usize) -> Result<Self> {
        let blocks = if tables.len() > 1 { count.div_ceil(BLOCK) } else { 0 };
        let choices = take(input, blocks.div_ceil(4))?;
        let coded = Self { tables, choices, streams: Box::new(Streams::parse(input)?) };
        let all = (0..choices.len() * 4).map(|i| coded.choice(i));
        if all.enumerate().any(|(i, c)| c >= tables.len() || (i >= blocks && c > 0)) {
            return Err(Error::corrupt("a block chooses a table that is not there"));
        }
        Ok(coded)
    }

    fn choice(&self, block: usize) -> usize {
        usize::from(self.choices[block / 4] >> (block % 4 * 2) & 3)
    }

    /// Decode the next symbols, those from element `first` on, a multiple of [`BLOCK`].
    #[inline(always)]
    fn symbols<K: Kernel>(&mut self, kernel: K, first: usize, out: &mut [u8]) -> Result<()> {
        if let [only] = self.tables {
            return kernel.symbols(&mut self.streams, only.decoder(), out);
        }
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let table = &self.tables[self.choice(first / BLOCK + i)];
            kernel.symbols(&mut self.streams, table.decoder(), out)?;
        }
        Ok(())
    }
}

/// Decode a chunk of [`Coding::Planes`].
#[inline(always)]
pub(crate) fn decode_planes<K: Kernel>(
    kernel: K,
    model: Option<&Model>,
    payload: &[u8],
    out: &mut [u8],
) -> Result<()> {
    let model = model.ok_or_else(|| Error::corrupt("a chunk of planes names no model"))?;
    let width = usize::from(model.layout().width());
    if !out.len().is_multiple_of(width) {
        return Err(Error::corrupt("a chunk is not a whole number of elements"));
    }
    let mut sources = parse(model, payload, out.len() / width)?;
    let planes = model.layout().planes();
    let rotated = model.layout().rotated();
    match width {
        1 => merge::<u8, K>(kernel, planes, rotated, &mut sources, out)?,
        2 => merge::<u16, K>(kernel, planes, rotated, &mut sources, out)?,
        4 => merge::<u32, K>(kernel, planes, rotated, &mut sources, out)?,
        _ => merge::<u64, K>(kernel, planes, rotated, &mut sources, out)?,
    }
    sources.iter().try_for_each(|s| if let Source::Coded(c) = s { c.streams.finish() } else { Ok(()) })
}

fn parse<'a>(model: &'a Model, payload: &'a [u8], count: usize) -> Result<Vec<Source<'a>>> {
    let planes = model.layout().planes();
    let mut input = payload;
    let records = take(&mut input, planes.len() * PLANE_RECORD)?;
    let mut sources = Vec::with_capacity(planes.len());
    for ((record, plane), tables) in records.chunks_exact(PLANE_RECORD).zip(planes).zip(model.tables()) {
        let value = u16::from_le_bytes([record[2], record[3]]);
        if record[1] != 0 || (record[0] != PlaneMode::Constant as u8 && value != 0) {
            return Err(Error::corrupt("a plane's reserved bytes are not zero"));
        }
        sources.push(match (record[0], tables.as_slice()) {
            (0, _) if plane.bits <= 8 => Source::Stored(take(&mut input, packed_len(plane.bits, count))?),
            (1, _) if value <= plane.mask() => Source::Constant(value),
            (2, tables @ [_, ..]) => Source::Coded(Coded::parse(tables, &mut input, count)?),
            (mode @ 0..=2, _) => {
                return Err(Error::corrupt(format!("a plane cannot be stored in mode {mode}")));
            }
            (mode, _) => {
                return Err(Error::unsupported(format!(
                    "plane mode {mode} is unknown; a newer bsz is needed"
                )));
            }
        });
    }
    if !input.is_empty() {
        return Err(Error::corrupt("a chunk has trailing bytes"));
    }
    Ok(sources)
}

/// An element as an unsigned integer of its width.
trait Element: Copy + Default {
    const BYTES: usize;
    fn from_value(value: u16, low: u8) -> Self;
    fn or(self, other: Self) -> Self;
    fn rotate_back(self) -> Self;
    fn put(self, out: &mut [u8]);
}

macro_rules! element {
    ($($t:ty),*) => {$(
        impl Element for $t {
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            fn from_value(value: u16, low: u8) -> Self {
                (value as $t) << low
            }
            #[inline(always)]
            fn or(self, other: Self) -> Self {
                self | other
            }
            #[inline(always)]
            fn rotate_back(self) -> Self {
                self.rotate_right(1)
            }
            #[inline(always)]
            fn put(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
element!(u8, u16, u32, u64);

#[inline(always)]
fn merge<E: Element, K: Kernel>(
    kernel: K,
    planes: &[Plane],
    rotated: bool,
    sources: &mut [Source<'_>],
    out: &mut [u8],
) -> Result<()> {
    let mut elements = [E::default(); MERGED];
    let mut values = [0u8; MERGED];
    let mut first = 0;
    for block in out.chunks_mut(MERGED * E::BYTES) {
        let count = block.len() / E::BYTES;
        for (i, (plane, source)) in planes.iter().zip(&mut *sources).enumerate() {
            let place = Place { first: i == 0, last: i + 1 == planes.len(), rotated };
            let elements = &mut elements[..count];
            match source {
                Source::Constant(value) => {
                    let v = E::from_value(*value, plane.low);
                    place.put(elements, std::iter::repeat(v), block);
                }
                Source::Stored(packed) => {
                    let len = packed_len(plane.bits, count);
                    let at = packed_len(plane.bits, first);
                    let rounds = packed[at..at + len].chunks_exact(ROUND / 8 * usize::from(plane.bits));
                    for (round, values) in rounds.zip(values.as_chunks_mut::<ROUND>().0) {
                        unpack_round(round, plane.bits, values);
                    }
                    place.put(elements, values.iter().map(|&v| E::from_value(v.into(), plane.low)), block);
                }
                Source::Coded(coded) => {
                    coded.symbols(kernel, first, &mut values[..count])?;
                    let base = coded.tables[0].base();
                    let value = |v: u8| if v == 0 { 0 } else { base + u16::from(v) };
                    place.put(elements, values.iter().map(|&v| E::from_value(value(v), plane.low)), block);
                }
            }
        }
        first += count;
    }
    Ok(())
}

/// Where a plane comes among its element's planes.
#[derive(Clone, Copy)]
struct Place {
    first: bool,
    last: bool,
    rotated: bool,
}

impl Place {
    /// Add the bits of this plane to those of the planes before it: to `elements`, or with the last plane to `out`.
    #[inline(always)]
    fn put<E: Element>(self, elements: &mut [E], bits: impl Iterator<Item = E>, out: &mut [u8]) {
        // Plain loops: closures may be compiled apart, without the caller's vector instructions.
        if !self.last {
            for (e, b) in elements.iter_mut().zip(bits) {
                *e = if self.first { b } else { e.or(b) };
            }
        } else if self.rotated {
            for ((e, b), o) in elements.iter().zip(bits).zip(out.chunks_exact_mut(E::BYTES)) {
                let e = if self.first { b } else { e.or(b) };
                e.rotate_back().put(o);
            }
        } else {
            for ((e, b), o) in elements.iter().zip(bits).zip(out.chunks_exact_mut(E::BYTES)) {
                let e = if self.first { b } else { e.or(b) };
                e.put(o);
            }
        }
    }
}

fn take<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (head, rest) = input.split_at_checked(n).ok_or_else(short)?;
    *input = rest;
    Ok(head)
}

pub(crate) fn short() -> Error {
    Error::corrupt("a chunk ends too early")
}
