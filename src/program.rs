//! Starting this program again, and what such a process must not inherit.

use crate::error::{Error, Result};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

/// How this program is started, if it is no executable of its own: an interpreter and a script.
static STARTED_BY: OnceLock<Vec<OsString>> = OnceLock::new();

/// Declare that this program is started by `command`, absolute paths and arguments, before those of
/// the program itself. It can be declared once.
pub fn started_by(command: Vec<OsString>) {
    let _ = STARTED_BY.set(command);
}

/// A command that runs this program again, with `/` as its working directory, so that it keeps no
/// mount of the user busy.
///
/// It runs the same executable even if the file has been replaced by an upgrade, or deleted. A
/// script is the one that is there now.
pub fn this_program() -> Command {
    let mut command = match STARTED_BY.get().and_then(|command| command.split_first()) {
        Some((interpreter, script)) => {
            let mut command = Command::new(interpreter);
            command.args(script);
            command
        }
        None => {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("bsz");
            command
        }
    };
    command.current_dir("/");
    command
}

/// Have the kernel kill this process when its parent exits.
///
/// # Errors
/// Io, if the kernel does not support that.
pub fn end_with_parent() -> Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Close all descriptors but the standard streams and `kept`. A process that may outlive its parent
/// must not keep the pipes and locks of a shell open. Must be called before anything is opened.
///
/// # Errors
/// Io, if `/proc` is not available.
pub fn close_inherited(kept: Option<RawFd>) -> Result<()> {
    let open = std::fs::read_dir("/proc/self/fd").map_err(Error::from)?;
    let open: Vec<RawFd> =
        open.filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && Some(*fd) != kept) {
        // One of them was the descriptor of the directory, which is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}
