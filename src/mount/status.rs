//! What a daemon reports about its mount. It travels as JSON.

use super::bases::MissingBase;
use crate::cache::CacheStats;
use crate::escape;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A mount, as its daemon describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Wire")]
pub struct Status {
    /// The mounted directory or archive.
    #[serde(flatten, serialize_with = "escape::field::source")]
    pub source: PathBuf,
    /// Where it is mounted.
    #[serde(flatten, serialize_with = "escape::field::mountpoint")]
    pub mountpoint: PathBuf,
    /// The daemon's process id, as the daemon reports it. Do not send it signals: it may be of
    /// another namespace, or a lie.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// When it was mounted, in seconds since the epoch.
    pub since: u64,
    /// The statistics of its cache.
    pub cache: CacheStats,
    /// The bases that were not found when they were needed at last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<MissingBase>,
    /// What its packer does, if the mount is a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
    /// What was fetched, if the source is on other machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteStatus>,
}

/// What was fetched from other machines since the mount began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoteStatus {
    /// Requests for bytes that were sent, repetitions included.
    pub requests: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Bytes that came from the disk cache instead.
    pub disk_bytes: u64,
    /// Requests on their way now.
    pub in_flight: u64,
    /// Requests that failed, whether or not they were repeated.
    pub failed: u64,
    /// Why the last one did.
    pub last_failure: Option<String>,
}

/// The fields of a [`Status`] in JSON.
#[derive(Deserialize)]
struct Wire {
    source: String,
    source_bytes: Option<String>,
    mountpoint: String,
    mountpoint_bytes: Option<String>,
    pid: u32,
    version: String,
    since: u64,
    cache: CacheStats,
    #[serde(default)]
    bases: Vec<MissingBase>,
    #[serde(default)]
    store: Option<StoreStatus>,
    #[serde(default)]
    remote: Option<RemoteStatus>,
}

impl From<Wire> for Status {
    fn from(wire: Wire) -> Self {
        Self {
            source: escape::parse(wire.source, wire.source_bytes.as_deref()),
            mountpoint: escape::parse(wire.mountpoint, wire.mountpoint_bytes.as_deref()),
            pid: wire.pid,
            version: wire.version,
            since: wire.since,
            cache: wire.cache,
            bases: wire.bases,
            store: wire.store,
            remote: wire.remote,
        }
    }
}

/// What the packer of a store does, and has done since it was mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStatus {
    /// When it packs: `off`, `idle` or `now`.
    pub pack: String,
    /// Whether it was told to pause.
    pub paused: bool,
    /// Whether it was told to pack all that waits, and has not finished.
    pub draining: bool,
    /// Why it does not pack at the moment, if it would like to.
    pub waits: Option<String>,
    /// The file being packed, relative to the mount.
    pub packing: Option<String>,
    /// Whether the recovery walk after mounting has finished.
    pub recovered: bool,
    /// Files that wait to be packed.
    pub queued: u64,
    /// Files packed.
    pub packed: u64,
    /// Their total size, in bytes.
    pub original_bytes: u64,
    /// What their archives take, in bytes.
    pub stored_bytes: u64,
    /// Packed files that were written to, and are plain again.
    pub unpacked: u64,
    /// Files that were left plain because packing would not make them smaller.
    pub left: u64,
    /// Attempts that failed, or were given up because the file changed.
    pub failed: u64,
    /// Whether equal tensors of different files share their place on disk: it takes a file system
    /// that can do that (XFS, btrfs, bcachefs). Unknown until it was tried.
    pub shares: Option<bool>,
    /// Archives that the following figures are about.
    pub examined: u64,
    /// Archives that are still to be examined.
    pub unexamined: u64,
    /// What is saved by sharing, in stored bytes of tensors of 1 MiB and more.
    pub shared_bytes: u64,
    /// What such tensors take that are stored again although another archive holds them: what
    /// sharing would save.
    pub repeated_bytes: u64,
    /// Archives of files that another archive holds, too, byte for byte.
    pub equal_files: u64,
    /// The latest reasons for files that were left or failed: a path and a reason each.
    pub reasons: Vec<(String, String)>,
}

/// The space that the archives of a mount take and save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Number of archives.
    pub archives: u64,
    /// Total size of the files that they show, in bytes.
    pub original_bytes: u64,
    /// What the archives take on disk, in bytes.
    pub stored_bytes: u64,
}
