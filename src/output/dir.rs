//! An open directory: its entries are reached relative to its descriptor, and no symbolic link in
//! it is followed.
//!
//! Each system call on a path walks that path again, and whoever can rename inside a tree can
//! redirect the walk. A descriptor stays where it was opened.

use super::support::{link_open, sync_dir, sync_file};
use crate::{
    error::{Context, Error, Result},
    input,
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, XattrFlags, fcntl_getfl, fgetxattr,
        fremovexattr, fsetxattr, fstat, linkat, mkdirat, openat, readlinkat, statat, symlinkat,
    },
    io::Errno,
    process::geteuid,
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// The extended attribute of a directory that is still being filled.
const UNFINISHED: &str = "user.bsz.unfinished";

/// The identity of a file: device and inode number.
pub type FileId = (u64, u64);

/// The identity of the file that `stat` describes.
pub fn file_id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    /// The path that messages name it by.
    path: PathBuf,
    /// Whether it is open for reading, as listing and `fsync` require.
    readable: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: OsString,
    /// Its type; symbolic links are not followed.
    pub kind: FileType,
}

impl Dir {
    /// Open the directory at `path`; an empty path is the current directory. Links are followed,
    /// since the user named it.
    ///
    /// # Errors
    /// Io.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        Self::open_at(CWD, here(path), OFlags::empty(), path.to_owned()).about_path(path)
    }

    /// The parent directory of `path`, and its last component.
    ///
    /// # Errors
    /// Io; invalid argument if `path` does not end in a name.
    pub fn of(path: &Path) -> Result<(Arc<Self>, OsString)> {
        let name = path.file_name().ok_or_else(|| Error::invalid("not a file name"));
        let name = name.about_path(path)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        // Messages name the path that the user gave.
        let dir = Self::open_at(CWD, here(parent), OFlags::empty(), parent.to_owned())
            .about_path(path)?;
        Ok((dir, name.to_owned()))
    }

    /// The directory that `fd` refers to, which messages name `path`. A descriptor that only refers
    /// to its place (`O_PATH`) suffices.
    pub fn from_fd(fd: OwnedFd, path: PathBuf) -> Arc<Self> {
        if fcntl_getfl(&fd).is_ok_and(|flags| !flags.contains(OFlags::PATH)) {
            return Arc::new(Self { fd, path, readable: true });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(&fd, ".", flags, Mode::empty());
        let readable = opened.is_ok();
        Arc::new(Self { fd: opened.unwrap_or(fd), path, readable })
    }

    fn open_at(
        at: impl AsFd,
        name: &OsStr,
        flags: OFlags,
        path: PathBuf,
    ) -> Result<Arc<Self>, Errno> {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |access| openat(at.as_fd(), name, flags | access, Mode::empty());
        let (fd, readable) = match open(OFlags::RDONLY) {
            // A directory that may only be entered still gives access to its entries.
            Err(Errno::ACCESS) => (open(OFlags::PATH)?, false),
            other => (other?, true),
        };
        Ok(Arc::new(Self { fd, path, readable }))
    }

    /// The path that messages name its entry `name` by.
    pub fn path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// The path that messages name it by.
    pub fn own_path(&self) -> &Path {
        &self.path
    }

    /// Open the subdirectory `name`; a link is refused.
    ///
    /// # Errors
    /// Io.
    pub fn child(&self, name: &OsStr) -> Result<Arc<Self>> {
        let path = self.path(name);
        Self::open_at(&self.fd, name, OFlags::NOFOLLOW, path.clone()).about_path(&path)
    }

    /// Open the directory at `path` below it, each component relative to its parent.
    ///
    /// # Errors
    /// Io; invalid argument if a component is not a plain name.
    pub fn descend(self: &Arc<Self>, path: &Path) -> Result<Arc<Self>> {
        path.components().try_fold(Arc::clone(self), |dir, component| match component {
            Component::Normal(name) => dir.child(name),
            _ => Err(Error::invalid("not a path below a directory").about_path(path)),
        })
    }

    /// Create the subdirectory `name`, or open the existing one. Returns whether it is unfinished:
    /// created now, or left by a run that was interrupted. Until it is
    /// [finished](super::Copier::finish_directory), only its owner may enter it.
    ///
    /// # Errors
    /// Io, also if `name` is not a directory.
    pub fn make_child(&self, name: &OsStr) -> Result<(Arc<Self>, bool)> {
        let made = match mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e).about_path(&self.path(name)),
        };
        let child = self.child(name)?;
        let unfinished = child.is_unfinished(made);
        Ok((child, unfinished))
    }

    /// Whether the directory, which was `made` now or existed before, is unfinished.
    pub fn is_unfinished(&self, made: bool) -> bool {
        if made {
            // Without the mark, an interrupted run is not resumed here.
            let _ = fsetxattr(&self.fd, UNFINISHED, b"", XattrFlags::empty());
            return true;
        }
        let ours = fstat(&self.fd).is_ok_and(|s| {
            s.st_uid == geteuid().as_raw() && s.st_mode & 0o7777 == Mode::RWXU.as_raw_mode()
        });
        ours && fgetxattr(&self.fd, UNFINISHED, &mut [0u8; 1]).is_ok()
    }

    /// Remove the mark of an unfinished directory.
    pub(super) fn mark_finished(&self) {
        let _ = fremovexattr(&self.fd, UNFINISHED);
    }

    /// Its entries, sorted by name.
    ///
    /// # Errors
    /// Io.
    pub fn entries(&self) -> Result<Vec<DirEntry>> {
        // Reopened, since all readers of a descriptor share its position.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&self.fd, ".", flags, Mode::empty()).about_path(&self.path)?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut listing = RawDir::new(&fd, &mut buffer);
        let mut entries = Vec::new();
        while let Some(entry) = listing.next() {
            let entry = entry.about_path(&self.path)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match self.stat(&name)? {
                    Some(stat) => FileType::from_raw_mode(stat.st_mode),
                    // Removed since it was listed.
                    None => continue,
                },
                known => known,
            };
            entries.push(DirEntry { name, kind });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The attributes of the entry `name`, links not followed; `None` if there is no such entry.
    ///
    /// # Errors
    /// Io.
    pub fn stat(&self, name: &OsStr) -> Result<Option<Stat>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).about_path(&self.path(name)),
        }
    }

    /// Open the regular file `name` for reading, without ever blocking on something else.
    ///
    /// # Errors
    /// Io; invalid argument if it is not a regular file.
    pub fn open_file(&self, name: &OsStr) -> Result<File> {
        let opened = input::open_at(&self.fd, Path::new(name), OFlags::NOFOLLOW);
        opened.map(|(file, _)| file).about_path(&self.path(name))
    }

    /// The target of the symbolic link `name`.
    ///
    /// # Errors
    /// Io.
    pub fn read_link(&self, name: &OsStr) -> Result<OsString> {
        let target = readlinkat(&self.fd, name, Vec::new()).about_path(&self.path(name))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Create the symbolic link `name` to `target`.
    ///
    /// # Errors
    /// Io.
    pub fn symlink(&self, target: &OsStr, name: &OsStr) -> Result<()> {
        symlinkat(target, &self.fd, name).about_path(&self.path(name))
    }

    /// Link the file `name` as `other` in `to`, which must be free.
    ///
    /// # Errors
    /// Io.
    pub fn link(&self, name: &OsStr, to: &Self, other: &OsStr) -> Result<()> {
        linkat(&self.fd, name, &to.fd, other, AtFlags::empty()).about_path(&to.path(other))
    }

    /// Link an open file as `name`, which must be free.
    ///
    /// # Errors
    /// Io.
    pub fn link_file(&self, file: &File, name: &OsStr) -> Result<()> {
        link_open(file, &self.fd, name).about_path(&self.path(name))
    }

    /// Whether `name` exists, and is the file `id`.
    ///
    /// # Errors
    /// Io; invalid argument if it is another file.
    pub fn has(&self, name: &OsStr, id: FileId) -> Result<bool> {
        match self.stat(name)? {
            None => Ok(false),
            Some(stat) if file_id(&stat) == id => Ok(true),
            Some(_) => Err(Error::invalid("was replaced by another file meanwhile")
                .about_path(&self.path(name))),
        }
    }

    /// Sync the entries of the directory to disk.
    ///
    /// # Errors
    /// Io.
    pub fn sync(&self) -> Result<()> {
        let synced = if self.readable { sync_file(&self.fd) } else { sync_dir(&self.fd) };
        match synced {
            // Nothing can be done.
            Err(Errno::ACCESS) => Ok(()),
            other => other,
        }
        .about_path(&self.path)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `path`, or `.` if it is empty.
fn here(path: &Path) -> &OsStr {
    if path.as_os_str().is_empty() { OsStr::new(".") } else { path.as_os_str() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_by_descriptor_is_the_same_wherever_it_is_moved() {
        let root = tempfile::tempdir().expect("a directory");
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        std::fs::create_dir(&old).expect("mkdir");
        for access in [OFlags::PATH, OFlags::RDONLY] {
            let fd = openat(CWD, &old, access | OFlags::DIRECTORY, Mode::empty()).expect("opens");
            std::fs::rename(&old, &new).expect("rename");
            let dir = Dir::from_fd(fd, old.clone());
            std::fs::write(new.join("file"), "x").expect("write");
            assert!(dir.readable && dir.open_file("file".as_ref()).is_ok());
            assert_eq!(dir.entries().expect("lists").len(), 1);
            dir.sync().expect("syncs");
            assert_eq!(dir.path("file".as_ref()), old.join("file"));
            std::fs::rename(&new, &old).expect("rename");
        }
    }

    #[test]
    fn only_directories_and_regular_files_are_opened() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("sub")).expect("mkdir");
        std::fs::write(root.path().join("file"), "x").expect("write");
        symlink("sub", root.path().join("to-sub")).expect("a link");
        symlink("file", root.path().join("to-file")).expect("a link");
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
        let _socket =
            std::os::unix::net::UnixListener::bind(root.path().join("socket")).expect("a socket");
        let dir = Dir::open(root.path()).expect("opens");
        assert!(dir.child("sub".as_ref()).is_ok() && dir.open_file("file".as_ref()).is_ok());
        for name in ["to-file", "sub", "pipe", "socket"] {
            let e = dir.open_file(name.as_ref()).expect_err(name).to_string();
            assert!(e.contains("not a regular file"), "{e}");
        }
        for name in ["to-sub", "file", "none"] {
            assert!(
                dir.child(name.as_ref()).is_err() && dir.descend(name.as_ref()).is_err(),
                "{name}"
            );
        }
        assert!(dir.descend(Path::new("..")).is_err() && dir.descend(Path::new("/")).is_err());
        let names: Vec<_> = dir.entries().expect("lists").into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["file", "pipe", "socket", "sub", "to-file", "to-sub"]);
    }
}
