//! Which mounts have a dead daemon, or one that hangs.

use super::FS_TYPE;
use super::mountinfo;
use super::probe::{self, PATH_TIMED_OUT, Probe, ProbeError};
use super::{resolve, unmount};
use crate::error::{Context, Result};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long [`clear_orphan`] watches a mount that answers.
///
/// After a daemon's end, the kernel closes its files one by one. The mount is dead only when that
/// of `/dev/fuse` is closed, and a request meanwhile may have no reply until its deadline.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// How long [`clear_orphan`] watches a mount that does not answer.
const HUNG_WITHIN: Duration = Duration::from_secs(15);

/// Interval between checks.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// The mountpoints of all bszfs mounts that this process can see.
///
/// # Errors
/// Io, if the mount table cannot be read.
pub fn mounts() -> Result<Vec<PathBuf>> {
    let ours = mountinfo::all()?.into_iter().filter(|mount| mount.fs_type == FS_TYPE);
    Ok(ours.map(|mount| mount.mountpoint).collect())
}

/// Where a source is mounted, by its name in the mount table. A slash at its end makes no
/// difference.
///
/// # Errors
/// The mount table cannot be read.
#[cfg(feature = "remote")]
pub fn mounts_of(source: &Path) -> Result<Vec<PathBuf>> {
    let name = crate::escape::path(source);
    let is_it = |mount: &mountinfo::Mount| {
        let shown = mount.source.to_string_lossy();
        mount.fs_type == FS_TYPE && shown.trim_end_matches('/') == name.trim_end_matches('/')
    };
    Ok(mountinfo::all()?.into_iter().filter(is_it).map(|mount| mount.mountpoint).collect())
}

/// The mountpoints of mounts that are not served.
#[derive(Debug, Default)]
pub struct Unserved {
    /// Mounts whose daemons have died.
    pub dead: Vec<PathBuf>,
    /// Mounts whose daemons do not answer.
    pub silent: Vec<PathBuf>,
}

/// The mounts that are not served: among all, or among those at and below a path.
///
/// # Errors
/// As [`mounts`]; and if the path cannot be resolved.
pub fn unserved(below: Option<&Path>) -> Result<Unserved> {
    let mut mounts = mounts()?;
    if let Some(path) = below {
        let resolved = resolve::resolve_mountpoint(path).map_err(|e| e.into_error(PATH_TIMED_OUT));
        let (below, _) = resolved.about_path(path)?;
        mounts.retain(|mount| mount.starts_with(&below));
    }
    let probes: Vec<_> = mounts.iter().map(|mount| (Probe::Alive, &**mount)).collect();
    let results = probe::run_all(&probes);
    let mut unserved = Unserved::default();
    for (mount, result) in mounts.into_iter().zip(results) {
        match result {
            Err(ProbeError::TimedOut) => unserved.silent.push(mount),
            Err(e) if e.errno() == Some(Errno::NOTCONN) => unserved.dead.push(mount),
            _ => {}
        }
    }
    Ok(unserved)
}

/// Detach the mount at `mountpoint` once its daemon is dead. Does nothing if there is no bszfs
/// mount, or if its daemon is still alive after a while.
///
/// # Errors
/// As [`unserved`]; and if the mount cannot be detached.
pub fn clear_orphan(mountpoint: &Path) -> Result<()> {
    let started = Instant::now();
    while let Some(mount) = resolve::mount_at(mountpoint)?.filter(|mount| mount.fs_type == FS_TYPE)
    {
        match probe::run(Probe::Alive, &mount.mountpoint) {
            Err(e) if e.errno() == Some(Errno::NOTCONN) => {
                return unmount::detach(&mount.mountpoint);
            }
            Ok(_) if started.elapsed() > ALIVE_WITHIN => break,
            Err(_) if started.elapsed() > HUNG_WITHIN => break,
            _ => thread::sleep(CHECK_EVERY),
        }
    }
    Ok(())
}
