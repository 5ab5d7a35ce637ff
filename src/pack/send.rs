//! Files and directories to archives that are kept elsewhere: each is made as a temporary file,
//! verified, and handed over to a [`Destination`].

use super::{
    Action, Check, FileReport, Options, Progress, Report, Task,
    content::Kind,
    encode,
    file::{input, naming},
    links::is_repository,
    mirror::IRREGULAR,
    sort::{Plan, Sorter},
    source::Source,
};
use crate::{
    error::{Context, Error, Result},
    format::Naming,
    output::{Dir, DirEntry, Output, sha256},
};
use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why a link is not there.
const NO_LINK: &str = "is a link, which an object store cannot hold; left out";

/// Where archives go that are not kept on this machine.
pub trait Destination {
    /// What messages call the file `at` there.
    fn name(&self, at: &Path) -> PathBuf;

    /// The size of the archive `at` there, if it is one with this naming, of `len` bytes with the
    /// SHA-256 that `hash` computes.
    ///
    /// # Errors
    /// Io; invalid argument if there is another file that must not be replaced.
    fn has(
        &self,
        at: &Path,
        naming: Naming,
        len: u64,
        hash: &dyn Fn() -> Result<[u8; 32]>,
    ) -> Result<Option<u64>>;

    /// Whether there is anything at `at`.
    ///
    /// # Errors
    /// Io.
    fn is_taken(&self, at: &Path) -> Result<bool>;

    /// Put a file there, whole or not at all. Returns whether it was not there before.
    ///
    /// # Errors
    /// Io; invalid argument if there is another file that must not be replaced.
    fn put(&self, file: &File, at: &Path) -> Result<bool>;
}

/// Packs for a destination.
pub struct Sender<'a> {
    /// Where archives and copies go.
    pub to: &'a dyn Destination,
    /// How to pack.
    pub options: &'a Options,
    /// Verifies archives.
    pub check: Check<'a>,
    /// Told about progress.
    pub progress: &'a dyn Progress,
    /// The directory for temporary files.
    pub scratch: &'a Path,
}

impl Sender<'_> {
    /// Pack the file `src` to the archive `at`.
    ///
    /// # Errors
    /// Io; invalid argument if `src` is not a regular file, is an archive itself or changes
    /// meanwhile, or if there is another file that must not be replaced.
    pub fn file(&self, src: &Path, at: &Path) -> Result<FileReport> {
        let source = Source::follow(src)?;
        if source.content().is_archive() {
            return Err(Error::invalid("already a .bsz archive").about_path(src));
        }
        if let Kind::Unfit(why) = source.kind()? {
            self.progress.warn(src, &why);
        }
        let to = self.to.name(at);
        let naming =
            naming(src.file_name().unwrap_or_default(), to.file_name().unwrap_or_default());
        let report = self.archive(&source, at, naming, false)?;
        self.progress.end(&report);
        Ok(report)
    }

    /// Pack the directory `src` to the directory `at`: as [`super::tree()`], except that links and
    /// empty directories are left out.
    ///
    /// # Errors
    /// Io. A file that fails does not stop the others: [`Progress::fail`] is told, and the report
    /// counts it.
    pub fn tree(&self, src: &Path, at: &Path) -> Result<Report> {
        let from = Dir::open(src)?;
        let sorter = Sorter::new(&self.options.selection, false, self.progress);
        let mut walk = Walk { sender: self, sorter, report: Report::default() };
        walk.directory(&from, at, Path::new(""), true);
        let Walk { sorter, mut report, .. } = walk;
        report.failed += sorter.failed();
        sorter.tell_what_is_left(src, &report);
        Ok(report)
    }

    /// Pack a file to the archive `at`, unless it is there already. With `only_smaller`, an archive
    /// that saves nothing is dropped and the file is skipped.
    fn archive(
        &self,
        source: &Source,
        at: &Path,
        naming: Naming,
        only_smaller: bool,
    ) -> Result<FileReport> {
        self.refuse_shadow(at, naming)?;
        let mut report = FileReport {
            path: source.path().to_owned(),
            output: self.to.name(at),
            original: source.len(),
            stored: 0,
            action: Action::AlreadyDone,
        };
        self.progress.begin(source.path(), Task::Pack, source.len());
        let hash = || sha256(source.file(), source.path());
        if let Some(stored) = self.to.has(at, naming, source.len(), &hash)? {
            report.stored = stored;
            return Ok(report);
        }
        let output = Output::create(&Dir::open(self.scratch)?, OsStr::new("archive"))?;
        let stored =
            encode::archive(input(source, naming, self.options), &output, self.progress)?.stored;
        source.unchanged()?;
        if only_smaller && stored >= source.len() {
            let why = "packing would not make it smaller";
            return Ok(FileReport { action: Action::Skipped(why.to_owned()), ..report });
        }
        (self.check)(output.file(), self.progress).about_path(source.path())?;
        source.unchanged()?;
        report.stored = stored;
        if self.to.put(output.file(), at)? {
            report.action = Action::Packed;
        }
        Ok(report)
    }

    /// Refuse a file beside the archive that has the name which the archive shows.
    fn refuse_shadow(&self, at: &Path, naming: Naming) -> Result<()> {
        let archive = self.to.name(at);
        let shown = archive.file_name().and_then(|name| naming.original_name(name));
        // An archive that is given a URL of its own has no place beside it.
        let Some(shown) = shown.filter(|_| !at.as_os_str().is_empty()) else { return Ok(()) };
        let shadow = at.with_file_name(shown);
        if !self.to.is_taken(&shadow)? {
            return Ok(());
        }
        let name = self.to.name(&shadow);
        if self.options.force {
            let why = "stays, and a mount would show it instead of the archive beside it";
            self.progress.warn(&name, why);
            return Ok(());
        }
        let why =
            "exists, and a mount would show it instead of the archive; remove it or use --force";
        Err(Error::invalid(why).about_path(&name))
    }
}

