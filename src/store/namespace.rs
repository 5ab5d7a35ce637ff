//! Names that come and go: creating, linking and removing.

use super::marks;
use super::names::{Form, Found, Key, PLAIN_MARK, check, may_be_archive, shown_name};
use super::node::Node;
use super::steps::{Step, reached};
use super::tree::{DirFd, Tree, stat_at, write};
use super::unpack::{Keep, proc_path};
use crate::format::is_pin;
use crate::mount::{Attr, DEFAULT_ACL};
use crate::output::is_temporary;
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, getxattr, linkat,
    mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result};
use rustix::process::geteuid;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

/// How often to start again when a file changes its form or its name meanwhile.
const ATTEMPTS: usize = 16;

/// Who makes a request, as far as new files are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The mask that the kernel has left to us.
    pub umask: u32,
    /// Whether it may not use blocks that are reserved for root.
    pub limited: bool,
}

/// What to create besides a regular file that is opened at once.
pub(super) enum Make {
    Directory,
    Node(FileType, Dev),
    Symlink(OsString),
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
        self.with_free(parent, name, by.limited, |dir| {
            match self.names.find(dir.as_fd(), name) {
                Ok(_) if flags.contains(OFlags::EXCL) => return Err(Errno::EXIST),
                Ok(found) => {
                    let (node, attr) = self.found(parent, name, dir, &found)?;
                    return Ok(Created { node, attr, file: None });
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            let mode = Mode::from_raw_mode(self.masked(dir, mode, by));
            // For reading as well: the kernel reads pages that are mapped for writing.
            let access = flags.intersection(OFlags::SYNC | OFlags::DSYNC) | OFlags::RDWR;
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(openat(dir, name, access | create, mode)?);
            let made = self.own(dir, &file, mode, by).and_then(|()| match may_be_archive(name) {
                true => marks::set(&file, PLAIN_MARK),
                false => Ok(()),
            });
            if let Err(e) = made {
                let _ = unlinkat(dir, name, AtFlags::empty());
                return Err(e);
            }
            let (node, attr) = self.plain_found(parent, name, dir)?;
            Ok(Created { node, attr, file: Some(file) })
        })
    }

    /// Create a directory, a symlink, a FIFO, a socket or a device, or a regular file.
    pub fn make(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        what: &Make,
        by: Caller,
    ) -> Result<(Arc<Node>, Attr)> {
        self.with_free(parent, name, by.limited, |dir| {
            self.must_not_exist(dir, name)?;
            let mode = Mode::from_raw_mode(self.masked(dir, mode, by));
            match what {
                Make::Directory => mkdirat(dir, name, mode)?,
                Make::Node(kind, dev) => mknodat(dir, name, *kind, mode, *dev)?,
                Make::Symlink(target) => symlinkat(target, dir, name)?,
            }
            let is_regular = matches!(what, Make::Node(FileType::RegularFile, _));
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(dir, name, flags, Mode::empty()).and_then(|fd| {
                match what {
                    Make::Symlink(_) => self.give(dir, &fd, by).map(drop)?,
                    _ => self.own(dir, &fd, mode, by)?,
                }
                if is_regular && may_be_archive(name) {
                    marks::set(&fd, PLAIN_MARK)
                } else {
                    Ok(())
                }
            });
            if let Err(e) = made {
                let is_dir = matches!(what, Make::Directory);
                let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                let _ = unlinkat(dir, name, flags);
                return Err(e);
            }
            self.plain_found(parent, name, dir)
        })
    }

    /// Give a file another name. A packed file becomes plain, because it could not be written to
    /// under both names otherwise.
    pub fn link(
        &self,
        id: u64,
        parent: u64,
        name: &OsStr,
        limited: bool,
    ) -> Result<(Arc<Node>, Attr)> {
        let node = self.nodes.get(id)?;
        for _ in 0..ATTEMPTS {
            self.unpack(&node, Keep::All, limited)?;
            node.state().epoch += 1;
            let linked = self.with_free(parent, name, limited, |dir| {
                let from = self.locate_once(&node)?;
                if from.found.form != Form::Plain {
                    return Err(Errno::STALE);
                }
                self.must_not_exist(dir, name)?;
                if may_be_archive(name) && from.found.kind().is_file() {
                    self.mark_plain(&from.dir, &from.found.source_name)?;
                }
                linkat(&from.dir, &from.found.source_name, dir, name, AtFlags::empty())?;
                if Key::of(&stat_at(dir, name)?) != from.found.key() {
                    // The name was given to another file since it was looked up.
                    unlinkat(dir, name, AtFlags::empty())?;
                    return Err(Errno::STALE);
                }
                self.plain_found(parent, name, dir)
            });
            match linked {
                // It was renamed or packed meanwhile.
                Err(Errno::STALE | Errno::NOENT) if self.nodes.place(id)?.1.is_some() => {}
                other => return other,
            }
        }
        Err(Errno::NOENT)
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
        let kept = self.keep(&dir, &found)?;
        self.clear_beside(&dir, name, &found)?;
        unlinkat(&dir, &found.source_name, AtFlags::empty())?;
        reached(Step::FormRemoved);
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
        let kept = self.keep(&dir, &found)?;
        self.clear_beside(&dir, name, &found)?;
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
            // Nothing is left that needs a base.
            if is_temporary(name) || is_pin(name) {
                unlinkat(&inside, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Do something with a directory whose names are locked, and in which the source has no file
    /// `name` but the one that is shown as such.
    fn with_free<T>(
        &self,
        parent: u64,
        name: &OsStr,
        limited: bool,
        make: impl Fn(&DirFd) -> Result<T>,
    ) -> Result<T> {
        let dir_node = self.nodes.get(parent)?;
        for _ in 0..ATTEMPTS {
            let dir = self.free(parent, name, limited)?;
            let _names = write(&dir_node);
            if !self.is_archive_of_another(&dir, name)? {
                return make(&dir);
            }
        }
        Err(Errno::BUSY)
    }

    /// The directory in which a file called `name` is to appear. If the archive of another file
    /// has that very name in the source, that file is unpacked first.
    pub fn free(&self, parent: u64, name: &OsStr, limited: bool) -> Result<DirFd> {
        check(name)?;
        if is_temporary(name) || is_pin(name) {
            // Hidden in listings.
            return Err(Errno::PERM);
        }
        let dir = self.dir(parent)?;
        if !self.is_archive_of_another(&dir, name)? {
            return Ok(dir);
        }
        let found = self.names.entry(dir.as_fd(), name)?;
        let Some(shown) = shown_name(name, found.form) else { return Ok(dir) };
        let (node, _) = self.look_up(parent, &shown)?;
        let unpacked = self.unpack(&node, Keep::All, limited);
        self.forget(node.id, 1);
        unpacked?;
        let dir_node = self.nodes.get(parent)?;
        let _names = write(&dir_node);
        // Beside a plain file, an archive is not shown, and may be in the way.
        let plain = self.names.find(dir.as_fd(), &shown)?;
        if plain.form == Form::Plain {
            self.clear_beside(&dir, &shown, &plain)?;
        }
        Ok(dir)
    }

    /// Whether the source has an archive called `name`, which is shown under another name.
    pub fn is_archive_of_another(&self, dir: &DirFd, name: &OsStr) -> Result<bool> {
        if !may_be_archive(name) {
            return Ok(false);
        }
        match self.names.entry(dir.as_fd(), name) {
            Ok(found) => Ok(found.form != Form::Plain),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether a file is shown under a name that an archive is to get, although nobody else may
    /// give such names.
    pub fn is_taken(&self, dir: &DirFd, name: &OsStr) -> bool {
        self.names.entry(dir.as_fd(), name).is_ok_and(|found| found.form == Form::Plain)
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
    fn own(&self, dir: &DirFd, file: impl AsFd, mode: Mode, by: Caller) -> Result<()> {
        let special = mode.intersection(Mode::SUID | Mode::SGID);
        if !self.give(dir, &file, by)? || special.is_empty() {
            return Ok(());
        }
        // Changing the owner has cleared these bits.
        let now = Mode::from_raw_mode(fstat(&file)?.st_mode & 0o7777);
        chmodat(CWD, proc_path(file.as_fd()), now | special, AtFlags::empty())
    }

    /// Give a new file to whoever made it, if this process may; returns whether that changed it.
    fn give(&self, dir: &DirFd, file: impl AsFd, by: Caller) -> Result<bool> {
        if !geteuid().is_root() {
            return Ok(false);
        }
        let inherits_group = fstat(dir)?.st_mode & Mode::SGID.as_raw_mode() != 0;
        let now = fstat(&file)?;
        let gid = if inherits_group { now.st_gid } else { by.gid };
        if (now.st_uid, now.st_gid) == (by.uid, gid) {
            return Ok(false);
        }
        let (uid, gid) = (Some(Uid::from_raw(by.uid)), Some(Gid::from_raw(gid)));
        chownat(file, "", uid, gid, AtFlags::EMPTY_PATH).map(|()| true)
    }

    /// Mark a file that is no archive of ours, although its name says so.
    pub fn mark_plain(&self, dir: &DirFd, name: &OsStr) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        marks::set(openat(dir, name, flags, Mode::empty())?, PLAIN_MARK)
    }
}
