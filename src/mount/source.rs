//! The source directory: opened once, everything else relative to that handle, and no symlink ever followed.
//!
//! Working relative to a handle keeps the view where it was mounted even if the source is renamed, and lets a
//! view be mounted over its own source. Not following symlinks keeps a daemon that runs as root from being led
//! out of the source by whoever may write there.

use super::attr::Identity;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, StatVfs};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// How often a path is tried again that was being renamed while the kernel walked it.
const RENAME_RETRIES: usize = 64;

/// File systems whose listings number entries otherwise than `stat` does: overlayfs, FUSE, SMB 1 and later.
const OTHER_NUMBERS: [u64; 4] = [0x794c_7630, 0x6573_5546, 0xff53_4d42, 0xfe53_4d42];

/// No extended attribute, and no list of their names, is longer (xattr(7)).
const MOST_XATTR: usize = 1 << 16;

pub(super) struct Source {
    root: OwnedFd,
    /// Absolute paths that lead here, the canonical one first.
    paths: Vec<PathBuf>,
    /// Linux before 5.6, and some sandboxes, have no `openat2`.
    has_openat2: bool,
}

/// A directory of the source, open for lookups in it.
pub(super) enum DirHandle<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

/// An entry of the source: an `O_PATH` descriptor, for which nothing waits, and no device or peer hears of it.
pub(super) struct Entry(OwnedFd);

impl Entry {
    /// A file that is open.
    pub fn of(file: &File) -> Result<Self> {
        file.try_clone().map(|file| Self(file.into())).map_err(|_| Errno::MFILE)
    }

    pub fn stat(&self) -> Result<Stat> {
        fs::fstat(&self.0)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, name: &OsStr) -> Result<Vec<u8>> {
        self.grown(|path, value| fs::getxattr(path, name, value))
    }

    /// The names of the extended attributes, each with a zero behind it.
    pub fn xattrs(&self) -> Result<Vec<u8>> {
        self.grown(|path, list| fs::listxattr(path, list))
    }

    /// An `O_PATH` descriptor has no extended attributes; what it stands for is reached by way of /proc.
    fn grown(&self, ask: impl Fn(&str, &mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let mut room = [0; 256];
        match ask(&path, &mut room) {
            Ok(len) => Ok(room[..len].to_vec()),
            Err(Errno::RANGE) => {
                let mut room = vec![0; MOST_XATTR];
                let len = ask(&path, &mut room)?;
                room.truncate(len);
                Ok(room)
            }
            Err(e) => Err(e),
        }
    }
}

/// A directory as it was listed.
pub(super) struct Listing<'a> {
    pub dir: DirHandle<'a>,
    pub dev: u64,
    /// Names, without `.` and `..`, with their types and inode numbers where the listing has them.
    pub entries: Vec<(OsString, FileType, Option<u64>)>,
}

impl AsFd for DirHandle<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

impl DirHandle<'_> {
    /// The entry's own attributes (a symlink's, not its target's).
    pub fn stat(&self, name: &OsStr) -> Result<Stat> {
        fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The entry itself, not opened.
    pub fn entry(&self, name: &OsStr) -> Result<Entry> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(self, name, flags, Mode::empty()).map(Entry)
    }

    /// Open a regular file for reading. Anything else that has come to bear the name is `ESTALE`.
    pub fn open_file(&self, name: &OsStr) -> Result<(File, Stat)> {
        // To open a FIFO, a socket or a device is not only to wait: its peer would hear of it.
        if !FileType::from_raw_mode(self.stat(name)?.st_mode).is_file() {
            return Err(Errno::STALE);
        }
        // Non-blocking, for one may have taken the file's place since; and nobody's lease is waited for.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = fs::openat(self, name, flags, Mode::empty())
            .map_err(|e| if e == Errno::LOOP { Errno::STALE } else { e })?;
        let stat = fs::fstat(&fd)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(Errno::STALE);
        }
        Ok((fd.into(), stat))
    }

    pub fn read_link(&self, name: &OsStr) -> Result<OsString> {
        Ok(OsString::from_vec(fs::readlinkat(self, name, Vec::new())?.into_bytes()))
    }
}

