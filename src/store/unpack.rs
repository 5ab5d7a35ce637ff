//! Writing to a packed file: the plain file comes back first.
//!
//! The file is decoded to an unnamed file `T`, verified, given the attributes of the archive and
//! synced. What follows differs by whether `T` holds the same bytes as the archive:
//!
//! | the same bytes | a part of them (truncation) | if all ends after this step |
//! |---|---|---|
//! | | rename `F.bsz` to `F.bsz-old` | the old form is shown; recovery renames it back |
//! | link `T` to `F` | link `T` to `F` | the plain file is shown |
//! | sync the directory | sync the directory | |
//! | unlink `F.bsz` | unlink `F.bsz-old` | only the plain file is left |
//!
//! Only then may anything be written: while both exist, they are equal, or one of them is old.

use super::marks;
use super::names::{Form, Found, Key, old_name, open_file};
use super::node::{Content, Node};
use super::steps::{Step, reached};
use super::tree::{DirFd, Located, Tree, stat_at, write};
use crate::error::Error;
use crate::output::{Attributes, Dir, Existing, Lost, Output, sync_dir};
use crate::read::{self, Archive};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fstat, futimens, openat,
    renameat, unlinkat, utimensat,
};
use rustix::io::{Errno, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

/// How much of a file to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    All,
    /// So many bytes, fewer than the file has.
    Prefix(u64),
}

/// Bytes that are decoded at a time if only a part of a file is wanted.
const WINDOW: u64 = 4 << 20;

/// How often to start again if a file is renamed while it is unpacked.
const ATTEMPTS: usize = 16;

/// The attribute of a plain file that is on its way to replace its archive.
pub(super) const UNPACKING: &str = "user.bsz.unpacking";

/// Set the modification time to now.
pub(super) const MODIFIED_NOW: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
};

/// A file is open for writing as long as this exists, so the packer leaves it alone.
pub(super) struct Writing<'a>(&'a Node);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.state().writers -= 1;
    }
}

impl Tree {
    /// Change the size of a file.
    pub fn truncate(&self, node: &Node, size: u64, limited: bool) -> Result<()> {
        let writing = self.begin_writing(node);
        let packed = node.state().packed.clone();
        let outcome = match packed {
            Some(packed) if size < packed.size && self.may_be_old(node) => {
                self.unpack(node, Keep::Prefix(size), limited).and_then(|done| match done {
                    Some(_) => Ok(()),
                    None => self.truncate_plain(node, size),
                })
            }
            Some(packed) if size == packed.size => {
                let entry = self.entry(node)?;
                utimensat(rustix::fs::CWD, entry.path(), &MODIFIED_NOW, AtFlags::empty())
            }
            _ => {
                self.unpack(node, Keep::All, limited).and_then(|_| self.truncate_plain(node, size))
            }
        };
        drop(writing);
        if let Ok(attr) = self.attr(node.id) {
            self.settle(node.id, &attr);
        }
        outcome
    }

    /// Whether the archive of a file may be called `.bsz-old` for a while.
    fn may_be_old(&self, node: &Node) -> bool {
        let is_free = |at: &Located| {
            let old = old_name(&at.link.1);
            super::names::check(&old).is_ok()
                && !self.is_taken(&at.dir, &old)
                && self.names.is_own(at.dir.as_fd(), &at.found).unwrap_or(false)
        };
        node.orphan().is_some() || self.locate(node).is_ok_and(|at| is_free(&at))
    }

    /// Give a decoded file the attributes that its archive has by now. The names are locked, so
    /// that no others are changed meanwhile.
    fn keep_attributes(&self, dir: &DirFd, found: &Found, output: &Output) -> Result<()> {
        let (file, stat) = open_file(dir, &found.source_name)?;
        if (stat.st_ctime, stat.st_ctime_nsec) == (found.stat.st_ctime, found.stat.st_ctime_nsec) {
            return Ok(());
        }
        Attributes::of(&file)?.apply(output.file()).map(drop)
    }

