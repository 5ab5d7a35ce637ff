//! Mounts that a privileged program has made: it opens `/dev/fuse`, mounts it, and passes the open
//! descriptor. The mountpoint is `/dev/fd/N` then, as in libfuse (mount.fuse3(8)).

use crate::error::{Context, Error, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs::Metadata;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The fixed device number of `/dev/fuse` (Documentation/admin-guide/devices.txt of Linux).
const FUSE: (u32, u32) = (10, 229);

/// The descriptor N, if `mountpoint` is `/dev/fd/N`.
pub(super) fn number(mountpoint: &Path) -> Option<RawFd> {
    mountpoint.strip_prefix("/dev/fd").ok()?.to_str()?.parse().ok().filter(|&fd| fd >= 0)
}

/// Take ownership of the descriptor `fd`, which must be an open `/dev/fuse`. Works once per
/// process.
///
/// # Errors
/// Invalid argument, if it is something else, or has been taken already.
#[allow(unsafe_code, reason = "a number becomes an owned descriptor")]
pub(super) fn take(fd: RawFd) -> Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let is_open = std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok_and(|meta| is_fuse(&meta));
    if !is_open || TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Error::invalid(
            "is not an open /dev/fuse: open it, mount(2) with its number, and pass it to bsz open",
        ));
    }
    // SAFETY: the descriptor is an open `/dev/fuse`. This process opens none itself before its
    // session exists, so nothing else here owns it. `TAKEN` shows that it has not been taken
    // before.
    let fuse = unsafe { OwnedFd::from_raw_fd(fd) };
    // Otherwise, child processes would keep the mount alive.
    fcntl_setfd(&fuse, FdFlags::CLOEXEC).about("fcntl")?;
    Ok(fuse)
}

fn is_fuse(meta: &Metadata) -> bool {
    let device = meta.rdev();
    meta.file_type().is_char_device()
        && (rustix::fs::major(device), rustix::fs::minor(device)) == FUSE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_dev_fd_and_a_number_is_a_descriptor() {
        for (path, fd) in [("/dev/fd/3", Some(3)), ("/dev/fd/17/", Some(17)), ("/dev/fd", None)] {
            assert_eq!(number(Path::new(path)), fd, "{path}");
        }
        for path in ["/dev/fd/-1", "/dev/fd/x", "/dev/fd/3/x", "dev/fd/3", "/dev/fd/99999999999"] {
            assert_eq!(number(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn other_files_are_not_taken() {
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        for fd in [null.as_raw_fd(), 9999] {
            let refused = take(fd).expect_err("no /dev/fuse").to_string();
            assert!(refused.starts_with("is not an open /dev/fuse"), "{refused}");
        }
    }
}
