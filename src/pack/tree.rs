//! A directory: models packed, everything else as it is.

use super::{Action, Check, FileReport, Options, Progress, Report, file::pack, source::Source};
use crate::{
    error::{Context, Error, Result},
    format::Naming,
    output::{Attributes, Output, is_temporary},
};
use std::{
    fs::{self, DirEntry},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Component, Path, PathBuf},
};

/// Pack the directory `src` to the directory `out`, which may exist: files called `*.safetensors` and files that are
/// valid safetensors under another name (a hub's blobs) are packed, others copied, links made again. With
/// [`Options::in_place`], files are packed where they are and `out` is not used.
///
/// # Errors
/// As [`super::file`], at the first file that fails; what is done is kept, and a rerun goes on from there.
pub fn tree(src: &Path, out: &Path, o: &Options, check: Check<'_>, p: &dyn Progress) -> Result<Report> {
    let root = fs::canonicalize(src).about_path(src)?;
    let mut walk = Walk { root: root.clone(), o, check, p, report: Report::default() };
    if o.in_place {
        walk.directory(src, src)?;
    } else {
        make_directory(src, out)?;
        if fs::canonicalize(out).about_path(out)?.starts_with(&root) {
            return Err(Error::invalid("the output would be inside of what is packed").about(out.display()));
        }
        walk.directory(src, out)?;
    }
    Ok(walk.report)
}

struct Walk<'a> {
    root: PathBuf,
    o: &'a Options,
    check: Check<'a>,
    p: &'a dyn Progress,
    report: Report,
}

impl Walk<'_> {
    fn directory(&mut self, src: &Path, out: &Path) -> Result<()> {
        let mut entries: Vec<DirEntry> = fs::read_dir(src).and_then(Iterator::collect).about_path(src)?;
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().about_path(&path)?;
            if kind.is_dir() {
                let out = out.join(&name);
                if !self.o.in_place {
                    make_directory(&path, &out)?;
                }
                self.directory(&path, &out)?;
            } else if kind.is_symlink() {
                self.link(&path, &out.join(&name))?;
            } else if !kind.is_file() {
                self.warn(&path, "neither file, directory nor link; left out");
            } else if !is_temporary(&name) {
                self.file(&path, out)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, out: &Path) -> Result<()> {
        let source = Source::open(path, false)?;
        let name = path.file_name().unwrap_or_default();
        let wanted = Naming::of(name) == Naming::Safetensors
            || source.header()?.is_some_and(|h| !h.tensors.is_empty() && h.covers(source.len()));
        if wanted && !source.is_archive() {
            let archive = Naming::archive_name(name);
            if self.o.in_place || fs::symlink_metadata(path.with_file_name(&archive)).is_err() {
                let done = pack(source, path, &out.join(archive), self.o, self.check, self.p)?;
                self.report.files.push(done);
                return Ok(());
            }
            self.warn(path, "copied, not packed: a file with the name of its archive is beside it");
        }
        if !self.o.in_place {
            self.copy(&source, path, &out.join(name))?;
        }
        Ok(())
    }

    fn copy(&mut self, source: &Source, path: &Path, out: &Path) -> Result<()> {
        let a = Attributes::of(source.meta());
        self.p.begin(path, source.len());
        let done = fs::symlink_metadata(out)
            .is_ok_and(|m| m.len() == source.len() && Attributes::of(&m).mtime == a.mtime);
        if !done {
            let output = Output::create(out)?;
            io::copy(&mut source.file(), &mut output.file()).about_path(out)?;
            source.unchanged()?;
            output.sync(a)?;
            output.commit(self.o.force)?;
        }
        self.p.advance(source.len());
        let action = if done { Action::AlreadyDone } else { Action::Copied };
        self.done(path, out, source.len(), action);
        Ok(())
    }

    fn link(&mut self, path: &Path, out: &Path) -> Result<()> {
        let target = fs::read_link(path).about_path(path)?;
        if self.leaves(path, &target) {
            self.warn(path, "links to a file outside of the directory, which is not packed with it");
        }
        if self.o.in_place {
            return Ok(());
        }
        let same = fs::read_link(out).is_ok_and(|old| old == target);
        if !same {
            if self.o.force && fs::symlink_metadata(out).is_ok_and(|m| m.is_symlink()) {
                fs::remove_file(out).about_path(out)?;
            }
            std::os::unix::fs::symlink(&target, out).about_path(out)?;
        }
        self.done(path, out, 0, if same { Action::AlreadyDone } else { Action::Linked });
        Ok(())
    }

    /// Whether a link points out of the tree, judged by its text.
    fn leaves(&self, path: &Path, target: &Path) -> bool {
        let Some(parent) = path.parent().and_then(|p| fs::canonicalize(p).ok()) else { return true };
        let mut at = parent;
        for part in target.components() {
            match part {
                Component::ParentDir => drop(at.pop()),
                Component::CurDir => {}
                other => at.push(other),
            }
        }
        !at.starts_with(&self.root)
    }

    fn done(&mut self, path: &Path, out: &Path, bytes: u64, action: Action) {
        let report = FileReport {
            path: path.to_owned(),
            output: out.to_owned(),
            original: bytes,
            stored: bytes,
            action,
        };
        self.p.end(&report);
        self.report.files.push(report);
    }

    fn warn(&mut self, path: &Path, what: &str) {
        self.report.warnings.push(format!("{}: {what}", path.display()));
    }
}

/// Make `out` with the permissions of `src`, unless it is there.
fn make_directory(src: &Path, out: &Path) -> Result<()> {
    let mode = Attributes::of(&fs::metadata(src).about_path(src)?).mode;
    // Writable for us until it is filled; a directory nobody may write is rare enough to come out writable.
    match fs::DirBuilder::new().mode(mode | 0o700).create(out) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && out.is_dir() => Ok(()),
        other => other.about_path(out),
    }
}
