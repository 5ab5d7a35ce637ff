//! A directory with archives to the directory it was made from.
//!
//! Everything is reached from the open directories, and no link in the tree is followed.

use super::{
    Opener, Progress, Report, UnpackOptions,
    mirror::{COPY, IRREGULAR, Mirror, TEMPORARY, make_root, refuse_inside},
    unpack::Unpacker,
};
use crate::{
    error::{Context, Error, Result},
    escape,
    format::{Footer, Naming, is_pin, peek},
    output::{Dir, DirEntry, Form, Place, is_temporary, sha256},
};
use rustix::fs::fstat;
use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs,
    path::Path,
    sync::Arc,
};

/// The form of a file that is unpacked.
const UNPACKED: Form = COPY + 1;

/// Unpack the directory `src` to the directory `out`, which may exist: archives are unpacked, other
/// files copied, links recreated.
///
/// A file that fails does not stop the others: [`Progress::fail`] is told, and the report counts
/// it.
///
/// # Errors
/// Io; invalid argument if `out` is inside `src`. Nothing has been done then.
pub fn unpack_tree(
    src: &Path,
    out: &Path,
    o: UnpackOptions,
    open: Opener<'_>,
    p: &dyn Progress,
) -> Result<Report> {
    refuse_inside(src, out)?;
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).about_path(out)?;
    }
    let (to, unfinished) = make_root(src, out)?;
    let from = Dir::open(src)?;
    let mirror = Mirror::new(src, Arc::clone(&to), o.force, o.trust, p)?;
    let mut walk = Walk { open, unpacker: Unpacker { o, p }, mirror };
    walk.directory(&from, &to, Path::new(""));
    if unfinished {
        walk.mirror.finish_directory(&from, &to);
    }
    Ok(walk.mirror.report)
}

struct Walk<'a> {
    open: Opener<'a>,
    unpacker: Unpacker<'a>,
    mirror: Mirror<'a>,
}

/// The names that the entries of a directory will have.
#[derive(Default)]
struct Plan {
    /// By the new name: the entry that gets it, and whether that is an archive to unpack.
    names: HashMap<OsString, (OsString, bool)>,
    /// The entries that are left out, and why.
    left_out: HashMap<OsString, Error>,
    /// Archives whose original stands beside them, plain or in another archive.
    redundant: HashSet<OsString>,
}

impl Plan {
    fn new(from: &Dir, entries: &[DirEntry]) -> Self {
        let mut plan = Self::default();
        let mut archives = Vec::new();
        for DirEntry { name, kind } in entries {
            match if kind.is_file() { footer(from, name) } else { Ok(None) } {
                Ok(Some(footer)) if footer.naming.original_name(name).is_some() => {
                    archives.push((name, footer))
                }
                Ok(_) => drop(plan.names.insert(name.clone(), (name.clone(), false))),
                Err(e) => drop(plan.left_out.insert(name.clone(), e)),
            }
        }
        // If two archives show the same name, a mount shows the one with the short name.
        archives.sort_by_key(|(_, footer)| footer.naming == Naming::Appended);
        for (name, footer) in archives {
            let original = footer.naming.original_name(name).unwrap_or_default();
            match plan.names.get(&original) {
                None => drop(plan.names.insert(original, (name.clone(), true))),
                // A mount shows the plain file, or the other archive.
                Some((other, unpacked)) if holds(from, other, *unpacked, &footer) => {
                    plan.redundant.insert(name.clone());
                }
                Some((other, _)) => {
                    let why = format!(
                        "left out: would be unpacked as {}, but a mount shows {} as that",
                        escape::path(&original),
                        escape::path(other)
                    );
                    let e = Error::invalid(why).about_path(&from.path(name));
                    plan.left_out.insert(name.clone(), e);
                }
            }
        }
        plan
    }
}

/// The footer of the file `name`, if it is an archive by both name and content.
fn footer(from: &Dir, name: &OsStr) -> Result<Option<Footer>> {
    if Path::new(name).extension().is_none_or(|e| e != "bsz") {
        return Ok(None);
    }
    peek(&from.open_file(name)?).about_path(&from.path(name))
}

