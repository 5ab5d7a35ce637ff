//! SHA-256 that can be checked in parallel: the states at fixed places are kept, so that each stretch between two of
//! them can be hashed on its own.
//!
//! A stretch that leads from one state to the next proves nothing alone; all of them together, from SHA-256's initial
//! state to the final one, are exactly the computation of the hash (FIPS 180-4, 6.2).

use sha2::block_api::compress256;

/// Bytes between two kept states; a multiple of SHA-256's block.
pub const SEGMENT: u64 = 1 << 20;
/// The initial state (FIPS 180-4, 5.3.3).
pub const INITIAL: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

const BLOCK: usize = 64;

/// The state between two blocks.
pub type State = [u32; 8];

/// How many states are kept of `len` bytes: one at each multiple of [`SEGMENT`] inside.
pub fn state_count(len: u64) -> u64 {
    len.saturating_sub(1) / SEGMENT
}

/// Hashing of one stretch, from a state on.
pub struct Stretch {
    state: State,
    partial: Vec<u8>,
}

impl Stretch {
    /// Go on from `state`.
    pub fn new(state: State) -> Self {
        Self { state, partial: Vec::with_capacity(BLOCK) }
    }

    /// The state behind the whole blocks so far.
    pub fn state(&self) -> State {
        self.state
    }

    /// Hash the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, tail) = self.complete(bytes);
        compress256(&mut self.state, blocks);
        self.partial.extend_from_slice(tail);
    }

    /// Hash the next bytes of two stretches, taking turns: a processor that waits for one can work on the other,
    /// which is a third faster than one after the other.
    pub fn update_two(stretches: &mut [Self; 2], bytes: [&[u8]; 2]) {
        let [a, b] = stretches;
        let (blocks_a, tail_a) = a.complete(bytes[0]);
        let (blocks_b, tail_b) = b.complete(bytes[1]);
        for (block_a, block_b) in blocks_a.iter().zip(blocks_b) {
            compress256(&mut a.state, std::slice::from_ref(block_a));
            compress256(&mut b.state, std::slice::from_ref(block_b));
        }
        let both = blocks_a.len().min(blocks_b.len());
        compress256(&mut a.state, &blocks_a[both..]);
        compress256(&mut b.state, &blocks_b[both..]);
        a.partial.extend_from_slice(tail_a);
        b.partial.extend_from_slice(tail_b);
    }

    /// Complete the block that was begun; returns the whole blocks that follow, and the bytes behind them.
    fn complete<'a>(&mut self, mut bytes: &'a [u8]) -> (&'a [[u8; BLOCK]], &'a [u8]) {
        if !self.partial.is_empty() {
            let (fill, rest) = bytes.split_at((BLOCK - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(fill);
            bytes = rest;
            if let Some(block) = self.partial.first_chunk::<BLOCK>() {
                compress256(&mut self.state, &[*block]);
                self.partial.clear();
            }
        }
        bytes.as_chunks()
    }

    /// SHA-256 of a file of `len` bytes that ends here.
    pub fn finish(mut self, len: u64) -> [u8; 32] {
        self.partial.push(0x80);
        while self.partial.len() % BLOCK != BLOCK - 8 {
            self.partial.push(0);
        }
        self.partial.extend_from_slice(&(len * 8).to_be_bytes());
        compress256(&mut self.state, self.partial.as_chunks().0);
        let mut out = [0; 32];
        out.as_chunks_mut::<4>().0.iter_mut().zip(self.state).for_each(|(o, s)| *o = s.to_be_bytes());
        out
    }
}

/// Hashes a file in order and keeps the states.
pub struct Hasher {
    stretch: Stretch,
    kept: Vec<State>,
    len: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { stretch: Stretch::new(INITIAL), kept: Vec::new(), len: 0 }
    }
}

impl Hasher {
    /// Hash the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // A state belongs to the boundary only if bytes follow it.
            if self.len > 0 && self.len.is_multiple_of(SEGMENT) {
                self.kept.push(self.stretch.state());
            }
            let left = (SEGMENT - self.len % SEGMENT) as usize;
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.stretch.update(now);
            self.len += now.len() as u64;
            bytes = later;
        }
    }

    /// The hash of all bytes, and the states kept on the way.
    pub fn finish(self) -> ([u8; 32], Vec<State>) {
        (self.stretch.finish(self.len), self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_hash_is_sha256_however_the_bytes_come() {
        let data: Vec<u8> = (0..SEGMENT as usize * 2 + 100).map(|i| ((i * 31) >> 3) as u8).collect();
        for len in [0, 1, 55, 56, 63, 64, 65, 1000, SEGMENT as usize, SEGMENT as usize + 1, data.len()] {
            for step in [61, 64, 100_003] {
                let mut h = Hasher::default();
                data[..len].chunks(step).for_each(|c| h.update(c));
                let (digest, kept) = h.finish();
                assert_eq!(digest[..], Sha256::digest(&data[..len])[..], "{len} bytes by {step}");
                assert_eq!(kept.len() as u64, state_count(len as u64));
            }
        }
    }

    #[test]
    fn stretches_lead_from_each_kept_state_to_the_next() {
        let segment = SEGMENT as usize;
        let data: Vec<u8> = (0..segment * 2 + 100).map(|i| ((i * 17) >> 2) as u8).collect();
        let mut h = Hasher::default();
        h.update(&data);
        let (digest, kept) = h.finish();
        let mut two = [INITIAL, kept[0]].map(Stretch::new);
        // Pieces of different lengths, none of them whole blocks.
        for (a, b) in data[..segment].chunks(1001).zip(data[segment..2 * segment].chunks(1001)) {
            Stretch::update_two(&mut two, [a, &b[..b.len() / 2]]);
            two[1].update(&b[b.len() / 2..]);
        }
        assert_eq!([two[0].state(), two[1].state()], [kept[0], kept[1]]);
        let mut last = Stretch::new(kept[1]);
        last.update(&data[2 * segment..]);
        assert_eq!(last.finish(data.len() as u64), digest);
    }
}
