//! To start this program again.

use crate::error::{Error, Result};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// To run this program once more, away from the directory in which the user happens to be.
///
/// It is the very program that runs, also where its file was replaced by an upgrade, or removed.
pub fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("bsz").current_dir("/");
    command
}

/// End together with the process that started this one.
///
/// # Errors
/// Io, where the kernel does not offer that.
pub fn end_with_parent() -> Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Close what was open when this process began, but its standard streams and `kept`: for a process that may outlive who
/// started it, and would hold pipes and locks of a shell. To be called before anything is opened.
///
/// # Errors
/// Io, where `/proc` does not tell what is open.
pub fn close_inherited(kept: Option<RawFd>) -> Result<()> {
    let open = std::fs::read_dir("/proc/self/fd").map_err(Error::from)?;
    let open: Vec<RawFd> =
        open.filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && Some(*fd) != kept) {
        // One of them was open to list them.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}
