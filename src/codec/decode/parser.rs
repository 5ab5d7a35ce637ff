//! Takes the stored bytes of a chunk apart (`docs/FORMAT.md`, "Planes").
//!
//! Everything that can be checked before decoding is checked here. [`Coded::finish`] checks the
//! rest.

use super::kernel::Stream;
use crate::codec::{
    ChunkError, EntropyModel, LANES, STATE_LOW,
    bytes::{take, take_array},
    planes::{Plane, packed_len},
    wire::{CARRIED, StorageMode},
};
use std::borrow::Cow;

/// A chunk's stored bytes, taken apart.
pub(super) struct ParsedChunk<'a> {
    pub model: &'a EntropyModel,
    pub symbols: Symbols<'a>,
    pub planes: Planes<'a>,
}

/// The source of the symbol values.
pub(super) enum Symbols<'a> {
    Coded(Box<Coded<'a>>),
    /// One symbol value for all elements.
    Constant(u16),
}

/// Entropy-coded symbols.
pub(super) struct Coded<'a> {
    pub stream: Stream<'a>,
    /// Bytes left in `stream.words` once all words are consumed.
    rest: usize,
    /// Symbol values of the elements whose symbol is the escape, in order.
    pub escapes: &'a [[u8; 2]],
    /// By round: the choice of its block.
    pub choices: Vec<u8>,
}

/// The planes of a chunk.
pub(super) struct Planes<'a> {
    pub sources: Vec<Source<'a>>,
    /// The plane whose last [`CARRIED`] bytes are in the final states.
    pub carrier: Option<usize>,
}

/// The source of a plane's values.
pub(super) enum Source<'a> {
    Packed(Cow<'a, [u8]>),
    Constant(u8),
}

impl<'a> ParsedChunk<'a> {
    /// Parses a chunk of `count` elements.
    pub(super) fn parse(
        model: &'a EntropyModel,
        payload: &'a [u8],
        count: usize,
    ) -> Result<Self, ChunkError> {
        let mut input = payload;
        let &[mode, zero, low, high] = take_array(&mut input).ok_or(ChunkError::Truncated)?;
        let value = u16::from_le_bytes([low, high]);
        let records = take(&mut input, 2 * model.layout().planes().len());
        let records = records.ok_or(ChunkError::Truncated)?.as_chunks().0;
        let symbols = match mode {
            _ if zero != 0 => return Err(ChunkError::ReservedByte),
            0 if value == 0 => Symbols::Coded(Box::new(Coded::parse(model, &mut input, count)?)),
            1 if u32::from(value) < 1 << model.layout().symbol_bits() => Symbols::Constant(value),
            mode => return Err(invalid(mode)),
        };
        let coded = matches!(symbols, Symbols::Coded(_));
        let planes = Planes::parse(model, records, &mut input, count, coded)?;
        if !input.is_empty() {
            return Err(ChunkError::TrailingBytes);
        }
        Ok(Self { model, symbols, planes })
    }
}

impl<'a> Coded<'a> {
    /// Parses the symbols of a chunk in planes.
    fn parse(
        model: &'a EntropyModel,
        input: &mut &'a [u8],
        count: usize,
    ) -> Result<Self, ChunkError> {
        let (coded, escapes) = Self::parse_stream(model, input, count)?;
        let escapes = escapes.checked_mul(2).and_then(|n| take(input, n));
        let escapes: &[[u8; 2]] = escapes.ok_or(ChunkError::Truncated)?.as_chunks().0;
        let bits = model.layout().symbol_bits();
        if escapes.iter().any(|&e| u32::from(u16::from_le_bytes(e)) >> bits != 0) {
            return Err(ChunkError::InvalidEscape);
        }
        Ok(Self { escapes, ..coded })
    }

    /// Parses everything up to what is escaped. Returns the number of escapes, too.
    pub(super) fn parse_stream(
        model: &'a EntropyModel,
        input: &mut &'a [u8],
        count: usize,
    ) -> Result<(Self, usize), ChunkError> {
        let words = u32::from_le_bytes(*take_array(input).ok_or(ChunkError::Truncated)?) as usize;
        let escapes = u32::from_le_bytes(*take_array(input).ok_or(ChunkError::Truncated)?) as usize;
        let choices = parse_choices(model, input, count)?;
        let states = take(input, 4 * LANES).ok_or(ChunkError::Truncated)?.as_chunks().0;
        let stream =
            Stream { states: std::array::from_fn(|i| u32::from_le_bytes(states[i])), words: input };
        if stream.states.iter().any(|&s| s < STATE_LOW) {
            return Err(ChunkError::InvalidState);
        }
        let words = words.checked_mul(2).and_then(|n| take(input, n));
        words.ok_or(ChunkError::Truncated)?;
        let rest = input.len();
        Ok((Self { stream, rest, escapes: &[], choices }, escapes))
    }