    /// Keep the packer away from a file as long as what this returns exists.
    pub fn begin_writing<'a>(&self, node: &'a Node) -> Writing<'a> {
        let mut state = node.state();
        state.writers += 1;
        state.epoch += 1;
        if let Some(file) = state.leased.take() {
            crate::pack::release_lease(&file);
        }
        Writing(node)
    }

    fn truncate_plain(&self, node: &Node, size: u64) -> Result<()> {
        let file = self.open_plain(node, OFlags::WRONLY)?;
        self.with_room(|| rustix::fs::ftruncate(&file, size))
    }

    /// Bring the plain file of a node back. Returns it, open for reading and writing; `None` if
    /// the file was plain already. `limited`: not into blocks that are reserved for root.
    pub fn unpack(&self, node: &Node, keep: Keep, limited: bool) -> Result<Option<Arc<File>>> {
        let _once = node.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ATTEMPTS {
            let Some(packed) = node.state().packed.clone() else { return Ok(None) };
            let size = if let Keep::Prefix(len) = keep { len } else { packed.size };
            self.may_use(size, limited)?;
            let orphan = node.orphan();
            let done = match orphan {
                Some(orphan) => Some(self.unpack_orphan(node, &orphan, keep)?),
                None => self.unpack_named(node, keep)?,
            };
            if done.is_some() {
                self.packer.unpacked();
                return Ok(done);
            }
        }
        Err(Errno::BUSY)
    }

    /// `None` if the file lost its name or got another one meanwhile.
    fn unpack_named(&self, node: &Node, keep: Keep) -> Result<Option<Arc<File>>> {
        let (located, file) = match self.open_located(node) {
            Err(Errno::STALE) if node.orphan().is_some() => return Ok(None),
            other => other?,
        };
        let Located { dir, link, .. } = &located;
        let path = self.path(link);
        let output = self.with_room(|| self.decode(&file, dir, &link.1, &path, keep))?;
        reached(Step::UnpackDecoded);
        self.put_plain(node, &located, output, keep)
    }

    /// Decode an archive to an unnamed file for `name` in a directory, with all attributes.
    fn decode(
        &self,
        file: &File,
        dir: &DirFd,
        name: &OsStr,
        path: &Path,
        keep: Keep,
    ) -> Result<Output> {
        let open = self.cached_archive(file, path)?;
        let output = Output::create(&writable_dir(dir, path)?, name).map_err(|e| errno(&e))?;
        let archive = open.archive();
        let decoded = match keep {
            Keep::All => read::unpack(archive, output.file(), path, self.cache.decoder(), &|_| {}),
            Keep::Prefix(len) => self.decode_prefix(archive, output.file(), len),
        };
        decoded.map_err(|e| logged(path, &e))?;
        let attributes = Attributes::of(file)?;
        let lost = output.sync(&attributes).map_err(|e| errno(&e))?;
        if lost.contains(&Lost::Space) {
            return Err(Errno::NOSPC);
        }
        if let Some(message) = Lost::message(&lost) {
            log::warn!("{}: {message} when it was unpacked", crate::escape::path(path));
        }
        if keep != Keep::All {
            futimens(output.file(), &MODIFIED_NOW)?;
        }
        // Where there are no such attributes, recovery compares the two files.
        let _ = marks::set(output.file(), UNPACKING);
        Ok(output)
    }

    fn decode_prefix(&self, archive: &Archive, out: &File, len: u64) -> crate::Result<()> {
        let mut buffer = vec![0; len.min(WINDOW) as usize];
        for at in (0..len).step_by(WINDOW as usize) {
            let part = &mut buffer[..(len - at).min(WINDOW) as usize];
            archive.read_at(at, part, self.cache.decoder())?;
            out.write_all_at(part, at)?;
        }
        Ok(())
    }

    /// Let a decoded file take the place of its archive. `None` if the place has changed.
    fn put_plain(
        &self,
        node: &Node,
        Located { dir, link, found }: &Located,
        mut output: Output,
        keep: Keep,
    ) -> Result<Option<Arc<File>>> {
        let dir_node = self.nodes.get(link.0)?;
        let name = &link.1;
        let names = write(&dir_node);
        let is_there = |name: &OsStr| stat_at(dir, name).is_ok_and(|s| Key::of(&s) == found.key());
        if self.nodes.place(node.id)? != (found.key(), Some(link.clone()))
            || !is_there(&found.source_name)
        {
            return Ok(None);
        }
        if found.form == Form::Over {
            sync_dir(dir)?;
            self.remove_forms(dir, name, |found| found.form > Form::Over)?;
        }
        self.keep_attributes(dir, found, &output)?;
        let mut archive = found.source_name.clone();
        if keep != Keep::All && found.form != Form::Old {
            renameat(dir, &archive, dir, old_name(name))?;
            archive = old_name(name);
            reached(Step::TruncateRenamed);
        }
        let linked = output.link(Existing::Refuse).map_err(|e| errno(&e));
        if linked.is_err() && archive != found.source_name {
            renameat(dir, &archive, dir, &found.source_name)?;
        }
        linked?;
        let file = Arc::new(output.file().try_clone().map_err(|_| Errno::MFILE)?);
        self.becomes_plain(node, &file, Some(link.clone()), keep)?;
        drop(names);
        reached(Step::UnpackLinked);
        sync_dir(dir)?;
        reached(Step::UnpackSynced);
        let names = write(&dir_node);
        if node.state().packed.is_some() {
            return Ok(None);
        }
        unlink_if(dir, &archive, found.key())?;
        self.twins.forget(found.key());
        drop(names);
        // It must not come back beside what is written now.
        sync_dir(dir)?;
        reached(Step::UnpackRemoved);
        let _ = marks::remove(&*file, UNPACKING);
        Ok(Some(file))
    }

    /// Unpack a file that has no name.
    fn unpack_orphan(&self, node: &Node, orphan: &OwnedFd, keep: Keep) -> Result<Arc<File>> {
        let path = Path::new("(removed)");
        let own = proc_path(orphan.as_fd());
        let file = rustix::fs::open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into();
        let root = self.dir(crate::mount::ROOT)?;
        let output =
            self.with_room(|| self.decode(&file, &root, OsStr::new("removed"), path, keep))?;
        let file = Arc::new(output.into_unnamed());
        let orphan = Arc::new(OwnedFd::from(reopened(&file)?));
        node.state().orphan = Some(orphan);
        self.becomes_plain(node, &file, None, keep)?;
        Ok(file)
    }

    fn becomes_plain(
        &self,
        node: &Node,
        file: &Arc<File>,
        link: Option<(u64, std::ffi::OsString)>,
        keep: Keep,
    ) -> Result<()> {
        let key = Key::of(&fstat(&**file)?);
        let mut state = node.state();
        self.nodes.replace(node.id, key, false, link);
        state.packed = None;
        state.epoch += 1;
        if state.opens > 0 {
            // A descriptor that may write would keep the packer away as long as there are readers.
            let read_only = read_only(file).map_or_else(|_| Arc::clone(file), Arc::new);
            state.content = Some(Content::Plain(read_only));
        }
        if keep != Keep::All {
            state.cached = None;
        }
        Ok(())
    }

    /// Remove the forms of `name` for which `which` holds, those of the lowest precedence first, so
    /// that none is shown meanwhile. The names of the directory are locked.
    pub fn remove_forms(
        &self,
        dir: &DirFd,
        name: &OsStr,
        which: impl Fn(&Found) -> bool,
    ) -> Result<()> {
        let forms = self.names.forms(dir.as_fd(), name)?;
        for found in forms.iter().rev().filter(|found| which(found)) {
            unlinkat(dir, &found.source_name, AtFlags::empty())?;
            self.twins.forget(found.key());
            reached(Step::FormRemoved);
        }
        Ok(())
    }

    /// Clear away the other forms of `name` beside `shown`, which is about to change or to go: they
    /// would be shown in its place. Those that the store has made hold the same bytes, or older
    /// ones, so they are removed. Any other archive is the user's, and is shown under its own name
    /// from now on. The names of the directory are locked.
    pub fn clear_beside(&self, dir: &DirFd, name: &OsStr, shown: &Found) -> Result<()> {
        let forms = self.names.forms(dir.as_fd(), name)?;
        for found in forms.iter().rev().filter(|found| found.key() != shown.key()) {
            if shown.form == Form::Over || self.names.is_own(dir.as_fd(), found)? {
                unlinkat(dir, &found.source_name, AtFlags::empty())?;
                reached(Step::FormRemoved);
            } else {
                self.set_aside(dir, name, found)?;
            }
        }
        Ok(())
    }

    /// Show an archive that the store has not made under its own name, beside a plain file.
    pub fn set_aside(&self, dir: &DirFd, name: &OsStr, archive: &Found) -> Result<()> {
        if let Err(e) = self.mark_plain(dir, &archive.source_name) {
            log::debug!("an archive cannot be marked: {e}");
            self.names.remember_plain(archive.key());
        }
        log::warn!(
            "{} is no archive of the store's, and is shown beside {}",
            crate::escape::path(Path::new(&archive.source_name)),
            crate::escape::path(Path::new(name)),
        );
        Ok(())
    }
}

