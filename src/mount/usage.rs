//! The space that the archives of a mount take and save, by directory.

use super::client::is_from_archive;
use super::probe::{self, DAEMON_TIMED_OUT, Probe};
use crate::error::{Context, Error, Result};
use crate::escape;
use serde::{Deserialize, Serialize};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the files of one directory, and of those below it, take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire")]
pub struct DirectoryUsage {
    /// Its name; `.` stands for the files that are not in a directory.
    #[serde(flatten, serialize_with = "escape::field::path")]
    pub path: PathBuf,
    /// Number of regular files.
    pub files: u64,
    /// Their total size, in bytes.
    pub bytes: u64,
    /// Number of those that are packed.
    pub packed: u64,
    /// The total size of packed files, in bytes.
    pub original_bytes: u64,
    /// What their archives take on disk, in bytes.
    pub stored_bytes: u64,
}

#[derive(Deserialize)]
struct Wire {
    path: String,
    path_bytes: Option<String>,
    files: u64,
    bytes: u64,
    packed: u64,
    original_bytes: u64,
    stored_bytes: u64,
}

impl From<Wire> for DirectoryUsage {
    fn from(wire: Wire) -> Self {
        Self {
            path: escape::parse(wire.path, wire.path_bytes.as_deref()),
            files: wire.files,
            bytes: wire.bytes,
            packed: wire.packed,
            original_bytes: wire.original_bytes,
            stored_bytes: wire.stored_bytes,
        }
    }
}

impl DirectoryUsage {
    /// Bytes that packing saves.
    pub fn saved(&self) -> u64 {
        self.original_bytes.saturating_sub(self.stored_bytes)
    }

    fn add(&mut self, meta: &Metadata, is_packed: bool) {
        self.files = self.files.saturating_add(1);
        self.bytes = self.bytes.saturating_add(meta.len());
        if is_packed {
            let stored = meta.blocks().saturating_mul(512);
            self.packed = self.packed.saturating_add(1);
            self.original_bytes = self.original_bytes.saturating_add(meta.len());
            self.stored_bytes = self.stored_bytes.saturating_add(stored);
        }
    }
}

/// What the files of a mount take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The directories of its root, in no particular order.
    pub directories: Vec<DirectoryUsage>,
    /// What the largest archive takes, in bytes.
    pub largest: u64,
}

/// The space that the files of the mount at `mountpoint` take, from stat(2) of each one.
///
/// # Errors
/// Io, if a directory cannot be read; invalid argument, if the daemon does not answer.
pub fn usage(mountpoint: &Path) -> Result<Usage> {
    let result = probe::run(Probe::Usage, mountpoint).map_err(|e| e.into_error(DAEMON_TIMED_OUT));
    serde_json::from_slice(&result.about_path(mountpoint)?).map_err(|e| {
        Error::invalid(format!("its space cannot be measured ({e})")).about_path(mountpoint)
    })
}

/// Run [`Probe::Usage`].
pub(super) fn usage_blocking(mountpoint: &Path) -> Result<Vec<u8>> {
    let mut usage = Usage::default();
    let mut own = DirectoryUsage { path: ".".into(), ..DirectoryUsage::default() };
    for entry in mountpoint.read_dir()? {
        let entry = entry?;
        // It may have been deleted meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            let path = entry.file_name().into();
            let mut directory = DirectoryUsage { path, ..DirectoryUsage::default() };
            measure(entry.path(), &mut directory, &mut usage.largest);
            usage.directories.push(directory);
        } else if meta.is_file() {
            add(&entry.path(), &meta, &mut own, &mut usage.largest);
        }
    }
    if own.files > 0 {
        usage.directories.push(own);
    }
    serde_json::to_vec(&usage).map_err(|e| Error::invalid(e.to_string()))
}

/// Add what is in `dir` and below. What cannot be read is left out.
fn measure(dir: PathBuf, directory: &mut DirectoryUsage, largest: &mut u64) {
    let mut left = vec![dir];
    while let Some(dir) = left.pop() {
        let Ok(entries) = dir.read_dir() else { continue };
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => left.push(entry.path()),
                Ok(meta) if meta.is_file() => add(&entry.path(), &meta, directory, largest),
                _ => {}
            }
        }
    }
}

fn add(path: &Path, meta: &Metadata, to: &mut DirectoryUsage, largest: &mut u64) {
    let is_packed = is_from_archive(path);
    to.add(meta, is_packed);
    if is_packed {
        *largest = (*largest).max(meta.blocks().saturating_mul(512));
    }
}
