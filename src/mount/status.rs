//! What a daemon says of itself, as an extended attribute of its mount's root, and how to ask.

use super::unmount::canonical_mountpoint;
use super::{FS_TYPE, detach, handed, mountinfo, xattrs};
use crate::error::{Context, Error, Result};
use crate::read::CacheStats;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The attribute, on the root of every mount; its value is JSON.
pub(super) const ATTRIBUTE: &str = "user.bsz.status";

/// How long a daemon may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long after a daemon's end its mount is looked at, and how often: the kernel closes its files one by one.
const DEAD_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A mount, as its daemon describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What is mounted.
    pub source: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// The daemon's process.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// Its cache.
    pub cache: CacheStats,
}

/// What the archives of a mount save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Files shown from archives.
    pub archives: u64,
    /// Bytes of these files.
    pub original_bytes: u64,
    /// What the archives take on the disk, in bytes.
    pub stored_bytes: u64,
}

/// What the archives below the root of the mount at `mountpoint` save, as `stat` tells of each of them.
///
/// # Errors
/// Io, where a directory cannot be read.
pub fn space(mountpoint: &Path) -> Result<Space> {
    let mut space = Space::default();
    let mut left = vec![mountpoint.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in dir.read_dir().about_path(&dir)? {
            let entry = entry.about_path(&dir)?;
            // What is gone meanwhile takes no space.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.is_file() && xattrs::is_of_archive(&entry.path()) {
                space.archives += 1;
                space.original_bytes += meta.len();
                space.stored_bytes += meta.blocks() * 512;
            }
        }
    }
    Ok(space)
}

/// The mountpoints of all bszfs mounts that this process can see.
///
/// # Errors
/// Io, where there is no mount table.
pub fn mounts() -> Result<Vec<PathBuf>> {
    Ok(mountinfo::all()?.into_iter().filter(|m| m.fs_type == FS_TYPE).map(|m| m.mountpoint).collect())
}

/// The mountpoints of those whose daemons have died: all, or those at and below a path.
///
/// # Errors
/// As [`mounts`]; Io, where the path is none.
pub fn stale(below: Option<&Path>) -> Result<Vec<PathBuf>> {
    let below = below.map(canonical_mountpoint).transpose()?;
    let mut dead = mounts()?;
    dead.retain(|path| {
        below.as_ref().is_none_or(|below| path.starts_with(below))
            && rustix::fs::statfs(path).err() == Some(rustix::io::Errno::NOTCONN)
    });
    Ok(dead)
}

/// Detach the mount at `mountpoint` if its daemon is found dead within a second; a live one, and none, are left alone.
///
/// # Errors
/// As [`stale`], and where the mount cannot be detached.
pub fn clear_orphan(mountpoint: &Path) -> Result<()> {
    let mountpoint = canonical_mountpoint(mountpoint)?;
    let started = Instant::now();
    while mounts()?.contains(&mountpoint) && started.elapsed() < DEAD_WITHIN {
        if stale(Some(&mountpoint))?.contains(&mountpoint) {
            return detach(&mountpoint);
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Ask the daemon of the mount at `mountpoint`.
///
/// # Errors
/// Io, where it is dead, does not answer, or answers to its own user only; invalid argument, where nothing of ours is
/// mounted.
pub fn status(mountpoint: &Path) -> Result<Status> {
    let (tell, told) = mpsc::channel();
    let path = mountpoint.to_owned();
    // Apart, for a daemon that hangs would hang us as well.
    thread::Builder::new().spawn(move || {
        let mut value = vec![0; 1 << 16];
        let answer = rustix::fs::getxattr(&path, ATTRIBUTE, value.as_mut_slice());
        // Nobody may be left to hear it.
        let _ = tell.send(answer.map(|n| {
            value.truncate(n);
            value
        }));
    })?;
    let answer = told.recv_timeout(ANSWER_WITHIN);
    let answer =
        answer.map_err(|_| Error::invalid("its daemon does not answer").about(mountpoint.display()))?;
    let value = match answer {
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {
            return Err(Error::invalid("is no bszfs mount").about(mountpoint.display()));
        }
        other => other.about_path(mountpoint)?,
    };
    let mut status: Status = serde_json::from_slice(&value).map_err(|e| {
        Error::invalid(format!("its daemon answers in another way ({e})")).about(mountpoint.display())
    })?;
    if handed::number(&status.mountpoint).is_some() {
        // It cannot know where somebody else has mounted it.
        status.mountpoint = canonical_mountpoint(mountpoint)?;
    }
    Ok(status)
}

/// Have the daemon of the mount at `mountpoint` drop what its cache holds.
///
/// # Errors
/// As [`status`]; Io, where its process is not ours.
pub fn drop_cache(mountpoint: &Path) -> Result<()> {
    let pid = i32::try_from(status(mountpoint)?.pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid =
        pid.ok_or_else(|| Error::invalid("its daemon has no process here").about(mountpoint.display()))?;
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).about_path(mountpoint)
}
