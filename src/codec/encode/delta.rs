//! A chunk as differences from the bytes of its base (`docs/FORMAT.md`, "Differences").

use super::{
    encoder::{Encoder, initial_states},
    kernel::{Words, encode_round},
};
use crate::codec::{
    Coding, LANES,
    differences::{Cut, differences},
    model::MAX_CHOICES,
    planes::{pack, raw_planes},
    wire::{CARRIED, StorageMode},
};

/// Encodes a chunk as differences from `base`, which is as long, in the model of differences of
/// `encoder`; raw, if that is not smaller.
pub fn encode_differences(chunk: &[u8], base: &[u8], encoder: &Encoder<'_>) -> (Coding, Vec<u8>) {
    let coded = if chunk == base {
        Some(vec![StorageMode::Constant as u8, 0, 0, 0])
    } else {
        encoder.differences(chunk, base)
    };
    match coded.filter(|coded| coded.len() < chunk.len()) {
        Some(coded) => (Coding::Delta, coded),
        None => (Coding::Raw, chunk.to_vec()),
    }
}

impl Encoder<'_> {
    /// The chunk as [`Coding::Delta`], or `None` if it is not a whole number of elements or the
    /// model has no tables.
    pub(in crate::codec) fn differences(&self, chunk: &[u8], base: &[u8]) -> Option<Vec<u8>> {
        let (model, delta) = (self.model, self.model.delta()?);
        let width = usize::from(model.layout().width());
        if !chunk.len().is_multiple_of(width) || self.tables.is_empty() {
            return None;
        }
        let differences = differences(chunk, base, width, delta.threshold);
        let rounds = differences.len().div_ceil(LANES);
        let mut symbols = Vec::with_capacity(rounds * LANES);
        let mut classes = Vec::with_capacity(rounds * LANES);
        let mut raw = [Vec::new(), Vec::new()];
        let mut escapes = Vec::new();
        for &(difference, class) in &differences {
            let cut = Cut::new(difference, delta.raw_bits[usize::from(class)], width);
            if let Some(escape) = cut.escape {
                escapes.extend_from_slice(&escape.to_le_bytes()[..width]);
            }
            symbols.push(cut.symbol);
            classes.push(class);
            raw[usize::from(class)].push(cut.raw);
        }
        let choices = self.choices_of_elements(&symbols, &classes);
        let first_table =
            |round: usize| usize::from(choices[round * LANES / model.block()]) * model.classes();
        // The padding gets the symbol that costs least.
        symbols.resize(rounds * LANES, self.tables[first_table(rounds - 1)].likely);
        classes.resize(rounds * LANES, 0);
        let (mut packed, carried) = pack_raw(&raw, delta.raw_bits);
        let mut states = initial_states(carried.as_deref());
        let mut words = Words { buffer: vec![0; symbols.len()], free: symbols.len() };
        let of_rounds = symbols.as_chunks().0.iter().zip(classes.as_chunks::<LANES>().0);
        for (round, (symbols, classes)) in of_rounds.enumerate().rev() {
            let tables = &self.tables[first_table(round)..];
            let table = |lane: usize| &tables[usize::from(classes[lane])];
            encode_round(table, symbols, &mut states, &mut words);
        }
        let mut out = vec![StorageMode::Stored as u8, 0, 0, 0];
        let words = &words.buffer[words.free..];
        self.put_stream(words, escapes.len() / width, &choices, &states, &mut out);
        out.append(&mut escapes);
        out.append(&mut packed);
        Some(out)
    }

    /// The best choice for each block of symbols of these classes.
    fn choices_of_elements(&self, symbols: &[u8], classes: &[u8]) -> Vec<u8> {
        let block = self.model.block();
        let best = |(symbols, classes): (&[u8], &[u8])| {
            let mut sums = [0; MAX_CHOICES];
            for (&symbol, &class) in symbols.iter().zip(classes) {
                let costs = self.costs[usize::from(class)].iter();
                sums.iter_mut()
                    .zip(costs)
                    .for_each(|(sum, c)| *sum += u32::from(c[usize::from(symbol & 63)]));
            }
            (0..self.model.choices()).min_by_key(|&choice| sums[choice]).unwrap_or(0) as u8
        };
        symbols.chunks(block).zip(classes.chunks(block)).map(best).collect()
    }
}

/// The raw bits of each class in planes, and the end of the one that ends in the states.
fn pack_raw(raw: &[Vec<u64>; 2], bits: [u8; 2]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut packed = Vec::new();
    let mut carrier = None;
    for (raw, bits) in raw.iter().zip(bits) {
        for plane in raw_planes(bits) {
            let start = packed.len();
            let values: Vec<u8> =
                raw.iter().map(|r| (r >> plane.low) as u8 & plane.mask()).collect();
            if !values.is_empty() {
                pack(&values, plane.bits, &mut packed);
            }
            if packed.len() - start >= CARRIED {
                carrier = Some(packed.len());
            }
        }
    }
    let carried = carrier.map(|end| packed.drain(end - CARRIED..end).collect());
    (packed, carried)
}
