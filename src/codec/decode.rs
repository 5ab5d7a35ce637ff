//! The decoder that defines the bits: scalar and safe. Other decoders replace its [`Kernel`] only.

use super::{
    ChunkDecoder, Coding, EntropyModel, LANES, PROB_BITS, STATE_LOW,
    map::Map,
    merge::{Element, MOST, Merge, Planes, STEP},
    model::DecodeTable,
    planes::{GROUP, unpack_group},
};
use crate::error::{Error, Result};

/// How the symbols, or a plane, of one chunk are stored, as numbered on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Symbols: coded with the model. A plane: packed.
    Stored = 0,
    /// One value for all elements.
    Constant = 1,
    /// A plane: packed, without the blocks in which it is zero.
    Sparse = 2,
}

/// Bytes that the states at the end of a coded chunk give back: half of each.
pub(crate) const CARRIED: usize = 2 * LANES;

/// Where the decoding of a chunk's symbols stands.
pub(crate) struct Stream<'a> {
    /// By lane.
    pub states: [u32; LANES],
    /// 16-bit words not yet taken, little-endian, and all that is stored behind them: a kernel may look further than
    /// the words go, and what it takes is counted.
    pub words: &'a [u8],
}

/// Which table each lane decodes with, round by round.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'a> {
    pub model: &'a EntropyModel,
    /// Of the model.
    pub tables: &'a [DecodeTable],
    /// What symbols stand for.
    pub map: &'a Map,
    /// By round: the choice of its block.
    pub choices: &'a [u8],
    /// The column of the first round's first element.
    pub column: usize,
}

impl<'a> Tables<'a> {
    /// The tables of the next round, one or one for each class, and what follows it.
    #[inline(always)]
    pub fn next(mut self) -> (&'a [DecodeTable], &'a [u8], Self) {
        let classes = self.model.classes();
        let tables = &self.tables[usize::from(self.choices[0]) * classes..][..classes];
        self.choices = &self.choices[1..];
        if classes == 1 {
            return (tables, &[], self);
        }
        let of_lanes = self.model.classes_from(self.column);
        self.column += LANES;
        while self.column >= self.model.columns().len() {
            self.column -= self.model.columns().len();
        }
        (tables, of_lanes, self)
    }
}

/// Room for whole rounds.
pub(crate) struct Rounds<'a> {
    /// The symbols.
    pub symbols: &'a mut [[u8; LANES]],
    /// What they stand for; anything, for the escape.
    pub tops: &'a mut [[u16; LANES]],
    /// Where the elements will be merged to, which may not be in the processor's caches yet.
    pub elements: &'a [u8],
}

impl<'a> Rounds<'a> {
    /// Where the elements of each round will be merged to; nothing where that is not known.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let of_round = (self.elements.len() / self.symbols.len().max(1)).max(1);
        self.elements.chunks(of_round).chain(std::iter::repeat(&[][..]))
    }

    /// What follows the first `n` rounds.
    pub fn after(self, n: usize) -> Self {
        Self { symbols: &mut self.symbols[n..], tops: &mut self.tops[n..], elements: &[] }
    }
}

/// The inner loop: decodes symbols.
pub(crate) trait Kernel: Copy {
    /// Fill `out` with the next symbols.
    ///
    /// # Errors
    /// Corruption, where the words do not suffice.
    fn symbols(self, stream: &mut Stream<'_>, tables: Tables<'_>, out: Rounds<'_>) -> Result<()>;

    /// Unpack groups of values of `bits` bits and put them `shift` bits up in their bytes: with what is there, if
    /// `keep`, or instead of it.
    fn unpack(self, packed: &[u8], bits: u8, shift: u8, keep: bool, bytes: &mut [u8]);
}

/// The scalar kernel.
#[derive(Clone, Copy)]
pub(crate) struct ScalarKernel;

impl Kernel for ScalarKernel {
    #[inline(always)]
    fn symbols(
        self,
        stream: &mut Stream<'_>,
        mut tables: Tables<'_>,
        out: Rounds<'_>,
    ) -> Result<()> {
        for (symbols, tops) in out.symbols.iter_mut().zip(out.tops) {
            let (of_round, classes, next) = tables.next();
            match of_round {
                [only] => round(stream, |_| only, symbols, tops)?,
                of_class => {
                    round(stream, |lane| &of_class[usize::from(classes[lane])], symbols, tops)?
                }
            }
            tables = next;
        }
        Ok(())
    }

