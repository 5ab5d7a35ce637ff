//! SHA-256 that can be checked in parallel: the states at fixed places are kept, so that each stretch between two of
//! them can be hashed on its own.
//!
//! A stretch that leads from one state to the next proves nothing alone; all of them together, from SHA-256's initial
//! state to the final one, are exactly the computation of the hash (FIPS 180-4, 6.2).

use sha2::block_api::compress256;

/// Bytes between two kept states; a multiple of SHA-256's block.
pub const SEGMENT: u64 = 4 << 20;
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

/// Hashes bytes in order and keeps the states.
pub struct Hasher {
    state: State,
    kept: Vec<State>,
    partial: Vec<u8>,
    len: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { state: INITIAL, kept: Vec::new(), partial: Vec::with_capacity(BLOCK), len: 0 }
    }
}

impl Hasher {
    /// Hash the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // A state belongs to the boundary only if bytes follow it.
            if self.len > 0 && self.len.is_multiple_of(SEGMENT) {
                self.kept.push(self.state);
            }
            let left = (SEGMENT - self.len % SEGMENT) as usize;
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.blocks(now);
            self.len += now.len() as u64;
            bytes = later;
        }
    }

    fn blocks(&mut self, mut bytes: &[u8]) {
        if !self.partial.is_empty() {
            let (fill, rest) = bytes.split_at((BLOCK - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(fill);
            bytes = rest;
            if let Some(block) = self.partial.first_chunk::<BLOCK>() {
                compress256(&mut self.state, &[*block]);
                self.partial.clear();
            }
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        compress256(&mut self.state, blocks);
        self.partial.extend_from_slice(rest);
    }

    /// The hash of all bytes, and the states kept on the way.
    pub fn finish(self) -> ([u8; 32], Vec<State>) {
        (finish(self.state, &self.partial, self.len), self.kept)
    }
}

/// Hash whole blocks of two stretches from their states, taking turns: a processor that waits for one can work on the
/// other, which is a third faster than one after the other.
pub fn advance_two(states: &mut [State; 2], stretches: [&[u8]; 2]) {
    let [a, b] = stretches.map(|s| s.as_chunks::<BLOCK>().0);
    let both = a.len().min(b.len());
    for (a, b) in a.iter().zip(b) {
        compress256(&mut states[0], std::slice::from_ref(a));
        compress256(&mut states[1], std::slice::from_ref(b));
    }
    compress256(&mut states[0], &a[both..]);
    compress256(&mut states[1], &b[both..]);
}

/// The hash of `len` bytes whose whole blocks led to `state`, and whose last bytes, less than a block, are `tail`.
pub fn finish(mut state: State, tail: &[u8], len: u64) -> [u8; 32] {
    let mut padded = tail.to_vec();
    padded.push(0x80);
    while padded.len() % BLOCK != BLOCK - 8 {
        padded.push(0);
    }
    padded.extend_from_slice(&(len * 8).to_be_bytes());
    compress256(&mut state, padded.as_chunks::<BLOCK>().0);
    let mut out = [0; 32];
    out.as_chunks_mut::<4>().0.iter_mut().zip(state).for_each(|(o, s)| *o = s.to_be_bytes());
    out
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
        let mut states = [INITIAL, kept[0]];
        advance_two(&mut states, [&data[..segment], &data[segment..2 * segment]]);
        assert_eq!(states, [kept[0], kept[1]]);
        let mut last = [kept[1], INITIAL];
        advance_two(&mut last, [&data[2 * segment..], &[]]);
        assert_eq!(finish(last[0], &data[2 * segment + 64..], data.len() as u64), digest);
    }
}
