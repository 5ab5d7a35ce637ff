//! The mount: a read-only FUSE view of a directory in which archives appear as their originals.
//!
//! A mount goes through three phases, and each file belongs to one of them:
//!
//! **Before mounting**, [`run`] (`lifecycle`) has `preflight` check the options: the source and the
//! mountpoint must exist, must not contain each other, and must not be a mount that hangs. It sizes
//! the cache by the memory that `limits` finds, and mounts with `session`, or takes over an
//! `inherited_fd` that another program has mounted.
//!
//! **While it is mounted**, these files serve the kernel's requests. From the source at the bottom
//! up to the kernel:
//!
//! | file | its job |
//! |---|---|
//! | `attr` | attributes, inode numbers, and the identity of a file's state |
//! | `source` | the source directory: one handle, no symlinks followed |
//! | `remote`, `listing` | a source on other machines: listings and objects |
//! | `files` | either of them |
//! | `access` | access control beyond permission bits |
//! | `links` | where symlinks lead inside the source |
//! | `footers`, `archives` | archives: what they show, and opening them once |
//! | `bases` | where the archives that are stored as differences find the rest |
//! | `failure` | errors as error numbers |
//! | `view` | names: which source entry a name of the view stands for |
//! | `handles`, `opened` | file handles, and the open files behind them |
//! | `inodes` | which file a nodeid of the kernel stands for |
//! | `tree` | the file system as a whole; knows no FUSE types, so it is tested without a kernel |
//! | `status`, `control` | what the daemon reports, and the extended attributes that report it |
//! | `xattrs` | all extended attributes |
//! | `plain` | reads of plain files |
//! | `reply` | replies that `fuser` cannot send: several slices, other inode numbers |
//! | `convert` | our types as those of `fuser` |
//! | `negotiate` | what a mount agrees on with the kernel |
//! | `waiting` | requests that wait for a network, and programs that are killed meanwhile |
//! | `fuse` | the thin adapter from `fuser` to the tree and the cache |
//! | `metrics` | the status for Prometheus |
//! | `session` | the threads of `fuser` that read requests |
//! | `lifecycle` | starts all of this, handles signals, and unmounts |
//!
//! **From other processes**, commands query and unmount mounts whose daemons may be dead or hang.
//! The process that does so must not hang, too. It reads the `mountinfo` of the kernel, and runs
//! everything that touches a mount as a `probe`, in a `subprocess` with a deadline
//! (`probe_runner`):
//!
//! | file | its job |
//! |---|---|
//! | `subprocess` | child processes with a deadline |
//! | `probe` | operations that may hang, run in such a process |
//! | `mountinfo` | the mount table |
//! | `resolve` | canonical paths and mountpoints |
//! | `fusermount` | the helper of libfuse, for ordinary users |
//! | `unmount` | unmounting |
//! | `client` | requests to the control interface of a daemon |
//! | `usage` | the space that the archives of a mount save, by directory |
//! | `place` | what is mounted at, around and below a directory |
//! | `health` | which mounts are dead, or hang |
//! | `probe_runner` | the child's side of a probe |

mod access;
mod archives;
mod attr;
mod bases;
mod client;
mod control;
mod convert;
mod failure;
mod files;
mod footers;
mod fuse;
mod fusermount;
mod handles;
mod health;
mod inherited_fd;
mod inodes;
mod lifecycle;
mod limits;
mod links;
#[cfg(feature = "remote")]
mod listing;
mod metrics;
mod mountinfo;
mod negotiate;
mod opened;
mod place;
mod plain;
mod preflight;
mod probe;
mod probe_runner;
#[cfg(feature = "remote")]
mod remote;
mod reply;
mod resolve;
mod session;
mod source;
mod status;
mod subprocess;
mod tree;
mod unmount;
mod usage;
mod view;
mod waiting;
mod xattrs;

pub(crate) use access::{Access, DEFAULT_ACL};
pub(crate) use archives::{Archives, FilesOf};
pub(crate) use attr::{Attr, Packed, ROOT, attr, inode_number};
pub(crate) use bases::BaseFinder;
pub use bases::MissingBase;
pub use client::{PackerCommand, command_packer, drop_cache, space, status};
pub(crate) use control::{Control, DROP_CACHE, PACK_NOW, PAUSE, RESUME, STATUS, may_control};
pub(crate) use convert::{errno, file_type, reply_statfs, reply_xattr};
pub(crate) use footers::{Footers, PLAIN_MARK, find_mark};
pub use fusermount::find_helper as helper;
pub(crate) use handles::Handles;
#[cfg(feature = "remote")]
pub use health::mounts_of;
pub use health::{Unserved, clear_orphan, mounts, unserved};
pub use lifecycle::run;
pub(crate) use lifecycle::serve;
pub use limits::{default_cache_bytes, default_threads};
pub use metrics::MetricsAddress;
pub(crate) use negotiate::negotiate;
pub use place::{Place, place};
pub(crate) use plain::{drop_cached, read_plain, read_plain_blocking};
pub use probe::Probe;
pub use probe_runner::run_probe;
#[cfg(feature = "remote")]
pub use remote::RemoteView;
pub(crate) use reply::{Entries, Replier};
pub(crate) use source::{Entry, Source, open_regular};
pub use status::{RemoteStatus, Space, Status, StoreStatus};
pub use unmount::{detach, unmount};
pub use usage::{DirectoryUsage, Usage, usage};
pub(crate) use xattrs::archive_attribute;

use crate::readahead::Prefetch;
use std::path::PathBuf;

/// The file-system type in the mount table.
pub const FS_TYPE: &str = "fuse.bszfs";

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// A directory, or one archive; of a source on other machines, its name.
    pub source: PathBuf,
    /// An existing directory outside of the source, or the source itself. Or `/dev/fd/N` for an
    /// inherited `/dev/fuse` with the number N, which another program has mounted and will
    /// unmount.
    pub mountpoint: PathBuf,
    /// Whether the mountpoint is meant to be the source itself.
    pub over_itself: bool,
    /// Whether files can be changed.
    pub read_write: bool,
    /// Size of the cache of decoded chunks, in bytes.
    pub cache_bytes: u64,
    /// Number of threads that read archives and decode.
    pub threads: usize,
    /// What to decode before it is read.
    pub prefetch: Prefetch,
    /// GPU memory to use for that, in bytes.
    pub gpu_memory: u64,
    /// Which GPU to use for it, as the CUDA driver counts them.
    pub gpu: u32,
    /// Whether users other than the one who mounts may access the mount.
    pub allow_other: bool,
    /// Where to serve metrics for Prometheus.
    pub metrics: Option<MetricsAddress>,
    /// If the source is on other machines: its URL, and how it is read and shown.
    #[cfg(feature = "remote")]
    pub remote: Option<RemoteMount>,
}

/// A source on other machines.
#[cfg(feature = "remote")]
#[derive(Clone, Debug)]
pub struct RemoteMount {
    /// Its URL. It may hold secrets, which [`MountOptions::source`] must not.
    pub url: String,
    /// How it is read.
    pub options: crate::remote::RemoteOptions,
    /// How it is shown.
    pub view: RemoteView,
}

impl MountOptions {
    /// The inherited descriptor, if the mountpoint is one.
    pub fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        inherited_fd::number(&self.mountpoint)
    }
}