/// Another descriptor of an open file.
fn reopened(file: &File) -> Result<File> {
    file.try_clone().map_err(|_| Errno::MFILE)
}

/// A descriptor of the same file, for reading only.
fn read_only(file: &File) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(proc_path(file.as_fd()), flags, Mode::empty())?.into())
}

/// The directory as `output` wants it.
pub(super) fn writable_dir(dir: &DirFd, path: &Path) -> Result<Arc<Dir>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match openat(dir, ".", flags, Mode::empty()) {
        // A directory that may only be entered and written to.
        Err(Errno::ACCESS) => dir.try_clone().map_err(|_| Errno::MFILE)?,
        other => other?,
    };
    Ok(Dir::from_fd(fd, path.parent().unwrap_or(Path::new("")).to_owned()))
}

/// Remove `name` if it is the file `key`.
pub(super) fn unlink_if(dir: &DirFd, name: &OsStr, key: Key) -> Result<()> {
    match stat_at(dir, name) {
        Ok(stat) if Key::of(&stat) == key => unlinkat(dir, name, AtFlags::empty()),
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// The errno that a program gets for an error; those of the content are `EIO`.
pub(super) fn errno(e: &Error) -> Errno {
    e.errno().map_or(Errno::IO, Errno::from_raw_os_error)
}

fn logged(path: &Path, e: &Error) -> Errno {
    log::error!("{}: {e}", crate::escape::path(path));
    errno(e)
}

/// The path of a descriptor, for system calls that take none.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
