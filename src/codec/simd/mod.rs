//! Fast copies of the decoder's and the encoder's inner loops. They are chosen at run time, and
//! tests compare each with the scalar one.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod features;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod kernels;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod prefetch;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod take;

use super::{ChunkDecoder, decode::KernelDecoder, encode::EncodeKernel};
use std::sync::Arc;

/// The SIMD decoders that this machine can run, fastest first.
pub(super) fn decoders() -> Vec<Arc<dyn ChunkDecoder>> {
    let mut found: Vec<Arc<dyn ChunkDecoder>> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        found.extend(features::Avx512::detect().map(|k| Arc::new(KernelDecoder(k)) as _));
        found.extend(features::Avx2::detect().map(|k| Arc::new(KernelDecoder(k)) as _));
    }
    // The kernel takes vectors of 16-bit numbers for those of their bytes, low bytes first.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    found.extend(features::Neon::detect().map(|k| Arc::new(KernelDecoder(k)) as _));
    found
}

/// The SIMD encoders that this machine can run, fastest first.
pub(super) fn encode_kernels() -> Vec<EncodeKernel> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        found.extend(features::Avx512::detect().map(|_| kernels::AVX512));
        found.extend(features::Avx2::detect().map(|_| kernels::AVX2));
    }
    found
}
