//! What is mounted at, around and below a directory; found without waiting for a mount that hangs.

use super::FS_TYPE;
use super::probe::PATH_TIMED_OUT;
use super::{mountinfo, resolve};
use crate::error::{Context, Error, Result};
use std::path::{Path, PathBuf};

/// A directory, and the mounts that have to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The canonical path.
    pub path: PathBuf,
    /// The type of the file system that is mounted there, if it is a mountpoint.
    pub mounted: Option<String>,
    /// The bszfs mount that the directory is in.
    pub inside: Option<PathBuf>,
    /// A bszfs mount in the directory.
    pub contains: Option<PathBuf>,
}

impl Place {
    /// Whether a bszfs is mounted there.
    pub fn is_bszfs(&self) -> bool {
        self.mounted.as_deref() == Some(FS_TYPE)
    }
}

/// Find a directory and its mounts.
///
/// # Errors
/// Io, if it does not exist; invalid argument, if it is no directory or does not answer.
pub fn place(path: &Path) -> Result<Place> {
    let resolved = resolve::resolve_mountpoint(path).map_err(|e| e.into_error(PATH_TIMED_OUT));
    let (found, kind) = resolved.about_path(path)?;
    if !matches!(kind, resolve::Kind::Directory | resolve::Kind::BszfsMount) {
        return Err(Error::invalid("is not a directory").about_path(path));
    }
    let mounted = mountinfo::topmost_at(&found)?.map(|mount| mount.fs_type);
    let (mut inside, mut contains) = (None, None);
    for mount in mountinfo::all()?.into_iter().filter(|mount| mount.fs_type == FS_TYPE) {
        if mount.mountpoint == found {
            continue;
        }
        if found.starts_with(&mount.mountpoint) {
            inside = Some(mount.mountpoint);
        } else if mount.mountpoint.starts_with(&found) {
            contains = Some(mount.mountpoint);
        }
    }
    Ok(Place { path: found, mounted, inside, contains })
}
