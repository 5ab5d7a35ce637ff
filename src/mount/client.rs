//! Requests to the daemons of mounts, made through the mounts themselves, with a deadline.
//!
//! Replies are not trusted, because anybody can mount a FUSE file system of any name.

use super::FS_TYPE;
use super::control::STATUS;
use super::mountinfo::Mount;
use super::probe::{self, DAEMON_TIMED_OUT, Probe, ProbeError, ProbeResult};
use super::resolve;
use super::status::{Space, Status};
use super::xattrs::STORED;
use crate::error::{Context, Error, Result};
use rustix::fs::getxattr;
use rustix::io::Errno;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most bytes of a status.
const MAX_STATUS: usize = 1 << 16;

/// The FUSE mount at `path`. Its type may not be ours if another program mounted it for a daemon.
fn fuse_mount_at(path: &Path) -> Result<Mount> {
    let mount = resolve::mount_at(path)?.filter(|mount| mount.fs_type.starts_with("fuse"));
    mount.ok_or_else(|| not_a_bszfs_mount().about_path(path))
}

fn not_a_bszfs_mount() -> Error {
    Error::invalid("is not a bszfs mount")
}

/// Whether an error says that there is no such extended attribute, so the mount is of another kind.
fn has_no_attribute(e: &ProbeError) -> bool {
    matches!(e.errno(), Some(Errno::NODATA | Errno::OPNOTSUPP))
}

/// Get the status of the mounts at these paths, concurrently.
///
/// # Errors
/// For each path: Io, if the daemon is dead, does not answer, or serves only its own user; invalid
/// argument, if no bszfs is mounted there.
pub fn status(paths: &[PathBuf]) -> Vec<Result<Status>> {
    let found: Vec<Result<Mount>> = paths.iter().map(|path| fuse_mount_at(path)).collect();
    let probes = found.iter().flatten().map(|mount| (Probe::Status, &*mount.mountpoint));
    let mut results = probe::run_all(&probes.collect::<Vec<_>>()).into_iter();
    let statuses = found.into_iter().zip(paths).map(|(found, path)| {
        let mount = found?;
        let result = results.next().unwrap_or(Err(ProbeError::TimedOut));
        parse_status(result, mount).about_path(path)
    });
    statuses.collect()
}

fn parse_status(result: ProbeResult, mount: Mount) -> Result<Status> {
    let json = match result {
        Err(e) if has_no_attribute(&e) => return Err(not_a_bszfs_mount()),
        other => other.map_err(|e| e.into_error(DAEMON_TIMED_OUT))?,
    };
    let status: Status = serde_json::from_slice(&json)
        .map_err(|e| Error::invalid(format!("its daemon reports an unknown status ({e})")))?;
    // The mount table is right about the mountpoint, even if the daemon is not.
    Ok(Status { mountpoint: mount.mountpoint, ..status })
}

/// Run [`Probe::Status`].
pub(super) fn status_blocking(mountpoint: &Path) -> Result<Vec<u8>> {
    let mut json = vec![0; MAX_STATUS];
    let len = getxattr(mountpoint, STATUS, json.as_mut_slice())?;
    json.truncate(len);
    Ok(json)
}

/// Have the daemon of the mount at `path` drop its cache.
///
/// # Errors
/// As [`status`]; Io, if the caller may not do this.
pub fn drop_cache(path: &Path) -> Result<()> {
    trigger(path, Probe::DropCache, "drop its cache")
}

/// A command to the packer of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackerCommand {
    /// Pack everything that waits, now.
    PackNow,
    /// Pause, also in the middle of a file.
    Pause,
    /// Go on.
    Resume,
}

/// Give the packer of the store at `path` a command.
///
/// # Errors
/// As [`drop_cache`].
pub fn command_packer(path: &Path, command: PackerCommand) -> Result<()> {
    let probe = match command {
        PackerCommand::PackNow => Probe::PackNow,
        PackerCommand::Pause => Probe::PausePacking,
        PackerCommand::Resume => Probe::ResumePacking,
    };
    trigger(path, probe, "control its packer")
}

/// Run a probe that reads an attribute to which the daemon of the mount at `path` reacts. `what` is
/// what that does.
fn trigger(path: &Path, probe: Probe, what: &str) -> Result<()> {
    let mount = fuse_mount_at(path)?;
    let explain = |e: ProbeError| match e.errno() {
        _ if has_no_attribute(&e) && mount.fs_type == FS_TYPE && probe == Probe::DropCache => {
            Error::invalid("its daemon is too old for this request: unmount, and mount again")
        }
        _ if has_no_attribute(&e) && mount.fs_type == FS_TYPE => {
            Error::invalid("is a read-only mount, in which nothing is packed")
        }
        _ if has_no_attribute(&e) => not_a_bszfs_mount(),
        Some(Errno::PERM) => {
            Error::invalid(format!("only root and the user who mounted it may {what}"))
        }
        _ => e.into_error(DAEMON_TIMED_OUT),
    };
    let done = probe::run(probe, &mount.mountpoint);
    done.map(drop).map_err(explain).about_path(path)
}

/// Run a probe of [`trigger`].
pub(super) fn trigger_blocking(mountpoint: &Path, attribute: &str) -> Result<Vec<u8>> {
    getxattr(mountpoint, attribute, &mut [0u8; 1][..])?;
    Ok(Vec::new())
}

/// The space that the archives of the mount at `mountpoint` take and save, from stat(2) of each
/// one.
///
/// # Errors
/// Io, if a directory cannot be read; invalid argument, if the daemon does not answer.
pub fn space(mountpoint: &Path) -> Result<Space> {
    let result = probe::run(Probe::Space, mountpoint).map_err(|e| e.into_error(DAEMON_TIMED_OUT));
    serde_json::from_slice(&result.about_path(mountpoint)?).map_err(|e| {
        Error::invalid(format!("its space cannot be measured ({e})")).about_path(mountpoint)
    })
}

/// Run [`Probe::Space`].
pub(super) fn space_blocking(mountpoint: &Path) -> Result<Vec<u8>> {
    let mut space = Space::default();
    let mut left = vec![mountpoint.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in dir.read_dir()? {
            let entry = entry?;
            // It may have been deleted meanwhile.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.is_file() && is_from_archive(&entry.path()) {
                let stored = meta.blocks().saturating_mul(512);
                space.archives = space.archives.saturating_add(1);
                space.original_bytes = space.original_bytes.saturating_add(meta.len());
                space.stored_bytes = space.stored_bytes.saturating_add(stored);
            }
        }
    }
    serde_json::to_vec(&space).map_err(|e| Error::invalid(e.to_string()))
}

/// Whether a file in a mount is shown from an archive. Needs permission to read it.
pub(super) fn is_from_archive(path: &Path) -> bool {
    getxattr(path, STORED, &mut [0u8; 32]).is_ok()
}
