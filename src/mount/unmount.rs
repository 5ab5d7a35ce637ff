//! Unmounting: root calls umount2(2), ordinary users run `fusermount3`.

use super::fusermount::{self, Unmounted};
use super::mountinfo::{self, Mount};
use super::probe::{self, Probe, ProbeError};
use super::{FS_TYPE, resolve};
use crate::error::{Context, Error, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an unmounted mount may stay in the mount table.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// How long to retry while the mount is in use. A process that is exiting, or one that inspects all
/// open files, releases it soon.
const BUSY_WITHIN: Duration = Duration::from_millis(500);

/// Interval between retries.
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// Unmount the bszfs mount at `mountpoint`, whether its daemon is alive or dead. Returns when it is
/// gone.
///
/// # Errors
/// Invalid argument, if there is no bszfs mount, if it is in use, or if it cannot be unmounted.
pub fn unmount(mountpoint: &Path) -> Result<()> {
    let mount = bszfs_mount_at(mountpoint)?;
    let started = Instant::now();
    loop {
        match try_unmount_in_subprocess(&mount, false) {
            Err(UnmountError::Busy) if started.elapsed() < BUSY_WITHIN => {
                std::thread::sleep(RETRY_EVERY);
            }
            other => break other.map_err(|e| explain(e, &mount))?,
        }
    }
    wait_until_gone(&mount)
}

/// Like [`unmount`], but lazily: programs keep the files that they have open, and the daemon exits
/// when the last one is closed.
///
/// # Errors
/// As [`unmount`], but it may be in use.
pub fn detach(mountpoint: &Path) -> Result<()> {
    let mount = bszfs_mount_at(mountpoint)?;
    try_unmount_in_subprocess(&mount, true).map_err(|e| explain(e, &mount))?;
    wait_until_gone(&mount)
}

fn bszfs_mount_at(path: &Path) -> Result<Mount> {
    match resolve::mount_at(path)? {
        Some(mount) if mount.fs_type == FS_TYPE => Ok(mount),
        Some(mount) => {
            Err(Error::invalid(format!("is a {} mount, not a bszfs mount", mount.fs_type)))
        }
        None => Err(Error::invalid("is not a mountpoint")),
    }
    .about_path(path)
}

/// Why an unmount failed.
#[derive(Debug)]
pub(super) enum UnmountError {
    /// A process has a file open in the mount, or its working directory there.
    Busy,
    TimedOut,
    Other(String),
}

impl fmt::Display for UnmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => {
                "is in use: close the files that are open in it, or detach it with --lazy, which \
                 lets programs finish"
            }
            Self::TimedOut => "does not answer: detach it with --lazy",
            Self::Other(why) => why,
        })
    }
}

fn explain(e: UnmountError, mount: &Mount) -> Error {
    Error::invalid(e.to_string()).about_path(&mount.mountpoint)
}

/// Unmount `mount`, which must be the topmost one at its mountpoint. May block.
pub(super) fn try_unmount(mount: &Mount, lazy: bool) -> Result<(), UnmountError> {
    match umount2(&mount.mountpoint, lazy) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(UnmountError::Busy),
        Err(Errno::PERM) => unmount_with_helper(&mount.mountpoint, lazy),
        Err(e) => Err(UnmountError::Other(std::io::Error::from(e).to_string())),
    }
}

/// [`try_unmount`] with a deadline, because a mount above the mountpoint may hang.
fn try_unmount_in_subprocess(mount: &Mount, lazy: bool) -> Result<(), UnmountError> {
    let probe = if lazy { Probe::Detach } else { Probe::Unmount };
    match probe::run(probe, &mount.mountpoint) {
        Ok(_) => Ok(()),
        Err(ProbeError::TimedOut) => Err(UnmountError::TimedOut),
        Err(e) if e.errno() == Some(Errno::BUSY) => Err(UnmountError::Busy),
        Err(e) if e.errno() == Some(Errno::PERM) => unmount_with_helper(&mount.mountpoint, lazy),
        Err(ProbeError::Failed(e)) => Err(UnmountError::Other(e.to_string())),
    }
}

/// Run [`Probe::Unmount`] or, lazily, [`Probe::Detach`].
pub(super) fn unmount_blocking(mountpoint: &Path, lazy: bool) -> Result<Vec<u8>> {
    Ok(umount2(mountpoint, lazy).map(|()| Vec::new())?)
}

fn umount2(mountpoint: &Path, lazy: bool) -> rustix::io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW)
}

fn unmount_with_helper(mountpoint: &Path, lazy: bool) -> Result<(), UnmountError> {
    let helper = fusermount::find_helper().ok_or_else(|| {
        let why = "only root may unmount without fusermount3: install the package fuse3";
        UnmountError::Other(why.into())
    })?;
    match fusermount::unmount(&helper, mountpoint, lazy) {
        Ok(Unmounted::Done) => Ok(()),
        Ok(Unmounted::Busy) => Err(UnmountError::Busy),
        Ok(Unmounted::TimedOut) => Err(UnmountError::TimedOut),
        Ok(Unmounted::Failed(message)) => Err(UnmountError::Other(message)),
        Err(e) => Err(UnmountError::Other(e.about_path(&helper).to_string())),
    }
}

fn wait_until_gone(mount: &Mount) -> Result<()> {
    let started = Instant::now();
    while mountinfo::topmost_at(&mount.mountpoint)?.is_some_and(|now| now.id == mount.id) {
        if started.elapsed() > GONE_WITHIN {
            return Err(Error::invalid("is still in the mount table").about_path(&mount.mountpoint));
        }
        std::thread::sleep(RETRY_EVERY);
    }
    Ok(())
}
