//! What `stat` shows, and when two looks at a file saw the same file.

use rustix::fs::{FileType, Stat};

/// Attributes of a file in the view. Times are seconds and nanoseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    pub ino: u64,
    pub kind: FileType,
    /// Permission bits, with set-user-id and its like.
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// What the file takes on disk, in blocks of 512 bytes.
    pub blocks: u64,
    pub blksize: u32,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
}

/// What an archive's footer says about the file that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub size: u64,
    pub mode: u32,
    pub mtime: (i64, u32),
    pub naming: crate::format::Naming,
}

/// One state of one source file: while this is equal, what was learned of the file's bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub dev: u64,
    pub ino: u64,
    size: i64,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

// The types of `struct stat` differ between architectures, so some casts are needed only on others.
#[allow(clippy::unnecessary_cast)]
impl Identity {
    pub fn of(s: &Stat) -> Self {
        Self {
            dev: s.st_dev as u64,
            ino: s.st_ino as u64,
            size: s.st_size as i64,
            mtime: mtime(s),
            ctime: (s.st_ctime as i64, s.st_ctime_nsec as u32),
        }
    }
}

#[allow(clippy::unnecessary_cast)]
fn mtime(s: &Stat) -> (i64, u32) {
    (s.st_mtime as i64, s.st_mtime_nsec as u32)
}

/// The attributes of source file `s` as inode `ino`; an archive shows what it was made from.
///
/// Its blocks stay those of the archive, so that `du` tells the saving.
#[allow(clippy::unnecessary_cast)]
pub(super) fn attr(ino: u64, s: &Stat, packed: Option<&Packed>) -> Attr {
    let mode = packed.map_or(s.st_mode as u32, |p| p.mode);
    Attr {
        ino,
        kind: FileType::from_raw_mode(s.st_mode),
        perm: (mode & 0o7777) as u16,
        nlink: packed.map_or(s.st_nlink as u32, |_| 1),
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: s.st_rdev as u64,
        size: packed.map_or(s.st_size as u64, |p| p.size),
        blocks: s.st_blocks as u64,
        blksize: s.st_blksize as u32,
        atime: (s.st_atime as i64, s.st_atime_nsec as u32),
        mtime: packed.map_or(mtime(s), |p| p.mtime),
        ctime: (s.st_ctime as i64, s.st_ctime_nsec as u32),
    }
}