    #[inline(always)]
    fn unpack(self, packed: &[u8], bits: u8, shift: u8, keep: bool, bytes: &mut [u8]) {
        let groups = packed
            .chunks_exact(GROUP / 8 * usize::from(bits))
            .zip(bytes.as_chunks_mut::<GROUP>().0);
        for (packed, bytes) in groups {
            let mut values = [0; GROUP];
            unpack_group(packed, bits, &mut values);
            for (b, v) in bytes.iter_mut().zip(values) {
                *b = v << shift | if keep { *b } else { 0 };
            }
        }
    }
}

/// One symbol for each lane.
#[inline(always)]
fn round<'t>(
    stream: &mut Stream<'_>,
    table: impl Fn(usize) -> &'t DecodeTable,
    symbols: &mut [u8; LANES],
    tops: &mut [u16; LANES],
) -> Result<()> {
    let mut at = 0;
    if let Some(words) = stream.words.as_chunks::<2>().0.first_chunk::<256>() {
        // Whether a lane takes a word is as good as random: no branch, a word is read in any case.
        let mut taken = 0u8;
        let mut halves = [0; LANES];
        let fours = stream.states.as_chunks_mut::<4>().0.iter_mut();
        for (i, (states, halves)) in fours.zip(halves.as_chunks_mut::<4>().0).enumerate() {
            for j in 0..4 {
                let (x, half) = step(states[j], table(4 * i + j));
                halves[j] = half;
                let word = u32::from(u16::from_le_bytes(words[usize::from(taken)]));
                let low = x < STATE_LOW;
                states[j] = std::hint::select_unpredictable(low, x << 16 | word, x);
                // At most one a lane: it does not overflow.
                taken = taken.wrapping_add(low.into());
            }
        }
        // Apart: many at a time.
        tops.iter_mut().zip(halves).for_each(|(t, half)| *t = half as u16);
        symbols.iter_mut().zip(halves).for_each(|(s, half)| *s = (half >> 16) as u8);
        at = 2 * usize::from(taken);
    } else {
        // Near the end every word is asked for.
        let out = symbols.iter_mut().zip(tops);
        for (lane, (state, (symbol, top))) in stream.states.iter_mut().zip(out).enumerate() {
            let (x, half) = step(*state, table(lane));
            (*state, *top, *symbol) = (x, half as u16, (half >> 16) as u8);
            if *state < STATE_LOW {
                let word = stream.words.get(at..at + 2).ok_or_else(short)?;
                *state = *state << 16 | u32::from(u16::from_le_bytes([word[0], word[1]]));
                at += 2;
            }
        }
    }
    stream.words = &stream.words[at..];
    Ok(())
}

/// Decode one symbol: the state, which may need a word, and the upper half of its side, with the symbol and what it
/// stands for.
#[inline(always)]
fn step(x: u32, table: &DecodeTable) -> (u32, u32) {
    let place = x & 255;
    // Both sides are read, and one taken: that is as good as random too.
    let [own, other] = table.sides[(x >> 8 & 63) as usize];
    let side = std::hint::select_unpredictable(u64::from(place) < own >> 56, own, other);
    let freq = side as u32 >> 16;
    let number = place.wrapping_add(i32::from(side as i16) as u32);
    (freq.wrapping_mul(x >> PROB_BITS).wrapping_add(number), (side >> 32) as u32)
}

/// [`super::reference`].
pub(crate) struct Scalar;

impl ChunkDecoder for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        if super::decode_simple(coding, payload, out)? {
            return Ok(());
        }
        decode_planes(ScalarKernel, model, payload, out)
    }
}

/// Decode a chunk of [`Coding::Planes`].
#[inline(always)]
pub(crate) fn decode_planes<K: Kernel>(
    kernel: K,
    model: Option<&EntropyModel>,
    payload: &[u8],
    out: &mut [u8],
) -> Result<()> {
    let model = model.ok_or_else(|| Error::corrupt("a chunk of planes names no model"))?;
    let width = usize::from(model.layout().width());
    if !out.len().is_multiple_of(width) {
        return Err(Error::corrupt("a chunk is not a whole number of elements"));
    }
    let mut chunk = Chunk::parse(model, payload, out.len() / width)?;
    match width {
        1 => decode::<u8, K>(kernel, &mut chunk, out),
        2 => decode::<u16, K>(kernel, &mut chunk, out),
        4 => decode::<u32, K>(kernel, &mut chunk, out),
        _ => decode::<u64, K>(kernel, &mut chunk, out),
    }
}

