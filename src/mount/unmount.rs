//! The way back: unmount as root by the system call, as an ordinary user through `fusermount3`.

use super::ask::{self, Question, Unanswered};
use super::mountinfo::{self, Mount};
use super::{FS_TYPE, place};
use crate::error::{Context, Error, Result};
use crate::escape;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::{Path, PathBuf};
use std::process::Command;
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
        match end_apart(&mount, false) {
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
    end_apart(&mount, true).map_err(|e| explain(e, &mount))?;
    wait_until_gone(&mount)
}

fn mount_at(path: &Path) -> Result<Mount> {
    match place::mount_at(path)? {
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
pub(super) enum Refused {
    /// Files are open, or a process has its working directory there.
    Busy,
    /// It takes too long.
    Silent,
    Other(String),
}

fn explain(refused: Refused, mount: &Mount) -> Error {
    let why = match refused {
        Refused::Busy => {
            "is in use: close the files that are open in it, or detach it now and let them finish \
                          with --lazy"
                .to_owned()
        }
        Refused::Silent => "does not answer: detach it with --lazy".to_owned(),
        Refused::Other(why) => why,
    };
    Error::invalid(why).about_path(&mount.mountpoint)
}

/// Unmount `mount`, which must be the topmost at its mountpoint.
pub(super) fn end(mount: &Mount, lazy: bool) -> Result<(), Refused> {
    match call(&mount.mountpoint, lazy) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Refused::Busy),
        Err(Errno::PERM) => end_through_helper(&mount.mountpoint, lazy),
        Err(e) => Err(Refused::Other(std::io::Error::from(e).to_string())),
    }
}

/// The same, within a deadline: the way to the mountpoint may lead through what does not answer.
fn end_apart(mount: &Mount, lazy: bool) -> Result<(), Refused> {
    let question = if lazy { Question::Detach } else { Question::Unmount };
    match ask::ask(question, &mount.mountpoint) {
        Ok(_) => Ok(()),
        Err(Unanswered::Silent) => Err(Refused::Silent),
        Err(e) if e.errno() == Some(Errno::BUSY) => Err(Refused::Busy),
        Err(e) if e.errno() == Some(Errno::PERM) => end_through_helper(&mount.mountpoint, lazy),
        Err(Unanswered::Failed(e)) => Err(Refused::Other(e.to_string())),
    }
}

/// The answer to [`Question::Unmount`] and [`Question::Detach`].
pub(super) fn answer_end(mountpoint: &Path, lazy: bool) -> Result<Vec<u8>> {
    Ok(call(mountpoint, lazy).map(|()| Vec::new())?)
}

fn call(mountpoint: &Path, lazy: bool) -> rustix::io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW)
}

fn end_through_helper(mountpoint: &Path, lazy: bool) -> Result<(), Refused> {
    let helper = find_helper().ok_or_else(|| {
        Refused::Other(
            "only root may unmount, or an ordinary user with fusermount3 (package fuse3)".into(),
        )
    })?;
    let mut command = Command::new(&helper);
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(mountpoint).env("LC_ALL", "C");
    let (status, said) = ask::run(&mut command).map_err(|e| match e {
        Unanswered::Silent => Refused::Silent,
        Unanswered::Failed(e) => Refused::Other(format!("{}: {e}", escape::path(&helper))),
    })?;
    let said = String::from_utf8_lossy(&said);
    match status.success() {
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
            return Err(Error::invalid("is still in the mount table").about_path(&mount.mountpoint));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
