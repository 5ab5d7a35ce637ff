//! One file to one archive.

use super::{
    Action, Check, FileReport, Options, Progress, encode,
    names::{Names, shown},
    source::{Kind, Source},
};
use crate::{
    error::{Context, Error, Result},
    format::{Footer, Naming, peek},
    output::{Dir, Existing, FileId, Output, could_not_keep, file_id, sha256, sync_file, worth_telling},
};
use rustix::fs::{FileType, fstat};
use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::File,
    path::Path,
    sync::Arc,
};

/// How often a file is looked at anew when another run has just made its archive.
const ATTEMPTS: usize = 3;

/// Pack the file `src` to the archive `out`, and remove `src` afterwards if the options say so: then `out` is beside it.
///
/// An `out` that holds the same bytes is kept.
///
/// # Errors
/// Io; invalid argument, where `src` is no regular file, is an archive itself, changes meanwhile or is to be removed
/// while somebody can write to it or it is not whole, or where `out` exists and holds something else. `src` is then as
/// it was and `out` too.
pub fn file(src: &Path, out: &Path, o: &Options, check: Check<'_>, p: &dyn Progress) -> Result<FileReport> {
    let (dir, name) = Dir::of(out)?;
    let mut source = if o.in_place {
        let (dir, name) = Dir::of(src)?;
        Source::open(&dir, &name)?
    } else {
        Source::follow(src)?
    };
    if source.is_archive() {
        return Err(Error::invalid("already a .bsz archive").about_path(src));
    }
    let job = Job { o, check, p, only_smaller: o.in_place };
    if o.in_place {
        if source.stat().st_nlink > 1 {
            let why = "has other names (hard links), so that packing it would free no space; left as it is";
            return Err(Error::invalid(why).about_path(src));
        }
        source.keep_writers_out()?;
    }
    if let Kind::Unfit(why) = source.kind()? {
        if o.in_place {
            return Err(Error::invalid(format!("{why}; left as it is")).about_path(src));
        }
        p.warn(src, &why);
    } else if let Some(why) = source.incomplete()?.filter(|_| o.in_place) {
        return Err(Error::invalid(format!("{why}; left as it is")).about_path(src));
    }
    let naming = naming(src.file_name().unwrap_or_default(), &name);
    job.run(&source, &Place { dir, name, naming })
}

/// Pack the file `src` to an archive without a name, in the directory at `dir`: it is gone when it is closed.
///
/// # Errors
/// As [`file`].
pub fn unnamed(
    src: &Path,
    dir: &Path,
    o: &Options,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<(File, FileReport)> {
    let source = Source::follow(src)?;
    if source.is_archive() {
        return Err(Error::invalid("already a .bsz archive").about_path(src));
    }
    p.begin(src, 2 * source.len());
    let output = Output::create(&Dir::open(dir)?, OsStr::new("archive"))?;
    let stored = encode::archive(&source, &output, Naming::of(source.name()), o, p)?;
    source.unchanged()?;
    check(output.file(), p).about_path(src)?;
    let (path, original) = (src.to_owned(), source.len());
    let report = FileReport { path, output: dir.to_owned(), original, stored, action: Action::Packed };
    p.end(&report);
    Ok((output.into_unnamed(), report))
}

/// What the archives of files called `originals` are called in the directory at `dir`, which may not be there yet. No two
/// of them have one name, nor that of something else; `None` for a file to which all its names are lost.
///
/// # Errors
/// Io.
pub fn archive_names(dir: &Path, originals: &[OsString]) -> Result<Vec<Option<OsString>>> {
    let dir = if dir.exists() { Some(Dir::open(dir)?) } else { None };
    let given = Names::new(dir.as_deref(), HashSet::new()).give(originals)?;
    Ok(originals.iter().map(|name| given.get(name).map(|(name, _)| name.clone())).collect())
}

/// How an archive called `archive` is to show the name `original`.
fn naming(original: &OsStr, archive: &OsStr) -> Naming {
    if *archive == *Naming::Appended.archive_name(original) { Naming::Appended } else { Naming::of(original) }
}

/// Where an archive goes.
pub(super) struct Place {
    pub(super) dir: Arc<Dir>,
    pub(super) name: OsString,
    pub(super) naming: Naming,
}

impl Place {
    /// Whether this very file is there.
    ///
    /// # Errors
    /// Invalid argument, where it is not.
    pub(super) fn is(&self, archive: FileId) -> Result<()> {
        match self.dir.stat(&self.name)? {
            Some(stat) if file_id(&stat) == archive => Ok(()),
            _ => {
                Err(Error::invalid("another file has taken its name").about_path(&self.dir.path(&self.name)))
            }
        }
    }
}

/// How files are packed.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) o: &'a Options,
    pub(super) check: Check<'a>,
    pub(super) p: &'a dyn Progress,
    /// Whether an archive that saves nothing is dropped.
    pub(super) only_smaller: bool,
}

/// What stands where an archive is to be.
enum There {
    Nothing,
    /// The archive of the very same bytes: its length, and which file it is.
    Same(u64, FileId),
    /// What is to be replaced.
    Stale,
}

/// What came of writing an archive.
enum Written {
    /// It is there: its length, and which file it is.
    Archive(u64, FileId),
    /// It is not, since this was found.
    Nothing(Action),
}

