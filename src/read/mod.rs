//! Reading archives: random access to an immutable archive, and restoring whole files.
//!
//! [`Archive`] reads and decodes chunks. Stored bytes come from `storage`, which is a `local` file
//! that bypasses the page cache or a remote object, into `scratch` memory. Several archives share
//! an [`ArchiveMemory`] for their indexes and entropy models. `parts` reads any bytes of the
//! original, and `many` does that with several threads. `whole` verifies and unpacks, and
//! `describe` lists what an archive contains.

mod archive;
mod describe;
mod local;
mod many;
mod memory;
mod parts;
mod scratch;
mod storage;
mod threads;
mod tree;
mod whole;

pub use crate::format::peek;
pub use archive::{Archive, IndexedChunk, StoredChunk};
pub(crate) use archive::{are_adjacent, scratch_len, stored_range};
pub use describe::{Coded, Description, TensorDescription, describe, header, header_json};
pub use many::read_many;
pub use memory::ArchiveMemory;
pub use parts::Part;
pub use scratch::Scratch;
pub(crate) use scratch::{HUGE_PAGE, PAGE};
#[cfg(feature = "remote")]
pub use storage::peek_object;
pub(crate) use storage::{Fetched, Priority};
pub use threads::{Permit, ThreadLimit};
pub use tree::archives;
pub use whole::{unpack, verify, verify_chunks};
