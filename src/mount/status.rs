//! What a daemon reports about its mount. It travels as JSON.

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
        }
    }
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
