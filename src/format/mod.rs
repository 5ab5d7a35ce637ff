//! The bytes on disk: header and footer, index, names, and the headers of safetensors and other
//! containers that the extents of a file follow from.
//!
//! `docs/FORMAT.md` is the specification; the constants here are its numbers.

mod bases;
mod check;
mod containers;
mod extent;
mod footer;
mod index;
mod memory;
mod naming;
mod parts;
mod record;
mod safetensors;
mod writer;

pub use bases::{Base, MAX_BASES, is_pin};
pub use containers::{Container, Named, ReadAt, container, container_tensors, onnx_data};
pub use extent::Extent;
pub use footer::{FOOTER_LEN, Footer, check_header, header, peek, read_exact};
pub use index::{Index, bases_of};
pub use memory::IndexMemory;
pub use naming::Naming;
pub use parts::ReadIndex;
pub use record::{Chunk, NO_MODEL};
pub use safetensors::{Header, MAX_HEADER, Tensor, claimed_len, header_len};
pub use writer::IndexWriter;

/// The version of archives that stand alone.
pub const VERSION: u16 = 1;
/// The version of archives that need other files: see [`Base`].
pub const VERSION_WITH_BASES: u16 = 2;
/// Bytes of the header, which precedes the first chunk.
pub const HEADER_LEN: u64 = 16;
/// Default decoded length of a chunk, in bytes.
pub const DEFAULT_CHUNK: u32 = 256 << 10;
/// The longest decoded length of a chunk, in bytes.
pub const MAX_CHUNK: u32 = 4 << 20;
