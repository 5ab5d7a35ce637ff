//! One file to one archive.

use super::{
    Action, Check, FileReport, Options, Progress, Task, encode,
    lease::Lease,
    names::{Names, shown},
    source::{Kind, Source},
};
use crate::{
    error::{Context, Error, Result},
    format::{Footer, Naming, peek},
    output::{Attributes, Dir, Existing, FileId, Lost, Output, file_id, sha256, sync_file},
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
pub fn file(
    src: &Path,
    out: &Path,
    o: &Options,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<FileReport> {
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
    p.begin(src, Task::Pack, source.len());
    let output = Output::create(&Dir::open(dir)?, OsStr::new("archive"))?;
    let stored = encode::archive(&source, &output, Naming::of(source.name()), o, p)?;
    source.unchanged()?;
    check(output.file(), p).about_path(src)?;
    let (path, original) = (src.to_owned(), source.len());
    let report =
        FileReport { path, output: dir.to_owned(), original, stored, action: Action::Packed };
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
    if *archive == *Naming::Appended.archive_name(original) {
        Naming::Appended
    } else {
        Naming::of(original)
    }
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
    pub(super) fn is(&self, made: &Made) -> Result<()> {
        made.lease.as_ref().map_or(Ok(()), Lease::check)?;
        match self.dir.has(&self.name, made.id)? {
            true => Ok(()),
            false => {
                Err(Error::invalid("the archive is gone").about_path(&self.dir.path(&self.name)))
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

/// An archive that is there.
pub(super) struct Made {
    /// Which file it is.
    pub(super) id: FileId,
    /// That nobody writes to it, if it was found and not made.
    lease: Option<Lease>,
}

/// What stands where an archive is to be.
enum There {
    Nothing,
    /// The archive of the very same bytes, and its length.
    Same(u64, Made),
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
        let (report, made) = self.archive(source, to)?;
        if let Some(made) = made.filter(|_| self.o.in_place) {
            let beside = || self.p.warn(source.path(), "its archive is made and stays beside it");
            self.remove(source, to, &made).inspect_err(|_| beside())?;
        }
        self.p.end(&report);
        Ok(report)
    }

    /// Have the archive of `source` stand at `to`, on disk; what it is, unless it was skipped.
    pub(super) fn archive(self, source: &Source, to: &Place) -> Result<(FileReport, Option<Made>)> {
        let shadow = self.shadow(source, to)?;
        self.p.begin(source.path(), Task::Pack, source.len());
        let mut report = FileReport {
            path: source.path().to_owned(),
            output: to.dir.path(&to.name),
            original: source.len(),
            stored: 0,
            action: Action::AlreadyDone,
        };
        for attempt in 1.. {
            let existing = match self.there(source, to)? {
                There::Same(stored, made) => {
                    report.stored = stored;
                    return Ok((report, Some(made)));
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
                    if let Some((name, shadow)) = &shadow {
                        to.dir.unlink(name, *shadow)?;
                    }
                    return Ok((report, Some(Made { id, lease: None })));
                }
                Ok(Written::Nothing(action)) => {
                    (report.stored, report.action) = (source.len(), action);
                    return Ok((report, None));
                }
            }
        }
        unreachable!("the last attempt returns");
    }

    /// A file at the name that the archive shows, which would be shown instead: to be removed, if that is permitted.
    fn shadow(self, source: &Source, to: &Place) -> Result<Option<(OsString, FileId)>> {
        let Some(name) = to.naming.original_name(&to.name) else { return Ok(None) };
        let Some(stat) = to.dir.stat(&name)? else { return Ok(None) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if file_id(&stat) == source.id() || kind.is_symlink() {
            return Ok(None);
        }
        if self.o.force && kind.is_file() {
            return Ok(Some((name, file_id(&stat))));
        }
        let why = "is there and would be shown instead of the archive; remove it or use --force";
        Err(Error::invalid(why).about_path(&to.dir.path(&name)))
    }

    /// What stands where the archive is to be.
    fn there(self, source: &Source, to: &Place) -> Result<There> {
        let path = to.dir.path(&to.name);
        let Some(stat) = to.dir.stat(&to.name)? else { return Ok(There::Nothing) };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            let why = "is there and is not a regular file; nothing was replaced";
            return Err(Error::invalid(why).about_path(&path));
        }
        if file_id(&stat) == source.id() {
            return Err(Error::invalid("is the file itself that is to be packed").about_path(&path));
        }
        let file = to.dir.open_file(&to.name)?;
        let footer = peek(&file).ok().flatten().filter(|f| f.naming == to.naming);
        if let Some(footer) = &footer
            && self.is_archive_of(footer, source)?
        {
            let stat = fstat(&file).about_path(&path)?;
            let (stored, id) = (stat.st_size as u64, file_id(&stat));
            if !self.o.in_place {
                return Ok(There::Same(stored, Made { id, lease: None }));
            }
            if let Some(made) = self.may_stay(&file, id, &path, source)? {
                to.dir.sync()?;
                return Ok(There::Same(stored, made));
            }
        }
        // In place, an archive that shows this name is of an older file: the one that is there now is the user's.
        if self.o.force || self.o.in_place && footer.is_some() {
            return Ok(There::Stale);
        }
        let todo = if self.o.in_place { "" } else { " or use --force" };
        let why = format!("exists and is not the archive of this file; remove it{todo}");
        Err(Error::invalid(why).about_path(&path))
    }

    /// An archive that is to be all that is left of `source`, if it can be: it has what that has besides bytes, nobody can
    /// write to it from now on, and all of it decodes.
    fn may_stay(
        self,
        file: &File,
        id: FileId,
        path: &Path,
        source: &Source,
    ) -> Result<Option<Made>> {
        if !Attributes::of(file).about_path(path)?.satisfy(&source.attributes()?) {
            return Ok(None);
        }
        let Ok(lease) = Lease::take_of_new(file, path) else { return Ok(None) };
        if let Err(e) = (self.check)(file, self.p) {
            self.p.warn(source.path(), &format!("its archive is damaged and is made again: {e}"));
            return Ok(None);
        }
        sync_file(file).about_path(path)?;
        Ok(Some(Made { id, lease: Some(lease) }))
    }

    /// Whether an archive holds just what `source` does.
    fn is_archive_of(self, footer: &Footer, source: &Source) -> Result<bool> {
        Ok(footer.original_len == source.len()
            && footer.sha256 == sha256(source.file(), source.path())?)
    }

    fn write(self, source: &Source, to: &Place, existing: Existing) -> Result<Written> {
        let output = Output::create(&to.dir, &to.name)?;
        let stored = encode::archive(source, &output, to.naming, self.o, self.p)?;
        let gone = || match shown(&to.dir, &to.name) {
            Some(name) if name == source.name() => Written::Nothing(Action::AlreadyDone),
            _ => Written::Nothing(Action::Skipped(
                "it is gone: somebody has renamed or removed it".to_owned(),
            )),
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
        let lost =
            synced.map_err(|_| Error::invalid("writing it panicked").about_path(&path))??;
        if self.o.in_place && !source.unchanged()? {
            return Ok(gone());
        }
        let id = output.commit(existing)?;
        self.say_lost(source.path(), lost);
        Ok(Written::Archive(stored, id))
    }

    /// Say which attributes a file's archive or copy does not have.
    pub(super) fn say_lost(self, path: &Path, lost: Vec<Lost>) {
        let message =
            if self.o.in_place { Lost::message(&lost) } else { Lost::message_for_copy(lost) };
        if let Some(message) = message {
            self.p.warn(path, &message);
        }
    }

    /// Remove an original whose archive is on disk.
    fn remove(self, source: &Source, to: &Place, made: &Made) -> Result<()> {
        if source.unchanged()? {
            to.is(made)?;
            let allowed = || source.keeps_its_bytes();
            source.dir().unlink_if(source.name(), source.id(), allowed)?;
            source.dir().sync()?;
        }
        Ok(())
    }
}
