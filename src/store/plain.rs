//! Reading plain files, and the access times of archives.

use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::File;
use std::os::unix::fs::FileExt;

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
