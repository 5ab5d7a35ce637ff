//! One chunk: bytes to symbols and bit planes to an entropy-coded stream, and back. Knows nothing
//! about files.
//!
//! A chunk holds elements of one type. The top bits of an element (the exponent, leading mantissa
//! bits and sometimes the sign) are its *symbol value*. The [`model`] that the chunks of a tensor
//! share maps frequent symbol values to *symbols*, which are coded with interleaved rANS; the
//! others are escaped. The bits below are cut into [`planes`], which are stored in full, as a
//! constant, or without the blocks in which they are zero.
//!
//! | module | its job |
//! |---|---|
//! | [`planes`] | elements to symbol values and bit planes |
//! | [`model`] | frequency tables and how decoders look them up |
//! | `differences` | elements and those of a base to differences, and how these are cut |
//! | `fit` | a sample of a tensor to its model |
//! | `encode` | a chunk to its smallest stored form |
//! | `decode` | the kernels' interface, the scalar kernel that defines the bits, the pipeline |
//! | `simd` | fast copies of the kernels |
//! | `dispatch` | which of them this machine runs |
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, unused_imports, unused_mut, reason = "only kernels for x86-64 use it")
)]

pub mod model;
pub mod planes;

mod bytes;
mod chunk_error;
mod decode;
mod differences;
mod dispatch;
mod encode;
mod fit;
mod interruptible;
mod simd;
mod wire;

#[cfg(test)]
mod difference_tests;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};

pub use chunk_error::ChunkError;
pub use decode::ChunkDecoder;
pub use dispatch::{decoders, fastest, reference, verifying};
pub use encode::{EncodeMemory, Encoder, encode, encode_differences};
pub use fit::{Detected, DifferenceSample, Sample, detect, fit, fit_differences, should_try_zstd};
pub use interruptible::Interruptible;
pub use model::{Cut, Delta, EntropyModel};
pub use planes::ElementKind;

/// Symbol probabilities are multiples of 2^-14.
pub const PROB_BITS: u32 = 14;
/// Interleaved rANS states: four GPU warps, or enough CPU registers in flight to hide their
/// latency.
pub const LANES: usize = 128;
/// The lower bound of a state: states are in `STATE_LOW..2^32`.
pub const STATE_LOW: u32 = 1 << 16;

/// The encoding of a chunk's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Coding {
    /// The bytes themselves.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
    /// Symbols and planes, coded with an [`EntropyModel`].
    Planes = 2,
    /// Differences from the bytes of another file, coded with an [`EntropyModel`] that names them.
    Delta = 3,
}

impl Coding {
    /// The coding with this number on disk.
    ///
    /// # Errors
    /// Compatibility, naming the number, if it is unknown.
    pub fn from_wire(byte: u8) -> Result<Self> {
        match byte {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            2 => Ok(Self::Planes),
            3 => Ok(Self::Delta),
            n => Err(Error::unsupported(format!(
                "chunk coding {n} is unknown; a newer bsz is needed"
            ))),
        }
    }

    /// The name to show to users.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::Planes => "planes",
            Self::Delta => "delta",
        }
    }
}

/// The checksum of decoded bytes and of the index: XXH3-64 with seed 0.
pub fn checksum(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// Compares decoded bytes with their checksum.
///
/// # Errors
/// [`ChunkError::Checksum`] if they differ.
pub fn verify_checksum(bytes: &[u8], expected: u64) -> Result<(), ChunkError> {
    if checksum(bytes) == expected { Ok(()) } else { Err(ChunkError::Checksum) }
}
