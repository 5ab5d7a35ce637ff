//! Which symbol owns which slots. Each bucket of slots belongs to at most two symbols (the alias
//! method, Walker 1974), so that a decoder can look up a slot's symbol in tables small enough for
//! registers.

use super::frequencies::{ALPHABET, Frequencies, TOTAL};
use std::collections::VecDeque;

/// One bucket for each symbol of the largest alphabet.
pub const BUCKETS: usize = ALPHABET;
/// Slots of a bucket. A slot's low byte is its place in its bucket.
pub const BUCKET_LEN: u16 = (TOTAL as usize / BUCKETS) as u16;

/// A table's slots, by bucket. See `docs/FORMAT.md`, "Slots".
#[derive(Clone, Debug)]
pub struct Buckets {
    /// How many slots of bucket `b`, from the first, belong to symbol `b`.
    pub own: [u16; BUCKETS],
    /// The symbol that owns the rest of the bucket.
    pub other: [u8; BUCKETS],
    /// Added modulo 2^16 to the place of a slot of the other symbol, this gives the slot's number
    /// among those of its symbol.
    pub shift: [u16; BUCKETS],
}

impl Buckets {
    /// Assigns the slots.
    pub fn new(freqs: &Frequencies) -> Self {
        let mut own = *freqs;
        let mut other: [u8; BUCKETS] = std::array::from_fn(|b| b as u8);
        let (mut small, mut large): (VecDeque<usize>, VecDeque<usize>) =
            (0..BUCKETS).partition(|&b| own[b] < BUCKET_LEN);
        // The first large symbol fills what small symbols leave of their buckets, until it is small
        // itself.
        while let (Some(s), Some(&l)) = (small.pop_front(), large.front()) {
            other[s] = l as u8;
            own[l] -= BUCKET_LEN - own[s];
            if own[l] < BUCKET_LEN {
                large.pop_front();
                small.push_back(l);
            }
        }
        let mut next = own;
        // A full bucket is its own `other` with shift 0: its count of own slots, 256, then needs no
        // ninth bit.
        let shift = std::array::from_fn(|b| {
            let owner = usize::from(other[b]);
            if owner == b {
                return 0;
            }
            let before = next[owner];
            next[owner] += BUCKET_LEN - own[b];
            before.wrapping_sub(own[b])
        });
        Self { own, other, shift }
    }

    /// The symbol of `slot` and the slot's number among those of the symbol.
    pub fn symbol(&self, slot: u16) -> (u8, u16) {
        let (bucket, place) = (usize::from(slot / BUCKET_LEN), slot % BUCKET_LEN);
        if place < self.own[bucket] {
            (bucket as u8, place)
        } else {
            (self.other[bucket], place.wrapping_add(self.shift[bucket]))
        }
    }

    /// The slots of every symbol, symbols in order. One more entry is 0.
    pub fn slots_by_symbol(&self, freqs: &Frequencies) -> Box<[u16; TOTAL as usize + 1]> {
        let mut starts = [0; BUCKETS];
        for s in 1..BUCKETS {
            starts[s] = starts[s - 1] + usize::from(freqs[s - 1]);
        }
        let mut slots = Box::new([0; TOTAL as usize + 1]);
        for slot in 0..TOTAL as u16 {
            let (symbol, i) = self.symbol(slot);
            slots[starts[usize::from(symbol)] + usize::from(i)] = slot;
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::model::FrequencyTable;

    #[test]
    fn every_symbol_owns_as_many_slots_as_its_frequency_numbered_from_zero() {
        let mut counts: Vec<Vec<u64>> = vec![
            vec![1, 1],
            vec![1, 1_000_000],
            (0..64).map(|i| 1 << (i / 4)).collect(),
            vec![7; 64],
            (0..64).map(|i| i * i + 1).collect(),
        ];
        counts.push(counts[2].iter().rev().copied().collect());
        for counts in counts {
            let freqs = *FrequencyTable::from_counts(&counts).frequencies();
            let buckets = Buckets::new(&freqs);
            let mut seen: Vec<Vec<u16>> = vec![Vec::new(); BUCKETS];
            for slot in 0..TOTAL as u16 {
                let (symbol, i) = buckets.symbol(slot);
                seen[usize::from(symbol)].push(i);
            }
            for (mut numbers, freq) in seen.into_iter().zip(freqs) {
                numbers.sort_unstable();
                assert_eq!(numbers, (0..freq).collect::<Vec<_>>());
            }
        }
    }
}
