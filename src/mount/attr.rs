//! File attributes: what stat(2) shows, inode numbers, and how a changed file is recognized.

use crate::codec::checksum;
use rustix::fs::{FileType, Stat};
use rustix::time::{ClockId, clock_gettime};

/// Attributes of a file in the view. Times are seconds and nanoseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attr {
    pub ino: u64,
    pub kind: FileType,
    /// Permission bits, including set-user-id, set-group-id and sticky.
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space on disk, in blocks of 512 bytes.
    pub blocks: u64,
    pub blksize: u32,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
}

/// The attributes of a packed file, from the footer of its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub size: u64,
    pub mode: u32,
    pub mtime: (i64, u32),
    pub naming: crate::format::Naming,
    pub sha256: [u8; 32],
}

/// Identifies one state of one source file. While it stays equal, the content of the file has not
/// changed, provided that it [is settled](Identity::is_settled).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub dev: u64,
    pub ino: u64,
    size: i64,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

/// How old a ctime must be so that another change is sure to get another ctime. The clock of a
/// kernel ticks at least every 10 ms, but the timestamps of some file systems have a granularity of
/// 2 s.
const TICK: (i64, u32) = (0, 50_000_000);
const COARSE_TICK: (i64, u32) = (2, 0);

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

    /// Whether any change from now on leads to another identity. A file that has changed within the
    /// current tick of its file system's clock can change again and keep its ctime.
    pub fn is_settled(&self) -> bool {
        let now = clock_gettime(ClockId::Realtime);
        self.is_settled_at((now.tv_sec as i64, now.tv_nsec as u32))
    }

    fn is_settled_at(&self, (secs, nanos): (i64, u32)) -> bool {
        // A file system with coarse timestamps has no nanoseconds.
        let tick = if self.ctime.1 == 0 { COARSE_TICK } else { TICK };
        let age = (secs - self.ctime.0, i64::from(nanos) - i64::from(self.ctime.1));
        let age = if age.1 < 0 { (age.0 - 1, age.1 + 1_000_000_000) } else { age };
        age >= (tick.0, i64::from(tick.1))
    }
}

#[allow(clippy::unnecessary_cast)]
fn mtime(s: &Stat) -> (i64, u32) {
    (s.st_mtime as i64, s.st_mtime_nsec as u32)
}

/// The inode number of the view's root.
pub(crate) const ROOT: u64 = 1;

/// Set in the inode numbers of decoded archives on the root's device.
const DECODED: u64 = 1 << 61;

/// Set in the inode numbers of files that cannot keep the number of the source. Numbers stay
/// positive as signed 64-bit integers, which is how databases store them.
const HASHED: u64 = 1 << 62;

/// The inode number in the view of the file `ino` on device `dev`. It is the same after every
/// mount, and for all names of the file. A decoded archive is not the same file as the archive
/// itself, which may be visible at the same time through a hard link without the suffix.
pub(crate) fn inode_number(root_dev: u64, dev: u64, ino: u64, decoded: bool) -> u64 {
    match dev == root_dev {
        true if (ROOT + 1..DECODED).contains(&ino) => ino | if decoded { DECODED } else { 0 },
        // The root's device counts as 0, because its number may change with each boot.
        is_root => hashed(if is_root { 0 } else { dev }, ino, decoded),
    }
}

fn hashed(dev: u64, ino: u64, decoded: bool) -> u64 {
    let key = [dev.to_le_bytes(), ino.to_le_bytes(), u64::from(decoded).to_le_bytes()].concat();
    HASHED | checksum(&key) >> 2
}

/// The attributes of the source file `s` as inode `ino`. An archive has the size and the mtime
/// of the packed file.
///
/// The blocks are those of the archive, so that `du` reports the space that it takes; but at least
/// one, because programs take a file without blocks for a hole. The permissions are those that the
/// archive and the packed file have in common, so that the view respects a chmod of either.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn attr(ino: u64, s: &Stat, packed: Option<&Packed>) -> Attr {
    let mode = packed.map_or(!0, |p| p.mode) & s.st_mode as u32;
    Attr {
        ino,
        kind: FileType::from_raw_mode(s.st_mode),
        perm: (mode & 0o7777) as u16,
        nlink: s.st_nlink as u32,
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: s.st_rdev as u64,
        size: packed.map_or(s.st_size as u64, |p| p.size),
        blocks: (s.st_blocks as u64).max(packed.is_some_and(|p| p.size > 0).into()),
        blksize: s.st_blksize as u32,
        atime: (s.st_atime as i64, s.st_atime_nsec as u32),
        mtime: packed.map_or(mtime(s), |p| p.mtime),
        ctime: (s.st_ctime as i64, s.st_ctime_nsec as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn inode_numbers_are_unique_across_devices_and_decoded_archives() {
        let mut seen = HashSet::from([0, ROOT]);
        for dev in [7, 8] {
            for ino in [0, 1, 2, 12, DECODED - 1, DECODED, DECODED | 12, HASHED, u64::MAX] {
                for decoded in [false, true] {
                    let n = inode_number(7, dev, ino, decoded);
                    assert!(
                        seen.insert(n) && i64::try_from(n).is_ok(),
                        "{dev} {ino} {decoded}: {n}"
                    );
                }
            }
        }
        assert_eq!(inode_number(7, 7, 12, false), 12, "the number of the source, if possible");
        assert_eq!(
            inode_number(7, 7, 1, false),
            inode_number(9, 9, 1, false),
            "whatever the number of the root's device"
        );
    }

    #[test]
    fn a_file_is_settled_once_its_clock_has_ticked() {
        let at = |ctime| Identity { dev: 1, ino: 2, size: 3, mtime: (0, 0), ctime };
        for (ctime, now, settled) in [
            ((100, 5), (100, 5), false),
            ((100, 5), (100, 49_999_999), false),
            ((100, 5), (100, 50_000_005), true),
            ((100, 990_000_000), (101, 10_000_000), false),
            ((100, 990_000_000), (101, 40_000_000), true),
            ((100, 0), (101, 999_999_999), false),
            ((100, 0), (102, 0), true),
            ((100, 5), (99, 0), false),
        ] {
            assert_eq!(at(ctime).is_settled_at(now), settled, "{ctime:?} at {now:?}");
        }
    }
}
