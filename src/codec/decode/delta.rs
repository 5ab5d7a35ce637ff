//! Decoding differences: elements are changed in place from those of the base.

use super::kernel::Kernel;
use crate::codec::{ChunkError, EntropyModel, bytes::take_array, wire::StorageMode};

/// Decodes a chunk of [`crate::codec::Coding::Delta`]. `out` holds the base's bytes.
///
/// # Errors
/// Whatever is wrong with the payload.
#[inline(always)]
pub(in crate::codec) fn decode_delta<K: Kernel>(
    _kernel: K,
    model: &EntropyModel,
    mut payload: &[u8],
    out: &mut [u8],
) -> Result<(), ChunkError> {
    let width = usize::from(model.layout().width());
    if !out.len().is_multiple_of(width) {
        return Err(ChunkError::PartialElement);
    }
    match take_array(&mut payload).ok_or(ChunkError::Truncated)? {
        [mode, 0, 0, 0] if *mode == StorageMode::Constant as u8 => match payload {
            [] => Ok(()),
            _ => Err(ChunkError::TrailingBytes),
        },
        [mode, ..] => Err(ChunkError::UnknownMode(Some(*mode))),
    }
}
