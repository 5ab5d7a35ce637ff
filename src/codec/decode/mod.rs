//! Decoding one chunk: the interface, and the decoder that any kernel makes.
//!
//! The [`parser`] takes the stored bytes apart. The [`pipeline`] then alternates between two inner
//! loops, which a [`kernel`] provides: decoding symbols, and unpacking planes, whose values
//! [`merge`] puts together with the symbol values. The [`scalar`] kernel defines the bits; those in
//! [`super::simd`] decode the same faster.

mod changes;
mod delta;
mod element;
mod kernel;
mod merge;
mod parser;
mod pipeline;
mod raw;
mod scalar;
mod simple;

use super::{ChunkError, Coding, EntropyModel};
use crate::error::Result;

pub(super) use changes::Changes;
pub(super) use delta::decode_delta;
#[cfg(target_arch = "aarch64")]
pub(super) use kernel::spread;
pub(super) use kernel::{Kernel, RoundTables, Rounds, Stream};
pub(super) use pipeline::decode_planes;
pub(super) use scalar::ScalarKernel;

/// Decodes stored chunks.
pub trait ChunkDecoder: Send + Sync {
    /// The kernel's name for users, such as `scalar` or `avx512`.
    fn name(&self) -> &'static str;

    /// Decodes `payload` into all of `out`. If the coding is [`Coding::Delta`], `out` must hold the
    /// base's bytes, as many as the chunk has.
    ///
    /// The caller must still compare [`super::checksum`]. After an error the contents of `out` are
    /// unspecified.
    ///
    /// # Errors
    /// A [`ChunkError`] if the payload contradicts itself, the model or the length of `out`.
    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()>;
}

/// The decoder that uses kernel `K`.
pub(super) struct KernelDecoder<K>(pub K);

impl<K: Kernel + Send + Sync> ChunkDecoder for KernelDecoder<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        match coding {
            Coding::Raw => simple::copy_raw(payload, out)?,
            Coding::Zstd => simple::decompress_zstd(payload, out)?,
            Coding::Planes => {
                let model = model.filter(|m| m.delta().is_none()).ok_or(ChunkError::NoModel)?;
                self.0.decode_planes(model, payload, out)?;
            }
            Coding::Delta => {
                let model = model.filter(|m| m.delta().is_some()).ok_or(ChunkError::NoModel)?;
                self.0.decode_delta(model, payload, out)?;
            }
        }
        Ok(())
    }
}
