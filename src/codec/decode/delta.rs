//! Decoding differences: elements are changed in place from those of the base
//! (`docs/FORMAT.md`, "Differences").
//!
//! All symbols come first: the end of the raw bits may be in the final states.

use super::{
    kernel::{Kernel, RoundTables, Rounds},
    merge::{Element, STEP},
    parser::Coded,
    raw::RawBits,
};
use crate::codec::{
    ChunkError, EntropyModel, LANES,
    bytes::{take, take_array},
    model::{ALPHABET, Cut, Delta, MAX_TABLES, ValueMap, ZERO},
    planes::GROUP,
    wire::StorageMode,
};
use std::cell::RefCell;

/// Symbols that a thread keeps memory for: those of a chunk of the usual length.
const KEPT: usize = 512 << 10;

thread_local! {
    static SYMBOLS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Decodes a chunk of [`crate::codec::Coding::Delta`]. `out` holds the base's bytes.
///
/// # Errors
/// Whatever is wrong with the payload.
#[inline(always)]
pub(in crate::codec) fn decode_delta<K: Kernel>(
    kernel: K,
    model: &EntropyModel,
    mut payload: &[u8],
    out: &mut [u8],
) -> Result<(), ChunkError> {
    let width = usize::from(model.layout().width());
    let delta = model.delta().ok_or(ChunkError::NoModel)?;
    if !out.len().is_multiple_of(width) {
        return Err(ChunkError::PartialElement);
    }
    let &[mode, zeros @ ..]: &[u8; 4] = take_array(&mut payload).ok_or(ChunkError::Truncated)?;
    match mode {
        _ if zeros != [0; 3] => return Err(ChunkError::ReservedByte),
        0 => {}
        1 if payload.is_empty() => return Ok(()),
        1 => return Err(ChunkError::TrailingBytes),
        mode if mode == StorageMode::Sparse as u8 => return Err(ChunkError::InvalidRecord),
        mode => return Err(ChunkError::UnknownMode(Some(mode))),
    }
    if model.tables().is_empty() {
        return Err(ChunkError::TableChoice);
    }
    let mut symbols = SYMBOLS.take();
    symbols.resize((out.len() / width).next_multiple_of(LANES), 0);
    let decoded = match width {
        1 => decode::<u8, K>(kernel, model, delta, payload, &mut symbols, out),
        2 => decode::<u16, K>(kernel, model, delta, payload, &mut symbols, out),
        4 => decode::<u32, K>(kernel, model, delta, payload, &mut symbols, out),
        _ => decode::<u64, K>(kernel, model, delta, payload, &mut symbols, out),
    };
    symbols.truncate(KEPT);
    symbols.shrink_to(KEPT);
    SYMBOLS.set(symbols);
    decoded
}

#[inline(always)]
fn decode<'a, E: Element, K: Kernel>(
    kernel: K,
    model: &'a EntropyModel,
    delta: &Delta,
    mut payload: &'a [u8],
    symbols: &mut [u8],
    out: &mut [u8],
) -> Result<(), ChunkError> {
    let count = out.len() / E::BYTES;
    let (mut coded, escapes) = Coded::parse_stream(model, &mut payload, count)?;
    let escapes = escapes.checked_mul(E::BYTES).and_then(|n| take(&mut payload, n));
    let mut escapes = escapes.ok_or(ChunkError::Truncated)?;
    let counts = decode_symbols::<E, K>(kernel, model, delta, &mut coded, symbols, out)?;
    let mut raw = RawBits::parse(delta, &counts, &mut payload)?;
    if !payload.is_empty() {
        return Err(ChunkError::TrailingBytes);
    }
    let end = coded.finish(raw.are_carried())?;
    raw.append(&end);
    let threshold = E::from_u64(delta.threshold);
    let cuts: Vec<CutOf<E>> = delta.cuts.iter().map(CutOf::new).collect();
    let classes = model.classes();
    let groups = symbols.chunks(GROUP).zip(out.chunks_mut(GROUP * E::BYTES));
    for (i, (symbols, out)) in groups.enumerate() {
        let symbols = &symbols[..out.len() / E::BYTES];
        let table = usize::from(coded.choices[i / (LANES / GROUP)]) * classes;
        let of_classes = [&cuts[table], &cuts[table + classes - 1]];
        let raw = if of_classes.iter().all(|cut| cut.raw_bits == 0) {
            &[[0; GROUP]; 8]
        } else {
            raw.next(kernel, table, symbols.len(), second_class::<E>(threshold, out))
        };
        if of_classes.iter().all(|cut| cut.values.is_none()) {
            let [first, second] = of_classes.map(|cut| cut.raw_bits);
            let unit = |symbol: u8| E::from_i64(i64::from(symbol as i8 - ZERO as i8));
            change(
                threshold,
                symbols,
                raw,
                out,
                |symbol| unit(symbol).shl(first),
                |symbol| unit(symbol).shl(second),
            );
        } else {
            let [first, second] = of_classes.map(CutOf::all);
            let of = |all: &[E; ALPHABET], symbol| all[usize::from(symbol & 63)];
            change(
                threshold,
                symbols,
                raw,
                out,
                |symbol| of(&first, symbol),
                |symbol| of(&second, symbol),
            );
        }
        if symbols.iter().fold(false, |any, &s| any | (s == model.escape())) {
            let escaped = symbols.iter().zip(out.chunks_exact_mut(E::BYTES));
            for (_, out) in escaped.filter(|(s, _)| **s == model.escape()) {
                let escape = take(&mut escapes, E::BYTES).ok_or(ChunkError::Truncated)?;
                E::read(out).wrapping_add(E::read(escape)).write(out);
            }
        }
    }
    if escapes.is_empty() { Ok(()) } else { Err(ChunkError::UnusedEscapes) }
}

