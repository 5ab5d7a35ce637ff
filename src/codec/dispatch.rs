//! Which kernels this machine runs.

use super::{
    ChunkDecoder, Coding, EntropyModel,
    decode::{KernelDecoder, ScalarKernel},
    encode::{EncodeKernel, EncodeMemory, Encoder},
    simd,
};
use crate::error::Result;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The decoder that defines the bits: scalar, safe, and available everywhere.
pub fn reference() -> Arc<dyn ChunkDecoder> {
    Arc::new(KernelDecoder(ScalarKernel))
}

/// All decoders that this machine can run, fastest first. The last is [`reference()`].
pub fn decoders() -> Vec<Arc<dyn ChunkDecoder>> {
    let mut all = simd::decoders();
    all.push(reference());
    all
}

/// The fastest decoder that this machine can run, or the one that the environment variable
/// `BSZ_DECODER` names.
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

/// The decoder that checks what was just encoded: the fastest one, except for every 32nd chunk,
/// which [`reference()`] decodes. An encoder and a decoder of this machine that have the same bug
/// are then noticed.
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
        let decoder = if n.is_multiple_of(32) { &self.reference } else { &self.fast };
        decoder.decode(coding, model, payload, out)
    }
}

impl<'a> Encoder<'a> {
    /// The fastest encoder of `model` that this machine can run.
    pub fn new(model: &'a EntropyModel) -> Self {
        Self::with_memory(model, &Arc::default())
    }

    /// The same, with memory that other encoders use, too.
    pub fn with_memory(model: &'a EntropyModel, memory: &Arc<EncodeMemory>) -> Self {
        let kernel = simd::encode_kernels().into_iter().next().unwrap_or(EncodeKernel::SCALAR);
        Self::with_kernel(model, kernel, memory)
    }
}
