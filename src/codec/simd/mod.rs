//! The fast copies of the decoder: chosen at run time, each tested against the scalar one.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::ChunkDecoder;
use std::sync::Arc;

/// The SIMD decoders that this machine can run, fastest first.
pub fn detect() -> Vec<Arc<dyn ChunkDecoder>> {
    let mut found: Vec<Arc<dyn ChunkDecoder>> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        found.extend(avx512::Avx512::new().map(|d| Arc::new(d) as _));
        found.extend(avx2::Avx2::new().map(|d| Arc::new(d) as _));
    }
    found
}
