//! Renaming. Each case has one step that is the switch: before it the old file is shown under the
//! new name, after it the new one, also after a crash.
//!
//! | case | steps |
//! |---|---|
//! | plain `G` over plain `F` | the archives beside both, if any, go first; rename |
//! | plain `G` over packed `F` | `F.bsz` to `F.bsz-old`; **`G` to `F`**; sync; unlink `F.bsz-old` |
//! | packed `F` to a free name `H` | **`F.bsz` to `H.bsz`** |
//! | packed `F` over packed `H` | **`F.bsz` to `H.bsz`** |
//! | packed `F` over plain `H` | **`F.bsz` to `H.bsz-over`**; sync; unlink `H`; then to `H.bsz` |
//! | exchange | what is packed is unpacked; exchange |

use super::names::{
    Form, Found, PLAIN_MARK, may_be_archive, old_name, over_name, packed_name, stem_name,
};
use super::names::{MAX_PACKED_NAME, check};
use super::node::Node;
use super::steps::{Step, reached};
use super::tree::{DirFd, Tree, sync_dir, write};
use super::unpack::{Keep, proc_path, unlink_if};
use rustix::fs::{Mode, OFlags, RenameFlags, openat, removexattr, renameat, renameat_with};
use rustix::io::{Errno, Result};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// One end of a renaming: a name in a directory.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub parent: u64,
    pub name: &'a OsStr,
}

/// The same, opened and looked up.
struct Side<'a> {
    end: End<'a>,
    dir: DirFd,
    found: Option<Found>,
}

impl Side<'_> {
    fn is_packed(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.form != Form::Plain)
    }
}

/// How often to start again when what is renamed changes its form meanwhile.
const ATTEMPTS: usize = 16;

impl Tree {
    pub fn rename(&self, from: End<'_>, to: End<'_>, flags: RenameFlags) -> Result<()> {
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        check(from.name)?;
        let (to_node, _) = self.free(to.parent, to.name)?;
        let from_node = self.nodes.get(from.parent)?;
        for _ in 0..ATTEMPTS {
            let locked = Locked::new(&from_node, &to_node);
            match self.rename_locked(from, to, flags)? {
                Next::Done(freed) => {
                    drop(locked);
                    // The space of a replaced file is freed here, where nobody waits for the names.
                    drop(freed);
                    return Ok(());
                }
                Next::Unpack(end) => {
                    drop(locked);
                    let (node, _) = self.look_up(end.parent, end.name)?;
                    let unpacked = self.unpack(&node, Keep::All);
                    self.forget(node.id, 1);
                    unpacked?;
                }
            }
        }
        Err(Errno::BUSY)
    }