/// A cut, for elements of one width.
struct CutOf<E> {
    raw_bits: u8,
    /// By symbol, if they are listed.
    values: Option<Box<[E; ALPHABET]>>,
    cut: Cut,
}

impl<E: Element> CutOf<E> {
    fn new(cut: &Cut) -> Self {
        let mut of = Self { raw_bits: cut.raw_bits, values: None, cut: cut.clone() };
        of.values = cut.values.is_some().then(|| Box::new(of.all()));
        of
    }

    /// By symbol: the difference without raw bits.
    fn all(&self) -> [E; ALPHABET] {
        match &self.values {
            Some(values) => **values,
            None => std::array::from_fn(|symbol| {
                E::from_i64(self.cut.value(symbol as u8)).shl(self.raw_bits)
            }),
        }
    }
}

/// Decodes all symbols. Returns the number of elements that each table codes.
#[inline(always)]
fn decode_symbols<E: Element, K: Kernel>(
    kernel: K,
    model: &EntropyModel,
    delta: &Delta,
    coded: &mut Coded<'_>,
    symbols: &mut [u8],
    out: &[u8],
) -> Result<[usize; MAX_TABLES], ChunkError> {
    let map = ValueMap::new(model);
    let threshold = E::from_u64(delta.threshold);
    let mut values = [[0; LANES]; STEP / LANES];
    let mut classes = [0; STEP];
    let mut counts = [0; MAX_TABLES];
    let steps = symbols.chunks_mut(STEP).zip(out.chunks(STEP * E::BYTES));
    for (step, (symbols, out)) in steps.enumerate() {
        let choices = &coded.choices[step * (STEP / LANES)..];
        if model.classes() > 1 {
            classes[out.len() / E::BYTES..].fill(0);
            for (class, base) in classes.iter_mut().zip(out.chunks_exact(E::BYTES)) {
                *class = E::read(base).magnitude_below(threshold).into();
            }
        }
        let rounds = out.chunks(LANES * E::BYTES).zip(classes.as_chunks::<LANES>().0);
        for (&choice, (out, classes)) in choices.iter().zip(rounds) {
            let table = usize::from(choice) * model.classes();
            let second: u8 = classes.iter().sum();
            counts[table] += out.len() / E::BYTES - usize::from(second);
            if second > 0 {
                counts[table + 1] += usize::from(second);
            }
        }
        let of_elements = if model.classes() > 1 { &classes[..] } else { &[] };
        let tables = model.decode_tables();
        let tables = RoundTables { model, tables, map: &map, choices, column: 0, of_elements };
        let symbols = symbols.as_chunks_mut().0;
        let values = &mut values[..symbols.len()];
        kernel.symbols(&mut coded.stream, tables, Rounds { symbols, values, elements: &[] })?;
    }
    Ok(counts)
}

/// A bit for each of the elements of a group that are of the second class.
#[inline(always)]
fn second_class<E: Element>(threshold: E, base: &[u8]) -> u64 {
    let mut classes = [0u8; GROUP];
    for (class, base) in classes.iter_mut().zip(base.chunks_exact(E::BYTES)) {
        *class = E::read(base).magnitude_below(threshold).into();
    }
    let mut bits = 0;
    for (i, eight) in classes.as_chunks::<8>().0.iter().enumerate() {
        // Gathers the lowest bits of eight bytes in the top byte.
        let eight = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits |= eight << (8 * i);
    }
    bits
}

/// Adds the differences of a group to its base's elements, save what is escaped. `first` and
/// `second` give the differences without raw bits of either class, by symbol.
#[inline(always)]
fn change<E: Element>(
    threshold: E,
    symbols: &[u8],
    raw: &[[u8; GROUP]; 8],
    out: &mut [u8],
    first: impl Fn(u8) -> E,
    second: impl Fn(u8) -> E,
) {
    for (i, (&symbol, out)) in symbols.iter().zip(out.chunks_exact_mut(E::BYTES)).enumerate() {
        let base = E::read(out);
        let (first, second) = (first(symbol), second(symbol));
        let mut difference = if base.magnitude_below(threshold) { second } else { first };
        for (j, raw) in raw.iter().enumerate().take(E::BYTES) {
            difference = difference.with_byte(j, raw[i]);
        }
        base.wrapping_add(difference).write(out);
    }
}
