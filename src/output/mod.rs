//! Files and directories written safely: whole or not at all, reached by descriptor, with the
//! attributes of their originals.

mod acl;
mod attributes;
mod clone;
mod copier;
mod copy;
mod dir;
mod file;
mod replace;
mod support;
mod temporary;

pub use attributes::{Attributes, Lost, is_kept, mtime};
pub use clone::{CLONE_BLOCK, can_clone, clone_range, place_on_disk};
pub use copier::{Copied, Copier, Form, Place};
pub use copy::{copy, same_bytes, sha256, write_sparse};
pub use dir::{Dir, DirEntry, FileId, file_id};
pub use file::{Output, retry_if_taken};
pub use support::{sync_dir, sync_file};
pub use temporary::{abandon, is_temporary};

/// What may have a file's name when it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: an existing entry is an error.
    Refuse,
    /// A regular file, which is replaced.
    Replace,
}
