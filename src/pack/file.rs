//! One file to one archive.

use super::{
    Action, Check, FileReport, Options, Progress, Task,
    content::Kind,
    encode::{self, Input},
    lease::Lease,
    names::{Names, shown},
    pins::{Needs, commit, packed_from},
    source::Source,
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

/// How often to look at a file again when another run has just made its archive.
const ATTEMPTS: usize = 3;

/// Pack the file `src` to the archive `out`. If the options say so, `out` is beside `src`, and
/// `src` is removed afterwards.
///
/// An `out` that holds the same bytes is kept.
///
/// # Errors
/// Io; invalid argument if `src` is not a regular file, is an archive itself or changes meanwhile,
/// or if `out` exists and differs. If `src` is to be removed, also if it is incomplete or if
/// somebody may write to it. `src` and `out` are unchanged then.
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
    if source.content().is_archive() {
        return Err(Error::invalid("already a .bsz archive").about_path(src));
    }
    let job = Job { o, check, p, only_smaller: o.in_place };
    if o.in_place {
        if source.stat().st_nlink > 1 {
            let why =
                "has other names (hard links), so packing it would free no space; left as it is";
            return Err(Error::invalid(why).about_path(src));
        }
        source.keep_writers_out()?;
    }
    if let Kind::Unfit(why) = source.kind()? {
        if o.in_place {
            return Err(Error::invalid(format!("{why}; left as it is")).about_path(src));
        }
        p.warn(src, &why);
    } else if let Some(why) = source.content().incomplete()?.filter(|_| o.in_place) {
        return Err(Error::invalid(format!("{why}; left as it is")).about_path(src));
    }
    let naming = naming(src.file_name().unwrap_or_default(), &name);
    job.run(&source, &Place { dir, name, naming })
}

