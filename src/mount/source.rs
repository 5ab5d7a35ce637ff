//! The source directory: opened once, everything else relative to that handle, and no symlink ever followed.
//!
//! Working relative to a handle keeps the view where it was mounted even if the source is renamed, and lets a
//! view be mounted over its own source. Not following symlinks keeps a daemon that runs as root from being led
//! out of the source by whoever may write there.

use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, ResolveFlags, Stat, StatVfs};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

/// How often a path is tried again that was being renamed while the kernel walked it.
const RENAME_RETRIES: usize = 64;

pub(super) struct Source {
    root: OwnedFd,
    /// Linux before 5.6, and some sandboxes, have no `openat2`.
    has_openat2: bool,
}

/// A directory of the source, open for lookups in it.
pub(super) enum DirHandle<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
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

    /// Open a regular file for reading. Anything else that has come to bear the name is `ESTALE`.
    pub fn open_file(&self, name: &OsStr) -> Result<(File, Stat)> {
        // Non-blocking, for a FIFO may have taken the place of the file that was looked up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = fs::openat(self, name, flags, Mode::empty())
            .map_err(|e| if e == Errno::LOOP { Errno::STALE } else { e })?;
        let stat = fs::fstat(&fd)?;
        if !fs::FileType::from_raw_mode(stat.st_mode).is_file() {
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
        let has_openat2 = match fs::openat2(&root, ".", flags, Mode::empty(), ResolveFlags::BENEATH) {
            Ok(_) => true,
            // EPERM is how older container sandboxes refuse a system call which they do not know.
            Err(Errno::NOSYS | Errno::PERM) => false,
            Err(e) => return Err(e),
        };
        Ok(Self { root, has_openat2 })
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

    /// The entries of the directory at `path`, without `.` and `..`, and their types where the listing has them.
    pub fn list(&self, path: &Path) -> Result<Vec<(OsString, fs::FileType)>> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut dir = Dir::new(self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
        let mut entries = Vec::new();
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                entries.push((OsString::from_vec(name.to_vec()), entry.file_type()));
            }
        }
        Ok(entries)
    }

    fn open_beneath(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !self.has_openat2 {
            return self.open_by_component(path, flags);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
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
            let mut names: Vec<_> =
                source.list(Path::new("a")).expect("list").into_iter().map(|(n, _)| n).collect();
            names.sort();
            assert_eq!(names, ["b", "c"]);
            assert_eq!(source.list(Path::new("")).expect("list").len(), 1);
        }
    }
}
