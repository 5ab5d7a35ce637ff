//! One file to an archive that is complete and on disk, but has no name yet: whoever replaces files
//! under locks of their own does the naming.
//!
//! Packing in the background leaves no traces: it does not move access times and does not fill the
//! page cache. What a file holds is all that may change, so a file stays as it is if anything else
//! about it would be lost.

use super::{
    Action, Bases, Check, FileReport, Progress, Task,
    content::Kind,
    encode::{self, Input, Written},
    estimate,
    file::sync_and_check,
    source::Source,
    twins::Twins,
};
use crate::{
    error::{Context, Error, Result},
    escape,
    format::{DEFAULT_CHUNK, Naming},
    output::{Attributes, Dir, Existing, FileId, Lost, Output, file_id},
};
use rustix::fs::{
    Advice, OFlags, Stat, XattrFlags, fadvise, fcntl_getfl, fcntl_setfl, fsetxattr, fstat,
};
use rustix::io::Errno;
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    num::NonZeroU64,
    ops::Range,
    sync::Arc,
};

/// The longest name of a file whose archive gets a name, in bytes. It leaves room for `.bsz` and
/// for a suffix of five more, by which the archive may be known while it is renamed.
const LONGEST_NAME: usize = 246;
/// How far an estimated saving may be off, as a share of the original.
const ESTIMATE_ERROR: f64 = 0.02;
/// How many bytes behind the last one pages are dropped from the page cache. Pages that wait to be
/// written are written then, and dropped the next time.
const BEHIND: u64 = 64 << 20;

/// How to prepare an archive.
#[derive(Clone, Copy)]
pub struct PrepareOptions<'a> {
    /// Decoded bytes of a chunk, as in [`super::Options`].
    pub chunk_size: u32,
    /// The least share of its bytes that packing must save, or the file is left as it is.
    pub min_saving: f64,
    /// An extended attribute that the archive gets, where there are such.
    pub mark: Option<&'a str>,
    /// Called with the estimated size of the archive, in bytes, before it is written. An error says
    /// why it must not be.
    pub room: &'a (dyn Fn(u64) -> Result<()> + Sync),
    /// Called before work starts, every 16 MiB or less, and before each chunk is written: the disk
    /// may have become full while many were encoded. It may sleep, to pause, or return an error, to
    /// cancel. It runs on a thread of the current rayon pool.
    pub between: &'a (dyn Fn() -> Result<()> + Sync),
    /// Handed the original once a lease keeps writers waiting, before its first byte is read.
    /// Whoever cannot wait calls [`release_lease`](super::release_lease) with it; the archive is
    /// given up then.
    pub leased: &'a (dyn Fn(&File) + Sync),
    /// Other archives on a file system that can share ranges of files: the stored bytes of equal
    /// large tensors are cloned from them.
    pub twins: Option<&'a dyn Twins>,
}

impl Default for PrepareOptions<'_> {
    fn default() -> Self {
        Self {
            chunk_size: DEFAULT_CHUNK,
            min_saving: 0.03,
            mark: None,
            room: &|_| Ok(()),
            between: &|| Ok(()),
            leased: &|_| (),
            twins: None,
        }
    }
}

/// What became of a file.
#[expect(clippy::large_enum_variant, reason = "few exist at a time, and not for long")]
pub enum Preparation {
    /// It has an archive.
    Ready(Prepared),
    /// It is left as it is for this reason, which holds until its bytes change.
    NotWorthIt(String),
    /// Its archive could not be given all of its attributes, for this reason.
    Lossy(String),
}

/// An archive that is complete, verified and on disk, with the attributes of its original, but
/// without a name. Until it is dropped, nobody can write to the original unnoticed. If it is
/// dropped without a name, nothing is left of it.
pub struct Prepared {
    source: Source,
    output: Output,
    written: Written,
}

/// Pack the file `name` of `dir`, which must be a model with a single name, and verify the archive
/// with `check`.
///
/// `check` may make the file read around the page cache.
///
/// # Errors
/// Io; those of `check` and of [`PrepareOptions::between`]; invalid argument if the file is not
/// regular, is incomplete, has several names or changes meanwhile, or if somebody may be writing to
/// it.
pub fn prepare(
    dir: &Arc<Dir>,
    name: &OsStr,
    o: &PrepareOptions<'_>,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<Preparation> {
    if name.len() > LONGEST_NAME {
        let why = "its name is too long to be that of an archive, too";
        return Ok(Preparation::NotWorthIt(why.to_owned()));
    }
    let mut source = Source::open(dir, name)?;
    keep_access_time(source.file());
    source.keep_writers_out()?;
    (o.leased)(source.file());
    let made = make(&source, o, check, p);
    forget(source.file(), 0..0);
    Ok(match made? {
        Made::Archive(output, written) => Preparation::Ready(Prepared { source, output, written }),
        Made::Nothing(why) => Preparation::NotWorthIt(why),
        Made::Lossy(why) => Preparation::Lossy(why),
    })
}

