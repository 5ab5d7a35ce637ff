//! Everything that can be wrong with a stored chunk. All decoders share it, on the CPU and on the
//! GPU.

use crate::error::{Error, ErrorKind};
use std::fmt;

/// Why a stored chunk cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkError {
    /// The stored bytes end too early.
    Truncated,
    /// The stored bytes go on behind the last plane.
    TrailingBytes,
    /// The stored bytes do not decode to the length that the index gives.
    WrongLength,
    /// The decoded length is not a whole number of elements.
    PartialElement,
    /// The chunk's coding needs a model, and the index names none, or one of another coding.
    NoModel,
    /// A reserved byte is not zero.
    ReservedByte,
    /// The symbols or a plane have a storage mode of a newer version; its number, where it is
    /// known.
    UnknownMode(Option<u8>),
    /// The record of the symbols or of a plane has a mode or a value that it cannot have.
    InvalidRecord,
    /// A block chooses a table that does not exist.
    TableChoice,
    /// An initial state is below [`super::STATE_LOW`].
    InvalidState,
    /// An escaped value has more bits than symbol values have.
    InvalidEscape,
    /// A sparse plane marks blocks behind the end of the chunk.
    BlockBitmap,
    /// Words are left over, or the final states are not the ones that the encoder started from.
    StreamEnd,
    /// Escaped values are left over.
    UnusedEscapes,
    /// The stored bytes are not exactly one zstd frame.
    ZstdFrame,
    /// zstd reports an error.
    Zstd(&'static str),
    /// The decoded bytes do not match their checksum.
    Checksum,
}

impl ChunkError {
    /// [`ErrorKind::Compatibility`] if a newer version may be able to decode the chunk, otherwise
    /// [`ErrorKind::Corruption`].
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::UnknownMode(_) => ErrorKind::Compatibility,
            _ => ErrorKind::Corruption,
        }
    }
}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the stored chunk ends too early",
            Self::TrailingBytes => "the stored chunk has trailing bytes",
            Self::WrongLength => "the stored chunk does not decode to its length in the index",
            Self::PartialElement => "the chunk is not a whole number of elements",
            Self::NoModel => "the chunk names no model, or one of another coding",
            Self::ReservedByte => "a reserved byte of the chunk is not zero",
            Self::UnknownMode(Some(mode)) => {
                return write!(f, "storage mode {mode} is unknown; a newer bsz is needed");
            }
            Self::UnknownMode(None) => "a storage mode is unknown; a newer bsz is needed",
            Self::InvalidRecord => "the symbols or a plane have an invalid mode or value",
            Self::TableChoice => "a block chooses a table that does not exist",
            Self::InvalidState => "an initial state is too small",
            Self::InvalidEscape => "an escaped value has too many bits",
            Self::BlockBitmap => "a sparse plane has more blocks than the chunk",
            Self::StreamEnd => "the entropy-coded stream does not end where it should",
            Self::UnusedEscapes => "the chunk has unused escaped values",
            Self::ZstdFrame => "the stored chunk is not exactly one zstd frame",
            Self::Zstd(why) => return write!(f, "the zstd frame does not decode: {why}"),
            Self::Checksum => "the decoded bytes do not match their checksum",
        })
    }
}

impl std::error::Error for ChunkError {}

impl From<ChunkError> for Error {
    fn from(e: ChunkError) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}
