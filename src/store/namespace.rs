//! Names that come and go: creating, linking and removing.

use super::names::{Form, Found, PLAIN_MARK, check, may_be_archive, packed_name, shown_name};
use super::node::Node;
use super::tree::{DirFd, Tree, stat_at, write};
use super::unpack::{Keep, proc_path};
use crate::mount::{Attr, DEFAULT_ACL};
use crate::output::is_temporary;
use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chmodat, chownat, fsetxattr, fstat,
    getxattr, linkat, mkdirat, mknodat, openat, setxattr, statat, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result};
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Who makes a request, as far as new files are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The mask that the kernel has left to us.
    pub umask: u32,
}

/// What to create besides a regular file that is opened at once.
pub(super) enum Make<'a> {
    Directory,
    Node(FileType, Dev),
    Symlink(&'a OsStr),
}

/// A new file, and how it was opened.
pub(super) struct Created {
    pub node: Arc<Node>,
    pub attr: Attr,
    /// Its descriptor; `None` if the file existed, and is to be opened.
    pub file: Option<File>,
}

impl Tree {
    /// Create a regular file and open it; or find the one that exists, unless `flags` forbid it.
    pub fn create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: OFlags,
        by: Caller,
    ) -> Result<Created> {
        let (dir_node, dir) = self.free(parent, name)?;
        let _names = write(&dir_node);
        match self.names.find(dir.as_fd(), name) {
            Ok(_) if flags.contains(OFlags::EXCL) => return Err(Errno::EXIST),
            Ok(found) => {
                let (node, attr) = self.found(parent, name, &dir, &found)?;
                return Ok(Created { node, attr, file: None });
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        let mode = Mode::from_raw_mode(self.masked(&dir, mode, by));
        // For reading as well: the kernel reads pages that are mapped for writing.
        let access = flags.intersection(OFlags::SYNC | OFlags::DSYNC) | OFlags::RDWR;
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&dir, name, access | create, mode)?);
        let made = self.own(&dir, name, mode, by).and_then(|()| match may_be_archive(name) {
            true => fsetxattr(&file, PLAIN_MARK, b"", XattrFlags::empty()),
            false => Ok(()),
        });
        if let Err(e) = made {
            let _ = unlinkat(&dir, name, AtFlags::empty());
            return Err(e);
        }
        let (node, attr) = self.plain_found(parent, name, &dir)?;
        Ok(Created { node, attr, file: Some(file) })
    }

    /// Create a directory, a symlink, a FIFO, a socket or a device, or a regular file.
    pub fn make(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        what: Make<'_>,
        by: Caller,
    ) -> Result<(Arc<Node>, Attr)> {
        let (dir_node, dir) = self.free(parent, name)?;
        let _names = write(&dir_node);
        self.must_not_exist(&dir, name)?;
        let mode = Mode::from_raw_mode(self.masked(&dir, mode, by));
        let is_regular = matches!(what, Make::Node(FileType::RegularFile, _));
        let is_dir = matches!(what, Make::Directory);
        match what {
            Make::Directory => mkdirat(&dir, name, mode)?,
            Make::Node(kind, dev) => mknodat(&dir, name, kind, mode, dev)?,
            Make::Symlink(target) => symlinkat(target, &dir, name)?,
        }
        let is_symlink = matches!(what, Make::Symlink(_));
        let owned =
            if is_symlink { self.give(&dir, name, by) } else { self.own(&dir, name, mode, by) };
        let made = owned.and_then(|()| match is_regular && may_be_archive(name) {
            true => self.mark_plain(&dir, name),
            false => Ok(()),
        });
        if let Err(e) = made {
            let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _ = unlinkat(&dir, name, flags);
            return Err(e);
        }
        self.plain_found(parent, name, &dir)
    }

    /// Give a file another name.
    pub fn link(&self, id: u64, parent: u64, name: &OsStr) -> Result<(Arc<Node>, Attr)> {
        let node = self.nodes.get(id)?;
        let (dir_node, dir) = self.free(parent, name)?;
        loop {
            let from = self.locate(&node)?;
            let packed = packed_name(name);
            let is_native = from.found.form == Form::Packed && check(&packed).is_ok();
            if from.found.form != Form::Plain && !is_native {
                self.unpack(&node, Keep::All)?;
                continue;
            }
            let _names = write(&dir_node);
            self.must_not_exist(&dir, name)?;
            let to = if is_native { &*packed } else { name };
            if !is_native && may_be_archive(name) && from.found.kind().is_file() {
                self.mark_plain(&from.dir, &from.found.source_name)?;
            }
            linkat(&from.dir, &from.found.source_name, &dir, to, AtFlags::empty())?;
            if super::names::Key::of(&stat_at(&dir, to)?) != from.found.key() {
                // The name was given to another file since it was looked up.
                unlinkat(&dir, to, AtFlags::empty())?;
                return Err(Errno::STALE);
            }
            let found = self.names.entry(dir.as_fd(), to)?;
            return self.found(parent, name, &dir, &found);
        }
    }

    /// Remove a name of a file.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        check(name)?;
        let dir_node = self.nodes.get(parent)?;
        let dir = self.dir(parent)?;
        let names = write(&dir_node);
        let found = self.names.find(dir.as_fd(), name)?;
        if found.kind().is_dir() {
            return Err(Errno::ISDIR);
        }
        let kept = self.keep(&dir, &found);
        self.remove_forms(&dir, name, |_| true)?;
        let gone = self.lost(kept.clone(), &(parent, name.to_owned()));
        drop(names);
        // The space of a large file is freed here, where nobody waits for the names.
        drop(kept);
        gone
    }

    /// Remove an empty directory.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        check(name)?;
        let dir_node = self.nodes.get(parent)?;
        let dir = self.dir(parent)?;
        let _names = write(&dir_node);
        let found = self.names.find(dir.as_fd(), name)?;
        if !found.kind().is_dir() {
            return Err(Errno::NOTDIR);
        }
        let kept = self.keep(&dir, &found);
        match unlinkat(&dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.remove_temporaries(&dir, name)?;
                unlinkat(&dir, name, AtFlags::REMOVEDIR)?;
            }
            other => other?,
        }
        self.lost(kept, &(parent, name.to_owned()))
    }

    /// Remove what a crash has left in a directory that shows nothing.
    fn remove_temporaries(&self, dir: &DirFd, name: &OsStr) -> Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inside = Arc::new(openat(dir, name, flags, Mode::empty())?);
        if !self.names.list(inside.as_fd())?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut listing = rustix::fs::Dir::new(openat(&inside, ".", flags, Mode::empty())?)?;
        while let Some(entry) = listing.read() {
            let entry = entry?;
            let name: &OsStr =
                std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
            if is_temporary(name) {
                unlinkat(&inside, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// The directory in which a file called `name` is to appear. If the archive of another file
    /// has that very name in the source, that file is unpacked first.
    pub fn free(&self, parent: u64, name: &OsStr) -> Result<(Arc<Node>, DirFd)> {
        check(name)?;
        if is_temporary(name) {
            // Hidden in listings.
            return Err(Errno::PERM);
        }
        let dir_node = self.nodes.get(parent)?;
        let dir = self.dir(parent)?;
        if may_be_archive(name)
            && let Ok(Found { form, source_name, .. }) = self.names.entry(dir.as_fd(), name)
            && form != Form::Plain
            && let Some(shown) = shown_name(&source_name, form)
        {
            let (node, _) = self.look_up(parent, &shown)?;
            let unpacked = self.unpack(&node, Keep::All);
            self.forget(node.id, 1);
            unpacked?;
        }
        Ok((dir_node, dir))
    }

    fn must_not_exist(&self, dir: &DirFd, name: &OsStr) -> Result<()> {
        match self.names.find(dir.as_fd(), name) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The node of a file that was just made.
    fn plain_found(&self, parent: u64, name: &OsStr, dir: &DirFd) -> Result<(Arc<Node>, Attr)> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let (form, source_name, packed) = (Form::Plain, name.to_owned(), None);
        self.found(parent, name, dir, &Found { form, source_name, stat, packed })
    }

    /// The mode of a new file. The kernel leaves the caller's mask to us if it applies ACLs: a
    /// default ACL of the directory takes the place of the mask.
    fn masked(&self, dir: &DirFd, mode: u32, by: Caller) -> u32 {
        let inherits = || getxattr(proc_path(dir.as_fd()), DEFAULT_ACL, &mut [0u8; 0]).is_ok();
        if by.umask == 0 || inherits() { mode } else { mode & !by.umask }
    }

    /// Give a new file to whoever made it, with its mode.
    fn own(&self, dir: &DirFd, name: &OsStr, mode: Mode, by: Caller) -> Result<()> {
        if !self.give_to(dir, name, by)? || !mode.intersects(Mode::SUID | Mode::SGID) {
            return Ok(());
        }
        // Changing the owner has cleared these bits.
        let now = stat_at(dir, name)?.st_mode;
        let special = mode.intersection(Mode::SUID | Mode::SGID);
        chmodat(dir, name, Mode::from_raw_mode(now & 0o7777) | special, AtFlags::empty())
    }

    fn give(&self, dir: &DirFd, name: &OsStr, by: Caller) -> Result<()> {
        self.give_to(dir, name, by).map(drop)
    }

    /// Give a new file to whoever made it, if this process may; returns whether that changed it.
    fn give_to(&self, dir: &DirFd, name: &OsStr, by: Caller) -> Result<bool> {
        if !geteuid().is_root() {
            return Ok(false);
        }
        let inherits_group = fstat(dir)?.st_mode & Mode::SGID.as_raw_mode() != 0;
        let now = stat_at(dir, name)?;
        let gid = if inherits_group { now.st_gid } else { by.gid };
        if (now.st_uid, now.st_gid) == (by.uid, gid) {
            return Ok(false);
        }
        let (uid, gid) = (Some(Uid::from_raw(by.uid)), Some(Gid::from_raw(gid)));
        chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map(|()| true)
    }

    /// Mark a file that is no archive of ours, although its name says so.
    pub fn mark_plain(&self, dir: &DirFd, name: &OsStr) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, name, flags, Mode::empty())?;
        setxattr(proc_path(fd.as_fd()), PLAIN_MARK, b"", XattrFlags::empty())
    }
}
