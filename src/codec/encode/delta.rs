//! A chunk as differences from the bytes of its base (`docs/FORMAT.md`, "Differences").

use super::{
    encoder::{Encoder, initial_states},
    kernel::{Words, encode_round},
};
use crate::codec::{
    Coding, LANES,
    differences::differences,
    model::{Cut, MAX_VALUES},
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
        // By element: its table.
        let mut of_elements = Vec::with_capacity(rounds * LANES);
        let mut raw = vec![Vec::new(); delta.cuts.len()];
        let mut escapes = Vec::new();
        let mut choices = Vec::new();
        for block in differences.chunks(model.block()) {
            let choice = self.choice(block, &delta.cuts);
            choices.push((choice / model.classes()) as u8);
            for &(difference, class) in block {
                let table = choice + usize::from(class);
                let cut = &delta.cuts[table];
                let symbol = cut.symbol(difference);
                if usize::from(symbol) == MAX_VALUES {
                    let escape = cut.escaped(difference).to_le_bytes();
                    escapes.extend_from_slice(&escape[..width]);
                }
                symbols.push(symbol);
                of_elements.push(table);
                raw[table].push(cut.raw(difference, symbol));
            }
        }
        // The padding gets the symbol that costs least.
        let padding = usize::from(*choices.last()?) * model.classes();
        symbols.resize(rounds * LANES, self.tables[padding].likely);
        of_elements.resize(rounds * LANES, padding);
        let (mut packed, carried) = pack_raw(&raw, &delta.cuts);
        let mut states = initial_states(carried.as_deref());
        let mut words = Words { buffer: vec![0; symbols.len()], free: symbols.len() };
        let of_rounds = symbols.as_chunks().0.iter().zip(of_elements.as_chunks::<LANES>().0);
        for (symbols, of_lanes) in of_rounds.rev() {
            encode_round(|lane| &self.tables[of_lanes[lane]], symbols, &mut states, &mut words);
        }
        let mut out = vec![StorageMode::Stored as u8, 0, 0, 0];
        let words = &words.buffer[words.free..];
        self.put_stream(words, escapes.len() / width, &choices, &states, &mut out);
        out.append(&mut escapes);
        out.append(&mut packed);
        Some(out)
    }

    /// The first table of the best choice for a block of differences.
    fn choice(&self, block: &[(i64, u8)], cuts: &[Cut]) -> usize {
        let classes = self.model.classes();
        let escape = 16 * 8 * u32::from(self.model.layout().width());
        // In sixteenths of a bit.
        let cost = |choice: usize| -> u32 {
            let of = |&(difference, class): &(i64, u8)| {
                let class = usize::from(class);
                let cut = &cuts[choice * classes + class];
                let symbol = usize::from(cut.symbol(difference));
                let escaped = if symbol == MAX_VALUES { escape } else { 0 };
                let coded = self.costs[class][choice][symbol];
                u32::from(coded) + 16 * u32::from(cut.raw_bits) + escaped
            };
            block.iter().map(of).sum()
        };
        let choices = 0..self.model.choices();
        choices.min_by_key(|&choice| cost(choice)).unwrap_or(0) * classes
    }
}

/// The raw bits of the elements of each table in planes, and the end of the plane that ends in the
/// states.
fn pack_raw(raw: &[Vec<u64>], cuts: &[Cut]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut packed = Vec::new();
    let mut carrier = None;
    for (raw, cut) in raw.iter().zip(cuts).filter(|(raw, _)| !raw.is_empty()) {
        for plane in raw_planes(cut.raw_bits) {
            let start = packed.len();
            let values: Vec<u8> =
                raw.iter().map(|r| (r >> plane.low) as u8 & plane.mask()).collect();
            pack(&values, plane.bits, &mut packed);
            if packed.len() - start >= CARRIED {
                carrier = Some(packed.len());
            }
        }
    }
    let carried = carrier.map(|end| packed.drain(end - CARRIED..end).collect());
    (packed, carried)
}
