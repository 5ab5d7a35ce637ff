//! What packing and unpacking a tree have in common: recreating files, links and directories, and
//! the report. One rule decides for both what an earlier run has already done.

use super::{
    Action, FileReport, Progress, Report, Task,
    links::{Leads, leads},
};
use crate::{
    error::{Context, Error, Result},
    output::{Copied, Copier, Dir, Form, Lost, Place},
};
use rustix::fs::Stat;
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why something that is neither a file, a directory nor a link is not in the new tree.
pub(super) const IRREGULAR: &str = "neither a file, a directory nor a link; left out";

/// Why a temporary file is not in the new tree.
pub(super) const TEMPORARY: &str =
    "is being written by another run, or was left by one that was killed; left out";

/// The form of a file that is copied as it is. Both directions have further forms.
pub(super) const COPY: Form = 0;

/// Recreates a tree, and reports.
pub(super) struct Mirror<'a> {
    p: &'a dyn Progress,
    /// The absolute path of the source tree.
    root: PathBuf,
    copier: Copier,
    pub(super) report: Report,
}

impl<'a> Mirror<'a> {
    /// `src` is the source tree. Without `trust`, the files of other owners lose permissions that
    /// could do harm.
    ///
    /// # Errors
    /// Io.
    pub(super) fn new(
        src: &Path,
        to: Arc<Dir>,
        force: bool,
        trust: bool,
        p: &'a dyn Progress,
    ) -> Result<Self> {
        let root = fs::canonicalize(src).about_path(src)?;
        Ok(Self { p, root, copier: Copier::new(to, force, trust), report: Report::default() })
    }

    pub(super) fn fail(&mut self, e: &Error) {
        self.p.fail(e);
        self.report.failed += 1;
    }

    /// Report a file or link that is done.
    pub(super) fn done(&mut self, path: &Path, output: PathBuf, bytes: u64, action: Action) {
        let report =
            FileReport { path: path.to_owned(), output, original: bytes, stored: bytes, action };
        self.p.end(&report);
        self.report.files.push(report);
    }

    /// Copy a file as it is.
    pub(super) fn copy(
        &mut self,
        file: &File,
        stat: &Stat,
        path: &Path,
        to: &Place<'_>,
    ) -> Result<()> {
        if self.link_again(stat, path, COPY, to)? {
            return Ok(());
        }
        let bytes = stat.st_size as u64;
        self.p.begin(path, Task::Copy, bytes);
        let (copied, lost) = self.copier.file(file, path, to)?;
        self.warn_of_lost(path, lost);
        self.wrote(stat, COPY, to);
        self.p.advance(bytes);
        self.done(path, to.dir.path(to.name), bytes, action(copied, Action::Copied));
        Ok(())
    }

    /// Make a further name of a file that was written in this form; returns whether it was.
    pub(super) fn link_again(
        &mut self,
        stat: &Stat,
        path: &Path,
        form: Form,
        to: &Place<'_>,
    ) -> Result<bool> {
        let linked = self.copier.link_again(stat, form, to)?;
        if linked {
            self.done(path, to.dir.path(to.name), 0, Action::Linked);
        }
        Ok(linked)
    }

    /// A file was written in this form: its further names are linked to it.
    pub(super) fn wrote(&mut self, stat: &Stat, form: Form, to: &Place<'_>) {
        self.copier.wrote(stat, form, to);
    }

    /// The target that the symbolic link `name` of `from`, which is `at` in the tree, is to have in
    /// the new tree: what leads to the old tree by an absolute path leads to the new one there.
    pub(super) fn new_target(&self, from: &Dir, name: &OsStr, at: &Path) -> Result<OsString> {
        let target = from.read_link(name)?;
        Ok(match leads(&self.root, at, Path::new(&target)) {
            Leads::Outside => {
                let why = "links to a file outside the directory, which is not included";
                self.p.warn(&from.path(name), why);
                target
            }
            Leads::Absolute(relative) => relative.into(),
            Leads::Inside => target,
        })
    }

    /// Recreate a symbolic link.
    pub(super) fn symlink(
        &mut self,
        path: &Path,
        target: &OsStr,
        to: &Dir,
        name: &OsStr,
    ) -> Result<()> {
        let copied = self.copier.symlink(target, to, name)?;
        self.done(path, to.path(name), 0, action(copied, Action::Linked));
        Ok(())
    }

    /// Give a complete directory the attributes of its original.
    pub(super) fn finish_directory(&mut self, from: &Dir, to: &Dir) {
        match self.copier.finish_directory(from, to) {
            Ok(lost) => self.warn_of_lost(from.own_path(), lost),
            Err(e) => self.fail(&e),
        }
    }

    fn warn_of_lost(&self, path: &Path, lost: Vec<Lost>) {
        if let Some(message) = Lost::message_for_copy(lost) {
            self.p.warn(path, &message);
        }
    }
}

fn action(copied: Copied, made: Action) -> Action {
    match copied {
        Copied::Made => made,
        Copied::AlreadyThere => Action::AlreadyDone,
    }
}

/// Create the directory `out`, or open the existing one; also returns whether it is unfinished. It
/// may not be inside `src`.
///
/// # Errors
/// Io; invalid argument if `out` is inside `src`, and then it is not created.
pub(super) fn make_root(src: &Path, out: &Path) -> Result<(Arc<Dir>, bool)> {
    refuse_inside(src, out)?;
    let made = match fs::DirBuilder::new().mode(0o700).create(out) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && out.is_dir() => false,
        other => other.about_path(out).map(|()| true)?,
    };
    // Once more, since its path may have been changed before it was created.
    refuse_inside(src, out).inspect_err(|_| {
        if made {
            let _ = fs::remove_dir(out);
        }
    })?;
    let dir = Dir::open(out)?;
    let unfinished = dir.is_unfinished(made);
    Ok((dir, unfinished))
}

/// Refuse an output directory that is `src` or inside it: the walk would meet its own output.
///
/// # Errors
/// Io; invalid argument.
pub fn refuse_inside(src: &Path, out: &Path) -> Result<()> {
    let src = fs::canonicalize(src).about_path(src)?;
    let absolute = std::path::absolute(out).about_path(out)?;
    let existing = absolute.ancestors().find_map(|dir| dir.canonicalize().ok());
    match existing.is_some_and(|dir| dir.starts_with(&src)) {
        true => Err(Error::invalid("the output would be inside the source").about_path(out)),
        false => Ok(()),
    }
}
