//! What the kernels report about a chunk: `enum Status` of `parse.cuh`.

use super::loops::Loop;
use crate::{
    codec::ChunkError,
    error::{Error, ErrorKind, Result},
};

/// The loop of its own that has decoded a part of a chunk, if any.
pub(super) fn own_loop(status: u32) -> Option<Loop> {
    Loop::numbered(status >> 8)
}

/// The outcome of a chunk, from the status that a kernel has written.
///
/// # Errors
/// Whatever is wrong with the chunk; Io if the kernel did not look at it.
pub(super) fn outcome(status: u32) -> Result<()> {
    let error = match status & 0xff {
        1 => return Ok(()),
        2 => ChunkError::Truncated,
        3 => ChunkError::ReservedByte,
        4 => ChunkError::UnknownMode(None),
        5 => ChunkError::TableChoice,
        6 => ChunkError::InvalidState,
        7 => ChunkError::InvalidEscape,
        8 => ChunkError::InvalidRecord,
        9 => ChunkError::BlockBitmap,
        10 => ChunkError::TrailingBytes,
        11 => ChunkError::StreamEnd,
        12 => ChunkError::UnusedEscapes,
        13 => ChunkError::WrongLength,
        14 => ChunkError::Checksum,
        _ => {
            let why = format!("the GPU did not decode a chunk (status {status})");
            return Err(Error::new(ErrorKind::Io, why));
        }
    };
    Err(error.into())
}
