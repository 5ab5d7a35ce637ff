//! Reading archives: random access to an immutable archive, and restoring whole files.
//!
//! [`Archive`] reads and decodes chunks. Stored bytes come from `storage`, which is a `local` file
//! that bypasses the page cache or a remote object, into `scratch` memory. Several archives share
//! an [`ArchiveMemory`] for their indexes and entropy models. `parts` reads any bytes of the
//! original, and `many` does that with several threads. `whole` verifies and unpacks, and
//! `describe` lists what an archive contains.
//!
//! Chunks that are stored as differences need the bytes of another file. `bases` remembers where
//! these come from. `base_search` looks for them in directories, `local_bases` reads them there,
//! and `remote_bases` does both for objects.

mod archive;
mod base_search;
mod bases;
mod describe;
mod local;
mod local_bases;
mod many;
mod memory;
mod parts;
#[cfg(feature = "remote")]
mod remote_bases;
mod scratch;
mod storage;
mod threads;
mod tree;
mod whole;

pub use crate::format::peek;
pub use archive::{Archive, IndexedChunk, StoredChunk};
pub(crate) use archive::{are_adjacent, scratch_len, stored_range};
pub use base_search::look_for_bases_in;
#[cfg(feature = "mount")]
pub(crate) use base_search::{Candidate, Search, SearchDir, named_directories};
pub use bases::{BaseBytes, FindBase};
pub use describe::{
    Coded, DescribedBase, Description, TensorDescription, describe, header, header_json,
};
pub use local_bases::LocalBases;
#[cfg(feature = "mount")]
pub(crate) use local_bases::{PlainBase, check_base};
pub use many::read_many;
pub use memory::ArchiveMemory;
pub use parts::Part;
#[cfg(feature = "remote")]
pub use remote_bases::PlaceBases;
#[cfg(all(feature = "mount", feature = "remote"))]
pub(crate) use remote_bases::{ObjectBase, ObjectCandidate, not_beside, search_objects};
pub use scratch::Scratch;
pub(crate) use scratch::{HUGE_PAGE, PAGE};
#[cfg(feature = "remote")]
pub use storage::peek_object;
pub(crate) use storage::{Fetched, Priority};
pub use threads::{Permit, ThreadLimit};
pub use tree::archives;
pub use whole::{unpack, verify, verify_chunks};
