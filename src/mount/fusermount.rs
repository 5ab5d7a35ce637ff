//! `fusermount3`, the set-user-id helper of libfuse with which ordinary users mount and unmount.

use super::subprocess::{self, Outcome, Stream, Subprocess};
use crate::error::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Directories to search after those of `PATH`.
const DIRECTORIES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What came of an unmount by the helper.
pub(super) enum Unmounted {
    Done,
    Busy,
    TimedOut,
    /// Its message.
    Failed(String),
}

/// The helper's path, if it is installed.
pub fn find_helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(DIRECTORIES.map(PathBuf::from));
    directories.map(|d| d.join("fusermount3")).find(|p| p.is_absolute() && p.is_file())
}

/// Unmount with the helper at `helper`.
///
/// # Errors
/// The helper cannot be started.
pub(super) fn unmount(helper: &Path, mountpoint: &Path, lazy: bool) -> Result<Unmounted> {
    let mut command = Command::new(helper);
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(mountpoint).env("LC_ALL", "C");
    let mut child = Subprocess::start(&mut command, Stream::Stderr)?;
    subprocess::read_until(&mut [&mut child], Instant::now() + TIMEOUT);
    let Outcome::Finished(status, stderr) = child.finish() else { return Ok(Unmounted::TimedOut) };
    let stderr = String::from_utf8_lossy(&stderr);
    Ok(match status.success() {
        true => Unmounted::Done,
        // Its exit status is 1 for every error, so only its message tells them apart.
        false if stderr.contains("busy") => Unmounted::Busy,
        false => Unmounted::Failed(stderr.trim().to_owned()),
    })
}

/// The helper's message, without its name.
pub(super) fn message(stderr: &str) -> &str {
    stderr.trim().trim_start_matches("fusermount3: ")
}
