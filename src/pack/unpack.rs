//! One archive to the file it was made from.

use super::{Action, FileReport, OpenArchive, Opener, Progress, Task, UnpackOptions};
use crate::{
    error::{Context, Error, Result},
    format::{FOOTER_LEN, Footer},
    input,
    output::{Attributes, Dir, Existing, Lost, Output, file_id, retry_if_taken, sha256},
};
use rustix::fs::{FileType, fstat};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Unpack the archive `src` to the file `out`, or under its original name: in the directory `out`,
/// or beside `src`.
///
/// # Errors
/// Io, corruption; invalid argument if `src` is not an archive, or if the output exists and
/// differs.
pub fn unpack_file(
    src: &Path,
    out: Option<&Path>,
    o: UnpackOptions,
    open: Opener<'_>,
    p: &dyn Progress,
) -> Result<FileReport> {
    let archive = open(input::open(src)?, src).about_path(src)?;
    let beside = src.parent().unwrap_or(Path::new(""));
    let (dir, name) = unpacked_at(archive.footer(), src, out, beside)?;
    unpack_archive(&*archive, src, (&dir, &name), o, p)
}

/// Unpack an open archive, which messages name `path`, to the file `name` of `dir`.
///
/// # Errors
/// As [`unpack_file`].
pub fn unpack_archive(
    archive: &dyn OpenArchive,
    path: &Path,
    (dir, name): (&Arc<Dir>, &OsStr),
    o: UnpackOptions,
    p: &dyn Progress,
) -> Result<FileReport> {
    Unpacker { o, p }.run(archive, path, dir, name)
}

/// Where the archive at `path` is unpacked to: `out`, or its original name in the directory `out`
/// or, if none is given, in `beside`.
///
/// # Errors
/// Io; invalid argument if the name of the archive does not tell that of the original.
pub fn unpacked_at(
    footer: &Footer,
    path: &Path,
    out: Option<&Path>,
    beside: &Path,
) -> Result<(Arc<Dir>, OsString)> {
    Dir::of(&match out {
        Some(out) if out.is_dir() => out.join(original_name(footer, path)?),
        Some(out) => out.to_owned(),
        None => beside.join(original_name(footer, path)?),
    })
}

/// The name of the file that the archive at `path` was made from.
///
/// # Errors
/// Invalid argument if the name of the archive does not tell it.
pub fn original_name(footer: &Footer, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| footer.naming.original_name(name));
    name.map(PathBuf::from)
        .ok_or_else(|| Error::invalid("its name does not end in .bsz").about_path(path))
}

/// How archives are unpacked.
#[derive(Clone, Copy)]
pub(super) struct Unpacker<'a> {
    pub(super) o: UnpackOptions,
    pub(super) p: &'a dyn Progress,
}

/// What has the name of the file that is to be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Nothing,
    /// A file of the same bytes.
    Same,
    Other,
}

impl Unpacker<'_> {
    /// Unpack the archive at `path` to the file `name` of `out`.
    pub(super) fn run(
        self,
        archive: &dyn OpenArchive,
        path: &Path,
        out: &Arc<Dir>,
        name: &OsStr,
    ) -> Result<FileReport> {
        let footer = archive.footer();
        self.p.begin(path, Task::Unpack, footer.original_len);
        let action = retry_if_taken(|| match occupant(out, name, archive)? {
            Occupant::Same => Ok(Action::AlreadyDone),
            Occupant::Other if !self.o.force => {
                let why = "exists and differs; remove it or use --force";
                Err(Error::invalid(why).about_path(&out.path(name)))
            }
            Occupant::Nothing | Occupant::Other => {
                self.write(archive, path, out, name).map(|()| Action::Unpacked)
            }
        })?;
        let report = FileReport {
            path: path.to_owned(),
            output: out.path(name),
            original: footer.original_len,
            stored: footer.index_offset + footer.index_len + FOOTER_LEN,
            action,
        };
        self.p.end(&report);
        Ok(report)
    }

    fn write(
        self,
        archive: &dyn OpenArchive,
        path: &Path,
        out: &Arc<Dir>,
        name: &OsStr,
    ) -> Result<()> {
        let output = Output::create(out, name)?;
        archive.unpack(output.file(), &out.path(name), self.p).about_path(path)?;
        let lost = output.sync(&self.attributes(archive, path, output.file())?)?;
        output.commit(if self.o.force { Existing::Replace } else { Existing::Refuse })?;
        if let Some(message) = Lost::message_for_copy(lost) {
            self.p.warn(path, &message);
        }
        Ok(())
    }

    /// The attributes of the archive, with no more permissions than the original had. The file
    /// `new` belongs to the caller; so do those from another machine.
    fn attributes(self, archive: &dyn OpenArchive, path: &Path, new: &File) -> Result<Attributes> {
        let footer = archive.footer();
        let Some(file) = archive.file() else {
            let mut own = Attributes::of(new).about_path(path)?;
            (own.mode, own.mtime) = (footer.mode & 0o775, footer.mtime);
            return Ok(own);
        };
        let mut attributes = Attributes::of(file).about_path(path)?;
        attributes.narrow(footer.mode);
        attributes.mtime = footer.mtime;
        if !self.o.trust {
            attributes.distrust_others();
        }
        Ok(attributes)
    }
}

fn occupant(out: &Dir, name: &OsStr, archive: &dyn OpenArchive) -> Result<Occupant> {
    let footer = archive.footer();
    let Some(stat) = out.stat(name)? else { return Ok(Occupant::Nothing) };
    if let Some(file) = archive.file()
        && file_id(&stat) == file_id(&fstat(file).about_path(&out.path(name))?)
    {
        return Err(Error::invalid("is the archive itself").about_path(&out.path(name)));
    }
    let alike = FileType::from_raw_mode(stat.st_mode).is_file()
        && stat.st_size as u64 == footer.original_len;
    let same = alike && sha256(&out.open_file(name)?, &out.path(name))? == footer.sha256;
    Ok(if same { Occupant::Same } else { Occupant::Other })
}
