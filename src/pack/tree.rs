//! A directory to a directory of archives: models are packed, other files copied; or in place.
//!
//! Everything is reached from the open directories, and no link in the tree is followed: whoever
//! can rename inside it cannot lead the packer out of it.

use super::{
    Action, Check, FileReport, Options, Progress, Report,
    content::Kind,
    file::{Job, Place},
    links::is_repository,
    mirror::{COPY, IRREGULAR, Mirror, TEMPORARY, make_root},
    names::{Names, shown},
    replace::Replacer,
    source::Source,
};
use crate::{
    error::Result,
    format::Naming,
    output::{self, Dir, DirEntry, Form, is_temporary},
};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
    sync::Arc,
};

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
        others: Others::default(),
        archives: 0,
    };
    walk.directory(&from, &to, Path::new(""), true);
    if unfinished {
        walk.mirror.finish_directory(&from, &to);
    }
    walk.tell_what_is_left(src);
    Ok(walk.mirror.report)
}

struct Walk<'a> {
    job: Job<'a>,
    mirror: Mirror<'a>,
    /// For packing in place.
    replacer: Option<Replacer<'a>>,
    others: Others,
    archives: usize,
}

/// What to do with a file.
enum Plan {
    /// Pack it, to an archive of this name if it can have one.
    Pack(Option<(OsString, Naming)>),
    Keep,
}

/// The files of a directory, sorted by what they are.
#[derive(Default)]
struct Files {
    /// What to do with each file; models are still to be added.
    plans: HashMap<OsString, Plan>,
    models: Vec<OsString>,
    /// The names that archives of the directory show.
    shown: HashMap<OsString, OsString>,
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
        let mut plans = match self.plan(src, out, &entries, packs.then_some(at)) {
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

    /// Decide what to do with each file of a directory, and name the archives. `at` is its path in
    /// the tree, or `None` if nothing in it is to be packed.
    fn plan(
        &mut self,
        src: &Arc<Dir>,
        out: &Arc<Dir>,
        entries: &[DirEntry],
        at: Option<&Path>,
    ) -> Result<HashMap<OsString, Plan>> {
        let Files { mut plans, mut models, shown } = self.classify(src, entries, at);
        if !self.in_place() {
            // A mount would show the copy of such an archive instead.
            models.retain(|name| {
                !shown.contains_key(name) || {
                    let why = "copied, not packed: an archive that shows its name is beside it";
                    self.job.p.warn(&src.path(name), why);
                    false
                }
            });
        }
        let kept = |name: &OsString| !self.in_place() && !models.contains(name);
        let taken = entries.iter().map(|e| e.name.clone()).filter(kept).collect();
        let mut given = Names::new(Some(out), taken).give(&models)?;
        for name in models {
            let archive = given.remove(&name);
            plans.insert(name, Plan::Pack(archive));
        }
        Ok(plans)
    }

    /// Find out what each file of a directory is, if anything in it is to be packed.
    fn classify(&mut self, src: &Arc<Dir>, entries: &[DirEntry], at: Option<&Path>) -> Files {
        let mut files = Files::default();
        for DirEntry { name, .. } in entries.iter().filter(|e| e.kind.is_file()) {
            let path = src.path(name);
            if is_temporary(name) {
                self.job.p.warn(&path, TEMPORARY);
                continue;
            }
            let selection = &self.job.o.selection;
            let kind = match at.map(|at| selection.has(&at.join(name))) {
                Some(true) => Source::open(src, name).and_then(|source| source.kind()),
                Some(false) => Ok(Kind::Other("is not selected")),
                None => Ok(Kind::Other("belongs to a repository")),
            };
            match kind {
                Err(e) if e.errno() == Some(libc::ENOENT) => continue,
                Err(e) => {
                    self.mirror.fail(&e);
                    continue;
                }
                Ok(Kind::Model) => files.models.push(name.clone()),
                Ok(Kind::Archive) => {
                    self.archives += 1;
                    files.shown.extend(shown(src, name).map(|shown| (shown, name.clone())));
                }
                Ok(Kind::Unfit(why)) => self.job.p.warn(&path, &format!("{why}; not packed")),
                Ok(Kind::Other(why)) => self.others.add(name, why),
            }
            files.plans.insert(name.clone(), Plan::Keep);
        }
        files
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

    /// Say what is left as it is, and warn if that is everything.
    fn tell_what_is_left(&self, src: &Path) {
        let report = &self.mirror.report;
        let packed = |r: &FileReport| !matches!(r.action, Action::Copied | Action::Linked);
        if self.archives + report.failed > 0 || report.files.iter().any(packed) {
            if !self.others.0.is_empty() {
                self.job.p.left(src, &self.others.to_string());
            }
            return;
        }
        let what = format!("holds no model to pack; it has {}", self.others);
        self.job.p.warn(src, &what);
    }
}

/// The most extensions that are named for one reason.
const MOST_NAMED: usize = 4;

/// The files that are left as they are: by reason, how many there are of each extension.
#[derive(Default)]
struct Others(BTreeMap<&'static str, BTreeMap<String, usize>>);

impl Others {
    fn add(&mut self, name: &OsStr, why: &'static str) {
        *self.0.entry(why).or_default().entry(extension(name)).or_default() += 1;
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no other files");
        }
        for (i, (why, names)) in self.0.iter().enumerate() {
            let mut names: Vec<_> = names.iter().collect();
            names.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let rest: usize = names.iter().skip(MOST_NAMED).map(|(_, n)| **n).sum();
            let mut named: Vec<_> =
                names.iter().take(MOST_NAMED).map(|(what, n)| format!("{n} {what}")).collect();
            named.extend((rest > 0).then(|| format!("{rest} others")));
            let separator = if i > 0 { "; " } else { "" };
            write!(f, "{separator}{} ({why})", named.join(", "))?;
        }
        Ok(())
    }
}

/// What files like `name` are called in a message.
fn extension(name: &OsStr) -> String {
    Path::new(name)
        .extension()
        .map_or_else(|| "without a suffix".into(), |e| format!(".{}", e.to_string_lossy()))
}
