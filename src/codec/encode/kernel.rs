//! The encoder's inner loops: the scalar ones, which define the bits.

use super::table::{Costs, TableEncoder};
use crate::codec::{
    LANES,
    model::{ALPHABET, MAX_CHOICES},
};

/// The words of a stream. The encoder produces them in the reverse of the decoder's order, so they
/// are written from the end of the buffer down.
#[derive(Default)]
pub(in crate::codec) struct Words {
    pub buffer: Vec<u16>,
    /// How many words of the buffer, from the first, are free.
    pub free: usize,
}

/// [`EncodeKernel::rounds`](super::EncodeKernel::rounds).
pub(in crate::codec) fn scalar_rounds(
    tables: &[&TableEncoder],
    symbols: &[u8],
    states: &mut [u32; LANES],
    words: &mut Words,
) {
    for (symbols, table) in symbols.as_chunks().0.iter().zip(tables).rev() {
        encode_round(|_| table, symbols, states, words);
    }
}

/// Encodes a symbol for each lane, last lane first.
#[inline(always)]
pub(super) fn encode_round<'t>(
    table: impl Fn(usize) -> &'t TableEncoder,
    symbols: &[u8; LANES],
    states: &mut [u32; LANES],
    words: &mut Words,
) {
    // Each symbol yields at most one word, and the buffer has room for one per symbol.
    let Some(room) = words.buffer[..words.free].last_chunk_mut::<LANES>() else { return };
    let mut put = 0;
    for (lane, (state, &symbol)) in states.iter_mut().zip(symbols).enumerate().rev() {
        let (word, count) = table(lane).encode(state, symbol);
        // Whether there is a word is unpredictable. Instead of branching, always write one; if it
        // does not count, the next one overwrites it.
        room[(LANES - 1 - put) & (LANES - 1)] = word;
        put += count;
    }
    words.free -= put;
}

/// [`EncodeKernel::costs`](super::EncodeKernel::costs).
pub(in crate::codec) fn scalar_costs(costs: &Costs, symbols: &[u8]) -> [u32; MAX_CHOICES] {
    // Counting first takes one addition per symbol instead of four.
    let mut counts = [0u32; ALPHABET];
    symbols.iter().for_each(|&s| counts[usize::from(s & 63)] += 1);
    costs.map(|c| c.iter().zip(counts).map(|(&c, n)| u32::from(c) * n).sum())
}
