//! The bytes on disk: header and footer, index, names, and the safetensors header that extents come from.
//!
//! `docs/FORMAT.md` is the specification; the constants here are its numbers.

mod footer;
mod index;
mod naming;
mod parts;
mod safetensors;

pub use footer::{FOOTER_LEN, Footer, HEADER_LEN, header, peek, read_exact};
pub use index::{Chunk, Index, IndexWriter, NO_MODEL};
pub use naming::Naming;
pub use parts::{IndexMemory, ReadIndex};
pub use safetensors::{Extent, Header, MAX_HEADER, Tensor, claimed_len, header_len};

/// The version written, and the only one read.
pub const VERSION: u16 = 1;
/// Decoded bytes of a chunk unless told otherwise.
pub const DEFAULT_CHUNK: u32 = 256 << 10;
/// No chunk decodes to more than this.
pub const MAX_CHUNK: u32 = 4 << 20;
