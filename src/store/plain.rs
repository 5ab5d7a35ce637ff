//! Writing plain files past the page cache of the source, and the access times of archives.

use super::unpack::proc_path;
use crate::mount::drop_cached;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// How much is written in order before it is sent to the disk.
const WRITE_BEHIND: u64 = 8 << 20;

/// The bytes that were last written in order.
#[derive(Default)]
pub(super) struct Written(Mutex<Range>);

#[derive(Default)]
struct Range {
    /// From where they are not on their way to the disk yet.
    start: u64,
    end: u64,
    /// Whether some are being sent there.
    busy: bool,
}

impl Written {
    /// Count a write. Returns the range that should be sent to the disk, one at a time: the caller
    /// calls [`Written::sent`] then.
    pub fn add(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = if at.end == offset { at.start } else { offset };
        let end = offset.saturating_add(len);
        (at.start, at.end) = (start, end);
        if end - start < WRITE_BEHIND || at.busy {
            return None;
        }
        (at.start, at.busy) = (end, true);
        Some((start, end))
    }

    /// A range has been sent to the disk.
    pub fn sent(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).busy = false;
    }
}

/// Send a range of a file to the disk, without waiting, so that a later fsync(2) has less to do.
/// What was sent before it and has arrived leaves the page cache.
pub(super) fn write_behind(file: &File, (start, end): (u64, u64)) {
    let from = start.saturating_sub(2 * WRITE_BEHIND);
    drop_cached(file, from, end - from);
}

/// Read a byte of an archive through the page cache, which moves its access time as reading the
/// file that it shows would. What is decoded already, and read past the page cache, does not.
pub(super) fn touch(archive: &File) {
    let path = proc_path(archive.as_fd());
    let read = File::open(path).and_then(|file| file.read_at(&mut [0], 0));
    if let Err(e) = read {
        log::debug!("an access time stays: {e}");
    }
}