impl Prepared {
    /// Bytes of the original.
    pub fn original(&self) -> u64 {
        self.source.len()
    }

    /// Bytes of the archive.
    pub fn stored(&self) -> u64 {
        self.written.stored
    }

    /// How many of them it shares with the archives that [`PrepareOptions::twins`] has found.
    pub fn cloned(&self) -> u64 {
        self.written.cloned
    }

    /// The attributes of the original when writers were shut out, before the first byte was read.
    pub fn source_stat(&self) -> &Stat {
        self.source.stat()
    }

    /// The archive.
    pub fn archive(&self) -> &File {
        self.output.file()
    }

    /// The identity of the archive.
    ///
    /// # Errors
    /// Io.
    pub fn archive_id(&self) -> Result<FileId> {
        fstat(self.archive()).map(|stat| file_id(&stat)).about_path(&self.output.path())
    }

    /// Check that the original is as it was when it was read; returns whether it still has its
    /// name.
    ///
    /// # Errors
    /// Invalid argument if it has changed, or if somebody can write to it; Io.
    pub fn unchanged(&self) -> Result<bool> {
        self.source.unchanged()
    }

    /// The same as [`Prepared::unchanged`] once the original has lost its name, which changes its
    /// ctime: check that its bytes are those that were read.
    ///
    /// # Errors
    /// As [`Prepared::unchanged`].
    pub fn keeps_its_bytes(&self) -> Result<()> {
        self.source.keeps_its_bytes()
    }

    /// Give the archive its name, which is that of the original with `.bsz` appended and must be
    /// free. It survives a crash only after [`Prepared::sync_dir`]. Returns the archive's identity.
    /// Where files without a name cannot get one, that is not what [`Prepared::archive_id`]
    /// returned before: the archive is copied.
    ///
    /// # Errors
    /// Io, also if the name is taken.
    pub fn link(&mut self) -> Result<FileId> {
        self.output.link(Existing::Refuse)
    }

    /// Sync the entries of the directory to disk.
    ///
    /// # Errors
    /// Io.
    pub fn sync_dir(&self) -> Result<()> {
        self.source.dir().sync()
    }
}

/// What is made of a file.
enum Made {
    /// Its archive.
    Archive(Output, Written),
    /// Nothing, for this reason.
    Nothing(String),
    /// An archive that lacks attributes.
    Lossy(String),
}

/// Make the archive of `source`, or find out that it is not worth one.
fn make(
    source: &Source,
    o: &PrepareOptions<'_>,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<Made> {
    (o.between)()?;
    if let Some(why) = unfit(source)? {
        return Ok(Made::Nothing(why));
    }
    let estimate = estimate::of_model(&source.content())?;
    if estimate.saving() < o.min_saving - ESTIMATE_ERROR {
        return Ok(Made::Nothing(too_little(source, estimate.stored)));
    }
    (o.room)(estimate.stored)?;
    let mut cloned = 0;
    let made = match attempt(source, o, check, p, &mut cloned) {
        // An archive that bytes were cloned from may be damaged on disk.
        Err(e) if cloned > 0 => {
            log::warn!("{}: is packed again, without sharing: {e}", escape::path(source.path()));
            o.twins.inspect(|twins| twins.distrust());
            let o = PrepareOptions { twins: None, ..*o };
            (o.between)()?;
            attempt(source, &o, check, p, &mut 0)
        }
        made => made,
    }?;
    let (action, stored) = match &made {
        Made::Archive(_, written) => (Action::Packed, written.stored),
        Made::Nothing(why) | Made::Lossy(why) => (Action::Skipped(why.clone()), source.len()),
    };
    let (path, archive) = (source.path().to_owned(), source.dir().path(&archive_name(source)));
    p.end(&FileReport { path, output: archive, original: source.len(), stored, action });
    Ok(made)
}

fn archive_name(source: &Source) -> OsString {
    Naming::Appended.archive_name(source.name())
}

