//! Candidate cuts of a tensor's elements into symbol value and planes.

use super::{Sample, classes::cost};
use crate::codec::{
    model::{ALPHABET, MAX_VALUES},
    planes::{ElementKind, Layout},
};

/// The share of the sample that planes for bits that are zero in whole blocks must save.
const WORTH_ZEROS: f64 = 0.001;
/// Bits of an escaped value.
const ESCAPED: f64 = 16.0;

/// A choice of the bits that are the symbol value.
#[derive(Clone)]
pub(super) struct Cut {
    pub rotated: bool,
    pub symbol_bits: u8,
    /// The symbol values that get a symbol, ascending.
    pub values: Vec<u16>,
    /// Estimated bits of the sample with one table.
    pub bits: f64,
}

/// The cuts that are worth a closer look: the best one with the sign among the low bits, and the
/// best one with the sign in the symbol value.
///
/// Bytes have no sign, but in pairs of floats of four bits (E2M1) the top bit is one. The other
/// sign is in the middle; five bits then leave it and most of both numbers in the symbol value.
pub(super) fn cuts(sample: &Sample<'_>) -> Vec<Cut> {
    let (width, options): (u8, Vec<Vec<(bool, u8)>>) = match sample.kind {
        ElementKind::Float { width, exponent } => {
            let mantissa = width * 8 - 1 - exponent;
            let of = |rotated: bool| {
                let sign = u8::from(!rotated);
                (0..=mantissa.min(3))
                    .map(|m| (rotated, sign + exponent + m))
                    .filter(|o| o.1 <= 16)
                    .collect()
            };
            (width, vec![of(true), of(false)])
        }
        ElementKind::Bytes { width: 1 } => {
            let of = |rotated: bool| (5..=8).map(|bits| (rotated, bits)).collect();
            (1, vec![of(true), of(false)])
        }
        ElementKind::Bytes { .. } => return Vec::new(),
    };
    let best = |options: Vec<(bool, u8)>| {
        let rotated = options.first()?.0;
        let most = options.iter().map(|o| o.1).max()?;
        let mut symbol_values = Vec::new();
        Layout::cut(width, rotated, most, 0).symbol_values(sample.bytes, &mut symbol_values);
        let mut counts = vec![0u64; 1 << most];
        symbol_values.iter().for_each(|&v| counts[usize::from(v)] += 1);
        let cut = |(rotated, symbol_bits): (bool, u8)| {
            let counts: Vec<u64> =
                counts.chunks(1 << (most - symbol_bits)).map(|c| c.iter().sum()).collect();
            cut(counts, width, rotated, symbol_bits)
        };
        options.into_iter().filter_map(cut).min_by(|a, b| a.bits.total_cmp(&b.bits))
    };
    options.into_iter().filter_map(best).collect()
}

/// The cut that gives symbols to the most frequent of the symbol values counted in `counts`.
fn cut(counts: Vec<u64>, width: u8, rotated: bool, symbol_bits: u8) -> Option<Cut> {
    let total: u64 = counts.iter().sum();
    let mut values: Vec<u16> =
        (0..counts.len()).filter(|&v| counts[v] > 0).map(|v| v as u16).collect();
    values.sort_by_key(|&v| std::cmp::Reverse(counts[usize::from(v)]));
    values.truncate(MAX_VALUES);
    let mut histogram = [0.0; ALPHABET];
    histogram.iter_mut().zip(&values).for_each(|(h, &v)| *h = counts[usize::from(v)] as f32);
    let escaped = total - values.iter().map(|&v| counts[usize::from(v)]).sum::<u64>();
    histogram[values.len()] = escaped as f32;
    values.sort_unstable();
    let rest = f64::from(width * 8 - symbol_bits) * total as f64 + ESCAPED * escaped as f64;
    (!values.is_empty()).then(|| Cut {
        rotated,
        symbol_bits,
        values,
        bits: cost(&histogram) + rest,
    })
}

/// The symbols of the sample's elements.
pub(super) fn symbols(sample: &Sample<'_>, cut: &Cut) -> Vec<u8> {
    let mut symbol_values = Vec::new();
    Layout::cut(sample.kind.width() as u8, cut.rotated, cut.symbol_bits, 0)
        .symbol_values(sample.bytes, &mut symbol_values);
    let mut index = vec![cut.values.len() as u8; 1 << cut.symbol_bits];
    cut.values.iter().enumerate().for_each(|(s, &v)| index[usize::from(v)] = s as u8);
    symbol_values.iter().map(|&v| index[usize::from(v)]).collect()
}

/// How many low bits get planes of their own because they are zero in whole blocks, as in floats
/// that were widened from narrower ones, and the share of the sample that this saves.
pub(super) fn zero_bits(sample: &Sample<'_>, block: usize) -> Option<(u8, f64)> {
    let ElementKind::Float { width, .. } = sample.kind else { return None };
    let width = usize::from(width);
    let mut found = [0usize; 65];
    for block in sample.bytes.chunks_exact(block * width) {
        let mut seen = [0u8; 8];
        block.chunks_exact(width).for_each(|e| seen.iter_mut().zip(e).for_each(|(s, b)| *s |= b));
        found[u64::from_le_bytes(seen).trailing_zeros().min(8 * width as u32) as usize] += 1;
    }
    let blocks: usize = found.iter().sum();
    let saved = |z: usize| {
        (found[z..].iter().sum::<usize>() * z) as f64 / (blocks.max(1) * 8 * width) as f64
    };
    let best = (1..8 * width).max_by(|&a, &b| saved(a).total_cmp(&saved(b)))?;
    (saved(best) >= WORTH_ZEROS).then(|| (best as u8, saved(best)))
}
