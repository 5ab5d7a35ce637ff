//! The file being packed: read by position, and watched for changes.

use super::{
    content::{Content, Kind},
    lease::{Lease, same_state},
};
use crate::{
    error::{Context, Error, Result},
    format::Footer,
    input,
    output::{Attributes, Dir, FileId, file_id, mtime},
};
use rustix::fs::{Stat, fstat};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

/// An open regular file, and its attributes when it was opened.
pub(super) struct Source {
    file: File,
    dir: Arc<Dir>,
    name: OsString,
    /// The path that messages name it by.
    path: PathBuf,
    stat: Stat,
    lease: Option<Lease>,
}

/// What has happened to a file since it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Since {
    Same,
    /// It no longer has its name.
    Gone,
    Changed,
}

impl Source {
    /// Open the file `name` of `dir`; a link is refused.
    pub(super) fn open(dir: &Arc<Dir>, name: &OsStr) -> Result<Self> {
        let (file, path) = (dir.open_file(name)?, dir.path(name));
        let stat = fstat(&file).about_path(&path)?;
        Ok(Self { file, dir: Arc::clone(dir), name: name.to_owned(), path, stat, lease: None })
    }

    /// Open the file at `path`; links are followed.
    pub(super) fn follow(path: &Path) -> Result<Self> {
        let file = input::open(path)?;
        let (dir, name) =
            fs::canonicalize(path).about_path(path).and_then(|real| Dir::of(&real))?;
        let stat = fstat(&file).about_path(path)?;
        if !dir.has(&name, file_id(&stat))? {
            return Err(Error::invalid("was removed meanwhile").about_path(path));
        }
        Ok(Self { file, dir, name, path: path.to_owned(), stat, lease: None })
    }

    /// The original of an archive, which was called `name` in `dir` and is unpacked to `file`;
    /// messages name it `path`.
    pub(super) fn unpacked(
        file: File,
        (dir, name, path): (&Arc<Dir>, OsString, &Path),
        footer: &Footer,
    ) -> Result<Self> {
        let mut stat = fstat(&file).about_path(path)?;
        stat.st_mode = stat.st_mode & !0o7777 | footer.mode;
        (stat.st_mtime, stat.st_mtime_nsec) = (footer.mtime.0, footer.mtime.1.into());
        let (dir, path) = (Arc::clone(dir), path.to_owned());
        Ok(Self { file, dir, name, path, stat, lease: None })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The path that messages name it by.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    pub(super) fn id(&self) -> FileId {
        file_id(&self.stat)
    }

    pub(super) fn attributes(&self) -> Result<Attributes> {
        Attributes::of(&self.file).about_path(&self.path)
    }

    pub(super) fn len(&self) -> u64 {
        self.stat.st_size as u64
    }

    /// Make sure that until this is dropped, nobody can write to the file, or that
    /// [`Source::since`] detects it.
    ///
    /// # Errors
    /// Invalid argument if somebody may be writing to it.
    pub(super) fn keep_writers_out(&mut self) -> Result<()> {
        self.lease = Some(Lease::take(&self.file, &self.path)?);
        self.stat = fstat(&self.file).about_path(&self.path)?;
        Ok(())
    }

    /// What is in the file.
    pub(super) fn content(&self) -> Content<'_> {
        let place = Some((&*self.dir, &*self.name));
        Content { file: &self.file, path: &self.path, len: self.len(), place }
    }

    /// What the file is, by its content and its name.
    pub(super) fn kind(&self) -> Result<Kind> {
        self.content().kind(&self.name)
    }

    /// Read `len` bytes at `start`; `out` is resized to hold them.
    pub(super) fn read(&self, start: u64, out: &mut Vec<u8>, len: usize) -> Result<()> {
        if let Some(lease) = &self.lease {
            lease.check_quickly()?;
        }
        self.content().read(start, out, len)
    }

    /// What has happened to the file and its name.
    pub(super) fn since(&self) -> Result<Since> {
        let Some(named) = self.dir.stat(&self.name)? else { return Ok(Since::Gone) };
        let now = fstat(&self.file).about_path(&self.path)?;
        let same = same_state(&now, &self.stat) && same_state(&named, &self.stat);
        Ok(match same {
            true => Since::Same,
            // Losing its name between the two looks changes a file, too.
            false if self.dir.stat(&self.name)?.is_none() => Since::Gone,
            false => Since::Changed,
        })
    }

    /// Check that the file is unchanged; returns whether it still has its name.
    ///
    /// # Errors
    /// Invalid argument if it has changed, or if somebody can write to it.
    pub(super) fn unchanged(&self) -> Result<bool> {
        // First: a writer that is gone by now is detected below.
        self.lease.as_ref().map_or(Ok(()), Lease::check)?;
        match self.since()? {
            Since::Gone => return Ok(false),
            Since::Same => {}
            Since::Changed => {
                let why = "changed while it was being packed; nothing was replaced";
                return Err(Error::invalid(why).about_path(&self.path));
            }
        }
        Ok(true)
    }

    /// The same as [`Source::unchanged`] for a file that is being renamed or unlinked, which
    /// changes its ctime.
    ///
    /// # Errors
    /// Invalid argument if its bytes have changed, or if somebody can write to it.
    pub(super) fn keeps_its_bytes(&self) -> Result<()> {
        self.lease.as_ref().map_or(Ok(()), Lease::check)?;
        let now = fstat(&self.file).about_path(&self.path)?;
        if (now.st_size, mtime(&now)) != (self.stat.st_size, mtime(&self.stat)) {
            let why = "changed while it was being packed";
            return Err(Error::invalid(why).about_path(&self.path));
        }
        Ok(())
    }
}
