//! The way back: unmount as root by the system call, as an ordinary user through `fusermount3`.

use super::FS_TYPE;
use super::mountinfo::{self, Mount};
use crate::error::{Context, Error, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long an unmounted mount may stay in the mount table.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// How long a mount may be in use before that is an error: a process which is just ending, or one that looks at
/// every file, lets go of it soon.
const BUSY_FOR: Duration = Duration::from_millis(500);

/// How often to look again.
const PAUSE: Duration = Duration::from_millis(10);

/// Where to look for the set-user-id helper beside `PATH`.
const HELPER_DIRECTORIES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// End the bszfs mount at `mountpoint`, also one whose daemon has died. Returns when it is gone.
///
/// Fails if nothing of ours is mounted there, or if it is in use.
pub fn unmount(mountpoint: &Path) -> Result<()> {
    let mount = mount_at(mountpoint)?;
    let started = Instant::now();
    loop {
        match end(&mount, false) {
            Err(Refused::Busy) if started.elapsed() < BUSY_FOR => std::thread::sleep(PAUSE),
            other => break other.map_err(|e| explain(e, &mount))?,
        }
    }
    wait_until_gone(&mount)
}

/// Like [`unmount`], but a mount in use is only taken out of sight: who has files open keeps them, and its
/// daemon ends with the last of them.
pub fn detach(mountpoint: &Path) -> Result<()> {
    let mount = mount_at(mountpoint)?;
    end(&mount, true).map_err(|e| explain(e, &mount))?;
    wait_until_gone(&mount)
}

/// The path as the mount table has it. The mountpoint itself is not touched: it may be a dead mount.
pub(super) fn canonical_mountpoint(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).about_path(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().about_path(path)?.join(name)),
        // It ends in `..`, or is the root.
        _ => absolute.canonicalize().about_path(path),
    }
}

fn mount_at(path: &Path) -> Result<Mount> {
    let mut mountpoint = canonical_mountpoint(path)?;
    let mut mount = mountinfo::topmost_at(&mountpoint)?;
    if mount.is_none()
        && let Ok(target) = mountpoint.canonicalize()
    {
        // Nothing is mounted at this path, so it can be touched, and may be a symlink to a mountpoint.
        mountpoint = target;
        mount = mountinfo::topmost_at(&mountpoint)?;
    }
    match mount {
        Some(mount) if mount.fs_type == FS_TYPE => Ok(mount),
        Some(mount) => Err(Error::invalid(format!("is a {} mount, not a bszfs mount", mount.fs_type))),
        None => Err(Error::invalid("is not a mountpoint")),
    }
    .about_path(path)
}

/// Why an unmount failed.
#[derive(Debug)]
pub(super) enum Refused {
    /// Files are open, or a process has its working directory there.
    Busy,
    Other(String),
}

fn explain(refused: Refused, mount: &Mount) -> Error {
    let why = match refused {
        Refused::Busy => {
            "is in use: close the files that are open in it, or detach it now and let them finish \
                          with --lazy"
                .to_owned()
        }
        Refused::Other(why) => why,
    };
    Error::invalid(why).about(mount.mountpoint.display())
}

/// Unmount `mount`, which must be the topmost at its mountpoint.
pub(super) fn end(mount: &Mount, lazy: bool) -> Result<(), Refused> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(&mount.mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Refused::Busy),
        Err(Errno::PERM) => end_through_helper(&mount.mountpoint, lazy),
        Err(e) => Err(Refused::Other(std::io::Error::from(e).to_string())),
    }
}

fn end_through_helper(mountpoint: &Path, lazy: bool) -> Result<(), Refused> {
    let helper = find_helper().ok_or_else(|| {
        Refused::Other("only root may unmount, or an ordinary user with fusermount3 (package fuse3)".into())
    })?;
    let output = Command::new(&helper)
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(mountpoint)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Refused::Other(format!("{}: {e}", helper.display())))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(Refused::Busy),
        false => Err(Refused::Other(said.trim().to_owned())),
    }
}

/// The set-user-id program through which ordinary users mount and unmount.
pub fn find_helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(HELPER_DIRECTORIES.map(PathBuf::from));
    directories.map(|d| d.join("fusermount3")).find(|p| p.is_absolute() && p.is_file())
}

fn wait_until_gone(mount: &Mount) -> Result<()> {
    let started = Instant::now();
    while mountinfo::topmost_at(&mount.mountpoint)?.is_some_and(|now| now.id == mount.id) {
        if started.elapsed() > GONE_WITHIN {
            return Err(Error::invalid("is still in the mount table").about(mount.mountpoint.display()));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bszfs_mount_is_ended() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = unmount(dir.path()).expect_err("nothing is mounted there").to_string();
        assert!(error.ends_with("is not a mountpoint"), "{error}");
        let error = detach(Path::new("/proc")).expect_err("not ours").to_string();
        assert_eq!(error, "/proc: is a proc mount, not a bszfs mount");
    }

    #[test]
    fn a_mountpoint_is_named_as_the_mount_table_names_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let real = dir.path().canonicalize().expect("canonical").join("real");
        std::fs::create_dir(&real).expect("mkdir");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("symlink");
        for spelled in ["link/view", "real/view", "real/./view/", "link/../real/view"] {
            let canonical = canonical_mountpoint(&dir.path().join(spelled)).expect(spelled);
            assert_eq!(canonical, real.join("view"), "{spelled}");
        }
    }
}