/// Write, sync and verify the archive. Sets how many bytes were cloned, also if that fails.
fn attempt(
    source: &Source,
    o: &PrepareOptions<'_>,
    check: Check<'_>,
    p: &dyn Progress,
    cloned: &mut u64,
) -> Result<Made> {
    p.begin(source.path(), Task::Pack, source.len());
    let output = Output::create(source.dir(), &archive_name(source))?;
    let written = write(source, &output, o, p)?;
    *cloned = written.cloned;
    if written.stored as f64 > source.len() as f64 * (1.0 - o.min_saving) {
        return Ok(Made::Nothing(too_little(source, written.stored)));
    }
    let lost = finish(source, &output, o, check, p)?;
    Ok(lost.map_or_else(|| Made::Archive(output, written), Made::Lossy))
}

/// Why a file is not to be packed, if its bytes are the reason.
///
/// # Errors
/// Invalid argument if the reason may go away without a change of its bytes, or if its bytes are
/// not complete.
fn unfit(source: &Source) -> Result<Option<String>> {
    let refuse = |why: &str| Err(Error::invalid(why).about_path(source.path()));
    if source.stat().st_nlink != 1 {
        return refuse("has other names (hard links), or none");
    }
    Ok(match source.kind()? {
        Kind::Model => None,
        Kind::Archive => Some("is an archive".to_owned()),
        Kind::Unfit(why) => return refuse(&why),
        Kind::Other(what) => match source.content().incomplete()? {
            Some(why) => return refuse(&why),
            None => Some(format!("is not a model: {what}")),
        },
    })
}

fn too_little(source: &Source, stored: u64) -> String {
    format!("packing would save too little: about {stored} bytes of {} are left", source.len())
}

/// Write the archive of `source`.
fn write(
    source: &Source,
    output: &Output,
    o: &PrepareOptions<'_>,
    p: &dyn Progress,
) -> Result<Written> {
    let after = |read: u64, written: u64| {
        for (file, end) in [(source.file(), read), (output.file(), written)] {
            forget(file, end.saturating_sub(BEHIND)..end);
        }
        (o.between)()
    };
    let (naming, chunk_size) = (Naming::Appended, o.chunk_size);
    let (before, twins) = (o.between, o.twins);
    let bases = &Bases::default();
    let input = Input { source, naming, chunk_size, after: &after, before, twins, bases };
    let written = encode::archive(input, output, p)?;
    if !source.unchanged()? {
        return Err(Error::invalid("was renamed or removed meanwhile").about_path(source.path()));
    }
    Ok(written)
}

/// Give a written archive the attributes of `source`, sync it and verify it. Returns which of them
/// it could not be given, as the reason to do without it.
fn finish(
    source: &Source,
    output: &Output,
    o: &PrepareOptions<'_>,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<Option<String>> {
    let path = output.path();
    let attributes = source.attributes()?;
    let marked = o.mark.map(|mark| fsetxattr(output.file(), mark, b"", XattrFlags::empty()));
    if let Some(Err(e @ (Errno::NOSPC | Errno::DQUOT))) = marked {
        return Err(Error::from(e).about_path(&path));
    }
    let flags = fcntl_getfl(output.file()).about_path(&path)?;
    let lost = sync_and_check(output, &attributes, check, p)?;
    // A reader that goes around the page cache leaves the descriptor like that.
    fcntl_setfl(output.file(), flags).about_path(&path)?;
    forget(output.file(), 0..0);
    (o.between)()?;
    if lost.contains(&Lost::Space) {
        return Err(Error::from(Errno::NOSPC).about_path(&path));
    }
    if let Some(why) = Lost::message(&lost) {
        return Ok(Some(why));
    }
    // Reading the archive has moved its access time.
    attributes.apply_times(output.file()).about_path(&path)?;
    // Some file systems round times, or accept attributes and change them.
    let kept = Attributes::of(output.file()).about_path(&path)?.satisfy(&attributes);
    Ok((!kept).then(|| "could not keep its times or other attributes".to_owned()))
}

/// Let reading the file not move its access time, if its owner or root asks for that.
fn keep_access_time(file: &File) {
    let _ = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::NOATIME));
}

/// Drop the pages of a part of the file from the page cache, or of all of it if the part is empty.
/// Those that are not on disk yet are only sent there.
fn forget(file: &File, part: Range<u64>) {
    let len = NonZeroU64::new(part.end - part.start);
    let _ = fadvise(file, part.start, len, Advice::DontNeed);
}