    fn side<'a>(&self, end: End<'a>) -> Result<Side<'a>> {
        let dir = self.dir(end.parent)?;
        let found = match self.names.find(dir.as_fd(), end.name) {
            Ok(found) => Some(found),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e),
        };
        Ok(Side { end, dir, found })
    }

    fn rename_locked<'a>(
        &self,
        from: End<'a>,
        to: End<'a>,
        flags: RenameFlags,
    ) -> Result<Next<'a>> {
        let (from, to) = (self.side(from)?, self.side(to)?);
        let Some(moved) = &from.found else { return Err(Errno::NOENT) };
        if flags.contains(RenameFlags::EXCHANGE) {
            return self.exchange(&from, &to);
        }
        if to.found.is_some() && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Errno::EXIST);
        }
        let over_directory = to.found.as_ref().is_some_and(|found| found.kind().is_dir());
        let freed = match (from.is_packed(), to.is_packed()) {
            _ if over_directory && !moved.kind().is_dir() => return Err(Errno::ISDIR),
            // A directory over a packed file: the kernel's own error.
            (false, true) if moved.kind().is_dir() => return Err(Errno::NOTDIR),
            (true, _) if !is_native(moved, to.end.name) => return Ok(Next::Unpack(from.end)),
            (false, false) => self.plain_over_plain(&from, &to)?,
            (false, true) => self.plain_over_packed(&from, &to)?,
            (true, false) if to.found.is_some() => self.packed_over_plain(&from, &to)?,
            (true, _) => match (&moved.form, to.found.as_ref().map(|found| found.form)) {
                (Form::Packed, None | Some(Form::Packed)) | (Form::PackedStem, None) => {
                    self.packed_over_packed(&from, &to)?
                }
                // The archives have names that do not replace each other.
                _ => return Ok(Next::Unpack(from.end)),
            },
        };
        let lost = (to.end.parent, to.end.name.to_owned());
        self.lost(freed.clone(), &lost)?;
        if let Some(node) = self.nodes.of_key(moved.key()) {
            node.state().epoch += 1;
            self.nodes.unlink(node.id, from.end.parent, from.end.name, false);
            self.nodes.link(node.id, to.end.parent, to.end.name);
            if let Ok(attr) = self.attr(node.id) {
                self.settle(node.id, &attr);
            }
        }
        Ok(Next::Done(freed))
    }

    fn plain_over_plain(&self, from: &Side<'_>, to: &Side<'_>) -> Result<Freed> {
        let freed = to.found.as_ref().and_then(|found| self.keep(&to.dir, found));
        self.prepare_plain(from, to)?;
        renameat(&from.dir, from.end.name, &to.dir, to.end.name)?;
        Ok(freed)
    }

    /// What a plain file needs before it is renamed: no archive of another content may be shown
    /// under either name later, and the name of an archive must not make it one.
    fn prepare_plain(&self, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        let Some(moved) = &from.found else { return Err(Errno::NOENT) };
        if !moved.kind().is_file() {
            return Ok(());
        }
        let is_beside = |found: &Found| found.form != Form::Plain;
        self.remove_forms(&from.dir, from.end.name, is_beside)?;
        if to.found.as_ref().is_some_and(|found| found.form == Form::Plain) {
            self.remove_forms(&to.dir, to.end.name, is_beside)?;
        }
        match (may_be_archive(from.end.name), may_be_archive(to.end.name)) {
            (_, true) => self.mark_plain(&from.dir, from.end.name),
            // Under its new name, it may be packed, and its archive would inherit the mark.
            (true, false) => unmark(&from.dir, from.end.name),
            (false, false) => Ok(()),
        }
    }

    fn plain_over_packed(&self, from: &Side<'_>, to: &Side<'_>) -> Result<Freed> {
        let Some(replaced) = &to.found else { return Err(Errno::NOENT) };
        if from.found.as_ref().is_none_or(|moved| moved.kind().is_dir()) {
            return Err(Errno::NOTDIR);
        }
        let freed = self.keep(&to.dir, replaced);
        self.prepare_plain(from, to)?;
        let old = old_name(to.end.name);
        if replaced.form != Form::Old {
            renameat(&to.dir, &replaced.source_name, &to.dir, &old)?;
        }
        reached(Step::ReplacedIsOld);
        if let Err(e) = renameat(&from.dir, from.end.name, &to.dir, to.end.name) {
            renameat(&to.dir, &old, &to.dir, &replaced.source_name)?;
            return Err(e);
        }
        reached(Step::ReplacedRenamed);
        sync_dir(&to.dir)?;
        reached(Step::ReplacedSynced);
        self.remove_forms(&to.dir, to.end.name, |found| found.form != Form::Plain)?;
        Ok(freed)
    }

    /// Also to a free name.
    fn packed_over_packed(&self, from: &Side<'_>, to: &Side<'_>) -> Result<Freed> {
        let Some(moved) = &from.found else { return Err(Errno::NOENT) };
        let freed = to.found.as_ref().and_then(|found| self.keep(&to.dir, found));
        let target = archive_name(moved.form, to.end.name).ok_or(Errno::INVAL)?;
        self.remove_forms(&from.dir, from.end.name, |found| found.key() != moved.key())?;
        match &to.found {
            Some(_) => renameat(&from.dir, &moved.source_name, &to.dir, &target)?,
            None => {
                let (source, flags) = (&moved.source_name, RenameFlags::NOREPLACE);
                match renameat_with(&from.dir, source, &to.dir, &target, flags) {
                    // The file system has no such flag; the names are locked.
                    Err(Errno::INVAL) => renameat(&from.dir, source, &to.dir, &target)?,
                    other => other?,
                }
            }
        }
        Ok(freed)
    }

    fn packed_over_plain(&self, from: &Side<'_>, to: &Side<'_>) -> Result<Freed> {
        let (Some(moved), Some(replaced)) = (&from.found, &to.found) else {
            return Err(Errno::NOENT);
        };
        let freed = self.keep(&to.dir, replaced);
        let over = over_name(to.end.name);
        let target = archive_name(moved.form, to.end.name).ok_or(Errno::INVAL)?;
        self.remove_forms(&from.dir, from.end.name, |found| found.key() != moved.key())?;
        // An archive beside the replaced file would be in the way.
        self.remove_forms(&to.dir, to.end.name, |found| found.form > Form::Plain)?;
        renameat(&from.dir, &moved.source_name, &to.dir, &over)?;
        reached(Step::OverRenamed);
        sync_dir(&to.dir)?;
        reached(Step::OverSynced);
        unlink_if(&to.dir, to.end.name, replaced.key())?;
        reached(Step::OverRemoved);
        renameat(&to.dir, &over, &to.dir, &target)?;
        reached(Step::OverDone);
        Ok(freed)
    }

    fn exchange<'a>(&self, from: &Side<'a>, to: &Side<'a>) -> Result<Next<'a>> {
        let (Some(one), Some(other)) = (&from.found, &to.found) else {
            return Err(Errno::NOENT);
        };
        for side in [from, to] {
            if side.is_packed() {
                return Ok(Next::Unpack(side.end));
            }
        }
        let is_beside = |found: &Found| found.form != Form::Plain;
        for (side, target) in [(from, to), (to, from)] {
            self.remove_forms(&side.dir, side.end.name, is_beside)?;
            let is_file = side.found.as_ref().is_some_and(|found| found.kind().is_file());
            if is_file && may_be_archive(target.end.name) {
                self.mark_plain(&side.dir, side.end.name)?;
            }
        }
        let flags = RenameFlags::EXCHANGE;
        renameat_with(&from.dir, from.end.name, &to.dir, to.end.name, flags)?;
        let nodes = [one, other].map(|found| self.nodes.of_key(found.key()));
        for (node, old, new) in [(&nodes[0], from, to), (&nodes[1], to, from)] {
            if let Some(node) = node {
                node.state().epoch += 1;
                self.nodes.unlink(node.id, old.end.parent, old.end.name, false);
                self.nodes.link(node.id, new.end.parent, new.end.name);
            }
        }
        Ok(Next::Done(None))
    }
}

