//! Which symbol owns which slots: each bucket of slots belongs to at most two symbols (the alias method, Walker 1974),
//! so that a decoder can find a slot's symbol with tables small enough for registers.

use super::model::{Freqs, TOTAL};
use std::collections::VecDeque;

/// Buckets, and the most symbols that a table can have.
pub const BUCKETS: usize = 64;
/// Slots of a bucket: a slot's low byte is its place in its bucket.
pub const BUCKET: u16 = (TOTAL as usize / BUCKETS) as u16;

/// A table's slots, by bucket. See `docs/FORMAT.md`, "Slots".
#[derive(Clone, Debug)]
pub struct Buckets {
    /// Slots of bucket `b` that belong to symbol `b`, from the first on.
    pub own: [u16; BUCKETS],
    /// The symbol to which the others belong.
    pub other: [u8; BUCKETS],
    /// What to add to a place in the bucket, if it is one of the others', for the slot's number among those of its
    /// symbol; modulo 2^16.
    pub shift: [u16; BUCKETS],
}

impl Buckets {
    /// Deal out the slots.
    pub fn new(freqs: &Freqs) -> Self {
        let mut own = *freqs;
        let mut other: [u8; BUCKETS] = std::array::from_fn(|b| b as u8);
        let (mut small, mut large): (VecDeque<usize>, VecDeque<usize>) =
            (0..BUCKETS).partition(|&b| own[b] < BUCKET);
        // What a small symbol leaves of its bucket goes to the first large one, until that is small itself.
        while let (Some(s), Some(&l)) = (small.pop_front(), large.front()) {
            other[s] = l as u8;
            own[l] -= BUCKET - own[s];
            if own[l] < BUCKET {
                large.pop_front();
                small.push_back(l);
            }
        }
        let mut next = own;
        // A full bucket's others would be its own symbol's, so that its number of own slots needs no ninth bit.
        let shift = std::array::from_fn(|b| {
            let owner = usize::from(other[b]);
            if owner == b {
                return 0;
            }
            let before = next[owner];
            next[owner] += BUCKET - own[b];
            before.wrapping_sub(own[b])
        });
        Self { own, other, shift }
    }

    /// The symbol of `slot`, and the slot's number among those of its symbol.
    pub fn symbol(&self, slot: u16) -> (u8, u16) {
        let (bucket, place) = (usize::from(slot / BUCKET), slot % BUCKET);
        if place < self.own[bucket] {
            (bucket as u8, place)
        } else {
            (self.other[bucket], place.wrapping_add(self.shift[bucket]))
        }
    }

    /// For the `i`-th slot of each symbol, symbols in order: its number. One more entry is 0.
    pub fn numbers(&self, freqs: &Freqs) -> Box<[u16; TOTAL as usize + 1]> {
        let mut starts = [0; BUCKETS];
        for s in 1..BUCKETS {
            starts[s] = starts[s - 1] + usize::from(freqs[s - 1]);
        }
        let mut numbers = Box::new([0; TOTAL as usize + 1]);
        for slot in 0..TOTAL as u16 {
            let (symbol, i) = self.symbol(slot);
            numbers[starts[usize::from(symbol)] + usize::from(i)] = slot;
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::model::normalise;

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
            let freqs = normalise(&counts);
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
