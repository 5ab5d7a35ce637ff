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

use super::marks;
use super::names::{
    Form, Found, MAX_PACKED_NAME, PLAIN_MARK, check, may_be_archive, old_name, over_name,
    packed_name, stem_name,
};
use super::node::Node;
use super::steps::{Step, reached};
use super::tree::{DirFd, Kept, Tree, write};
use super::unpack::Keep;
use rustix::fs::{Mode, OFlags, RenameFlags, fstat, openat, renameat, renameat_with};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;

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
    /// `limited`: what is unpacked does not go into blocks that are reserved for root.
    pub fn rename(
        &self,
        from: End<'_>,
        to: End<'_>,
        flags: RenameFlags,
        limited: bool,
    ) -> Result<()> {
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        check(from.name)?;
        let (from_node, to_node) = (self.nodes.get(from.parent)?, self.nodes.get(to.parent)?);
        for _ in 0..ATTEMPTS {
            self.free(to.parent, to.name, limited)?;
            let next = self.with_room(|| {
                let _locked = Locked::new(&from_node, &to_node);
                self.rename_locked(from, to, flags)
            });
            match next? {
                Next::Done(done) => {
                    self.finish_rename(to, done);
                    return Ok(());
                }
                Next::Unpack(end) => {
                    let (node, _) = self.look_up(end.parent, end.name)?;
                    let unpacked = self.unpack(&node, Keep::All, limited);
                    self.forget(node.id, 1);
                    unpacked?;
                }
                Next::Again => {}
            }
        }
        Err(Errno::BUSY)
    }

    /// What is left to do after the switch, when nobody waits for the names. If it fails, the next
    /// mount does it.
    fn finish_rename(&self, to: End<'_>, done: Done) {
        let finished = self.dir(to.parent).and_then(|dir| match done.rest {
            Rest::Nothing => Ok(()),
            Rest::Old => self.finish_old(to.parent, &dir, to.name),
            Rest::Over => self.finish_over(to.parent, &dir, to.name),
        });
        if let Err(e) = finished {
            let path = self.path(&(to.parent, to.name.to_owned()));
            log::warn!("{}: a replaced form stays: {e}", crate::escape::path(&path));
        }
        // The space of a replaced file is freed here.
        drop(done.replaced);
        if let Some(id) = done.moved
            && let Ok(attr) = self.attr(id)
        {
            self.settle(id, &attr);
        }
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
        if self.is_archive_of_another(&to.dir, to.end.name)? {
            return Ok(Next::Again);
        }
        if flags.contains(RenameFlags::EXCHANGE) {
            return self.exchange(&from, &to);
        }
        if to.found.is_some() && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Errno::EXIST);
        }
        let over_directory = to.found.as_ref().is_some_and(|found| found.kind().is_dir());
        let is_dir = moved.kind().is_dir();
        let (replaced, rest) = match (from.is_packed(), to.is_packed()) {
            _ if over_directory && !is_dir => return Err(Errno::ISDIR),
            (false, true) if is_dir => return Err(Errno::NOTDIR),
            (false, false) => self.plain_over_plain(&from, &to)?,
            (false, true) if !self.may_be_replaced(&to) => return Ok(Next::Unpack(to.end)),
            (false, true) => self.plain_over_packed(&from, &to)?,
            (true, _) => match self.native_name(&from, moved, &to) {
                None => return Ok(Next::Unpack(from.end)),
                Some(target) if to.found.is_some() && !to.is_packed() => {
                    self.packed_over_plain(&from, &to, &target)?
                }
                Some(target) => self.packed_over_packed(&from, &to, &target)?,
            },
        };
        let lost = (to.end.parent, to.end.name.to_owned());
        self.lost(replaced.clone(), &lost)?;
        let moved = self.nodes.of_key(moved.key()).map(|node| {
            node.state().epoch += 1;
            self.nodes.link(node.id, to.end.parent, to.end.name);
            self.nodes.unlink(node.id, from.end.parent, from.end.name, false);
            node.id
        });
        Ok(Next::Done(Done { replaced, rest, moved }))
    }

    /// The name that the archive of a packed file gets, if renaming it is all there is to do.
    fn native_name(&self, from: &Side<'_>, moved: &Found, to: &Side<'_>) -> Option<OsString> {
        let name = to.end.name;
        let target = match moved.form {
            Form::Packed => packed_name(name),
            Form::PackedStem => stem_name(name)?,
            Form::Over | Form::Old | Form::Plain => return None,
        };
        let replaces = match to.found.as_ref().map(|found| found.form) {
            // Archives of other names do not replace each other.
            Some(form) if form != Form::Plain => form == moved.form,
            Some(_) => {
                !self.is_taken(&to.dir, &over_name(name))
                    && !self.has_another_beside(to)
                    && self.names.is_own(from.dir.as_fd(), moved).unwrap_or(false)
            }
            None => true,
        };
        let is_free = name.len() <= MAX_PACKED_NAME && !self.is_taken(&to.dir, &target);
        (replaces && is_free).then_some(target)
    }

    /// Whether an archive of something else is beside the plain file at the new name. It will be
    /// shown under its own name.
    fn has_another_beside(&self, to: &Side<'_>) -> bool {
        let Some(plain) = &to.found else { return false };
        let is_own = |form: &Found| self.names.is_own(to.dir.as_fd(), form).unwrap_or(false);
        let another = |form: &Found| form.key() != plain.key() && !is_own(form);
        self.names.forms(to.dir.as_fd(), to.end.name).map_or(true, |f| f.iter().any(another))
    }

    /// Whether the archive at the new name may be called `.bsz-old` for a while.
    fn may_be_replaced(&self, to: &Side<'_>) -> bool {
        let is_own = |found: &Found| self.names.is_own(to.dir.as_fd(), found).unwrap_or(false);
        !self.is_taken(&to.dir, &old_name(to.end.name)) && to.found.as_ref().is_some_and(is_own)
    }

    fn plain_over_plain(&self, from: &Side<'_>, to: &Side<'_>) -> Result<(Kept, Rest)> {
        let replaced = self.replaced(to)?;
        self.prepare_plain(from, to)?;
        renameat(&from.dir, from.end.name, &to.dir, to.end.name)?;
        unmark(from, to);
        Ok((replaced, Rest::Nothing))
    }

    fn replaced(&self, to: &Side<'_>) -> Result<Kept> {
        to.found.as_ref().map_or(Ok(None), |found| self.keep(&to.dir, found))
    }

    /// What a plain file needs before it is renamed: no archive of another content may be shown
    /// under either name later, and the name of an archive must not make it one.
    fn prepare_plain(&self, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        let Some(moved) = &from.found else { return Err(Errno::NOENT) };
        self.clear_beside(&from.dir, from.end.name, moved)?;
        if let Some(replaced) = to.found.as_ref().filter(|found| found.form == Form::Plain) {
            self.clear_beside(&to.dir, to.end.name, replaced)?;
        }
        match moved.kind().is_file() && may_be_archive(to.end.name) {
            true => self.mark_plain(&from.dir, from.end.name),
            false => Ok(()),
        }
    }

    fn plain_over_packed(&self, from: &Side<'_>, to: &Side<'_>) -> Result<(Kept, Rest)> {
        let Some(packed) = &to.found else { return Err(Errno::NOENT) };
        let replaced = self.replaced(to)?;
        self.prepare_plain(from, to)?;
        let old = old_name(to.end.name);
        if packed.form != Form::Old {
            renameat(&to.dir, &packed.source_name, &to.dir, &old)?;
        }
        reached(Step::ReplacedIsOld);
        if let Err(e) = renameat(&from.dir, from.end.name, &to.dir, to.end.name) {
            renameat(&to.dir, &old, &to.dir, &packed.source_name)?;
            return Err(e);
        }
        reached(Step::ReplacedRenamed);
        unmark(from, to);
        Ok((replaced, Rest::Old))
    }

    /// Also to a free name.
    fn packed_over_packed(
        &self,
        from: &Side<'_>,
        to: &Side<'_>,
        target: &OsStr,
    ) -> Result<(Kept, Rest)> {
        let replaced = self.replaced(to)?;
        self.move_archive(from, to, target, target)?;
        Ok((replaced, Rest::Nothing))
    }

    fn packed_over_plain(
        &self,
        from: &Side<'_>,
        to: &Side<'_>,
        target: &OsStr,
    ) -> Result<(Kept, Rest)> {
        let replaced = self.replaced(to)?;
        // An archive beside the replaced file would be in the way.
        if let Some(plain) = &to.found {
            self.clear_beside(&to.dir, to.end.name, plain)?;
        }
        debug_assert!(!self.is_taken(&to.dir, target));
        self.move_archive(from, to, &over_name(to.end.name), target)?;
        reached(Step::OverRenamed);
        Ok((replaced, Rest::Over))
    }

    /// Rename an archive; `later` is its name when all is done.
    fn move_archive(
        &self,
        from: &Side<'_>,
        to: &Side<'_>,
        now: &OsStr,
        later: &OsStr,
    ) -> Result<()> {
        let Some(moved) = &from.found else { return Err(Errno::NOENT) };
        self.clear_beside(&from.dir, from.end.name, moved)?;
        renameat(&from.dir, &moved.source_name, &to.dir, now)?;
        self.twins.moved(moved.key(), self.path(&(to.end.parent, later.to_owned())));
        Ok(())
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
        for (side, found, target) in [(from, one, to), (to, other, from)] {
            self.clear_beside(&side.dir, side.end.name, found)?;
            if found.kind().is_file() && may_be_archive(target.end.name) {
                self.mark_plain(&side.dir, side.end.name)?;
            }
        }
        let flags = RenameFlags::EXCHANGE;
        renameat_with(&from.dir, from.end.name, &to.dir, to.end.name, flags)?;
        let nodes = [one, other].map(|found| self.nodes.of_key(found.key()));
        for (node, old, new) in [(&nodes[0], from, to), (&nodes[1], to, from)] {
            if let Some(node) = node {
                node.state().epoch += 1;
                self.nodes.link(node.id, new.end.parent, new.end.name);
                self.nodes.unlink(node.id, old.end.parent, old.end.name, false);
            }
        }
        Ok(Next::Done(Done { replaced: None, rest: Rest::Nothing, moved: None }))
    }
}