/// What a replaced file leaves behind: its node and a descriptor.
type Freed = Option<(Arc<Node>, Arc<std::os::fd::OwnedFd>)>;

/// What is to be done next.
enum Next<'a> {
    Done(Freed),
    /// Unpack the file that has this name, and start again.
    Unpack(End<'a>),
}

/// Whether a packed file can be called `name` by renaming its archive.
fn is_native(moved: &Found, name: &OsStr) -> bool {
    name.as_bytes().len() <= MAX_PACKED_NAME
        && match moved.form {
            Form::Packed => true,
            Form::PackedStem => stem_name(name).is_some(),
            _ => false,
        }
}

/// The name of an archive of the form that shows `name`.
fn archive_name(form: Form, name: &OsStr) -> Option<std::ffi::OsString> {
    match form {
        Form::PackedStem => stem_name(name),
        _ => Some(packed_name(name)),
    }
}

fn unmark(dir: &DirFd, name: &OsStr) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    match removexattr(proc_path(fd.as_fd()), PLAIN_MARK) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// The names of two directories, locked for changes, in an order that excludes deadlocks.
struct Locked<'a> {
    _first: std::sync::RwLockWriteGuard<'a, ()>,
    _second: Option<std::sync::RwLockWriteGuard<'a, ()>>,
}

impl<'a> Locked<'a> {
    fn new(one: &'a Node, other: &'a Node) -> Self {
        let (first, second) = if one.id <= other.id { (one, other) } else { (other, one) };
        let second = (first.id != second.id).then_some(second);
        Self { _first: write(first), _second: second.map(write) }
    }
}
