//! What the store agrees on with the kernel when it is mounted.

use crate::mount::READAHEAD;
use fuser::{InitFlags, KernelConfig};

/// Background requests in flight before the kernel blocks readers.
const MAX_BACKGROUND: u16 = 128;

/// Negotiate. Returns whether the kernel applies ACLs, and leaves the masks of callers to us.
///
/// Locks are left to the kernel, which applies them without our help. So is `O_TRUNC`: opening does
/// not unpack, and only the kernel knows whether a file is being executed.
pub(super) fn negotiate(config: &mut KernelConfig) -> bool {
    let _ = config.set_max_readahead(READAHEAD).or_else(|most| config.set_max_readahead(most));
    let _ = config.set_max_background(MAX_BACKGROUND);
    for wanted in [
        InitFlags::FUSE_ASYNC_READ,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_MAX_PAGES,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_AUTO_INVAL_DATA,
        InitFlags::FUSE_BIG_WRITES,
        InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
    ] {
        if config.add_capabilities(wanted).is_err() {
            log::debug!("the kernel has no {wanted:?}");
        }
    }
    let acls = config.add_capabilities(InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK);
    if acls.is_err() {
        log::warn!("the kernel does not apply ACLs to FUSE mounts");
    }
    acls.is_ok()
}
