//! The store's own attributes of files.
//!
//! Attributes of users take the right to write to the file. Where its owner lacks that, the owner
//! is given it for the moment.

use crate::mount::Entry;
use rustix::fs::{AtFlags, CWD, Mode, XattrFlags, chmodat, fstat, getxattr, removexattr, setxattr};
use rustix::io::{Errno, Result};
use std::os::fd::AsFd;

pub(super) use crate::mount::find_mark as find;

/// Set a mark, which may be there already.
pub(super) fn set(file: impl AsFd, mark: &str) -> Result<()> {
    let entry = Entry::of(&file)?;
    let path = entry.path();
    if getxattr(&path, mark, &mut [0u8; 1]).is_ok() {
        return Ok(());
    }
    writable(&entry, || setxattr(&path, mark, b"", XattrFlags::empty()))
}

/// Remove a mark, if it is there.
pub(super) fn remove(file: impl AsFd, mark: &str) -> Result<()> {
    let entry = Entry::of(&file)?;
    let path = entry.path();
    match writable(&entry, || removexattr(&path, mark)) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn writable(entry: &Entry, change: impl Fn() -> Result<()>) -> Result<()> {
    match change() {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let chmod = |mode| chmodat(CWD, entry.path(), mode, AtFlags::empty());
    let mode = Mode::from_raw_mode(fstat(entry)?.st_mode & 0o7777);
    // Only its owner may.
    chmod(mode | Mode::WUSR).map_err(|_| Errno::ACCESS)?;
    let changed = change();
    chmod(mode)?;
    changed
}
