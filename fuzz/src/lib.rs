//! What the fuzz targets share: running every decoder on exactly sized memory, sealing archives,
//! and expanding short inputs.

use arbitrary::Unstructured;
use bszfs::codec::{self, ChunkDecoder, Coding, EntropyModel};
pub use random::Random;
use std::sync::{Arc, LazyLock};

#[path = "../../tests/common/containers.rs"]
pub mod containers;
#[path = "../../tests/common/random.rs"]
mod random;

/// `None` for an input that ends before there is anything to test.
pub type Tested = Option<()>;

/// Every decoder, the reference first and once more at the end: results must not depend on the
/// previous contents of memory.
pub static DECODERS: LazyLock<Vec<Arc<dyn ChunkDecoder>>> = LazyLock::new(|| {
    let mut all = codec::decoders();
    all.push(codec::reference());
    all.rotate_right(1);
    all
});

/// Decode with every decoder; all must agree. Payload and output are the last bytes of their
/// allocations, `skew` bytes from the start.
pub fn decode(
    coding: Coding,
    model: Option<&EntropyModel>,
    payload: &[u8],
    len: usize,
    skew: usize,
) -> Result<Vec<u8>, String> {
    decode_onto(coding, model, payload, len, &[], skew)
}

/// The same where the output holds the bytes of `base`, as many as there are.
pub fn decode_onto(
    coding: Coding,
    model: Option<&EntropyModel>,
    payload: &[u8],
    len: usize,
    base: &[u8],
    skew: usize,
) -> Result<Vec<u8>, String> {
    let payload: Box<[u8]> = [&vec![0xee; skew], payload].concat().into();
    let mut results = DECODERS.iter().enumerate().map(|(i, decoder)| {
        let fill = [0x00, 0xff, 0xaa, 0x55][i % 4];
        let mut out = vec![fill; skew + len].into_boxed_slice();
        out[skew..].iter_mut().zip(base).for_each(|(out, base)| *out = *base);
        let decoded = decoder.decode(coding, model, &payload[skew..], &mut out[skew..]);
        assert!(
            out[..skew].iter().all(|&b| b == fill),
            "{} writes before its output",
            decoder.name()
        );
        (decoder.name(), decoded.map(|()| out[skew..].to_vec()).map_err(|e| e.to_string()))
    });
    let (_, first) = results.next().expect("the reference");
    for (name, result) in results {
        if result != first {
            let at = |a: &[u8], b: &[u8]| a.iter().zip(b).position(|(a, b)| a != b);
            match (&first, &result) {
                (Ok(a), Ok(b)) => {
                    panic!("{name} decodes other bytes from byte {:?} of {len} on", at(a, b))
                }
                (a, b) => panic!("{name}: {:?}, scalar: {:?}", b.as_ref().err(), a.as_ref().err()),
            }
        }
    }
    first
}

/// Up to `most` bytes, expanded from all of `u` as a recipe: fuzzers find structure in short
/// inputs.
pub fn expand(u: &mut Unstructured<'_>, most: usize) -> arbitrary::Result<Vec<u8>> {
    let mut out: Vec<u8> = Vec::new();
    while !u.is_empty() && out.len() < most {
        let room = most - out.len();
        let op: u8 = u.arbitrary()?;
        let n = usize::from(u.arbitrary::<u16>()?).min(room);
        match op % 6 {
            // Literal bytes.
            0 => out.extend_from_slice(u.bytes((n % 256).min(u.len()))?),
            // One value, repeated.
            1 => {
                let one = u.bytes(usize::from(1u8 << (op / 6 % 4)).min(u.len()))?;
                out.extend(one.iter().cycle().take(n));
            }
            // Noise in some bits of every eight bytes.
            2 => {
                let (mask, base, mut r) =
                    (u.arbitrary::<u64>()?, u.arbitrary::<u64>()?, Random(u.arbitrary()?));
                let bytes = (0..n / 8).flat_map(|_| (r.next() & mask ^ base).to_le_bytes());
                out.extend(bytes);
            }
            // The end, repeated as often as it fits.
            3 => {
                let back = usize::from(u.arbitrary::<u16>()?).min(out.len());
                let from = out.len() - back;
                (0..if back == 0 { 0 } else { n }).for_each(|i| out.push(out[from + i]));
            }
            // Little-endian numbers of any width around a base, mostly with small differences.
            // Their scale depends on the row or on the column.
            4 => {
                let (width, base) = (1usize << (op / 6 % 4), u.arbitrary::<u64>()?);
                let (row, by_column) =
                    (1 + usize::from(u.arbitrary::<u16>()? % 4096), op / 24 % 2 == 1);
                let (mut r, bits) = (Random(u.arbitrary()?), u32::from(u.arbitrary::<u8>()? % 64));
                for i in 0..n / width {
                    let shift = if by_column { i % row % 7 } else { i / row % 7 } as u32;
                    let size = (r.next().leading_zeros() + bits + shift).min(63);
                    let v = base.wrapping_add(r.next() >> (63 - size.min(8 * width as u32 - 1)));
                    out.extend_from_slice(&v.to_le_bytes()[..width]);
                }
            }
            // One changed byte.
            _ if !out.is_empty() => {
                let at = usize::from(u.arbitrary::<u16>()?) % out.len();
                out[at] ^= u.arbitrary::<u8>()?;
            }
            _ => {}
        }
    }
    Ok(out)
}

/// The size of a footer, in bytes.
pub const FOOTER: usize = 128;

/// Give `footer` a valid checksum.
pub fn seal_footer(footer: &mut [u8; FOOTER]) {
    footer[120..].copy_from_slice(b"\x01\0BSZEND");
    let sum = codec::checksum(&[&footer[..112], &footer[120..]].concat());
    footer[112..120].copy_from_slice(&sum.to_le_bytes());
}

/// Correct the fields of a footer that are independent of the rest of the archive, and the offset
/// of the index, which may be anywhere in the `len` bytes before the footer. Returns that offset.
pub fn correct_footer(footer: &mut [u8; FOOTER], len: usize) -> usize {
    footer[51] &= 0x1f;
    footer[53] &= 0x0f;
    footer[54..56].fill(0);
    footer[56] &= 1;
    footer[57..64].fill(0);
    footer[98] &= 0x3f;
    footer[99] = 0;
    footer[100..112].fill(0);
    let said = u64::from_le_bytes(std::array::from_fn(|i| footer[64 + i])) as usize;
    let index = if (16..=len).contains(&said) { said } else { 16 + said % (len - 15) };
    footer[64..72].copy_from_slice(&(index as u64).to_le_bytes());
    footer[72..80].copy_from_slice(&((len - index) as u64).to_le_bytes());
    index
}