/// A chunk's stored bytes, taken apart.
struct Chunk<'a> {
    model: &'a EntropyModel,
    symbols: Symbols<'a>,
    planes: Planes<'a>,
}

/// Where symbols come from.
enum Symbols<'a> {
    Coded(Box<Coded<'a>>),
    Constant(u16),
}

/// Symbols that are coded.
struct Coded<'a> {
    stream: Stream<'a>,
    /// How many bytes are left in `stream` when all words were taken.
    behind: usize,
    /// Values of the elements that have no symbol, in order.
    escapes: &'a [[u8; 2]],
    /// By round.
    choices: Vec<u8>,
}

impl<'a> Chunk<'a> {
    fn parse(model: &'a EntropyModel, payload: &'a [u8], count: usize) -> Result<Self> {
        let mut input = payload;
        let &[mode, zero, low, high] = take_array(&mut input)?;
        let value = u16::from_le_bytes([low, high]);
        let records = take(&mut input, 2 * model.layout().planes().len())?.as_chunks().0;
        let symbols = match mode {
            _ if zero != 0 => return Err(Error::corrupt("a chunk's reserved byte is not zero")),
            0 if value == 0 => Symbols::Coded(Box::new(Coded::parse(model, &mut input, count)?)),
            1 if u32::from(value) < 1 << model.layout().symbol_bits() => Symbols::Constant(value),
            mode => return Err(unknown(mode)),
        };
        let coded = matches!(symbols, Symbols::Coded(_));
        let planes = Planes::parse(model, records, &mut input, count, coded)?;
        if !input.is_empty() {
            return Err(Error::corrupt("a chunk has trailing bytes"));
        }
        Ok(Self { model, symbols, planes })
    }
}

impl<'a> Coded<'a> {
    fn parse(model: &'a EntropyModel, input: &mut &'a [u8], count: usize) -> Result<Self> {
        let words = u32::from_le_bytes(*take_array(input)?) as usize;
        let escapes = u32::from_le_bytes(*take_array(input)?) as usize;
        let blocks = if model.choices() > 1 { count.div_ceil(model.block()) } else { 0 };
        let packed = take(input, blocks.div_ceil(4))?;
        let choice = |block: usize| packed[block / 4] >> (block % 4 * 2) & 3;
        let all = (0..packed.len() * 4).map(|i| (i, choice(i)));
        if all.into_iter().any(|(i, c)| usize::from(c) >= model.choices() || (i >= blocks && c > 0))
        {
            return Err(Error::corrupt("a block chooses a table that is not there"));
        }
        let mut choices = vec![0; count.div_ceil(LANES)];
        if blocks > 0 {
            let of_block = choices.chunks_mut(model.block() / LANES).enumerate();
            of_block.for_each(|(block, rounds)| rounds.fill(choice(block)));
        }
        let states = take(input, 4 * LANES)?.as_chunks().0;
        let stream =
            Stream { states: std::array::from_fn(|i| u32::from_le_bytes(states[i])), words: input };
        if stream.states.iter().any(|&s| s < STATE_LOW) {
            return Err(Error::corrupt("a state is lower than states are"));
        }
        take(input, words.checked_mul(2).ok_or_else(short)?)?;
        let behind = input.len();
        let escapes: &[[u8; 2]] =
            take(input, escapes.checked_mul(2).ok_or_else(short)?)?.as_chunks().0;
        let bits = model.layout().symbol_bits();
        if escapes.iter().any(|&e| u32::from(u16::from_le_bytes(e)) >> bits != 0) {
            return Err(Error::corrupt("an escaped value has more bits than symbols have"));
        }
        Ok(Self { stream, behind, escapes, choices })
    }

    /// Check that all words were taken and that every lane is back where the encoder started; returns what the states
    /// carry.
    fn finish(&self, carried: bool) -> Result<[u8; CARRIED]> {
        let states = &self.stream.states;
        let back = |&s: &u32| if carried { s >> 16 == STATE_LOW >> 16 } else { s == STATE_LOW };
        if self.stream.words.len() != self.behind || !states.iter().all(back) {
            return Err(Error::corrupt("an entropy-coded stream does not end where it should"));
        }
        Ok(std::array::from_fn(|i| (states[i / 2] >> (8 * (i % 2))) as u8))
    }
}

