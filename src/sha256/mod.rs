//! SHA-256 that can be verified in parallel: the states at fixed positions are kept, so that each
//! segment between two of them can be hashed independently.
//!
//! A segment that leads from one state to the next proves nothing by itself. All of them together,
//! from SHA-256's initial state to the final one, are exactly the computation of the hash (FIPS
//! 180-4, 6.2).

#[cfg(target_arch = "x86_64")]
mod simd;

use sha2::block_api::compress256;

/// Bytes between two kept states: a multiple of [`BLOCK`].
pub const SEGMENT: u64 = 1 << 20;
/// The initial state (FIPS 180-4, 5.3.3).
pub const INITIAL: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Bytes of a block of SHA-256.
pub const BLOCK: usize = 64;

/// The state between two blocks: eight words.
pub type State = [u32; 8];

/// The number of states that are kept for `len` bytes: one at each multiple of [`SEGMENT`] before
/// the end.
pub fn state_count(len: u64) -> u64 {
    len.saturating_sub(1) / SEGMENT
}

/// Hashes several segments at once on one thread.
pub struct SegmentHasher {
    states: Vec<State>,
    #[cfg(target_arch = "x86_64")]
    x16: Option<simd::Sha256x16>,
}

impl SegmentHasher {
    /// The number of segments that are hashed fastest at once on this machine.
    pub fn at_once() -> usize {
        #[cfg(target_arch = "x86_64")]
        if simd::Sha256x16::new().is_some() {
            return simd::LANES;
        }
        // The CPU works on one while the other waits: a third faster than one after the other.
        2
    }

    /// Continues from `states`, one for each segment.
    pub fn new(states: Vec<State>) -> Self {
        #[cfg(target_arch = "x86_64")]
        let x16 = simd::Sha256x16::new().filter(|_| states.len() == simd::LANES);
        Self {
            states,
            #[cfg(target_arch = "x86_64")]
            x16,
        }
    }

    /// The states after the blocks hashed so far.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// Hashes the next blocks of each segment. All slices have the same length, a multiple of
    /// [`BLOCK`], except that those of segments that have ended are empty.
    pub fn update(&mut self, bytes: &[&[u8]]) {
        #[cfg(target_arch = "x86_64")]
        if let (Some(x16), Ok(states), Ok(bytes)) = (
            self.x16,
            <&mut [State; simd::LANES]>::try_from(self.states.as_mut_slice()),
            bytes.try_into(),
        ) {
            let bytes: &[&[u8]; simd::LANES] = bytes;
            // Segments that have ended are hashed with the bytes of another one, and keep their
            // state.
            let Some(some) = bytes.iter().copied().find(|b| !b.is_empty()) else { return };
            let ended = bytes.each_ref().map(|b| b.is_empty());
            let before = *states;
            x16.compress(states, bytes.map(|b| if b.is_empty() { some } else { b }));
            for ((state, before), ended) in states.iter_mut().zip(before).zip(ended) {
                *state = if ended { before } else { *state };
            }
            return;
        }
        for (states, bytes) in self.states.chunks_mut(2).zip(bytes.chunks(2)) {
            match (states, bytes) {
                ([a, b], [left, right]) => {
                    let (left, right): (&[[u8; BLOCK]], &[[u8; BLOCK]]) =
                        (left.as_chunks().0, right.as_chunks().0);
                    for (left, right) in left.iter().zip(right) {
                        compress256(a, std::slice::from_ref(left));
                        compress256(b, std::slice::from_ref(right));
                    }
                    let both = left.len().min(right.len());
                    compress256(a, &left[both..]);
                    compress256(b, &right[both..]);
                }
                ([a], [left]) => compress256(a, left.as_chunks().0),
                _ => {}
            }
        }
    }
}

/// The SHA-256 of `len` bytes, given the state after all whole blocks and the bytes that follow,
/// `tail`.
pub fn finish(mut state: State, tail: &[u8], len: u64) -> [u8; 32] {
    debug_assert!(tail.len() < BLOCK);
    let mut last = tail.to_vec();
    last.push(0x80);
    while last.len() % BLOCK != BLOCK - 8 {
        last.push(0);
    }
    last.extend_from_slice(&(len * 8).to_be_bytes());
    compress256(&mut state, last.as_chunks().0);
    let mut out = [0; 32];
    out.as_chunks_mut::<4>().0.iter_mut().zip(state).for_each(|(o, s)| *o = s.to_be_bytes());
    out
}

/// Hashes a file in order and keeps the states at multiples of [`SEGMENT`].
pub struct Hasher {
    state: State,
    partial: Vec<u8>,
    kept: Vec<State>,
    len: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { state: INITIAL, partial: Vec::with_capacity(BLOCK), kept: Vec::new(), len: 0 }
    }
}

impl Hasher {
    /// Hashes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // The state at a boundary is kept only if bytes follow.
            if self.len > 0 && self.len.is_multiple_of(SEGMENT) {
                self.kept.push(self.state);
            }
            let left = (SEGMENT - self.len % SEGMENT) as usize;
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.segment(now);
            self.len += now.len() as u64;
            bytes = later;
        }
    }

    fn segment(&mut self, mut bytes: &[u8]) {
        if !self.partial.is_empty() {
            let (fill, rest) = bytes.split_at((BLOCK - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(fill);
            bytes = rest;
            if let Some(block) = self.partial.first_chunk::<BLOCK>() {
                compress256(&mut self.state, &[*block]);
                self.partial.clear();
            }
        }
        let (blocks, tail) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.partial.extend_from_slice(tail);
    }

    /// The hash of all bytes, and the kept states.
    pub fn finish(self) -> ([u8; 32], Vec<State>) {
        (finish(self.state, &self.partial, self.len), self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_hash_is_sha256_however_the_input_is_split() {
        let data: Vec<u8> =
            (0..SEGMENT as usize * 2 + 100).map(|i| ((i * 31) >> 3) as u8).collect();
        for len in
            [0, 1, 55, 56, 63, 64, 65, 1000, SEGMENT as usize, SEGMENT as usize + 1, data.len()]
        {
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
    fn each_segment_leads_from_its_state_to_the_next() {
        let segment = SEGMENT as usize;
        for count in [1, 2, 3, SegmentHasher::at_once()] {
            let data: Vec<u8> = (0..segment * count + 100).map(|i| ((i * 17) >> 2) as u8).collect();
            let mut h = Hasher::default();
            h.update(&data);
            let (digest, kept) = h.finish();
            let mut states = vec![INITIAL];
            states.extend_from_slice(&kept[..count - 1]);
            let mut all = SegmentHasher::new(states);
            // Pieces of different lengths. The last segment ends early.
            let mut at = 0;
            for piece in (1..).map(|i| i * BLOCK * 7) {
                let piece = piece.min(segment - at);
                let bytes: Vec<&[u8]> = (0..count)
                    .map(|i| {
                        if i + 1 == count && at >= segment / 2 {
                            &[]
                        } else {
                            &data[i * segment + at..][..piece]
                        }
                    })
                    .collect();
                all.update(&bytes);
                at += piece;
                if at == segment {
                    break;
                }
            }
            assert_eq!(all.states()[..count - 1], kept[..count - 1]);
            let mut last = SegmentHasher::new(vec![kept[count - 1]]);
            let tail = &data[count * segment..];
            last.update(&[&tail[..BLOCK]]);
            assert_eq!(finish(last.states()[0], &tail[BLOCK..], data.len() as u64), digest);
        }
    }
}
