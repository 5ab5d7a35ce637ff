//! A decoder that asks before each chunk whether to go on.

use super::{ChunkDecoder, Coding, EntropyModel};
use crate::error::Result;
use std::sync::Arc;

/// Decodes like another decoder, until it is told to stop.
pub struct Interruptible<F> {
    decoder: Arc<dyn ChunkDecoder>,
    go_on: F,
}

impl<F: Fn() -> Result<()> + Send + Sync> Interruptible<F> {
    /// Decode with `decoder`; once `go_on` fails, every chunk fails with its error.
    pub fn new(decoder: Arc<dyn ChunkDecoder>, go_on: F) -> Self {
        Self { decoder, go_on }
    }
}

impl<F: Fn() -> Result<()> + Send + Sync> ChunkDecoder for Interruptible<F> {
    fn name(&self) -> &'static str {
        self.decoder.name()
    }

    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        (self.go_on)()?;
        self.decoder.decode(coding, model, payload, out)
    }
}
