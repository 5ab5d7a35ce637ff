//! Decoding differences: elements are changed in place from those of the base
//! (`docs/FORMAT.md`, "Differences").
//!
//! All symbols come first: the end of the raw bits may be in the final states.

use super::{
    changes::{Changes, CutOf, classes},
    element::Element,
    kernel::{Kernel, RoundTables, Rounds},
    merge::STEP,
    parser::Coded,
    raw::RawBits,
};
use crate::codec::{
    ChunkError, EntropyModel, LANES,
    bytes::{take, take_array},
    model::{Delta, MAX_TABLES, ValueMap},
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
fn decode<'a, E: Width, K: Kernel>(
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
    let mut second = vec![0; symbols.len() / GROUP];
    let all = (&mut *symbols, &mut *second);
    let counts = decode_symbols::<E, K>(kernel, model, delta, &mut coded, all, out)?;
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
    let groups = symbols.as_chunks::<GROUP>().0.chunks(block / GROUP);
    let groups = groups.zip(second.chunks(block / GROUP));
    for (i, ((symbols, second), out)) in groups.zip(out.chunks_mut(block * E::BYTES)).enumerate() {
        let table = usize::from(coded.choices[i * (block / LANES)]) * classes;
        let cuts = [&cuts[table], &cuts[table + classes - 1]];
        let block = Block { kernel, threshold, table, cuts, symbols, second, out, raw: &mut raw };
        block.change();
        for (symbols, out) in symbols.iter().zip(out.chunks_mut(GROUP * E::BYTES)) {
            if symbols.iter().fold(false, |any, &s| any | (s == escape)) {
                add_escaped::<E>(symbols, escape, &mut escapes, out)?;
            }
        }
    }
    if escapes.is_empty() { Ok(()) } else { Err(ChunkError::UnusedEscapes) }
}

/// Decodes all symbols. Sets the bits of the elements of the second class in `second`, a number for
/// each group. Returns the number of elements that each table codes.
#[inline(always)]
fn decode_symbols<E: Width, K: Kernel>(
    kernel: K,
    model: &EntropyModel,
    delta: &Delta,
    coded: &mut Coded<'_>,
    (symbols, second): (&mut [u8], &mut [u64]),
    out: &[u8],
) -> Result<[usize; MAX_TABLES], ChunkError> {
    let map = ValueMap::new(model);
    let threshold = E::from_u64(delta.threshold);
    let mut values = [[0; LANES]; STEP / LANES];
    let mut classes = [0; STEP];
    let mut counts = [0; MAX_TABLES];
    let steps = symbols.chunks_mut(STEP).zip(second.chunks_mut(STEP / GROUP));
    for (step, ((symbols, second), out)) in steps.zip(out.chunks(STEP * E::BYTES)).enumerate() {
        let choices = &coded.choices[step * (STEP / LANES)..];
        if model.classes() > 1 {
            let groups = second.iter_mut().zip(classes.as_chunks_mut().0);
            for ((second, classes), base) in groups.zip(out.chunks(GROUP * E::BYTES)) {
                let count = base.len() / E::BYTES;
                *second = E::classes(kernel, base, threshold, classes) & members(count);
            }
            classes[out.len() / E::BYTES..].fill(0);
        }
        let groups = second.iter().zip(out.chunks(GROUP * E::BYTES));
        for (i, (second, out)) in groups.enumerate() {
            let table = usize::from(choices[i / (LANES / GROUP)]) * model.classes();
            let second = second.count_ones() as usize;
            counts[table] += out.len() / E::BYTES - second;
            counts[table + model.classes() - 1] += second;
        }
        let of_elements = if model.classes() > 1 { &classes[..] } else { &[] };
        let tables = model.decode_tables();
        let tables = RoundTables { model, tables, map: &map, choices, column: 0, of_elements };
        let symbols = symbols.as_chunks_mut().0;
        let values = &mut values[..symbols.len()];
        let rounds = Rounds { symbols, values, elements: &[], want_values: false };
        kernel.symbols(&mut coded.stream, tables, rounds)?;
    }
    Ok(counts)
}

