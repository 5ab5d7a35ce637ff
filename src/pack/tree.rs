//! A directory: models packed, everything else as it is.
//!
//! Everything is reached from the open directories, and no link in the tree is followed: whoever can rename inside it
//! cannot lead the packer out.

use super::{
    Action, Check, FileReport, Options, Progress, Report,
    file::{Job, Place},
    links::{self, HardLinks, Leads, Places, is_repository, leads},
    names::{Names, shown},
    source::{Kind, Source},
};
use crate::{
    error::{Context, Error, Result},
    escape,
    format::Naming,
    output::{self, Copied, Copier, Dir, DirEntry, FileId, Form, file_id, is_temporary},
};
use rustix::fs::FileType;
use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Pack the directory `src` to the directory `out`, which may exist: files called `*.safetensors` and files that are
/// valid safetensors under another name (a hub's blobs) are packed, others copied, links made again. With
/// [`Options::in_place`], files are packed where they are and `out` is not used.
///
/// A file that fails does not end the run: [`Progress::fail`] is told, and the report counts it.
///
/// # Errors
/// Io; invalid argument, where `out` is inside `src`. Nothing is done then.
pub fn tree(
    src: &Path,
    out: &Path,
    o: &Options,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<Report> {
    let root = fs::canonicalize(src).about_path(src)?;
    let dir = Dir::open(src)?;
    let job = Job { o, check, p, only_smaller: true };
    let mut walk = Walk {
        job,
        root,
        from: Arc::clone(&dir),
        copier: Copier::new(Arc::clone(&dir), o.force, true),
        links: HardLinks::default(),
        report: Report::default(),
        others: BTreeMap::new(),
        archives: 0,
    };
    if o.in_place {
        walk.links = HardLinks::find(&dir);
        walk.directory(&dir, &dir, Path::new(""), true);
    } else {
        let (to, made) = make_root(out)?;
        if fs::canonicalize(out).about_path(out)?.starts_with(&walk.root) {
            if made {
                let _ = fs::remove_dir(out);
            }
            return Err(
                Error::invalid("the output would be inside of what is packed").about_path(out)
            );
        }
        walk.copier = Copier::new(Arc::clone(&to), o.force, true);
        walk.directory(&dir, &to, Path::new(""), true);
        if made {
            walk.finish_directory(&dir, &to);
        }
    }
    walk.say_what_is_there(src);
    Ok(walk.report)
}

/// The output's directory, and whether it had to be made.
fn make_root(out: &Path) -> Result<(Arc<Dir>, bool)> {
    let made = match fs::DirBuilder::new().mode(0o700).create(out) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && out.is_dir() => false,
        other => other.about_path(out).map(|()| true)?,
    };
    let dir = Dir::open(out)?;
    let unfinished = dir.is_unfinished(made);
    Ok((dir, unfinished))
}

/// Forms of a copy: as it is, and packed, by the archive's naming.
const COPY: Form = 0;
const PACKED: Form = 1;

struct Walk<'a> {
    job: Job<'a>,
    /// The source's absolute path.
    root: PathBuf,
    from: Arc<Dir>,
    copier: Copier,
    links: HardLinks,
    report: Report,
    /// Files that are not packed, by what their names end in.
    others: BTreeMap<String, usize>,
    archives: usize,
}

/// What is done with a file.
enum Plan {
    Pack(Option<(OsString, Naming)>),
    Keep,
}