/// Pack the file `src` to an unnamed archive in the directory `dir`: it is gone once it is closed.
///
/// # Errors
/// As [`file()`].
pub fn unnamed(
    src: &Path,
    dir: &Path,
    o: &Options,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<(File, FileReport)> {
    let source = Source::follow(src)?;
    if source.content().is_archive() {
        return Err(Error::invalid("already a .bsz archive").about_path(src));
    }
    p.begin(src, Task::Pack, source.len());
    let output = Output::create(&Dir::open(dir)?, OsStr::new("archive"))?;
    let input = input(&source, Naming::of(source.name()), o);
    let stored = encode::archive(input, &output, p)?.stored;
    source.unchanged()?;
    check(output.file(), p).about_path(src)?;
    let (path, original) = (src.to_owned(), source.len());
    let report =
        FileReport { path, output: dir.to_owned(), original, stored, action: Action::Packed };
    p.end(&report);
    Ok((output.into_unnamed(), report))
}

/// The names for the archives of `originals` in the directory `dir`, which need not exist yet. Each
/// name is given once, and none that is taken; `None` for a file that can have no name.
///
/// # Errors
/// Io.
pub fn archive_names(dir: &Path, originals: &[OsString]) -> Result<Vec<Option<OsString>>> {
    let dir = if dir.exists() { Some(Dir::open(dir)?) } else { None };
    let given = Names::new(dir.as_deref(), HashSet::new()).give(originals)?;
    Ok(originals.iter().map(|name| given.get(name).map(|(name, _)| name.clone())).collect())
}

/// The naming by which an archive called `archive` shows the name `original`.
pub(super) fn naming(original: &OsStr, archive: &OsStr) -> Naming {
    if *archive == *Naming::Appended.archive_name(original) {
        Naming::Appended
    } else {
        Naming::of(original)
    }
}

/// What an archive is made from if nobody waits meanwhile.
pub(super) fn input<'a>(source: &'a Source, naming: Naming, o: &'a Options) -> Input<'a> {
    let chunk_size = o.chunk_size;
    let (after, before) = (&|_, _| Ok(()), &|| Ok(()));
    Input { source, naming, chunk_size, after, before, twins: None, bases: &o.bases }
}

/// Set the attributes of `output`, sync it and verify it. Returns the attributes that it could not
/// be given.
pub(super) fn sync_and_check(
    output: &Output,
    attributes: &Attributes,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<Vec<Lost>> {
    let path = output.path();
    // Syncing takes time: the archive is verified meanwhile.
    let (synced, checked) = std::thread::scope(|s| {
        let syncing = s.spawn(|| output.sync(attributes));
        let checked = check(output.file(), p).about_path(&path);
        (syncing.join(), checked)
    });
    checked?;
    synced.map_err(|_| Error::invalid("the thread that writes it panicked").about_path(&path))?
}

/// Where an archive goes.
pub(super) struct Place {
    pub(super) dir: Arc<Dir>,
    pub(super) name: OsString,
    pub(super) naming: Naming,
}

impl Place {
    /// Check that the archive `made` is still there.
    ///
    /// # Errors
    /// Invalid argument if it is not.
    pub(super) fn is(&self, made: &Made) -> Result<()> {
        made.lease.as_ref().map_or(Ok(()), Lease::check)?;
        match self.dir.has(&self.name, made.id)? {
            true => Ok(()),
            false => Err(Error::invalid("the archive has disappeared")
                .about_path(&self.dir.path(&self.name))),
        }
    }
}

/// How files are packed.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) o: &'a Options,
    pub(super) check: Check<'a>,
    pub(super) p: &'a dyn Progress,
    /// Whether to drop an archive that saves nothing.
    pub(super) only_smaller: bool,
}

/// An archive that is on disk.
pub(super) struct Made {
    /// Its identity.
    pub(super) id: FileId,
    /// Keeps writers out of an archive that was found, not made.
    lease: Option<Lease>,
}

/// What has the name of an archive that is to be written.
enum Occupant {
    Nothing,
    /// The archive of the same bytes, and its length.
    Same(u64, Made),
    /// Something that is to be replaced.
    Stale,
}

/// The outcome of writing an archive.
enum Written {
    /// Its length, its identity, and how it was made.
    Archive(u64, FileId, Action),
    /// There is no archive, for this reason.
    Nothing(Action),
}

impl Job<'_> {
    /// Pack a file, and remove it if the options say so.
    pub(super) fn run(self, source: &Source, to: &Place) -> Result<FileReport> {
        let (report, made) = self.archive(source, to)?;
        if let Some(made) = made.filter(|_| self.o.in_place) {
            let beside =
                || self.p.warn(source.path(), "was not removed; its archive stays beside it");
            self.remove(source, to, &made).inspect_err(|_| beside())?;
        }
        self.p.end(&report);
        Ok(report)
    }

    /// Write the archive of `source` to `to`, unless it is there already. Returns the archive,
    /// unless the source was skipped.
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
            let existing = match self.occupant(source, to)? {
                Occupant::Same(stored, made) => {
                    report.stored = stored;
                    return Ok((report, Some(made)));
                }
                Occupant::Nothing => Existing::Refuse,
                Occupant::Stale => Existing::Replace,
            };
            match self.write(source, to, existing) {
                // Another run has just made it.
                Err(e) if e.errno() == Some(libc::EEXIST) && attempt < ATTEMPTS => {}
                Err(e) => return Err(e),
                Ok(Written::Archive(stored, id, action)) => {
                    (report.stored, report.action) = (stored, action);
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

    /// A file that has the name the archive shows, so that a mount would show that file instead. It
    /// is to be removed, if that is permitted.
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
        let why =
            "exists, and a mount would show it instead of the archive; remove it or use --force";
        Err(Error::invalid(why).about_path(&to.dir.path(&name)))
    }

    /// What has the name of the archive.
    fn occupant(self, source: &Source, to: &Place) -> Result<Occupant> {
        let path = to.dir.path(&to.name);
        let Some(stat) = to.dir.stat(&to.name)? else { return Ok(Occupant::Nothing) };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            let why = "exists and is not a regular file; nothing was replaced";
            return Err(Error::invalid(why).about_path(&path));
        }
        if file_id(&stat) == source.id() {
            return Err(Error::invalid("is the very file to be packed").about_path(&path));
        }
        let file = to.dir.open_file(&to.name)?;
        let footer = peek(&file).ok().flatten().filter(|f| f.naming == to.naming);
        if let Some(footer) = &footer
            && self.is_archive_of(footer, source)?
        {
            let stat = fstat(&file).about_path(&path)?;
            let (stored, id) = (stat.st_size as u64, file_id(&stat));
            if !self.o.in_place {
                return Ok(Occupant::Same(stored, Made { id, lease: None }));
            }
            if let Some(made) = self.as_replacement(&file, id, &path, source)? {
                to.dir.sync()?;
                return Ok(Occupant::Same(stored, made));
            }
        }
        // In place, an archive that shows this name was made from an older file, which the user has
        // since replaced.
        if self.o.force || self.o.in_place && footer.is_some() {
            return Ok(Occupant::Stale);
        }
        let todo = if self.o.in_place { "" } else { " or use --force" };
        let why = format!("exists and is not the archive of this file; remove it{todo}");
        Err(Error::invalid(why).about_path(&path))
    }

    /// The archive `file` as the replacement of `source`, if it qualifies: it has the same
    /// attributes, all of it decodes, and nobody can write to it from now on.
    fn as_replacement(
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
            self.p.warn(
                source.path(),
                &format!("its archive is damaged and will be made again: {e}"),
            );
            return Ok(None);
        }
        sync_file(file).about_path(path)?;
        Ok(Some(Made { id, lease: Some(lease) }))
    }

    /// Whether an archive holds exactly the bytes of `source`.
    fn is_archive_of(self, footer: &Footer, source: &Source) -> Result<bool> {
        Ok(footer.original_len == source.len()
            && footer.sha256 == sha256(source.file(), source.path())?)
    }

    fn write(self, source: &Source, to: &Place, existing: Existing) -> Result<Written> {
        let output = Output::create(&to.dir, &to.name)?;
        let input = input(source, to.naming, self.o);
        let written = encode::archive(input, &output, self.p)?;
        let stored = written.stored;
        let gone = || match shown(&to.dir, &to.name) {
            Some(name) if name == source.name() => Written::Nothing(Action::AlreadyDone),
            _ => Written::Nothing(Action::Skipped("was renamed or removed meanwhile".to_owned())),
        };
        if !source.unchanged()? && self.o.in_place {
            return Ok(gone());
        }
        if self.only_smaller && stored >= source.len() {
            let why = "packing would not make it smaller";
            return Ok(Written::Nothing(Action::Skipped(why.to_owned())));
        }
        let lost = sync_and_check(&output, &source.attributes()?, self.check, self.p)?;
        if self.o.in_place && !source.unchanged()? {
            return Ok(gone());
        }
        let warn = |why: &Error| self.p.warn(source.path(), &why.to_string());
        let needs = Needs { bases: &written.bases, unpinned: self.o.bases.unpinned, warn: &warn };
        let id = commit(output, existing, (&to.dir, &to.name), &needs)?;
        self.warn_of_lost(source.path(), lost);
        Ok(Written::Archive(stored, id, packed_from(&written.bases)))
    }

    /// Warn of the attributes that an archive could not be given.
    fn warn_of_lost(self, path: &Path, lost: Vec<Lost>) {
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
