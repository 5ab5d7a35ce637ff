//! `bsz ask`: the process that runs one probe, and may hang in it.

use super::control::{DROP_CACHE, PACK_NOW, PAUSE, RESUME};
use super::probe::{self, Probe};
use super::{client, resolve, unmount, usage};
use crate::error::{Context, Result};
use crate::program;
use std::io::Write;
use std::path::Path;

/// Run `probe` on an absolute path, and write the result to the standard output. Must be called
/// before anything is opened, because it closes all inherited descriptors.
///
/// # Errors
/// Io, if the parent no longer reads the result.
pub fn run_probe(probe: Probe, path: &Path) -> Result<()> {
    // The parent may exit while this process hangs. The pipes and locks of its shell must not stay
    // open then.
    program::end_with_parent()?;
    program::close_inherited(None)?;
    let result = match probe {
        Probe::Resolve => resolve::resolve_blocking(path),
        Probe::ResolveMountpoint => resolve::resolve_mountpoint_blocking(path),
        Probe::Alive => rustix::fs::statfs(path).map(|_| Vec::new()).map_err(Into::into),
        Probe::Status => client::status_blocking(path),
        Probe::Space => client::space_blocking(path),
        Probe::Usage => usage::usage_blocking(path),
        Probe::DropCache => client::trigger_blocking(path, DROP_CACHE),
        Probe::PackNow => client::trigger_blocking(path, PACK_NOW),
        Probe::PausePacking => client::trigger_blocking(path, PAUSE),
        Probe::ResumePacking => client::trigger_blocking(path, RESUME),
        Probe::Unmount => unmount::unmount_blocking(path, false),
        Probe::Detach => unmount::unmount_blocking(path, true),
    };
    let mut stdout = std::io::stdout();
    stdout.write_all(&probe::encode(result)).and_then(|()| stdout.flush()).about("standard output")
}
