//! Archives as a file system: a read-only view of a directory in which archives appear as what they were made from.
//!
//! From the source up to the kernel; each file uses only those before it:
//!
//! | file | its job |
//! |---|---|
//! | `attr.rs` | what `stat` shows, inode numbers, when two looks at a file saw the same file |
//! | `source.rs` | the source directory: one handle, everything relative to it, no symlink followed |
//! | `access.rs`, `links.rs` | who may read, beyond permission bits; where symlinks lead |
//! | `view.rs` | names: which source entry a name of the view stands for |
//! | `tree.rs`, `inodes.rs`, `handles.rs` | inodes, attributes, handles; errors are errno; knows no FUSE types |
//! | `ahead.rs`, `cuda.rs`, `pull.rs` | the layers that will be read next; a GPU that decodes them; into the page cache |
//! | `fuse.rs`, `reply.rs` | the thin adapter to `fuser`; replies of several parts |
//! | `control.rs`, `xattrs.rs`, `metrics.rs` | what a daemon and its files say of themselves, and to whom |
//! | `program.rs`, `ask.rs`, `answers.rs` | this program once more; questions that may never be answered, in such a process |
//! | `mountinfo.rs`, `place.rs` | the mount table; where a path leads, without waiting for what is mounted there |
//! | `status.rs`, `preflight.rs`, `unmount.rs` | to ask daemons, the checks before mounting, the way back |
//! | `handed.rs` | a `/dev/fuse` that somebody else has mounted |
//! | `lifecycle.rs` | mount, say ready, serve, end |
//! | `limits.rs` | how much memory and how many files there are to use |

mod access;
mod answers;
mod ask;
mod attr;
mod control;
mod fuse;
mod handles;
mod inherited_fd;
mod inodes;
mod lifecycle;
mod limits;
mod links;
mod metrics;
mod mountinfo;
mod opened;
mod place;
mod preflight;
mod reply;
mod source;
mod status;
mod tree;
mod unmount;
mod view;
mod xattrs;

pub use crate::program::{close_inherited, this_program};
pub use crate::readahead::{Prefetch, serve_warm_requests as warm_on_standard_request};
pub use answers::answer;
pub use ask::Question;
pub use lifecycle::run;
pub use limits::{default_cache_bytes, default_threads};
pub use metrics::MetricsAddress;
pub use status::{
    Space, Status, Unserved, clear_orphan, drop_cache, mounts, space, status, unserved,
};
pub use unmount::{detach, find_helper as helper, unmount};

use std::path::PathBuf;

/// The file-system type in the mount table.
pub const FS_TYPE: &str = "fuse.bszfs";

/// What is said of a path that leads to what does not answer.
const SILENT: &str = "does not answer: a mount on the way, or a disk, does not";

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// A directory, or one archive.
    pub source: PathBuf,
    /// An existing directory outside the source; or `/dev/fd/N` for the open `/dev/fuse` with the number N, which is
    /// mounted already, by somebody who also unmounts it.
    pub mountpoint: PathBuf,
    /// Bound of the cache of decoded chunks, in bytes.
    pub cache_bytes: u64,
    /// Threads that read archives and decode.
    pub threads: usize,
    /// What to decode ahead of readers.
    pub prefetch: Prefetch,
    /// Bytes of a GPU's memory that may be used for that.
    pub gpu_memory: u64,
    /// Whether users other than the one who mounts may use the mount.
    pub allow_other: bool,
    /// Where Prometheus may ask for figures.
    pub metrics: Option<MetricsAddress>,
}

impl MountOptions {
    /// The descriptor that stands for the mountpoint.
    pub fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        inherited_fd::number(&self.mountpoint)
    }
}
