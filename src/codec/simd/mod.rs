//! The fast copies of the decoder: chosen at run time, each tested against the scalar one.

#[cfg(target_arch = "x86_64")]
mod avx2;

use super::ChunkDecoder;
use std::sync::Arc;

/// The fastest SIMD decoder this machine can run, if any.
pub fn detect() -> Option<Arc<dyn ChunkDecoder>> {
    #[cfg(target_arch = "x86_64")]
    if let Some(d) = avx2::Avx2::new() {
        return Some(Arc::new(d));
    }
    None
}
