//! What a mount agrees on with the kernel when it begins.

use fuser::{InitFlags, KernelConfig};

/// The kernel's readahead in bytes. Ordinary users get no more than 128 KiB.
pub(crate) const READAHEAD: u32 = 1 << 20;

/// Background requests in flight before the kernel blocks readers: enough that the parallel page
/// faults of many threads never wait behind readahead.
const MAX_BACKGROUND: u16 = 128;

/// Ask for what all mounts want, and for `more`.
pub(crate) fn negotiate(config: &mut KernelConfig, more: &[InitFlags]) {
    let _ = config.set_max_readahead(READAHEAD).or_else(|most| config.set_max_readahead(most));
    let _ = config.set_max_background(MAX_BACKGROUND);
    let all = [
        InitFlags::FUSE_ASYNC_READ,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_MAX_PAGES,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_AUTO_INVAL_DATA,
    ];
    // Requested one by one, because a kernel that lacks one capability refuses them all.
    for wanted in all.iter().chain(more) {
        if config.add_capabilities(*wanted).is_err() {
            log::debug!("the kernel has no {wanted:?}");
        }
    }
}
