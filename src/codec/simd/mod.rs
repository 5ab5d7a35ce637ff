//! The fast copies of the decoder and of the encoder's inner loop: chosen at run time, each tested against the scalar
//! one.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_tables;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod encode;
#[cfg(target_arch = "x86_64")]
mod prefetch;

use super::{
    ChunkDecoder, LANES,
    encode::{Costs, TableEncoder, Words, scalar_costs, scalar_rounds},
    model::MAX_CHOICES,
};
use std::sync::Arc;

/// Codes whole rounds of symbols, each with its table.
pub(super) type EncodeRounds = fn(&[&TableEncoder], &[u8], &mut [u32; LANES], &mut Words);

/// The encoder's inner loops.
pub(super) struct EncodeKernel {
    pub(super) rounds: EncodeRounds,
    /// What symbols cost.
    pub(super) costs: fn(&Costs, &[u8]) -> [u32; MAX_CHOICES],
}

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

/// The fastest encoder's inner loops.
pub(super) fn encode_kernel() -> EncodeKernel {
    #[cfg(target_arch = "x86_64")]
    if encode::present() {
        return EncodeKernel { rounds: encode::rounds, costs: encode::costs };
    }
    EncodeKernel { rounds: scalar_rounds, costs: scalar_costs }
}