    /// Checks that exactly the words were consumed and that every lane is back in the state that
    /// the encoder started from. Returns the bytes that the states carry.
    pub(super) fn finish(&self, carried: bool) -> Result<[u8; CARRIED], ChunkError> {
        let states = &self.stream.states;
        let back = |&s: &u32| if carried { s >> 16 == STATE_LOW >> 16 } else { s == STATE_LOW };
        if self.stream.words.len() != self.rest || !states.iter().all(back) {
            return Err(ChunkError::StreamEnd);
        }
        Ok(std::array::from_fn(|i| (states[i / 2] >> (8 * (i % 2))) as u8))
    }
}

/// The choice of each round, from those of the blocks.
fn parse_choices(
    model: &EntropyModel,
    input: &mut &[u8],
    count: usize,
) -> Result<Vec<u8>, ChunkError> {
    let blocks = if model.choices() > 1 { count.div_ceil(model.block()) } else { 0 };
    let packed = take(input, blocks.div_ceil(4)).ok_or(ChunkError::Truncated)?;
    let choice = |block: usize| packed[block / 4] >> (block % 4 * 2) & 3;
    let mut all = (0..packed.len() * 4).map(|i| (i, choice(i)));
    if all.any(|(i, c)| usize::from(c) >= model.choices() || (i >= blocks && c > 0)) {
        return Err(ChunkError::TableChoice);
    }
    let mut choices = vec![0; count.div_ceil(LANES)];
    if blocks > 0 {
        let of_block = choices.chunks_mut(model.block() / LANES).enumerate();
        of_block.for_each(|(block, rounds)| rounds.fill(choice(block)));
    }
    Ok(choices)
}

impl<'a> Planes<'a> {
    /// Takes the planes of `count` elements from `input`, as `records` describe them. If the
    /// symbols are entropy-coded, the last plane that is stored in full and long enough ends in the
    /// states.
    fn parse(
        model: &EntropyModel,
        records: &[[u8; 2]],
        input: &mut &'a [u8],
        count: usize,
        coded: bool,
    ) -> Result<Self, ChunkError> {
        let planes = model.layout().planes();
        let long = |(r, p): (&[u8; 2], &Plane)| {
            r[0] == StorageMode::Stored as u8 && packed_len(p.bits, count) >= CARRIED
        };
        let carrier = records.iter().zip(planes).rposition(long).filter(|_| coded);
        let mut sources = Vec::with_capacity(planes.len());
        for (i, (&[mode, value], plane)) in records.iter().zip(planes).enumerate() {
            if mode != StorageMode::Constant as u8 && value != 0 {
                return Err(ChunkError::InvalidRecord);
            }
            let len = packed_len(plane.bits, count);
            let stored = if carrier == Some(i) { len - CARRIED } else { len };
            sources.push(match mode {
                0 => Source::Packed(take(input, stored).ok_or(ChunkError::Truncated)?.into()),
                1 if value <= plane.mask() => Source::Constant(value),
                2 => Source::Packed(expand(plane.bits, model.block(), count, input)?.into()),
                mode => return Err(invalid(mode)),
            });
        }
        Ok(Self { sources, carrier })
    }

    /// Whether a plane ends in the states.
    pub(super) fn carried(&self) -> bool {
        self.carrier.is_some()
    }
}

/// A sparse plane, its zero blocks included.
fn expand(bits: u8, block: usize, count: usize, input: &mut &[u8]) -> Result<Vec<u8>, ChunkError> {
    let blocks = count.div_ceil(block);
    let present = take(input, blocks.div_ceil(8)).ok_or(ChunkError::Truncated)?;
    if !blocks.is_multiple_of(8) && present.last().is_some_and(|b| b >> (blocks % 8) != 0) {
        return Err(ChunkError::BlockBitmap);
    }
    let mut full = vec![0; packed_len(bits, count)];
    for (i, block) in full.chunks_mut(packed_len(bits, block)).enumerate() {
        if present[i / 8] >> (i % 8) & 1 == 1 {
            block.copy_from_slice(take(input, block.len()).ok_or(ChunkError::Truncated)?);
        }
    }
    Ok(full)
}

/// Why a record may not have this mode.
fn invalid(mode: u8) -> ChunkError {
    match mode {
        0..=2 => ChunkError::InvalidRecord,
        mode => ChunkError::UnknownMode(Some(mode)),
    }
}