impl Walk<'_> {
    fn in_place(&self) -> bool {
        self.job.o.in_place
    }

    fn fail(&mut self, e: &Error) {
        self.job.p.fail(e);
        self.report.failed += 1;
    }

    /// Pack what is in the directory `src`, which is `at` relative to the root, into `out`.
    fn directory(&mut self, src: &Arc<Dir>, out: &Arc<Dir>, at: &Path, packs: bool) {
        let entries = match src.entries() {
            Ok(entries) => entries,
            Err(e) => return self.fail(&e),
        };
        let mut plans = match self.plan(src, out, &entries, packs) {
            Ok(plans) => plans,
            Err(e) => return self.fail(&e),
        };
        for DirEntry { name, kind } in entries {
            let done = if kind.is_dir() {
                self.child(src, out, &name, at, packs)
            } else if kind.is_symlink() {
                self.symlink(src, out, &name, at)
            } else if !kind.is_file() {
                self.job.p.warn(&src.path(&name), "neither file, directory nor link; left out");
                Ok(())
            } else if let Some(plan) = plans.remove(&name) {
                self.file(src, out, &name, at, plan)
            } else {
                Ok(())
            };
            match done {
                // In place, another run may have finished it since it was listed.
                Err(e) if self.in_place() && matches!(src.stat(&name), Ok(None)) => {
                    log::debug!("{e}")
                }
                Err(e) => self.fail(&e),
                Ok(()) => {}
            }
        }
    }

    /// Decide what is done with each file of a directory, and give the archives their names.
    fn plan(
        &mut self,
        src: &Arc<Dir>,
        out: &Arc<Dir>,
        entries: &[DirEntry],
        packs: bool,
    ) -> Result<HashMap<OsString, Plan>> {
        let mut plans = HashMap::new();
        let mut models = Vec::new();
        let mut shown_already = HashMap::new();
        for DirEntry { name, .. } in entries.iter().filter(|e| e.kind.is_file()) {
            let path = src.path(name);
            if is_temporary(name) {
                let what =
                    "is being written by another run, or was left by one that was killed: left out";
                self.job.p.warn(&path, what);
                continue;
            }
            let kind = match if packs {
                Source::open(src, name).and_then(|s| s.kind())
            } else {
                Ok(Kind::Other)
            } {
                Ok(kind) => kind,
                Err(e) if e.errno() == Some(libc::ENOENT) => continue,
                Err(e) => {
                    self.fail(&e);
                    continue;
                }
            };
            match kind {
                Kind::Model => models.push(name.clone()),
                Kind::Archive => {
                    self.archives += 1;
                    shown_already.extend(shown(src, name).map(|shown| (shown, name)));
                }
                Kind::Unfit(why) => self.job.p.warn(&path, &format!("{why}; not packed")),
                Kind::Other => *self.others.entry(extension(name)).or_default() += 1,
            }
            plans.insert(name.clone(), Plan::Keep);
        }
        if !self.in_place() {
            // Beside it, the copy of an archive that shows the same name would be shown instead.
            models.retain(|name| {
                !shown_already.contains_key(name) || {
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
            let place = given.remove(&name);
            plans.insert(name, Plan::Pack(place));
        }
        Ok(plans)
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
            self.finish_directory(&from, &to);
        }
        Ok(())
    }

    /// Give a directory that is filled the attributes of its original.
    fn finish_directory(&mut self, from: &Dir, to: &Dir) {
        match self.copier.finish_directory(from, to) {
            Ok(lost) => self.job.say_lost(from.own_path(), lost),
            Err(e) => self.fail(&e),
        }
    }

    fn file(
        &mut self,
        src: &Arc<Dir>,
        out: &Arc<Dir>,
        name: &OsStr,
        at: &Path,
        plan: Plan,
    ) -> Result<()> {
        let copied = output::Place { dir: out, at, name };
        match plan {
            Plan::Pack(place) if self.in_place() => self.replace(src, name, place),
            Plan::Keep if self.in_place() => Ok(()),
            Plan::Pack(Some((archive, naming))) => {
                let source = Source::open(src, name)?;
                let form = PACKED + naming as Form;
                let to = output::Place { name: &archive, ..copied };
                if self.link_again(&source, form, &to)? {
                    return Ok(());
                }
                let place = Place { dir: Arc::clone(out), name: archive.clone(), naming };
                let report = self.job.run(&source, &place)?;
                if matches!(report.action, Action::Skipped(_)) {
                    return self.copy(&source, &copied);
                }
                self.copier.wrote(source.stat(), form, &to);
                self.report.files.push(report);
                Ok(())
            }
            Plan::Pack(None) => {
                self.job.p.warn(
                    &src.path(name),
                    "copied, not packed: its archive could have no name here",
                );
                self.copy(&Source::open(src, name)?, &copied)
            }
            Plan::Keep => self.copy(&Source::open(src, name)?, &copied),
        }
    }

    /// Pack a file where it is.
    fn replace(
        &mut self,
        src: &Arc<Dir>,
        name: &OsStr,
        place: Option<(OsString, Naming)>,
    ) -> Result<()> {
        let mut source = Source::open(src, name)?;
        let names = source.stat().st_nlink as usize;
        let several = names > 1;
        let places = several.then(|| self.links.take(source.id()));
        match (place, places) {
            // Its first name has seen to it.
            (_, Some(Places::Taken)) => {}
            (_, Some(Places::All(places))) if places.len() < names => {
                let outside = names - places.len();
                self.skip(
                    &source,
                    &format!(
                        "has {outside} more names (hard links) outside of the directory, so that packing it would free \
                         no space; left as it is"
                    ),
                );
            }
            (_, Some(Places::All(places))) => {
                keep_a_model(&mut source)?;
                self.replace_all(&source, &places)?;
            }
            (None, None) => {
                self.skip(&source, "its archive could have no name here; left as it is")
            }
            (Some((archive, naming)), None) => {
                keep_a_model(&mut source)?;
                let report = self
                    .job
                    .run(&source, &Place { dir: Arc::clone(src), name: archive, naming })?;
                self.add(report);
            }
        }
        Ok(())
    }

    /// Leave a file as it is, and say why.
    fn skip(&mut self, source: &Source, why: &str) {
        let (path, bytes) = (source.path().to_owned(), source.len());
        let action = Action::Skipped(why.to_owned());
        self.add(FileReport { output: path.clone(), path, original: bytes, stored: bytes, action });
    }

    fn add(&mut self, report: FileReport) {
        if let Action::Skipped(why) = &report.action {
            self.job.p.warn(&report.path, why);
        }
        self.report.files.push(report);
    }

    /// Pack a file that has several names, all in the tree: its archive gets as many.
    fn replace_all(&mut self, source: &Source, places: &[links::Place]) -> Result<()> {
        let mut names = Vec::new();
        for (at, name) in places {
            let name: &OsStr = name;
            let dir = self.from.descend(at)?;
            let archive = Names::new(Some(&dir), Default::default()).give_appended(name)?;
            let Some(archive) = archive else {
                let name = escape::path(name);
                self.skip(
                    source,
                    &format!("its name {name} (hard link) could have no archive; left as it is"),
                );
                return Ok(());
            };
            names.push((dir, name, archive));
        }
        let [(dir, _, archive), others @ ..] = &names[..] else { return Ok(()) };
        let first = Place { dir: Arc::clone(dir), name: archive.clone(), naming: Naming::Appended };
        let (report, made) = self.job.archive(source, &first)?;
        let Some(made) = made else {
            self.job.p.end(&report);
            self.add(report);
            return Ok(());
        };
        first.is(&made)?;
        for (dir, name, archive) in others {
            match first.dir.link(&first.name, dir, archive) {
                Err(e)
                    if e.errno() == Some(libc::EEXIST)
                        && matches!(dir.has(archive, made.id), Ok(true)) => {}
                // An older archive of that name.
                Err(e)
                    if e.errno() == Some(libc::EEXIST)
                        && shown(dir, archive).as_deref() == Some(name) =>
                {
                    first.dir.link_over(&first.name, dir, archive)?;
                }
                other => other?,
            }
            dir.sync()?;
        }
        for (dir, name, _) in &names {
            remove_older(dir, name, made.id)?;
        }
        for (dir, name, _) in &names {
            first.is(&made)?;
            dir.unlink_if(name, source.id(), || source.keeps_its_bytes())?;
            dir.sync()?;
        }
        self.job.p.end(&report);
        self.add(report);
        Ok(())
    }

    fn copy(&mut self, source: &Source, to: &output::Place<'_>) -> Result<()> {
        if self.link_again(source, COPY, to)? {
            return Ok(());
        }
        self.job.p.begin(source.path(), source.len());
        let (copied, lost) = self.copier.file(source.file(), source.path(), to)?;
        self.job.say_lost(source.path(), lost);
        self.copier.wrote(source.stat(), COPY, to);
        self.job.p.advance(source.len());
        let action = if copied == Copied::Made { Action::Copied } else { Action::AlreadyDone };
        self.done(source.path(), to.dir.path(to.name), source.len(), action);
        Ok(())
    }

    fn link_again(&mut self, source: &Source, form: Form, to: &output::Place<'_>) -> Result<bool> {
        let linked = self.copier.link_again(source.stat(), form, to)?;
        if linked {
            self.done(source.path(), to.dir.path(to.name), 0, Action::Linked);
        }
        Ok(linked)
    }

    fn symlink(&mut self, src: &Arc<Dir>, out: &Arc<Dir>, name: &OsStr, at: &Path) -> Result<()> {
        let mut target = src.read_link(name)?;
        let path = src.path(name);
        match leads(&self.root, at, Path::new(&target)) {
            Leads::Outside => {
                let why = "links to a file outside of the directory, which is not packed with it";
                self.job.p.warn(&path, why);
            }
            // In the copy it is to lead to the copy.
            Leads::Absolute(relative) if !self.in_place() => target = relative.into(),
            Leads::Absolute(_) | Leads::Inside => {}
        }
        if !self.in_place() {
            let copied = self.copier.symlink(&target, out, name)?;
            let action = if copied == Copied::Made { Action::Linked } else { Action::AlreadyDone };
            self.done(&path, out.path(name), 0, action);
        }
        Ok(())
    }

    fn done(&mut self, path: &Path, output: PathBuf, bytes: u64, action: Action) {
        let report =
            FileReport { path: path.to_owned(), output, original: bytes, stored: bytes, action };
        self.job.p.end(&report);
        self.report.files.push(report);
    }

    /// Of a directory in which nothing is packed: what is there instead.
    fn say_what_is_there(&self, src: &Path) {
        let packed = |r: &FileReport| !matches!(r.action, Action::Copied | Action::Linked);
        if self.archives + self.report.failed > 0 || self.report.files.iter().any(packed) {
            return;
        }
        let others: Vec<_> = self.others.iter().map(|(what, n)| format!("{n} {what}")).collect();
        let there = if others.is_empty() { "no other files".to_owned() } else { others.join(", ") };
        let what = format!(
            "holds no model that is packed (safetensors, under whatever name); it has {there}"
        );
        self.job.p.warn(src, &what);
    }
}

/// Keep writers out of a model that is to be replaced. It may have changed since it was looked at.
fn keep_a_model(source: &mut Source) -> Result<()> {
    source.keep_writers_out()?;
    match source.kind()? {
        Kind::Model => Ok(()),
        _ => {
            Err(Error::invalid("the file changed; nothing was replaced").about_path(source.path()))
        }
    }
}

/// Remove an archive of an older file that would be shown as `original` instead of the archive `made`.
fn remove_older(dir: &Dir, original: &OsStr, made: FileId) -> Result<()> {
    let name = Naming::of(original).archive_name(original);
    let Some(stat) = dir.stat(&name)? else { return Ok(()) };
    let regular = FileType::from_raw_mode(stat.st_mode).is_file();
    if regular && file_id(&stat) != made && shown(dir, &name).as_deref() == Some(original) {
        dir.unlink(&name, file_id(&stat))?;
    }
    Ok(())
}

/// What files like `name` are called.
fn extension(name: &OsStr) -> String {
    Path::new(name)
        .extension()
        .map_or_else(|| "without a suffix".into(), |e| format!(".{}", e.to_string_lossy()))
}
