//! The source directory: opened once, accessed relative to that handle, and never through symlinks.
//!
//! Thanks to the handle, the view stays intact if the source is renamed, and can be mounted over
//! its own source. Because symlinks are not followed, nobody who may write to the source can lead a
//! daemon that runs as root out of it.

use super::attr::Identity;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, StatVfs};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// How often openat2(2) is retried if a directory on the path is renamed meanwhile.
const RENAME_RETRIES: usize = 64;

/// The types of file systems whose `d_ino` differs from `st_ino`: overlayfs, FUSE, SMB 1 and later.
const UNRELIABLE_D_INO: [u64; 4] = [0x794c_7630, 0x6573_5546, 0xff53_4d42, 0xfe53_4d42];

/// Most bytes of a file name.
const NAME_MAX: usize = 255;

/// Most bytes of an extended attribute, and of a list of their names (xattr(7)).
const MAX_XATTR: usize = 1 << 16;

pub(crate) struct Source {
    root: OwnedFd,
    /// Absolute paths of the source, the canonical one first.
    paths: Vec<PathBuf>,
    /// Linux before 5.6 and some sandboxes do not have it.
    has_openat2: bool,
}

/// A directory of the source, for lookups in it.
pub(crate) enum DirHandle<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

/// An entry of the source: an `O_PATH` descriptor. Opening one never blocks, and no device or peer
/// notices it.
pub(crate) struct Entry(OwnedFd);

impl Entry {
    /// The entry that an `O_PATH` descriptor refers to.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The entry of an open file.
    pub fn of(file: impl AsFd) -> Result<Self> {
        file.as_fd().try_clone_to_owned().map(Self).map_err(|_| Errno::MFILE)
    }

    /// The path of the descriptor, for system calls that take no `O_PATH` descriptor.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    pub fn stat(&self) -> Result<Stat> {
        fs::fstat(&self.0)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, name: &OsStr) -> Result<Vec<u8>> {
        self.read_xattr(|path, value| fs::getxattr(path, name, value))
    }

    /// The names of the extended attributes, each terminated by a zero byte.
    pub fn xattrs(&self) -> Result<Vec<u8>> {
        self.read_xattr(|path, list| fs::listxattr(path, list))
    }

    /// Call `get` with the path of the file and a buffer that is long enough. The path leads
    /// through /proc, because extended attributes cannot be read from an `O_PATH` descriptor.
    fn read_xattr(&self, get: impl Fn(&str, &mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
        let path = self.path();
        let mut buffer = [0; 256];
        match get(&path, &mut buffer) {
            Ok(len) => Ok(buffer[..len].to_vec()),
            Err(Errno::RANGE) => {
                let mut buffer = vec![0; MAX_XATTR];
                let len = get(&path, &mut buffer)?;
                buffer.truncate(len);
                Ok(buffer)
            }
            Err(e) => Err(e),
        }
    }
}

/// The entries of a directory.
pub(crate) struct Listing<'a> {
    pub dir: DirHandle<'a>,
    /// The device of the directory.
    pub dev: u64,
    /// Names without `.` and `..`, their types, and their inode numbers if the listing has them.
    pub entries: Vec<(OsString, FileType, Option<u64>)>,
}

impl AsFd for Entry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
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
    /// The attributes of an entry; of a symlink, not of its target.
    pub fn stat(&self, name: &OsStr) -> Result<Stat> {
        fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// An entry, without opening the file.
    pub fn entry(&self, name: &OsStr) -> Result<Entry> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(self, name, flags, Mode::empty()).map(Entry)
    }

    /// Open a regular file for reading. `ESTALE` if the name refers to anything else by now.
    pub fn open_file(&self, name: &OsStr) -> Result<(File, Stat)> {
        // Opening a FIFO or a device may block, and its peer would notice.
        if !FileType::from_raw_mode(self.stat(name)?.st_mode).is_file() {
            return Err(Errno::STALE);
        }
        open_regular(self, name, OFlags::empty())
    }

    pub fn read_link(&self, name: &OsStr) -> Result<OsString> {
        Ok(OsString::from_vec(fs::readlinkat(self, name, Vec::new())?.into_bytes()))
    }
}

impl Source {
    /// Open the source. Only here are symlinks in `path` followed.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Mode::empty())?;
        let has_openat2 = match fs::openat2(&root, ".", flags, Mode::empty(), ResolveFlags::BENEATH)
        {
            Ok(_) => true,
            // Older container sandboxes refuse unknown system calls with EPERM.
            Err(Errno::NOSYS | Errno::PERM) => false,
            Err(e) => return Err(e),
        };
        let paths = path.canonicalize().into_iter().collect();
        Ok(Self { root, paths, has_openat2 })
    }

    /// Add another absolute path of the source, which symlinks may use.
    pub fn add_alias(&mut self, path: PathBuf) {
        if path.is_absolute() && !self.paths.contains(&path) {
            self.paths.push(path);
        }
    }

    /// Absolute paths of the source, the canonical one first.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The directory at `path`, relative to the source. The empty path is the source itself.
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

    /// A descriptor of the source directory.
    pub fn root_fd(&self) -> Result<OwnedFd> {
        self.root.try_clone().map_err(|_| Errno::MFILE)
    }

    /// The same source.
    pub fn try_clone(&self) -> Result<Self> {
        let (root, paths) = (self.root_fd()?, self.paths.clone());
        Ok(Self { root, paths, has_openat2: self.has_openat2 })
    }

    /// A descriptor of the directory at `path`.
    pub fn dir_fd(&self, path: &Path) -> Result<OwnedFd> {
        match self.dir(path)? {
            DirHandle::Root(_) => self.root_fd(),
            DirHandle::Below(fd) => Ok(fd),
        }
    }

    /// The source directory itself.
    pub fn root_entry(&self) -> Result<Entry> {
        self.root.try_clone().map(Entry).map_err(|_| Errno::MFILE)
    }

    /// The entries of the directory at `path`.
    pub fn list(&self, path: &Path) -> Result<Listing<'_>> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let fs_type = fs::fstatfs(&fd)?.f_type as u64 & 0xffff_ffff;
        let has_numbers = !UNRELIABLE_D_INO.contains(&fs_type);
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

    /// A substitute for openat2(2): open each component relative to its parent, unless it is a
    /// symlink.
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

/// Whether `name` is a valid file name.
pub(super) fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..")
        && bytes.len() <= NAME_MAX
        && !bytes.iter().any(|&b| b == b'/' || b == 0)
}

/// Open a regular file for reading, with more flags. `ESTALE` if the name refers to anything else.
pub(crate) fn open_regular(dir: impl AsFd, name: &OsStr, more: OFlags) -> Result<(File, Stat)> {
    // Non-blocking, because a FIFO may have taken the name meanwhile, and so that no lease is
    // waited for.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = fs::openat(dir, name, flags | more, Mode::empty())
        .map_err(|e| if e == Errno::LOOP { Errno::STALE } else { e })?;
    let stat = fs::fstat(&fd)?;
    match FileType::from_raw_mode(stat.st_mode).is_file() {
        true => Ok((fd.into(), stat)),
        false => Err(Errno::STALE),
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
    fn a_listing_has_every_entry_but_the_dots() {
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
