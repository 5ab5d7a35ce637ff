//! An open directory: what is in it is reached relative to its descriptor, and no symbolic link in it is followed.
//!
//! A path is walked anew by each call, and whoever can rename inside a tree can lead such a walk elsewhere. A
//! descriptor stays where it was opened.

use crate::{
    error::{Context, Error, Result},
    input,
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, XattrFlags, fgetxattr, fremovexattr,
        fsetxattr, fstat, linkat, mkdirat, openat, readlinkat, renameat, statat, symlinkat, syncfs,
        unlinkat,
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

/// Marks a directory that is being filled.
const UNFINISHED: &str = "user.bsz.unfinished";

/// What tells one file from all others: device and inode number.
pub type FileId = (u64, u64);

/// The id of the file that `stat` is of.
pub fn file_id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    /// What messages call it.
    path: PathBuf,
    /// Whether it is open for reading, which listing and `fsync` need.
    readable: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: OsString,
    /// What it is; a link is a link, whatever it leads to.
    pub kind: FileType,
}

impl Dir {
    /// Open the directory at `path`, whose links are followed: the user named it. Empty is the current directory.
    ///
    /// # Errors
    /// Io.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        Self::open_at(CWD, here(path), OFlags::empty(), path.to_owned()).about_path(path)
    }

    /// The directory that `path` is in, and the last component of `path`.
    ///
    /// # Errors
    /// Io; invalid argument, where `path` does not end in a name.
    pub fn of(path: &Path) -> Result<(Arc<Self>, OsString)> {
        let name = path.file_name().ok_or_else(|| Error::invalid("not the name of a file"));
        let name = name.about_path(path)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        // The message is about what the user named.
        let dir = Self::open_at(CWD, here(parent), OFlags::empty(), parent.to_owned())
            .about_path(path)?;
        Ok((dir, name.to_owned()))
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
            // Who may only enter it can still reach what it holds.
            Err(Errno::ACCESS) => (open(OFlags::PATH)?, false),
            other => (other?, true),
        };
        Ok(Arc::new(Self { fd, path, readable }))
    }

    /// What messages call `name` in it.
    pub fn path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// What messages call it.
    pub fn own_path(&self) -> &Path {
        &self.path
    }

    /// The directory `name` in it. A link is refused.
    ///
    /// # Errors
    /// Io.
    pub fn child(&self, name: &OsStr) -> Result<Arc<Self>> {
        let path = self.path(name);
        Self::open_at(&self.fd, name, OFlags::NOFOLLOW, path.clone()).about_path(&path)
    }

    /// The directory at `path` below it, each component opened in its parent.
    ///
    /// # Errors
    /// Io; invalid argument, where a component is none of a name.
    pub fn descend(self: &Arc<Self>, path: &Path) -> Result<Arc<Self>> {
        path.components().try_fold(Arc::clone(self), |dir, component| match component {
            Component::Normal(name) => dir.child(name),
            _ => Err(Error::invalid("not a path below a directory").about_path(path)),
        })
    }

    /// Make the directory `name` in it, which only its owner may enter until it is [finished](super::Copier), or open the
    /// one that is there; whether it is to be finished: it was made, or an earlier run did not come to finish it.
    ///
    /// # Errors
    /// Io, among them that `name` is something else.
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

    /// Whether the directory, which was `made` now or was there, is one that is to be finished.
    pub fn is_unfinished(&self, made: bool) -> bool {
        if made {
            // Where it cannot be marked, only a run that is not interrupted finishes it.
            let _ = fsetxattr(&self.fd, UNFINISHED, b"", XattrFlags::empty());
            return true;
        }
        let ours = fstat(&self.fd).is_ok_and(|s| {
            s.st_uid == geteuid().as_raw() && s.st_mode & 0o7777 == Mode::RWXU.as_raw_mode()
        });
        ours && fgetxattr(&self.fd, UNFINISHED, &mut [0u8; 1]).is_ok()
    }

    /// It is finished.
    pub(super) fn mark_finished(&self) {
        let _ = fremovexattr(&self.fd, UNFINISHED);
    }

    /// What is in it, by name.
    ///
    /// # Errors
    /// Io.
    pub fn entries(&self) -> Result<Vec<DirEntry>> {
        // Reopened, for a descriptor has one position that all who read it share.
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
                    // Gone since it was listed.
                    None => continue,
                },
                known => known,
            };
            entries.push(DirEntry { name, kind });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The attributes of `name` itself, or `None` where there is no such entry.
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

    /// Open the regular file `name` for reading. Nothing else is waited for, nor opened for long.
    ///
    /// # Errors
    /// Io; invalid argument, where it is no regular file.
    pub fn open_file(&self, name: &OsStr) -> Result<File> {
        let opened = input::open_at(&self.fd, Path::new(name), OFlags::NOFOLLOW);
        opened.map(|(file, _)| file).about_path(&self.path(name))
    }

    /// Where the link `name` leads.
    ///
    /// # Errors
    /// Io.
    pub fn read_link(&self, name: &OsStr) -> Result<OsString> {
        let target = readlinkat(&self.fd, name, Vec::new()).about_path(&self.path(name))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Make the symbolic link `name` to `target`.
    ///
    /// # Errors
    /// Io.
    pub fn symlink(&self, target: &OsStr, name: &OsStr) -> Result<()> {
        symlinkat(target, &self.fd, name).about_path(&self.path(name))
    }

    /// Have the symbolic link `name`, which is there, lead to `target`.
    ///
    /// # Errors
    /// Io.
    pub fn replace_symlink(&self, target: &OsStr, name: &OsStr) -> Result<()> {
        let fresh = super::fresh_name();
        self.symlink(target, &fresh)?;
        let renamed = renameat(&self.fd, &fresh, &self.fd, name);
        if renamed.is_err() {
            let _ = unlinkat(&self.fd, &fresh, AtFlags::empty());
        }
        renamed.about_path(&self.path(name))
    }

    /// Give the file `name` the further name `other` in `to`, where there must be none.
    ///
    /// # Errors
    /// Io.
    pub fn link(&self, name: &OsStr, to: &Self, other: &OsStr) -> Result<()> {
        linkat(&self.fd, name, &to.fd, other, AtFlags::empty()).about_path(&to.path(other))
    }

    /// Give the file `name` of this directory to `to` as `other`, in place of what has that name.
    ///
    /// # Errors
    /// Io.
    pub fn link_over(&self, name: &OsStr, to: &Self, other: &OsStr) -> Result<()> {
        let fresh = super::fresh_name();
        self.link(name, to, &fresh)?;
        let renamed = renameat(&to.fd, &fresh, &to.fd, other);
        if renamed.is_err() {
            let _ = unlinkat(&to.fd, &fresh, AtFlags::empty());
        }
        renamed.about_path(&to.path(other))
    }

    /// Remove `name`, if it is this very file; whether it was there.
    ///
    /// # Errors
    /// Io; invalid argument, where it is another one.
    pub fn unlink(&self, name: &OsStr, id: FileId) -> Result<bool> {
        if !self.has(name, id)? {
            return Ok(false);
        }
        unlinkat(&self.fd, name, AtFlags::empty()).map(|()| true).about_path(&self.path(name))
    }

    /// Remove `name`, if it is this very file and `allowed` then: asked when the file has that name no longer, and nobody
    /// can come to open it by that. If not, it has its name again. Returns whether it was there.
    ///
    /// # Errors
    /// Io; invalid argument, where it is another one; and those of `allowed`.
    pub fn unlink_if(
        &self,
        name: &OsStr,
        id: FileId,
        allowed: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        if !self.has(name, id)? {
            return Ok(false);
        }
        // Not ended by a signal in between.
        let _alone = super::unfinished();
        let fresh = super::fresh_name();
        renameat(&self.fd, name, &self.fd, &fresh).about_path(&self.path(name))?;
        match self.has(&fresh, id).and_then(|_| allowed()) {
            Ok(()) => {
                let gone = unlinkat(&self.fd, &fresh, AtFlags::empty());
                if gone.is_err() {
                    let _ = super::rename_to_free(self, &fresh, name);
                }
                gone.map(|()| true).about_path(&self.path(name))
            }
            Err(e) => {
                super::rename_to_free(self, &fresh, name).about_path(&self.path(&fresh))?;
                Err(e)
            }
        }
    }

    /// Whether `name` is this very file.
    ///
    /// # Errors
    /// Io; invalid argument, where it is another one.
    pub fn has(&self, name: &OsStr, id: FileId) -> Result<bool> {
        match self.stat(name)? {
            None => Ok(false),
            Some(stat) if file_id(&stat) == id => Ok(true),
            Some(_) => {
                Err(Error::invalid("another file has taken its name").about_path(&self.path(name)))
            }
        }
    }

    /// Bring the entries of the directory to the disk.
    ///
    /// # Errors
    /// Io.
    pub fn sync(&self) -> Result<()> {
        let synced = if self.readable { rustix::fs::fsync(&self.fd) } else { Err(Errno::BADF) };
        match synced {
            // Some file systems cannot sync a directory alone; where they cannot sync as a whole either, there is
            // nothing that could be done.
            Err(e) if is_missing(e) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let whole = openat(&self.fd, ".", flags, Mode::empty()).and_then(syncfs);
                whole.or_else(|e| if is_missing(e) || e == Errno::ACCESS { Ok(()) } else { Err(e) })
            }
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

/// `path`, which stands for the current directory where it is empty.
fn here(path: &Path) -> &OsStr {
    if path.as_os_str().is_empty() { OsStr::new(".") } else { path.as_os_str() }
}

/// Whether an error says that a file system, a kernel or a sandbox does not offer a call.
pub(super) fn is_missing(e: Errno) -> bool {
    matches!(
        e,
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTTY | Errno::BADF | Errno::PERM
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_and_nothing_irregular_is_opened() {
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

    #[test]
    fn only_the_file_that_is_meant_is_removed() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["a", "b"] {
            std::fs::write(root.path().join(name), name).expect("write");
        }
        let dir = Dir::open(root.path()).expect("opens");
        let id = |name: &str| file_id(&dir.stat(name.as_ref()).expect("stat").expect("there"));
        let a = id("a");
        assert!(dir.unlink("b".as_ref(), a).is_err());
        assert_eq!(dir.unlink("none".as_ref(), a).ok(), Some(false));
        std::fs::rename(root.path().join("b"), root.path().join("a")).expect("rename");
        assert!(dir.unlink("a".as_ref(), a).is_err());
        let refused = dir.unlink_if("a".as_ref(), id("a"), || {
            assert_eq!(
                dir.stat("a".as_ref()).expect("stat").map(|_| ()),
                None,
                "nobody can open it by its name"
            );
            Err(Error::invalid("not now"))
        });
        assert!(refused.is_err());
        assert_eq!(dir.unlink_if("a".as_ref(), id("a"), || Ok(())).ok(), Some(true));
        assert!(dir.entries().expect("lists").is_empty());
    }
}
