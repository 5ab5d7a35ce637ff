//! Archives as a file system: a read-only view of a directory in which archives appear as what they were made from.
//!
//! From the source up to the kernel; each file uses only those before it:
//!
//! | file | its job |
//! |---|---|
//! | `source.rs` | the source directory: one handle, everything relative to it, no symlink followed |
//! | `attr.rs`, `view.rs` | what `stat` shows; names: which source entry a name of the view stands for |
//! | `tree.rs`, `inodes.rs`, `handles.rs` | inodes, attributes, handles; errors are errno; knows no FUSE types |
//! | `fuse.rs` | the thin adapter to `fuser` |
//! | `mountinfo.rs`, `preflight.rs`, `unmount.rs` | the mount table, the checks before mounting, the way back |
//! | `lifecycle.rs` | mount, say ready, serve, end |
//! | `limits.rs` | how much memory and how many files there are to use |

mod attr;
mod fuse;
mod handles;
mod inodes;
mod lifecycle;
mod limits;
mod mountinfo;
mod preflight;
mod source;
mod tree;
mod unmount;
mod view;

pub use lifecycle::run;
pub use limits::default_cache_bytes;
pub use unmount::{detach, unmount};

use std::path::PathBuf;

/// The file-system type in the mount table.
pub const FS_TYPE: &str = "fuse.bszfs";

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// A directory, or one archive.
    pub source: PathBuf,
    /// An existing directory outside the source.
    pub mountpoint: PathBuf,
    /// Bound of the cache of decoded chunks, in bytes.
    pub cache_bytes: u64,
    /// Threads that decode.
    pub threads: usize,
    /// Whether users other than the one who mounts may use the mount.
    pub allow_other: bool,
}
