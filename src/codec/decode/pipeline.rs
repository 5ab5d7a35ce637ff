//! Decoding the symbols and merging the elements of a chunk, step by step: the steps are short
//! enough for their data to stay in the first-level cache.

use super::{
    element::Element,
    kernel::{Kernel, RoundTables, Rounds},
    merge::{MAX_STEP, Merge, STEP},
    parser::{Coded, ParsedChunk, Symbols},
};
use crate::codec::{ChunkError, EntropyModel, LANES, model::ValueMap, planes::GROUP};

/// Decodes a chunk of [`crate::codec::Coding::Planes`].
///
/// # Errors
/// Whatever is wrong with the payload.
#[inline(always)]
pub(in crate::codec) fn decode_planes<K: Kernel>(
    kernel: K,
    model: &EntropyModel,
    payload: &[u8],
    out: &mut [u8],
) -> Result<(), ChunkError> {
    let width = usize::from(model.layout().width());
    if !out.len().is_multiple_of(width) {
        return Err(ChunkError::PartialElement);
    }
    let mut chunk = ParsedChunk::parse(model, payload, out.len() / width)?;
    match width {
        1 => decode::<u8, K>(kernel, &mut chunk, out),
        2 => decode::<u16, K>(kernel, &mut chunk, out),
        4 => decode::<u32, K>(kernel, &mut chunk, out),
        _ => decode::<u64, K>(kernel, &mut chunk, out),
    }
}

#[inline(always)]
fn decode<E: Element, K: Kernel>(
    kernel: K,
    chunk: &mut ParsedChunk<'_>,
    out: &mut [u8],
) -> Result<(), ChunkError> {
    let model = chunk.model;
    let align = 16 - model.layout().symbol_bits();
    let map = ValueMap::new(model);
    let mut symbols = [[0; LANES]; MAX_STEP / LANES];
    let mut values = [[0; LANES]; MAX_STEP / LANES];
    if let Symbols::Constant(value) = chunk.symbols {
        values.fill([value << align; LANES]);
    }
    let mut merge = Merge::new(model.layout());
    let count = out.len() / E::BYTES;
    let mut first = 0;
    while first < count {
        // The last step is long enough to hold everything that the states carry.
        let n = if count - first <= MAX_STEP { count - first } else { STEP };
        let out = &mut out[first * E::BYTES..(first + n) * E::BYTES];
        let mut carried = None;
        if let Symbols::Coded(coded) = &mut chunk.symbols {
            let rounds = n.div_ceil(LANES);
            let rounds = Rounds {
                symbols: &mut symbols[..rounds],
                values: &mut values[..rounds],
                elements: &*out,
                want_values: true,
            };
            decode_symbols(kernel, model, &map, coded, first, rounds)?;
            if first + n == count {
                carried = Some(coded.finish(chunk.planes.carried())?);
            }
        }
        let values = &values.as_flattened()[..n];
        merge.step::<E, K>(kernel, values, &chunk.planes, first, carried.as_ref(), out);
        if let Symbols::Coded(coded) = &mut chunk.symbols {
            let symbols = &symbols.as_flattened()[..n];
            if contains(symbols, model.escape()) {
                patch_escapes::<E>(model, symbols, &mut coded.escapes, out)?;
            }
        }
        first += n;
    }
    match &chunk.symbols {
        Symbols::Coded(coded) if !coded.escapes.is_empty() => Err(ChunkError::UnusedEscapes),
        _ => Ok(()),
    }
}

/// Decodes the symbols of the elements from `first`.
#[inline(always)]
fn decode_symbols<K: Kernel>(
    kernel: K,
    model: &EntropyModel,
    map: &ValueMap,
    coded: &mut Coded<'_>,
    first: usize,
    rounds: Rounds<'_>,
) -> Result<(), ChunkError> {
    let columns = model.columns().len().max(1);
    let tables = RoundTables {
        model,
        tables: model.decode_tables(),
        map,
        choices: &coded.choices[first / LANES..],
        column: first % columns,
        of_elements: &[],
    };
    kernel.symbols(&mut coded.stream, tables, rounds)
}

/// Replaces the symbol values of the elements whose symbol is the escape.
#[cold]
fn patch_escapes<E: Element>(
    model: &EntropyModel,
    symbols: &[u8],
    escapes: &mut &[[u8; 2]],
    out: &mut [u8],
) -> Result<(), ChunkError> {
    let (layout, escape) = (model.layout(), model.escape());
    let align = 16 - layout.symbol_bits();
    let element = |v: u16| E::from_value(v << align).unrotate(layout.rotated());
    for (symbols, out) in symbols.chunks(GROUP).zip(out.chunks_mut(GROUP * E::BYTES)) {
        if !contains(symbols, escape) {
            continue;
        }
        let elements = symbols.iter().zip(out.chunks_exact_mut(E::BYTES));
        for (_, out) in elements.filter(|(s, _)| **s == escape) {
            let (&value, rest) = escapes.split_first().ok_or(ChunkError::Truncated)?;
            *escapes = rest;
            element(u16::from_le_bytes(value)).write_masked(element(u16::MAX), out);
        }
    }
    Ok(())
}

/// Whether `symbols` contain `symbol`. Looking at all of them lets the loop be vectorised.
#[inline(always)]
fn contains(symbols: &[u8], symbol: u8) -> bool {
    symbols.iter().fold(false, |any, &s| any | (s == symbol))
}
