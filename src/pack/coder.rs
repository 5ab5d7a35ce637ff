//! Encodes the chunks of an extent: as differences from a base, or as they are.

use super::{differences::Planes, pairs::Pairs, plan::Planned};
use crate::{
    codec::{Coding, EncodeMemory, Encoder},
    error::Result,
};
use std::sync::Arc;

/// What encodes the chunks of an extent.
pub(super) struct Coder<'a> {
    own: Option<Encoder<'a>>,
    differences: Option<Encoder<'a>>,
}

impl<'a> Coder<'a> {
    /// For the chunks of an extent.
    pub(super) fn new(planned: &'a Planned, memory: &Arc<EncodeMemory>) -> Self {
        let encoder = |model| Encoder::with_memory(model, memory);
        Self {
            own: planned.model.as_ref().map(encoder),
            differences: planned.differences.as_ref().map(|d| encoder(&d.model)),
        }
    }

    /// Encode the chunk `bytes`, which starts at `from`.
    pub(super) fn encode(
        &self,
        pairs: &Pairs,
        planned: &Planned,
        from: u64,
        bytes: &[u8],
    ) -> Result<(Coding, Vec<u8>)> {
        let own = Planes { encoder: self.own.as_ref(), try_zstd: planned.try_zstd };
        Ok(match planned.differences.as_ref().zip(self.differences.as_ref()) {
            Some((differences, encoder)) => {
                let mut base = vec![0; bytes.len()];
                pairs.read(differences.pair, from, &mut base)?;
                differences.encode((bytes, &base), encoder, &own)
            }
            None => own.encode(bytes),
        })
    }
}