impl Source {
    /// Open the source; here, and only here, `path` may be reached through symlinks.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Mode::empty())?;
        let has_openat2 = match fs::openat2(&root, ".", flags, Mode::empty(), ResolveFlags::BENEATH)
        {
            Ok(_) => true,
            // EPERM is how older container sandboxes refuse a system call which they do not know.
            Err(Errno::NOSYS | Errno::PERM) => false,
            Err(e) => return Err(e),
        };
        let paths = path.canonicalize().into_iter().collect();
        Ok(Self { root, paths, has_openat2 })
    }

    /// Symlinks may name the source by this path, too.
    pub fn also_known_as(&mut self, path: PathBuf) {
        if path.is_absolute() && !self.paths.contains(&path) {
            self.paths.push(path);
        }
    }

    /// The absolute paths that lead to the source, the canonical one first.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The directory at `path`, relative to the source; empty is the source itself.
    pub fn dir(&self, path: &Path) -> Result<DirHandle<'_>> {
        if path.as_os_str().is_empty() {
            return Ok(DirHandle::Root(self.root.as_fd()));
        }
        self.open_beneath(path, OFlags::PATH | OFlags::DIRECTORY).map(DirHandle::Below)
    }

    pub fn stat_root(&self) -> Result<Stat> {
        fs::fstat(&self.root)
    }

    pub fn statfs(&self) -> Result<StatVfs> {
        fs::fstatvfs(&self.root)
    }

    /// The source directory itself, as an entry.
    pub fn root_entry(&self) -> Result<Entry> {
        self.root.try_clone().map(Entry).map_err(|_| Errno::MFILE)
    }

    /// The entries of the directory at `path`.
    pub fn list(&self, path: &Path) -> Result<Listing<'_>> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let has_numbers = !OTHER_NUMBERS.contains(&(fs::fstatfs(&fd)?.f_type as u64 & 0xffff_ffff));
        let mut entries = Vec::new();
        let mut dir = Dir::read_from(&fd)?;
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let ino = Some(entry.ino()).filter(|&ino| has_numbers && ino != 0);
                entries.push((OsString::from_vec(name.to_vec()), entry.file_type(), ino));
            }
        }
        let dev = Identity::of(&fs::fstat(&fd)?).dev;
        Ok(Listing { dir: DirHandle::Below(fd), dev, entries })
    }

    fn open_beneath(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !self.has_openat2 {
            return self.open_by_component(path, flags);
        }
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RENAME_RETRIES {
            match fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// What `openat2` does in one call: each component is opened in its parent and may not be a symlink.
    fn open_by_component(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        let walk = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = fs::openat(&self.root, ".", walk, Mode::empty())?;
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let flags = if components.peek().is_some() { walk } else { flags };
            let name = match component {
                Component::Normal(name) => name,
                Component::CurDir => OsStr::new("."),
                _ => return Err(Errno::XDEV),
            };
            at = fs::openat(&at, name, flags, Mode::empty())?;
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn both(path: &Path) -> [Source; 2] {
        let open = || Source::open(path).expect("the source opens");
        [open(), Source { has_openat2: false, ..open() }]
    }

    #[test]
    fn no_symlink_leads_out_of_the_source() {
        let outside = tempfile::tempdir().expect("tempdir");
        std::fs::write(outside.path().join("secret"), "s").expect("write");
        let inside = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(inside.path().join("real")).expect("mkdir");
        symlink(outside.path(), inside.path().join("out")).expect("symlink");
        symlink("real", inside.path().join("in")).expect("symlink");
        symlink(outside.path().join("secret"), inside.path().join("file")).expect("symlink");
        for source in both(inside.path()) {
            assert!(source.dir(Path::new("real")).is_ok());
            for path in ["out", "in", "..", "real/../..", "/"] {
                assert!(source.dir(Path::new(path)).is_err(), "{path}");
                assert!(source.list(Path::new(path)).is_err(), "{path}");
            }
            let root = source.dir(Path::new("")).expect("root");
            assert_eq!(root.open_file(OsStr::new("file")).err(), Some(Errno::STALE));
            assert_eq!(root.open_file(OsStr::new("real")).err(), Some(Errno::STALE));
            assert_eq!(root.read_link(OsStr::new("in")), Ok("real".into()));
        }
    }

    #[test]
    fn a_listing_has_every_entry_and_not_the_dots() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("mkdir");
        std::fs::write(dir.path().join("a/c"), "").expect("write");
        for source in both(dir.path()) {
            let mut names: Vec<_> = source
                .list(Path::new("a"))
                .expect("list")
                .entries
                .into_iter()
                .map(|e| e.0)
                .collect();
            names.sort();
            assert_eq!(names, ["b", "c"]);
            assert_eq!(source.list(Path::new("")).expect("list").entries.len(), 1);
        }
    }
}
