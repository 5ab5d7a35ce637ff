//! Replacing originals by their archives where they are. A file with several names gets an archive
//! with as many.

use super::{
    Action, FileReport,
    content::Kind,
    file::{Job, Place},
    links::{self, HardLinks, Places},
    names::{Names, shown},
    pins::pin_again,
    source::Source,
};
use crate::{
    error::{Error, Result},
    escape,
    format::Naming,
    output::{Dir, FileId, file_id},
};
use rustix::fs::FileType;
use std::{
    ffi::{OsStr, OsString},
    sync::Arc,
};

/// Replaces the files of a tree.
pub(super) struct Replacer<'a> {
    job: Job<'a>,
    root: Arc<Dir>,
    links: HardLinks,
}

/// A name of a file: its directory, the name, and that of its archive.
type Name<'a> = (Arc<Dir>, &'a OsStr, OsString);

impl<'a> Replacer<'a> {
    /// Replace files of the tree at `root`.
    pub(super) fn new(job: Job<'a>, root: Arc<Dir>) -> Self {
        let links = HardLinks::find(&root);
        Self { job, root, links }
    }

    /// Replace the file `name` of `dir` by an archive called `archive`, if it can have one. `None`
    /// if that has been done for another name of the file.
    pub(super) fn replace(
        &mut self,
        dir: &Arc<Dir>,
        name: &OsStr,
        archive: Option<(OsString, Naming)>,
    ) -> Result<Option<FileReport>> {
        let mut source = Source::open(dir, name)?;
        let names = source.stat().st_nlink as usize;
        let places = (names > 1).then(|| self.links.take(source.id()));
        let report = match (archive, places) {
            (_, Some(Places::Taken)) => return Ok(None),
            (_, Some(Places::All(places))) if places.len() < names => {
                let outside = names - places.len();
                let why = format!(
                    "has {outside} more names (hard links) outside the directory, so packing it \
                     would free no space; left as it is"
                );
                skipped(&source, why)
            }
            (_, Some(Places::All(places))) => {
                keep_a_model(&mut source)?;
                self.replace_all(&source, &places)?
            }
            (None, None) => {
                skipped(&source, "no name is free for its archive; left as it is".into())
            }
            (Some((archive, naming)), None) => {
                keep_a_model(&mut source)?;
                let place = Place { dir: Arc::clone(dir), name: archive, naming };
                self.job.run(&source, &place)?
            }
        };
        Ok(Some(report))
    }

    /// Replace a file with several names, all of them in the tree.
    fn replace_all(&self, source: &Source, places: &[links::Place]) -> Result<FileReport> {
        let mut names: Vec<Name> = Vec::new();
        for (at, name) in places {
            let dir = self.root.descend(at)?;
            match Names::new(Some(&dir), Default::default()).give_appended(name)? {
                Some(archive) => names.push((dir, name, archive)),
                None => {
                    let name = escape::path(name);
                    let why = format!(
                        "no name is free for the archive of its name {name} (hard link); left as \
                         it is"
                    );
                    return Ok(skipped(source, why));
                }
            }
        }
        let [(dir, _, archive), others @ ..] = &names[..] else {
            // There is no name, so there is nothing to replace.
            return Ok(skipped(source, "was renamed or removed meanwhile".into()));
        };
        let first = Place { dir: Arc::clone(dir), name: archive.clone(), naming: Naming::Appended };
        let (report, made) = self.job.archive(source, &first)?;
        if let Some(made) = made {
            first.is(&made)?;
            others.iter().try_for_each(|other| link_archive(&first, other, made.id))?;
            for (dir, name, _) in &names {
                remove_older(dir, name, made.id)?;
            }
            for (dir, name, _) in &names {
                first.is(&made)?;
                dir.unlink_if(name, source.id(), || source.keeps_its_bytes())?;
                dir.sync()?;
            }
        }
        self.job.p.end(&report);
        Ok(report)
    }
}

/// The report of a file that is left as it is.
fn skipped(source: &Source, why: String) -> FileReport {
    let (path, bytes) = (source.path().to_owned(), source.len());
    let action = Action::Skipped(why);
    FileReport { output: path.clone(), path, original: bytes, stored: bytes, action }
}

/// Link the archive `first`, which is the file `id`, as the archive of another name.
fn link_archive(first: &Place, (dir, name, archive): &Name, id: FileId) -> Result<()> {
    let _pinned = pin_again(&first.dir, &first.name, dir)?;
    match first.dir.link(&first.name, dir, archive) {
        Err(e) if e.errno() == Some(libc::EEXIST) => {
            let is_linked = matches!(dir.has(archive, id), Ok(true));
            let is_older = || shown(dir, archive).as_deref() == Some(*name);
            match (is_linked, is_linked || is_older()) {
                (true, _) => {}
                (false, true) => first.dir.link_over(&first.name, dir, archive)?,
                (false, false) => return Err(e),
            }
        }
        other => other?,
    }
    dir.sync()
}

/// Keep writers out of a model that is to be replaced; it may have changed since it was examined.
fn keep_a_model(source: &mut Source) -> Result<()> {
    source.keep_writers_out()?;
    match source.kind()? {
        Kind::Model => Ok(()),
        _ => {
            Err(Error::invalid("changed meanwhile; nothing was replaced").about_path(source.path()))
        }
    }
}

/// Remove the archive of an older file that a mount would show as `original` instead of `made`.
fn remove_older(dir: &Dir, original: &OsStr, made: FileId) -> Result<()> {
    let name = Naming::of(original).archive_name(original);
    let Some(stat) = dir.stat(&name)? else { return Ok(()) };
    let regular = FileType::from_raw_mode(stat.st_mode).is_file();
    if regular && file_id(&stat) != made && shown(dir, &name).as_deref() == Some(original) {
        dir.unlink(&name, file_id(&stat))?;
    }
    Ok(())
}
