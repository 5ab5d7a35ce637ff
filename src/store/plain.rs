//! Reading and writing plain files around the page cache of the source, and the access times of
//! archives.

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// What is read of a file beyond this offset does not stay in the page cache of the source, because
/// the kernel caches it as a part of the store.
const KEPT: u64 = 32 << 20;

/// How much is written in order before it is sent to the disk.
const WRITE_BEHIND: u64 = 8 << 20;

/// The bytes that were last written in order: from where they are not on their way to the disk yet,
/// and their end.
#[derive(Default)]
pub(super) struct Written(Mutex<(u64, u64)>);

impl Written {
    /// Count a write. Returns the range that should be sent to the disk.
    pub fn add(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = if at.1 == offset { at.0 } else { offset };
        let end = offset.saturating_add(len);
        *at = (start, end);
        if end - start < WRITE_BEHIND {
            return None;
        }
        *at = (end, end);
        Some((start, end))
    }
}

/// Send a range of a file to the disk, without waiting, so that a later fsync(2) has less to do.
/// What was sent before it and has arrived leaves the page cache.
pub(super) fn write_behind(file: &File, (start, end): (u64, u64)) {
    let from = start.saturating_sub(2 * WRITE_BEHIND);
    drop_cached(file, from, end - from);
}

/// Drop a range of the page cache that was just read from a large file.
pub(super) fn drop_behind(file: &File, offset: u64, len: u64) {
    if offset >= KEPT {
        drop_cached(file, offset, len);
    }
}

/// Pages that have changed are not dropped, but written.
fn drop_cached(file: &File, offset: u64, len: u64) {
    if let Err(e) = fadvise(file, offset, NonZeroU64::new(len), Advice::DontNeed) {
        log::debug!("a range stays in the page cache: {e}");
    }
}

/// Read a plain file at `offset` until the buffer is full or the file ends.
pub(super) fn read_plain(file: &File, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Read a byte of an archive in the usual way, which moves its access time as reading the file that
/// it shows would. What is decoded already, and read past the page cache, does not.
pub(super) fn touch(archive: &File) {
    if let Err(e) = archive.read_at(&mut [0], 0) {
        log::debug!("an access time stays: {e}");
    }
}

/// Read a plain file if all that is asked for is in the page cache, without blocking. `None` if it
/// is not.
pub(super) fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> Option<usize> {
    let wanted = buffer.len();
    let mut part = [std::io::IoSliceMut::new(buffer)];
    let n = preadv2(file, &mut part, offset, ReadWriteFlags::NOWAIT).ok()?;
    let is_end = || file.metadata().is_ok_and(|meta| meta.len() <= offset + n as u64);
    (n == wanted || is_end()).then_some(n)
}
