//! The walk after mounting: what a crash has left is finished, and files to pack are found.
//!
//! The store serves meanwhile. Whatever is left is shown right already, by the order of forms, so
//! the walk only frees space and makes names simple again:
//!
//! | found | done |
//! |---|---|
//! | `N.bsz-over` | the plain `N` is removed, and the archive gets its name |
//! | `N.bsz-old` beside a plain `N` | it is removed |
//! | `N.bsz-old` alone | the archive gets its name back |
//! | `N` and `N.bsz`, `N` marked as being unpacked, equal by SHA-256 | the archive is removed |
//! | `N` and our `N.bsz`, equal by size and SHA-256, the archive intact | `N` is removed |
//! | the same, but `N` has other attributes or names by now | our archive is removed |
//! | `N` and our `N.bsz` that differ | both stay |
//! | `N` and an `N.bsz` that is not ours | both stay, and the archive is marked, and shown |
//! | a temporary file of a process that is gone | it is removed |

use super::marks;
use super::names::{Form, Found, Key, open_file, open_unnoticed, over_name, packed_name};
use super::names::{shown_name, stem_name};
use super::steps::{Step, reached};
use super::swap::Candidate;
use super::tree::{DirFd, Tree, read, stat_at, write};
use super::unpack::{UNPACKING, unlink_if};
use super::work::{age, is_candidate};
use crate::codec;
use crate::format::Naming;
use crate::mount::ROOT;
use crate::output::{Attributes, is_temporary, sha256, sync_dir};
use crate::pack::{START, may_be_model};
use crate::read::{Archive, verify};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat};
use rustix::fs::{renameat, statat, unlinkat};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, test_kill_process};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether to repair, or only to find files to pack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    Recover,
    Find,
}

impl Tree {
    /// Finish what a crash has left, and queue files to pack if they are packed by themselves.
    pub(super) fn recover(&self) {
        self.walk(Walk::Recover);
        self.packer.recovered();
    }

    /// Queue all files that may be packed.
    pub(super) fn find_candidates(&self) {
        self.forget_missing_archives();
        self.walk(Walk::Find);
    }

    fn walk(&self, walk: Walk) {
        let mut left = vec![ROOT];
        while let Some(id) = left.pop() {
            if self.packer.is_stopped() {
                break;
            }
            match self.walk_dir(id, walk) {
                Ok(below) => left.extend(below),
                Err(Errno::STALE | Errno::NOENT) => {}
                Err(e) => log::warn!("a directory of the store was not examined: {e}"),
            }
            if id != ROOT {
                self.forget(id, 1);
            }
        }
        left.into_iter().filter(|id| *id != ROOT).for_each(|id| self.forget(id, 1));
    }

    /// Examine a directory; returns the directories in it, each with a lookup counted.
    fn walk_dir(&self, id: u64, walk: Walk) -> Result<Vec<u64>> {
        let dir = self.dir(id)?;
        if walk == Walk::Recover {
            for name in leftovers(&dir)? {
                let repaired = self.repair(id, &dir, &name);
                if let Err(e) = repaired {
                    let path = self.path(&(id, name));
                    log::warn!("{}: what a crash has left stays: {e}", crate::escape::path(&path));
                }
            }
        }
        let node = self.nodes.get(id)?;
        let listed = {
            let _names = read(&node);
            self.names.list(dir.as_fd())?
        };
        let finds = walk == Walk::Find || self.packer.wants(u64::MAX);
        let mut below = Vec::new();
        for entry in listed {
            if entry.kind == FileType::Directory {
                below.extend(self.look_up(id, &entry.name).map(|(node, _)| node.id));
            } else if finds && entry.kind.is_file() && entry.form == Form::Plain {
                self.consider(id, &dir, &entry.name);
            } else if finds {
                self.note_archive(id, &dir, &entry);
            }
        }
        Ok(below)
    }

    /// Queue a plain file if it looks like one to pack.
    fn consider(&self, parent: u64, dir: &DirFd, name: &OsStr) {
        let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let min_size = self.packer.policy.min_size;
        let attr = crate::mount::attr(0, &stat, None);
        if !is_candidate(&(parent, name.to_owned()), &attr, min_size) || !is_model(dir, name) {
            return;
        }
        if let Ok((node, attr)) = self.look_up(parent, name) {
            self.queue_node(node.id, age(&attr));
            self.forget(node.id, 1);
        }
    }

