//! One chunk: bytes to planes to an entropy-coded stream, and back. Knows nothing of files.
//!
//! A chunk holds elements of one type. The top bits of each, exponent and leading mantissa bits and sometimes the sign,
//! are one symbol of a [`model`] shared by the tensor and are coded with interleaved rANS; the others are cut into
//! [`planes`], which are stored as they are, as a constant, or without the blocks in which they are zero. [`encode`]
//! writes, [`decode`] is the scalar definition of the bits, and [`simd`] the fast copies of it.

pub mod decode;
pub mod encode;
pub mod model;
pub mod planes;
pub mod simd;
pub mod stats;

mod alias;
mod classes;
mod map;
mod merge;

use crate::error::{Error, Result};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

pub use encode::{Encoder, encode};
pub use model::EntropyModel;
pub use planes::ElementKind;
pub use stats::{Sample, model, should_try_zstd};

/// Symbols' probabilities are multiples of 2^-14.
pub const PROB_BITS: u32 = 14;
/// States that take turns: four GPU warps, or the registers of a CPU, with enough in flight to hide their latency.
pub const LANES: usize = 128;
/// States live in `STATE_LOW..2^32`.
pub const STATE_LOW: u32 = 1 << 16;

/// How a chunk's stored bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Coding {
    /// As they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
    /// Planes of a [`EntropyModel`].
    Planes = 2,
}

impl Coding {
    /// The coding with this number on disk, or an error that names the number.
    pub fn from_wire(byte: u8) -> Result<Self> {
        match byte {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            2 => Ok(Self::Planes),
            n => Err(Error::unsupported(format!(
                "chunk coding {n} is unknown; a newer bsz is needed"
            ))),
        }
    }

    /// The name shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::Planes => "planes",
        }
    }
}

/// Something that turns a chunk's stored bytes into its decoded bytes.
pub trait ChunkDecoder: Send + Sync {
    /// What it runs on, for people: `scalar`, `avx512`.
    fn name(&self) -> &'static str;

    /// Decode `payload` into all of `out`.
    ///
    /// The result is not yet trusted: the caller compares [`checksum`]. On an error `out` holds anything.
    ///
    /// # Errors
    /// Corruption, where the payload contradicts itself, the model or the length of `out`.
    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()>;
}

/// The decoder that defines the bits: scalar, safe, everywhere.
pub fn reference() -> Arc<dyn ChunkDecoder> {
    Arc::new(decode::Scalar)
}

/// Every decoder this machine can run, fastest first; the last is [`reference`].
pub fn decoders() -> Vec<Arc<dyn ChunkDecoder>> {
    let mut all = simd::detect();
    all.push(reference());
    all
}

/// The fastest decoder this machine can run, or the one that `BSZ_DECODER` in the environment names.
pub fn fastest() -> Arc<dyn ChunkDecoder> {
    let named = std::env::var("BSZ_DECODER").ok();
    let chosen = decoders().into_iter().find(|d| named.as_deref().is_none_or(|n| n == d.name()));
    let chosen = chosen.unwrap_or_else(|| {
        log::warn!(
            "this machine has no decoder {:?}; using the scalar one",
            named.unwrap_or_default()
        );
        reference()
    });
    log::debug!("decoding with {}", chosen.name());
    chosen
}

/// The decoder that checks what was just encoded: the fastest one, but the reference for every eighth chunk, so that an
/// archive is not called good because an encoder and a decoder of this machine err alike.
pub fn verifying() -> Arc<dyn ChunkDecoder> {
    Arc::new(Verifying { fast: fastest(), reference: reference(), count: AtomicUsize::new(0) })
}

struct Verifying {
    fast: Arc<dyn ChunkDecoder>,
    reference: Arc<dyn ChunkDecoder>,
    count: AtomicUsize,
}

impl ChunkDecoder for Verifying {
    fn name(&self) -> &'static str {
        "verifying"
    }

    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let n = self.count.fetch_add(1, Ordering::Relaxed);
        let decoder = if n.is_multiple_of(8) { &self.reference } else { &self.fast };
        decoder.decode(coding, model, payload, out)
    }
}

/// The checksum of decoded bytes, and of the index: XXH3-64 with seed 0.
pub fn checksum(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// Decode the codings that need no kernel; `true` if it was one of them.
pub(crate) fn decode_simple(coding: Coding, payload: &[u8], out: &mut [u8]) -> Result<bool> {
    match coding {
        Coding::Raw if payload.len() == out.len() => out.copy_from_slice(payload),
        Coding::Raw => return Err(Error::corrupt("a raw chunk is not as long as what it holds")),
        Coding::Zstd => {
            if zstd::zstd_safe::find_frame_compressed_size(payload) != Ok(payload.len()) {
                return Err(Error::corrupt("a zstd chunk is not one frame"));
            }
            let n = zstd::bulk::decompress_to_buffer(payload, out)
                .map_err(|e| Error::corrupt(format!("a zstd chunk does not decode ({e})")))?;
            if n != out.len() {
                return Err(Error::corrupt("a zstd chunk is shorter than what it should hold"));
            }
        }
        Coding::Planes => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{model::Table, planes::Layout, *};

    /// Elements of `width` bytes: the upper eight bits are mostly one of 16 values, the others noise.
    fn elements(width: usize, count: usize) -> Vec<u8> {
        let mut seed = 1u64;
        let mut element = || {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let top = 0x30 + (seed >> 60) + if seed >> 52 & 127 == 0 { 0x60 } else { 0 };
            let low = 8 * width - 8;
            top << low | seed >> 8 & ((1 << low) - 1)
        };
        (0..count).flat_map(|_| element().to_le_bytes().into_iter().take(width)).collect()
    }

    #[test]
    fn chunks_of_every_width_come_back_through_every_decoder() {
        let counts: &[usize] =
            if cfg!(miri) { &[1500] } else { &[1500, 2048, 4095, 4096, 4097, 6144, 20_001] };
        let table = |seed: u64| {
            Table::from_counts(&(0..17).map(|i| (i + seed) * 31 % 97).collect::<Vec<_>>())
        };
        let columns: Vec<u8> = (0..131).map(|i| i % 3).collect();
        for (width, columns, choices) in
            [(1, vec![], 1), (2, vec![], 4), (4, columns.clone(), 1), (8, columns, 2)]
        {
            let classes = if columns.is_empty() { 1 } else { 3 };
            let tables = (0..choices * classes).map(table).collect();
            let layout = Layout::cut(width, false, 8, 0);
            let values = (0x30..0x40).collect();
            let model =
                EntropyModel::new(layout, values, 2 * LANES, columns, tables).expect("valid");
            for &count in counts {
                let chunk = elements(width.into(), count);
                let (coding, payload) = encode(&chunk, Some(&Encoder::new(&model)), false);
                assert_eq!(coding, Coding::Planes, "{count} elements of {width} bytes");
                for decoder in decoders() {
                    let mut out = vec![0xaa; chunk.len()];
                    decoder.decode(coding, Some(&model), &payload, &mut out).expect("decodes");
                    assert!(out == chunk, "{count} elements of {width} bytes, {}", decoder.name());
                }
            }
        }
    }
}
