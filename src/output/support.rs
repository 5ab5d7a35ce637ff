//! What a file system, a kernel or a sandbox may not offer, and syncing in spite of that.

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, fsync, linkat, openat, syncfs},
    io::Errno,
};
use std::{
    ffi::OsStr,
    fs::File,
    os::fd::{AsFd, AsRawFd},
};

/// Whether an error says that a file system, a kernel or a sandbox does not offer a call.
pub(super) fn is_unsupported(e: Errno) -> bool {
    matches!(
        e,
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTTY | Errno::BADF | Errno::PERM
    )
}

/// Sync a file's bytes and attributes to disk.
///
/// # Errors
/// Failures of the disk; a file system that offers no syncing is not an error.
pub fn sync_file(file: impl AsFd) -> Result<(), Errno> {
    match fsync(&file) {
        Err(e) if is_unsupported(e) => match syncfs(&file) {
            Err(e) if is_unsupported(e) => Ok(()),
            other => other,
        },
        other => other,
    }
}

/// Sync the entries of a directory to disk, by any descriptor of it.
///
/// # Errors
/// `EACCES` if it may not be read; failures of the disk.
pub fn sync_dir(dir: impl AsFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sync_file(openat(dir, ".", flags, Mode::empty())?)
}

/// Link an open file as `name` in `dir`, which must be free.
pub(super) fn link_open(file: &File, dir: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, own, &dir, name, AtFlags::SYMLINK_FOLLOW) {
        // Without /proc. Before Linux 6.10, this takes CAP_DAC_READ_SEARCH.
        Err(Errno::NOENT) => linkat(file, "", &dir, name, AtFlags::EMPTY_PATH),
        other => other,
    }
}
