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
    let escape = model.escape();
    let block = model.block();
    let symbols = symbols.as_chunks::<GROUP>().0.chunks(block / GROUP);
    for (i, (symbols, out)) in symbols.zip(out.chunks_mut(block * E::BYTES)).enumerate() {
        let table = usize::from(coded.choices[i * (block / LANES)]) * classes;
        let cuts = [&cuts[table], &cuts[table + classes - 1]];
        let block = Block { kernel, threshold, table, cuts, symbols, out, raw: &mut raw };
        block.change();
        for (symbols, out) in symbols.iter().zip(out.chunks_mut(GROUP * E::BYTES)) {
            if symbols.iter().fold(false, |any, &s| any | (s == escape)) {
                add_escaped::<E>(symbols, escape, &mut escapes, out)?;
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
            let mut elements = [E::ZERO; LANES];
            let rounds = out.chunks(LANES * E::BYTES).zip(classes.as_chunks_mut::<LANES>().0);
            for (out, classes) in rounds {
                E::read_all(out, &mut elements);
                let count = out.len() / E::BYTES;
                for (class, base) in classes[..count].iter_mut().zip(elements) {
                    *class = base.magnitude_below(threshold).into();
                }
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

/// Adds what is escaped to the elements of a group.
#[cold]
fn add_escaped<E: Element>(
    symbols: &[u8],
    escape: u8,
    escapes: &mut &[u8],
    out: &mut [u8],
) -> Result<(), ChunkError> {
    let elements = symbols.iter().zip(out.chunks_exact_mut(E::BYTES));
    for (_, out) in elements.filter(|(s, _)| **s == escape) {
        let escaped = take(escapes, E::BYTES).ok_or(ChunkError::Truncated)?;
        E::read(out).wrapping_add(E::read(escaped)).write(out);
    }
    Ok(())
}

/// The elements of a block, which share a choice of tables.
struct Block<'b, 'p, E, K> {
    kernel: K,
    threshold: E,
    /// The table of the first class.
    table: usize,
    /// By class.
    cuts: [&'b CutOf<E>; 2],
    symbols: &'b [[u8; GROUP]],
    out: &'b mut [u8],
    raw: &'b mut RawBits<'p>,
}

impl<E: Element, K: Kernel> Block<'_, '_, E, K> {
    /// Adds the differences to the base's elements, save what is escaped.
    #[inline(always)]
    fn change(self) {
        let [first, second] = self.cuts.map(|cut| cut.raw_bits);
        if self.cuts.iter().any(|cut| cut.values.is_some()) {
            let all = self.cuts.map(CutOf::all);
            return self.change_by::<8>(|symbol| all.map(|all| all[usize::from(symbol & 63)]));
        }
        let units = |symbol: u8| {
            let unit = E::from_i64(i64::from(symbol as i8 - ZERO as i8));
            [unit.shl(first), unit.shl(second)]
        };
        match first.max(second).div_ceil(8) {
            0 => self.change_by::<0>(units),
            1 => self.change_by::<1>(units),
            2 => self.change_by::<2>(units),
            3 => self.change_by::<3>(units),
            _ => self.change_by::<8>(units),
        }
    }

    /// The same by the differences without raw bits, which `of` gives for a symbol in each class.
    /// Raw bits take up to `BYTES` bytes.
    #[inline(always)]
    fn change_by<const BYTES: usize>(self, of: impl Fn(u8) -> [E; 2]) {
        let threshold = self.threshold;
        for (symbols, out) in self.symbols.iter().zip(self.out.chunks_mut(GROUP * E::BYTES)) {
            let mut elements = [E::ZERO; GROUP];
            E::read_all(out, &mut elements);
            let mut raw = [[0; GROUP]; BYTES];
            if BYTES > 0 {
                let all = u64::MAX >> (GROUP - out.len() / E::BYTES);
                let second = second_class(threshold, &elements);
                raw = self.raw.next(self.kernel, self.table, [all & !second, all & second]);
            }
            for (i, (element, &symbol)) in elements.iter_mut().zip(symbols).enumerate() {
                let [first, second] = of(symbol);
                let in_second = element.magnitude_below(threshold);
                let mut difference = if in_second { second } else { first };
                for (j, raw) in raw.iter().enumerate().take(E::BYTES) {
                    difference = difference.with_byte(j, raw[i]);
                }
                *element = element.wrapping_add(difference);
            }
            E::write_all(&elements, out);
        }
    }
}

/// A bit for each of the elements of a group that are of the second class.
#[inline(always)]
fn second_class<E: Element>(threshold: E, base: &[E; GROUP]) -> u64 {
    let classes = base.map(|base| u8::from(base.magnitude_below(threshold)));
    let mut bits = 0;
    for (i, eight) in classes.as_chunks::<8>().0.iter().enumerate() {
        // Gathers the lowest bits of eight bytes in the top byte.
        let eight = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits |= eight << (8 * i);
    }
    bits
}