/// What is left to do after the switch.
enum Rest {
    Nothing,
    /// The archive that was replaced is called `.bsz-old`.
    Old,
    /// The archive that replaces a plain file is called `.bsz-over`.
    Over,
}

/// A file has been renamed.
struct Done {
    /// The file that it has replaced.
    replaced: Kept,
    rest: Rest,
    /// The node of the file.
    moved: Option<u64>,
}

/// What is to be done next.
enum Next<'a> {
    Done(Done),
    /// Unpack the file that has this name, and start again.
    Unpack(End<'a>),
    /// Start again: the archive of another file has got the new name.
    Again,
}

/// A file has been renamed. If its old name was that of an archive, and the new one is not, it
/// needs no mark, and may be packed. A mark that stays only prevents that.
fn unmark(from: &Side<'_>, to: &Side<'_>) {
    let (was, is) = (may_be_archive(from.end.name), may_be_archive(to.end.name));
    if !was || is || !from.found.as_ref().is_some_and(|found| found.kind().is_file()) {
        return;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let unmarked = openat(&to.dir, to.end.name, flags, Mode::empty()).and_then(|fd| {
        // Another name of it may be that of an archive, too.
        if fstat(&fd)?.st_nlink == 1 { marks::remove(fd, PLAIN_MARK) } else { Ok(()) }
    });
    if let Err(e) = unmarked {
        log::debug!("a renamed file stays marked: {e}");
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