#[inline(always)]
fn decode<E: Element, K: Kernel>(kernel: K, chunk: &mut Chunk<'_>, out: &mut [u8]) -> Result<()> {
    let layout = chunk.model.layout();
    let align = 16 - layout.symbol_bits();
    let map = Map::new(chunk.model);
    let escape = chunk.model.escape();
    let mut symbols = [[0; LANES]; MOST / LANES];
    let mut tops = [[0; LANES]; MOST / LANES];
    if let Symbols::Constant(value) = chunk.symbols {
        tops.fill([value << align; LANES]);
    }
    let mut merge = Merge::new(layout);
    let count = out.len() / E::BYTES;
    let mut first = 0;
    while first < count {
        // The last step is long enough for all that the states carry.
        let n = if count - first <= MOST { count - first } else { STEP };
        let out = &mut out[first * E::BYTES..(first + n) * E::BYTES];
        let mut carried = None;
        if let Symbols::Coded(coded) = &mut chunk.symbols {
            let rounds = n.div_ceil(LANES);
            let room = Rounds {
                symbols: &mut symbols[..rounds],
                tops: &mut tops[..rounds],
                elements: &*out,
            };
            let columns = chunk.model.columns().len().max(1);
            let tables = Tables {
                model: chunk.model,
                tables: chunk.model.decoder(),
                map: &map,
                choices: &coded.choices[first / LANES..],
                column: first % columns,
            };
            kernel.symbols(&mut coded.stream, tables, room)?;
            if first + n == count {
                carried = Some(coded.finish(chunk.planes.carried())?);
            }
        }
        merge.step::<E, K>(
            kernel,
            &tops.as_flattened()[..n],
            &chunk.planes,
            first,
            carried.as_ref(),
            out,
        );
        if let Symbols::Coded(coded) = &mut chunk.symbols {
            let symbols = &symbols.as_flattened()[..n];
            if has(symbols, escape) {
                let top = |v: u16| E::from_top(v << align).back(layout.rotated());
                escapes::<E>(symbols, escape, &mut coded.escapes, top, out)?;
            }
        }
        first += n;
    }
    match &chunk.symbols {
        Symbols::Coded(coded) if !coded.escapes.is_empty() => {
            Err(Error::corrupt("a chunk has escapes left"))
        }
        _ => Ok(()),
    }
}

/// Put the values of escaped symbols in their elements, whose other bits are there.
#[cold]
fn escapes<E: Element>(
    symbols: &[u8],
    escape: u8,
    values: &mut &[[u8; 2]],
    top: impl Fn(u16) -> E,
    out: &mut [u8],
) -> Result<()> {
    for (symbols, out) in symbols.chunks(GROUP).zip(out.chunks_mut(GROUP * E::BYTES)) {
        if !has(symbols, escape) {
            continue;
        }
        for (_, out) in
            symbols.iter().zip(out.chunks_exact_mut(E::BYTES)).filter(|(s, _)| **s == escape)
        {
            let (&value, rest) = values.split_first().ok_or_else(short)?;
            *values = rest;
            top(u16::from_le_bytes(value)).put_under(top(u16::MAX), out);
        }
    }
    Ok(())
}

/// Whether `symbol` is among `symbols`: all are looked at, many at a time.
#[inline(always)]
fn has(symbols: &[u8], symbol: u8) -> bool {
    symbols.iter().fold(false, |any, &s| any | (s == symbol))
}

pub(super) fn take<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (head, rest) = input.split_at_checked(n).ok_or_else(short)?;
    *input = rest;
    Ok(head)
}

fn take_array<'a, const N: usize>(input: &mut &'a [u8]) -> Result<&'a [u8; N]> {
    let (head, rest) = input.split_first_chunk().ok_or_else(short)?;
    *input = rest;
    Ok(head)
}

pub(super) fn unknown(mode: u8) -> Error {
    match mode {
        0..=2 => Error::corrupt(format!("symbols or a plane cannot be stored in mode {mode}")),
        _ => Error::unsupported(format!("storage mode {mode} is unknown; a newer bsz is needed")),
    }
}

pub(super) fn short() -> Error {
    Error::corrupt("a chunk ends too early")
}
