//! The codings that need neither model nor kernel: raw and zstd.

use crate::codec::ChunkError;
use zstd::zstd_safe::{decompress, find_frame_compressed_size, get_error_name};

/// Decodes a raw chunk.
pub(super) fn copy_raw(payload: &[u8], out: &mut [u8]) -> Result<(), ChunkError> {
    if payload.len() != out.len() {
        return Err(ChunkError::WrongLength);
    }
    out.copy_from_slice(payload);
    Ok(())
}

/// Decodes a chunk that is one zstd frame.
pub(super) fn decompress_zstd(payload: &[u8], out: &mut [u8]) -> Result<(), ChunkError> {
    if find_frame_compressed_size(payload) != Ok(payload.len()) {
        return Err(ChunkError::ZstdFrame);
    }
    let n = decompress(out, payload).map_err(|code| ChunkError::Zstd(get_error_name(code)))?;
    if n == out.len() { Ok(()) } else { Err(ChunkError::WrongLength) }
}
