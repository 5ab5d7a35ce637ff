//! The guard of `--auto-unmount`: a second process that outlives the daemon and detaches the mount
//! that a killed daemon leaves behind.

use crate::error::{Context, Result};
use crate::mount;
use crate::program::this_program;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

/// Start the guard of the mount that this process is about to make at `mountpoint`.
pub(super) fn start(mountpoint: &Path) -> Result<()> {
    let mut guard = this_program()
        .args(["umount", "--orphaned", "--"])
        .arg(std::path::absolute(mountpoint).about_path(mountpoint)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // ^C in a terminal is meant for the daemon alone.
        .process_group(0)
        .spawn()
        .about("the guard")?;
    // Our end of the pipe stays open as long as this process lives.
    std::mem::forget(guard.stdin.take());
    Ok(())
}

/// Be the guard: wait until the daemon at the other end of standard input has ended, then detach
/// its mount if it left one.
pub(super) fn watch(mountpoint: &Path) -> Result<()> {
    // The end of the input, or an error, means that the daemon is gone. Its content is ignored.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    mount::clear_orphan(mountpoint)
}