    /// Repair what the entry `name` of a directory is a part of.
    fn repair(&self, parent: u64, dir: &DirFd, name: &OsStr) -> Result<()> {
        if is_temporary(name) {
            return remove_temporary(dir, name);
        }
        let found = match self.names.entry(dir.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let Some(shown) = shown_name(name, found.form) else { return Ok(()) };
        match found.form {
            Form::Plain => Ok(()),
            Form::Over => self.finish_over(parent, dir, &shown),
            Form::Old => self.finish_old(parent, dir, &shown),
            Form::Packed | Form::PackedStem => self.finish_pair(parent, dir, &shown, &found),
        }
    }

    /// An archive is shown as *over*: remove what it replaces, and give it its name.
    pub(super) fn finish_over(&self, parent: u64, dir: &DirFd, shown: &OsStr) -> Result<()> {
        sync_dir(dir)?;
        reached(Step::OverSynced);
        let node = self.nodes.get(parent)?;
        let _names = write(&node);
        let over = match self.names.entry(dir.as_fd(), &over_name(shown)) {
            // Somebody has unpacked, renamed or removed it.
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let target = archive_name(&over, shown);
        if over.form != Form::Over || self.is_taken(dir, &target) {
            return Ok(());
        }
        self.remove_forms(dir, shown, |found| found.form > Form::Over)?;
        reached(Step::OverRemoved);
        // The old file must not come back beside the archive.
        sync_dir(dir)?;
        renameat(dir, &over.source_name, dir, target)?;
        reached(Step::OverDone);
        Ok(())
    }

    /// An archive is *old*: remove it beside the plain file that has replaced it; or give it its
    /// name back if nothing has.
    pub(super) fn finish_old(&self, parent: u64, dir: &DirFd, shown: &OsStr) -> Result<()> {
        // The file that has replaced it must be on disk first.
        match open_file(dir, shown) {
            Ok((file, _)) => rustix::fs::fdatasync(&file)?,
            Err(Errno::NOENT | Errno::STALE | Errno::ACCESS) => {}
            Err(e) => return Err(e),
        }
        sync_dir(dir)?;
        reached(Step::ReplacedSynced);
        let node = self.nodes.get(parent)?;
        let _names = write(&node);
        let forms = self.names.forms(dir.as_fd(), shown)?;
        let Some(old) = forms.iter().find(|found| found.form == Form::Old) else { return Ok(()) };
        match forms[0].form {
            Form::Old => {
                let target = archive_name(old, shown);
                if self.is_taken(dir, &target) {
                    Ok(())
                } else {
                    renameat(dir, &old.source_name, dir, target)
                }
            }
            Form::Plain => {
                self.clear_beside(dir, shown, &forms[0])?;
                if let Ok((file, _)) = open_file(dir, shown) {
                    let _ = marks::remove(&file, UNPACKING);
                }
                Ok(())
            }
            // Both are archives: whichever the user wants, neither is shown wrong.
            _ => Ok(()),
        }
    }

    /// Of a plain file and its archive, only one stays if they are equal.
    fn finish_pair(&self, parent: u64, dir: &DirFd, shown: &OsStr, archive: &Found) -> Result<()> {
        let Some(packed) = &archive.packed else { return Ok(()) };
        let (file, stat) = match open_unnoticed(dir, shown) {
            Err(Errno::NOENT) => return Ok(()),
            // A directory or a symlink, say.
            Err(Errno::STALE) => return self.show_beside(parent, dir, shown, archive),
            other => other?,
        };
        let is_unpacking = marks::find(&file, UNPACKING)? == Some(true);
        let own = self.names.own_mark(dir.as_fd(), archive)?;
        if !is_unpacking && self.packer.policy.pack == super::Pack::Off {
            // They may be the user's.
            if own == Some(false) {
                self.names.remember_plain(archive.key());
            }
            return Ok(());
        }
        let (node, attr) = self.look_up(parent, shown)?;
        let epoch = node.state().epoch;
        let candidate = Candidate {
            epoch,
            key: Key::of(&stat),
            link: (parent, shown.to_owned()),
            dir: DirFd::clone(dir),
            node,
        };
        let path = self.path(&candidate.link);
        // Where files have no marks, the time of modification has to do.
        let is_ours = match own {
            _ if is_unpacking => true,
            Some(own) => own,
            None => attr.mtime == crate::mount::attr(0, &archive.stat, None).mtime,
        };
        let is_like = is_ours && attr.size == packed.size;
        let is_equal = is_like && sha256(&file, &path).is_ok_and(|sum| sum == packed.sha256);
        let finished = match (is_equal, is_unpacking) {
            (false, _) => self.keep_both(&candidate, archive),
            (true, true) => self.keep_plain(&candidate, archive, &file),
            (true, false) => self.keep_archive(&candidate, &file, archive, &path),
        };
        self.forget(candidate.node.id, 1);
        finished
    }

    /// Show an archive beside what has the name of the file that it shows, if it is not ours.
    fn show_beside(&self, parent: u64, dir: &DirFd, shown: &OsStr, archive: &Found) -> Result<()> {
        let node = self.nodes.get(parent)?;
        let _names = write(&node);
        let is_there = |name| stat_at(dir, name).is_ok_and(|s| Key::of(&s) == archive.key());
        if !is_there(&archive.source_name) || self.names.may_be_own(dir.as_fd(), archive)? {
            return Ok(());
        }
        self.set_aside(dir, shown, archive)
    }

    /// They were changed while nothing was mounted, or the archive is not ours.
    fn keep_both(&self, of: &Candidate, archive: &Found) -> Result<()> {
        let node = self.nodes.get(of.link.0)?;
        let _names = write(&node);
        let is_there = |name, key| stat_at(&of.dir, name).is_ok_and(|s| Key::of(&s) == key);
        let both = is_there(&*of.link.1, of.key) && is_there(&archive.source_name, archive.key());
        if both && self.names.may_be_own(of.dir.as_fd(), archive)? {
            let path = self.path(&of.link);
            let path = crate::escape::path(&path);
            log::warn!("{path}: differs from the archive beside it, which is not shown");
            return Ok(());
        }
        if both { self.set_aside(&of.dir, &of.link.1, archive) } else { Ok(()) }
    }

    fn keep_plain(&self, of: &Candidate, archive: &Found, file: &File) -> Result<()> {
        sync_dir(&of.dir)?;
        let node = self.nodes.get(of.link.0)?;
        let _names = write(&node);
        if !stat_at(&of.dir, &of.link.1).is_ok_and(|stat| Key::of(&stat) == of.key) {
            // The archive may be all that is left.
            return Ok(());
        }
        unlink_if(&of.dir, &archive.source_name, archive.key())?;
        let _ = marks::remove(file, UNPACKING);
        Ok(())
    }

    fn keep_archive(
        &self,
        of: &Candidate,
        plain: &File,
        archive: &Found,
        path: &Path,
    ) -> Result<()> {
        let (file, stat) = open_unnoticed(&of.dir, &archive.source_name)?;
        if Key::of(&stat) != archive.key() {
            return Ok(());
        }
        let alike = Attributes::of(&file)?.satisfy(&Attributes::of(plain)?);
        if fstat(plain)?.st_nlink != 1 || !alike {
            // It got a link or other attributes while it was packed.
            return match self.names.is_own(of.dir.as_fd(), archive)? {
                true => self.keep_plain(of, archive, plain),
                false => Ok(()),
            };
        }
        // It may have been copied here.
        rustix::fs::fsync(&file)?;
        let intact = Archive::from_file_within(file, self.cache.archive_memory())
            .and_then(|archive| verify(&archive, &*codec::verifying(), &|_| {}));
        if let Err(e) = intact {
            let path = crate::escape::path(path);
            log::warn!("{path}: the archive beside it is damaged, and is not shown: {e}");
            return Ok(());
        }
        self.remove_plain(of, archive).map(drop)
    }
}

/// The names of a directory that may be left over from a crash.
fn leftovers(dir: &DirFd) -> Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut listing = Dir::new(openat(dir, ".", flags, Mode::empty())?)?;
    let mut names = HashSet::new();
    while let Some(entry) = listing.read() {
        names.insert(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned());
    }
    let is_left = |name: &OsStr| {
        let bytes = name.as_bytes();
        let original = |form| shown_name(name, form).is_some_and(|name| names.contains(&name));
        is_temporary(name)
            || bytes.ends_with(b".bsz-over")
            || bytes.ends_with(b".bsz-old")
            || bytes.ends_with(b".bsz") && (original(Form::Packed) || original(Form::PackedStem))
    };
    Ok(names.iter().filter(|name| is_left(name)).cloned().collect())
}

/// The name that an archive has when nothing is going on.
fn archive_name(archive: &Found, shown: &OsStr) -> OsString {
    let naming = archive.packed.as_ref().map(|packed| packed.naming);
    match (naming, stem_name(shown)) {
        (Some(Naming::Safetensors), Some(name)) => name,
        _ => packed_name(shown),
    }
}

/// Remove a temporary file if the process that wrote it is gone.
fn remove_temporary(dir: &DirFd, name: &OsStr) -> Result<()> {
    let text = name.to_str().and_then(|name| name.strip_prefix('.'));
    let pid = text.and_then(|text| i32::from_str_radix(text.split('-').next()?, 16).ok());
    let runs = |pid| test_kill_process(pid) != Err(Errno::SRCH);
    if pid.and_then(Pid::from_raw).is_none_or(runs) {
        return Ok(());
    }
    unlinkat(dir, name, AtFlags::empty())
}

/// Whether a file may be a model, as far as its start tells.
fn is_model(dir: &DirFd, name: &OsStr) -> bool {
    use std::os::unix::fs::FileExt;
    let mut start = [0; START];
    let Ok((file, _)) = open_unnoticed(dir, name) else { return false };
    file.read_at(&mut start, 0).is_ok_and(|len| may_be_model(&start[..len]))
}