/// A bit for each of the first `count` elements of a group.
#[inline(always)]
fn members(count: usize) -> u64 {
    u64::MAX >> (GROUP - count)
}

/// Adds what is escaped to the elements of a group.
#[cold]
#[inline(never)]
fn add_escaped<E: Element>(
    symbols: &[u8],
    escape: u8,
    escapes: &mut &[u8],
    out: &mut [u8],
) -> Result<(), ChunkError> {
    // Escapes are few: most of each eight symbols are passed over together.
    for (symbols, out) in symbols.chunks(8).zip(out.chunks_mut(8 * E::BYTES)) {
        if symbols.iter().fold(true, |none, &s| none & (s != escape)) {
            continue;
        }
        let elements = symbols.iter().zip(out.chunks_exact_mut(E::BYTES));
        for (_, out) in elements.filter(|(s, _)| **s == escape) {
            let escaped = take(escapes, E::BYTES).ok_or(ChunkError::Truncated)?;
            E::read(out).wrapping_add(E::read(escaped)).write(out);
        }
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
    second: &'b [u64],
    out: &'b mut [u8],
    raw: &'b mut RawBits<'p>,
}

impl<E: Width, K: Kernel> Block<'_, '_, E, K> {
    /// Adds the differences to the base's elements, save what is escaped.
    #[inline(always)]
    fn change(self) {
        let [first, second] = self.cuts.map(|cut| cut.raw_bits);
        match first.max(second).div_ceil(8) {
            0 => self.change_by::<0>(),
            1 => self.change_by::<1>(),
            2 => self.change_by::<2>(),
            3 => self.change_by::<3>(),
            _ => self.change_by::<8>(),
        }
    }

    /// The same where raw bits take up to `BYTES` bytes.
    #[inline(always)]
    fn change_by<const BYTES: usize>(self) {
        let groups =
            self.symbols.iter().zip(self.second).zip(self.out.chunks_mut(GROUP * E::BYTES));
        for ((symbols, &second), out) in groups {
            let all = members(out.len() / E::BYTES);
            let (threshold, cuts) = (self.threshold, self.cuts);
            let mut raw = [[0; GROUP]; BYTES];
            if BYTES > 0 {
                raw = self.raw.next(self.kernel, self.table, [all & !second, second]);
            }
            let changes = Changes { symbols, threshold, second, cuts, raw };
            E::change(self.kernel, out, &changes);
        }
    }
}

/// How a kernel treats elements of a width. The last group may have fewer elements than others.
trait Width: Element {
    /// [`Kernel::classes16`] for this width.
    fn classes<K: Kernel>(_: K, base: &[u8], threshold: Self, of: &mut [u8; GROUP]) -> u64;
    /// [`Kernel::change16`] for this width.
    fn change<K: Kernel, const BYTES: usize>(
        _: K,
        out: &mut [u8],
        changes: &Changes<'_, Self, BYTES>,
    );
}

macro_rules! widths {
    ($($t:ty $(: $classes:ident, $change:ident)?;)*) => {$(
        impl Width for $t {
            #[inline(always)]
            fn classes<K: Kernel>(_kernel: K, base: &[u8], below: $t, of: &mut [u8; GROUP]) -> u64 {
                $(if let Some(base) = base.first_chunk() {
                    return _kernel.$classes(base, below, of);
                })?
                classes(base, below, of)
            }

            #[inline(always)]
            fn change<K: Kernel, const BYTES: usize>(
                _kernel: K,
                out: &mut [u8],
                changes: &Changes<'_, $t, BYTES>,
            ) {
                $(if let Some(out) = out.first_chunk_mut() {
                    return _kernel.$change(out, changes);
                })?
                changes.add_to(out);
            }
        }
    )*};
}
widths! {
    u8;
    u16: classes16, change16;
    u32: classes32, change32;
    u64;
}
