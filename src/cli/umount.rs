//! `bsz umount`.

use super::{complain, for_each, guard};
use crate::error::{Error, Result};
use crate::mount;
use clap::Args;
use std::path::PathBuf;

/// End a mount
#[derive(Args)]
#[command(after_help = "Examples:
  bsz umount view/          unmount, even if the daemon has died
  bsz umount --lazy view/   detach a mount in use; open files stay readable until they are closed
  bsz umount --stale        clear away all mounts whose daemons have died")]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(required_unless_present = "stale")]
    mountpoint: Option<PathBuf>,
    /// Unmount what dead daemons have left: everywhere, or at and below MOUNTPOINT
    #[arg(long)]
    stale: bool,
    /// Detach a mount that is in use; open files stay readable until they are closed
    #[arg(short, long)]
    lazy: bool,
    /// Wait for the end of standard input, which a daemon holds open, then detach its mount if the
    /// daemon has died. Started by `bsz mount --auto-unmount`
    #[arg(long, hide = true, requires = "mountpoint", conflicts_with_all = ["stale", "lazy"])]
    orphaned: bool,
}

/// `bsz umount`
pub fn umount(args: UmountArgs) -> Result<()> {
    match args.mountpoint {
        Some(mountpoint) if args.orphaned => guard::watch(&mountpoint),
        below if args.stale => {
            let unserved = mount::unserved(below.as_deref())?;
            for silent in &unserved.silent {
                let why =
                    "its daemon does not answer, but is alive; `bsz umount --lazy` detaches it";
                complain(&Error::invalid(why).about_path(silent));
            }
            for_each("umount", &unserved.dead, |mountpoint| mount::detach(mountpoint))
        }
        Some(mountpoint) if args.lazy => mount::detach(&mountpoint),
        Some(mountpoint) => mount::unmount(&mountpoint),
        None => Ok(()),
    }
}