/// Whether the file `name`, or its original if it is an archive, is the original of `footer`.
fn holds(from: &Dir, name: &OsStr, is_archive: bool, footer: &Footer) -> bool {
    let Ok(file) = from.open_file(name) else { return false };
    match is_archive {
        true => matches!(peek(&file), Ok(Some(other)) if other.sha256 == footer.sha256),
        false => sha256(&file, &from.path(name)).is_ok_and(|hash| hash == footer.sha256),
    }
}

impl Walk<'_> {
    fn warn(&self, path: &Path, what: &str) {
        self.unpacker.p.warn(path, what);
    }

    /// Unpack the directory `from`, which is `at` in the tree, into `to`.
    fn directory(&mut self, from: &Arc<Dir>, to: &Arc<Dir>, at: &Path) {
        let mut entries = match from.entries() {
            Ok(entries) => entries,
            Err(e) => return self.mirror.fail(&e),
        };
        // What is unpacked needs no bases.
        entries.retain(|entry| !is_pin(&entry.name));
        let mut plan = Plan::new(from, &entries);
        let targets: HashMap<OsString, (OsString, bool)> =
            plan.names.drain().map(|(to, (name, unpacked))| (name, (to, unpacked))).collect();
        for DirEntry { name, kind } in &entries {
            let done = if let Some(e) = plan.left_out.remove(name) {
                Err(e)
            } else if kind.is_dir() {
                self.child(from, to, name, at)
            } else if kind.is_symlink() {
                self.symlink(from, to, name, at)
            } else if !kind.is_file() {
                self.warn(&from.path(name), IRREGULAR);
                Ok(())
            } else if is_temporary(name) {
                self.warn(&from.path(name), TEMPORARY);
                Ok(())
            } else if let Some((original, unpacked)) = targets.get(name) {
                self.file(from, name, &Place { dir: to, at, name: original }, *unpacked)
            } else {
                debug_assert!(plan.redundant.contains(name));
                Ok(())
            };
            done.unwrap_or_else(|e| self.mirror.fail(&e));
        }
    }

    fn child(&mut self, from: &Arc<Dir>, to: &Arc<Dir>, name: &OsStr, at: &Path) -> Result<()> {
        let from = from.child(name)?;
        let (to, unfinished) = to.make_child(name)?;
        self.directory(&from, &to, &at.join(name));
        if unfinished {
            self.mirror.finish_directory(&from, &to);
        }
        Ok(())
    }

    fn file(&mut self, from: &Dir, name: &OsStr, to: &Place<'_>, unpacked: bool) -> Result<()> {
        let path = from.path(name);
        let file = from.open_file(name)?;
        let stat = fstat(&file).about_path(&path)?;
        if !unpacked {
            return self.mirror.copy(&file, &stat, &path, to);
        }
        if !self.mirror.link_again(&stat, &path, UNPACKED, to)? {
            let archive = (self.open)(file, &path).about_path(&path)?;
            let report = self.unpacker.run(&*archive, &path, to.dir, to.name)?;
            self.mirror.report.files.push(report);
            self.mirror.wrote(&stat, UNPACKED, to);
        }
        Ok(())
    }

    fn symlink(&mut self, from: &Arc<Dir>, to: &Dir, name: &OsStr, at: &Path) -> Result<()> {
        let target = self.mirror.new_target(from, name, at)?;
        let path = from.path(name);
        if leads_to_archive(from, Path::new(&target)) {
            self.warn(&path, "links to an archive, whose original has another name");
        }
        self.mirror.symlink(&path, &target, to, name)
    }
}

/// Whether a link in `from` to `target` names an archive. Once that is unpacked, the link dangles.
fn leads_to_archive(from: &Arc<Dir>, target: &Path) -> bool {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return false;
    };
    let dir = match parent.as_os_str().is_empty() {
        true => Ok(Arc::clone(from)),
        // Following links is harmless here: this only decides about a warning.
        false => Dir::open(&from.path(parent.as_os_str())),
    };
    dir.and_then(|dir| footer(&dir, name)).is_ok_and(|footer| footer.is_some())
}