impl Job<'_> {
    /// Pack a file, and remove it if the options say so.
    pub(super) fn run(self, source: &Source, to: &Place) -> Result<FileReport> {
        let (report, archive) = self.archive(source, to)?;
        if let Some(archive) = archive.filter(|_| self.o.in_place) {
            let removed = to.is(archive).and_then(|()| self.remove(source));
            if removed.is_err() && report.action == Action::Packed {
                take_back(source, to, archive);
            }
            removed?;
        }
        self.p.end(&report);
        Ok(report)
    }

    /// Have the archive of `source` stand at `to`, on disk; which file it is, unless it was skipped.
    pub(super) fn archive(self, source: &Source, to: &Place) -> Result<(FileReport, Option<FileId>)> {
        self.p.begin(source.path(), 2 * source.len());
        let mut report = FileReport {
            path: source.path().to_owned(),
            output: to.dir.path(&to.name),
            original: source.len(),
            stored: 0,
            action: Action::AlreadyDone,
        };
        for attempt in 1.. {
            let existing = match self.there(source, to)? {
                There::Same(stored, id) => {
                    report.stored = stored;
                    return Ok((report, Some(id)));
                }
                There::Nothing => Existing::Refuse,
                There::Stale => Existing::Replace,
            };
            match self.write(source, to, existing) {
                // Another run has just finished it.
                Err(e) if e.errno() == Some(libc::EEXIST) && attempt < ATTEMPTS => {}
                Err(e) => return Err(e),
                Ok(Written::Archive(stored, id)) => {
                    (report.stored, report.action) = (stored, Action::Packed);
                    return Ok((report, Some(id)));
                }
                Ok(Written::Nothing(action)) => {
                    (report.stored, report.action) = (source.len(), action);
                    return Ok((report, None));
                }
            }
        }
        unreachable!("the last attempt returns");
    }

    /// What stands where the archive is to be.
    fn there(self, source: &Source, to: &Place) -> Result<There> {
        let path = to.dir.path(&to.name);
        let Some(stat) = to.dir.stat(&to.name)? else { return Ok(There::Nothing) };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            let why = "is there and is not a regular file; nothing was replaced";
            return Err(Error::invalid(why).about_path(&path));
        }
        let file = to.dir.open_file(&to.name)?;
        let footer = peek(&file).ok().flatten().filter(|f| f.naming == to.naming);
        if let Some(footer) = &footer
            && self.is_archive_of(&file, footer, source)?
        {
            if self.o.in_place {
                sync_file(&file).about_path(&path)?;
                to.dir.sync()?;
            }
            let stat = fstat(&file).about_path(&path)?;
            return Ok(There::Same(stat.st_size as u64, file_id(&stat)));
        }
        // In place, an archive that shows this name is of an older file: the one that is there now is the user's.
        if self.o.force || self.o.in_place && footer.is_some() {
            return Ok(There::Stale);
        }
        let todo = if self.o.in_place { "" } else { " or use --force" };
        let why = format!("exists and is not the archive of this file; remove it{todo}");
        Err(Error::invalid(why).about_path(&path))
    }

    /// Whether an archive holds just what `source` does; where that is to be removed, all of the archive is decoded.
    fn is_archive_of(self, file: &File, footer: &Footer, source: &Source) -> Result<bool> {
        let same =
            footer.original_len == source.len() && footer.sha256 == sha256(source.file(), source.path())?;
        if !same || !self.o.in_place {
            return Ok(same);
        }
        let checked = (self.check)(file, self.p);
        if let Err(e) = &checked {
            self.p.warn(source.path(), &format!("its archive is damaged and is made again: {e}"));
        }
        Ok(checked.is_ok())
    }

    fn write(self, source: &Source, to: &Place, existing: Existing) -> Result<Written> {
        let output = Output::create(&to.dir, &to.name)?;
        let stored = encode::archive(source, &output, to.naming, self.o, self.p)?;
        let gone = || match shown(&to.dir, &to.name) {
            Some(name) if name == source.name() => Written::Nothing(Action::AlreadyDone),
            _ => {
                Written::Nothing(Action::Skipped("it is gone: somebody has renamed or removed it".to_owned()))
            }
        };
        if !source.unchanged()? && self.o.in_place {
            return Ok(gone());
        }
        if self.only_smaller && stored >= source.len() {
            let why = "packing would not make it smaller";
            return Ok(Written::Nothing(Action::Skipped(why.to_owned())));
        }
        // The disk takes its time: what it is given is verified meanwhile.
        let attributes = source.attributes()?;
        let path = output.path();
        let (synced, checked) = std::thread::scope(|s| {
            let syncing = s.spawn(|| output.sync(&attributes));
            let checked = (self.check)(output.file(), self.p).about_path(&path);
            (syncing.join(), checked)
        });
        checked?;
        let lost = synced.map_err(|_| Error::invalid("writing it panicked").about_path(&path))??;
        if self.o.in_place && !source.unchanged()? {
            return Ok(gone());
        }
        let id = output.commit(existing)?;
        self.say_lost(source.path(), lost);
        Ok(Written::Archive(stored, id))
    }

    /// Say which attributes a file's archive or copy does not have.
    pub(super) fn say_lost(self, path: &Path, lost: Vec<String>) {
        let said = if self.o.in_place && !lost.is_empty() {
            Some(could_not_keep(&lost))
        } else {
            worth_telling(lost)
        };
        if let Some(said) = said {
            self.p.warn(path, &said);
        }
    }

    /// Remove an original whose archive is on disk.
    pub(super) fn remove(self, source: &Source) -> Result<()> {
        if source.unchanged()? {
            source.dir().unlink(source.name(), source.id())?;
            source.dir().sync()?;
        }
        Ok(())
    }
}

/// Remove an archive that was made for an original which could not be removed: nobody wants both.
fn take_back(source: &Source, to: &Place, archive: FileId) {
    if matches!(source.dir().stat(source.name()), Ok(Some(now)) if file_id(&now) == source.id()) {
        let _ = to.dir.unlink(&to.name, archive);
    }
}
