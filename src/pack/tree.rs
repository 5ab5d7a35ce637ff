//! A directory to a directory of archives: models are packed, other files copied; or in place.
//!
//! Everything is reached from the open directories, and no link in the tree is followed: whoever
//! can rename inside it cannot lead the packer out of it.

use super::{
    Action, Check, FileReport, Options, Progress, Report,
    file::{Job, Place},
    links::is_repository,
    mirror::{COPY, IRREGULAR, Mirror, make_root},
    replace::Replacer,
    sort::{Plan, Sorter},
    source::Source,
};
use crate::{
    error::Result,
    output::{self, Dir, DirEntry, Form},
};
use std::{ffi::OsStr, path::Path, sync::Arc};

/// The form of a packed file; the naming of its archive is added to it.
const PACKED: Form = COPY + 1;

/// Pack the directory `src` to the directory `out`, which may exist. Files called `*.safetensors`
/// and files that hold weights, whatever they are called, are packed as far as
/// [`Options::selection`] has them; others are copied, links recreated. With [`Options::in_place`],
/// files are packed where they are and `out` is not used.
///
/// A file that fails does not stop the others: [`Progress::fail`] is told, and the report counts
/// it.
///
/// # Errors
/// Io; invalid argument if `out` is inside `src`. Nothing has been done then.
pub fn tree(
    src: &Path,
    out: &Path,
    o: &Options,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<Report> {
    let from = Dir::open(src)?;
    let job = Job { o, check, p, only_smaller: true };
    let (to, unfinished) =
        if o.in_place { (Arc::clone(&from), false) } else { make_root(src, out)? };
    let mut walk = Walk {
        job,
        mirror: Mirror::new(src, Arc::clone(&to), o.force, true, p)?,
        replacer: o.in_place.then(|| Replacer::new(job, Arc::clone(&from))),
        sorter: Sorter::new(&o.selection, o.in_place, p),
    };
    walk.directory(&from, &to, Path::new(""), true);
    if unfinished {
        walk.mirror.finish_directory(&from, &to);
    }
    walk.mirror.report.failed += walk.sorter.failed();
    walk.sorter.tell_what_is_left(src, &walk.mirror.report);
    Ok(walk.mirror.report)
}

struct Walk<'a> {
    job: Job<'a>,
    mirror: Mirror<'a>,
    /// For packing in place.
    replacer: Option<Replacer<'a>>,
    sorter: Sorter<'a>,
}

impl Walk<'_> {
    fn in_place(&self) -> bool {
        self.replacer.is_some()
    }

    /// Pack the directory `src`, which is `at` in the tree, into `out`.
    fn directory(&mut self, src: &Arc<Dir>, out: &Arc<Dir>, at: &Path, packs: bool) {
        let entries = match src.entries() {
            Ok(entries) => entries,
            Err(e) => return self.mirror.fail(&e),
        };
        let mut plans = match self.sorter.plan(src, Some(out), &entries, packs.then_some(at)) {
            Ok(plans) => plans,
            Err(e) => return self.mirror.fail(&e),
        };
        for DirEntry { name, kind } in entries {
            let done = if kind.is_dir() {
                self.child(src, out, &name, at, packs)
            } else if kind.is_symlink() {
                self.symlink(src, out, &name, at)
            } else if !kind.is_file() {
                self.job.p.warn(&src.path(&name), IRREGULAR);
                Ok(())
            } else if let Some(plan) = plans.remove(&name) {
                self.file(src, out, &name, at, plan)
            } else {
                Ok(())
            };
            match done {
                // In place, another run may have packed it since it was listed.
                Err(e) if self.in_place() && matches!(src.stat(&name), Ok(None)) => {
                    log::debug!("{e}")
                }
                Err(e) => self.mirror.fail(&e),
                Ok(()) => {}
            }
        }
    }

    fn child(
        &mut self,
        src: &Arc<Dir>,
        out: &Arc<Dir>,
        name: &OsStr,
        at: &Path,
        packs: bool,
    ) -> Result<()> {
        if self.in_place() {
            if !is_repository(name) {
                let child = src.child(name)?;
                self.directory(&child, &child, &at.join(name), packs);
            }
            return Ok(());
        }
        let from = src.child(name)?;
        let (to, unfinished) = out.make_child(name)?;
        self.directory(&from, &to, &at.join(name), packs && !is_repository(name));
        if unfinished {
            self.mirror.finish_directory(&from, &to);
        }
        Ok(())
    }

    fn file(
        &mut self,
        src: &Arc<Dir>,
        out: &Arc<Dir>,
        name: &OsStr,
        at: &Path,
        plan: Plan,
    ) -> Result<()> {
        if let Some(replacer) = &mut self.replacer {
            if let Plan::Pack(archive) = plan
                && let Some(report) = replacer.replace(src, name, archive)?
            {
                self.add(report);
            }
            return Ok(());
        }
        let source = Source::open(src, name)?;
        let copied = output::Place { dir: out, at, name };
        match plan {
            Plan::Pack(Some((archive, naming))) => {
                let form = PACKED + naming as Form;
                let to = output::Place { name: &archive, ..copied };
                if self.mirror.link_again(source.stat(), source.path(), form, &to)? {
                    return Ok(());
                }
                let place = Place { dir: Arc::clone(out), name: archive.clone(), naming };
                let report = self.job.run(&source, &place)?;
                if matches!(report.action, Action::Skipped(_)) {
                    return self.copy(&source, &copied);
                }
                self.mirror.wrote(source.stat(), form, &to);
                self.mirror.report.files.push(report);
                Ok(())
            }
            Plan::Pack(None) => {
                let why = "copied, not packed: no name is free for its archive";
                self.job.p.warn(source.path(), why);
                self.copy(&source, &copied)
            }
            Plan::Keep => self.copy(&source, &copied),
        }
    }

    fn copy(&mut self, source: &Source, to: &output::Place<'_>) -> Result<()> {
        self.mirror.copy(source.file(), source.stat(), source.path(), to)
    }

    fn add(&mut self, report: FileReport) {
        if let Action::Skipped(why) = &report.action {
            self.job.p.warn(&report.path, why);
        }
        self.mirror.report.files.push(report);
    }

    fn symlink(&mut self, src: &Dir, out: &Dir, name: &OsStr, at: &Path) -> Result<()> {
        let target = self.mirror.new_target(src, name, at)?;
        match self.in_place() {
            true => Ok(()),
            false => self.mirror.symlink(&src.path(name), &target, out, name),
        }
    }
}
