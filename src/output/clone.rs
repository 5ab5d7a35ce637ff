//! Ranges of files that share their place on disk. XFS, btrfs and bcachefs offer that; each file
//! stays whole, and the file system counts who uses a block.

#![allow(unsafe_code)]

use super::{dir::Dir, file::unnamed, support::is_unsupported};
use rustix::io::Errno;
use std::{
    fs::File,
    io,
    mem::size_of,
    os::{fd::AsRawFd, unix::fs::FileExt},
    ptr::from_mut,
};

/// Offsets of ranges that can be shared are multiples of this, in bytes: of a block.
pub const CLONE_BLOCK: u64 = 4096;

/// `FIEMAP_EXTENT_UNKNOWN`, `_DELALLOC` and `_DATA_INLINE` (linux/fiemap.h): such an extent has no
/// place of its own, or none yet.
const NO_PLACE: u32 = 0x2 | 0x4 | 0x200;

/// `struct fiemap` of linux/fiemap.h with room for one extent.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extent: FiemapExtent,
}

/// `struct fiemap_extent` of linux/fiemap.h.
#[repr(C)]
#[derive(Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// The request without the extents, whose length is a part of its number.
type FiemapHeader = [u64; 4];
const FIEMAP: libc::Ioctl = libc::_IOWR::<FiemapHeader>(b'f' as u32, 11);
const _: () = assert!(size_of::<Fiemap>() == size_of::<FiemapHeader>() + 56);

/// Let `len` bytes at `to_at` of `to` be those at `from_at` of `from`, without storing them again.
/// All three are multiples of [`CLONE_BLOCK`]. Whatever is changed in one file later does not
/// change the other.
///
/// # Errors
/// Io, also if the file system cannot do that, or if the files are on different ones.
pub fn clone_range(from: &File, from_at: u64, to: &File, to_at: u64, len: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: from_at,
        src_length: len,
        dest_offset: to_at,
    };
    // SAFETY: both descriptors are open, and the kernel only reads the structure.
    match unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether files in `dir` can share ranges, found by trying; `None` if that fails for another
/// reason. Nothing is left of the attempt.
pub fn can_clone(dir: &Dir) -> Option<bool> {
    let (Some(from), Some(to)) = (unnamed(dir).ok()?, unnamed(dir).ok()?) else {
        return Some(false);
    };
    from.write_all_at(&[1; 3 * CLONE_BLOCK as usize], 0).ok()?;
    // The block in the middle: file systems accept the end of a file at any offset.
    match clone_range(&from, CLONE_BLOCK, &to, CLONE_BLOCK, CLONE_BLOCK) {
        Ok(()) => Some(true),
        Err(e) => Errno::from_io_error(&e).filter(|&e| is_unsupported(e)).map(|_| false),
    }
}

/// Where on disk byte `at` of a file is, by an address that means something only within its file
/// system: equal addresses are the same bytes. `None` if the file system does not say.
pub fn place_on_disk(file: &File, at: u64) -> Option<u64> {
    let mut map = Fiemap { start: at, length: 1, extent_count: 1, ..Fiemap::default() };
    // SAFETY: the descriptor is open. The kernel writes the header and at most `extent_count`
    // extents, for which the structure has room; any bits are valid in it.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, from_mut(&mut map)) };
    let found = &map.extent;
    let holds = done == 0 && map.mapped_extents == 1 && found.flags & NO_PLACE == 0;
    (holds && found.logical <= at).then(|| found.physical + (at - found.logical))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_system_cannot_share_is_an_error() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = Dir::open(root.path()).expect("opens");
        let (from, to) = (unnamed(&dir), unnamed(&dir));
        let (Ok(Some(from)), Ok(Some(to))) = (from, to) else { return };
        from.write_all_at(&[7; 3 * CLONE_BLOCK as usize], 0).expect("written");
        let cloned = clone_range(&from, CLONE_BLOCK, &to, 0, CLONE_BLOCK).is_ok();
        assert_eq!(Some(cloned), can_clone(&dir));
        assert_eq!(to.metadata().expect("stat").len(), if cloned { CLONE_BLOCK } else { 0 });
        assert!(clone_range(&from, 1, &to, 0, CLONE_BLOCK).is_err(), "not at a block");
        assert_eq!(std::fs::read_dir(root.path()).expect("lists").count(), 0);
    }

    #[test]
    fn a_file_has_its_own_place_on_disk() {
        let file = || {
            let file = tempfile::tempfile().expect("a file");
            file.write_all_at(&[7; 1 << 20], 0).expect("written");
            file.sync_all().expect("synced");
            file
        };
        let (a, b) = (file(), file());
        let Some(place) = place_on_disk(&a, 5) else { return };
        assert_eq!(place_on_disk(&a, 6), Some(place + 1));
        assert_ne!(place_on_disk(&b, 5), Some(place));
        assert_eq!(place_on_disk(&a, 1 << 21), None);
    }
}