struct Walk<'a> {
    sender: &'a Sender<'a>,
    sorter: Sorter<'a>,
    report: Report,
}

impl Walk<'_> {
    fn fail(&mut self, e: &Error) {
        self.sender.progress.fail(e);
        self.report.failed += 1;
    }

    /// Pack the directory `src`, which is `at` in the tree, to `to`.
    fn directory(&mut self, src: &Arc<Dir>, to: &Path, at: &Path, packs: bool) {
        let planned = src.entries().and_then(|entries| {
            let plans = self.sorter.plan(src, None, &entries, packs.then_some(at))?;
            Ok((entries, plans))
        });
        let (entries, mut plans) = match planned {
            Ok(planned) => planned,
            Err(e) => return self.fail(&e),
        };
        for DirEntry { name, kind } in entries {
            let warn = |why| self.sender.progress.warn(&src.path(&name), why);
            let done = if kind.is_dir() {
                let packs = packs && !is_repository(&name);
                src.child(&name).map(|child| {
                    self.directory(&child, &to.join(&name), &at.join(&name), packs);
                })
            } else if kind.is_symlink() {
                warn(NO_LINK);
                Ok(())
            } else if !kind.is_file() {
                warn(IRREGULAR);
                Ok(())
            } else if let Some(plan) = plans.remove(&name) {
                self.file(src, to, &name, plan)
            } else {
                Ok(())
            };
            done.unwrap_or_else(|e| self.fail(&e));
        }
    }

    fn file(&mut self, src: &Arc<Dir>, to: &Path, name: &OsStr, plan: Plan) -> Result<()> {
        let source = Source::open(src, name)?;
        if let Plan::Pack(Some((archive, naming))) = &plan {
            let report = self.sender.archive(&source, &to.join(archive), *naming, true)?;
            if !matches!(report.action, Action::Skipped(_)) {
                self.done(report);
                return Ok(());
            }
        }
        if let Plan::Pack(None) = plan {
            let why = "copied, not packed: no name is free for its archive";
            self.sender.progress.warn(source.path(), why);
        }
        self.copy(&source, &to.join(name))
    }

    fn copy(&mut self, source: &Source, at: &Path) -> Result<()> {
        self.sender.progress.begin(source.path(), Task::Copy, source.len());
        let made = self.sender.to.put(source.file(), at)?;
        self.done(FileReport {
            path: source.path().to_owned(),
            output: self.sender.to.name(at),
            original: source.len(),
            stored: source.len(),
            action: if made { Action::Copied } else { Action::AlreadyDone },
        });
        Ok(())
    }

    fn done(&mut self, report: FileReport) {
        self.sender.progress.end(&report);
        self.report.files.push(report);
    }
}
