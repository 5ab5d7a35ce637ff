//! Copying a tree: files, symbolic and hard links, and the attributes of directories.

use super::{
    Attributes, Dir, Existing, FileId, Lost, Output, copy, file_id, retry_if_taken, same_bytes,
};
use crate::error::{Context, Error, Result};
use rustix::fs::{FileType, Stat, fstat};
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Copies files of one tree to another. Hard links to one file stay hard links to one file.
pub struct Copier {
    to: Arc<Dir>,
    force: bool,
    /// Whether the files of other owners keep all permissions.
    trust: bool,
    /// Where the first name of each file with hard links went, by file and form.
    written: HashMap<(FileId, Form), (PathBuf, OsString)>,
}

/// The form in which a file is written: names of different forms cannot be hard links of one file.
pub type Form = u8;

/// The place of a file in the new tree.
pub struct Place<'a> {
    /// Its directory.
    pub dir: &'a Arc<Dir>,
    /// The path of the directory, relative to the root.
    pub at: &'a Path,
    /// Its name.
    pub name: &'a OsStr,
}

/// Whether a file or link had to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It was made.
    Made,
    /// An earlier run made it.
    AlreadyThere,
}

impl Copier {
    /// Copy to the tree at `to`; `force` replaces existing files and links. Without `trust`, the
    /// files of other owners lose [what could do harm](Attributes::distrust_others).
    pub fn new(to: Arc<Dir>, force: bool, trust: bool) -> Self {
        Self { to, force, trust, written: HashMap::new() }
    }

    fn attributes(&self, of: impl AsFd) -> rustix::io::Result<Attributes> {
        let mut attributes = Attributes::of(of)?;
        if !self.trust {
            attributes.distrust_others();
        }
        Ok(attributes)
    }

    /// Copy the bytes and attributes of `from`, which messages name `path`. Returns the attributes
    /// that could not be kept.
    ///
    /// # Errors
    /// Io; invalid argument if something else has the name.
    pub fn file(&self, from: &File, path: &Path, to: &Place<'_>) -> Result<(Copied, Vec<Lost>)> {
        retry_if_taken(|| self.file_once(from, path, to))
    }

    fn file_once(&self, from: &File, path: &Path, to: &Place<'_>) -> Result<(Copied, Vec<Lost>)> {
        let Place { dir, name, .. } = to;
        let out = dir.path(name);
        if let Some(existing) = dir.stat(name)? {
            if is(&existing, FileType::RegularFile)
                && same_bytes(from, &dir.open_file(name)?).about_path(&out)?
            {
                return Ok((Copied::AlreadyThere, Vec::new()));
            }
            if !self.force {
                return Err(in_the_way(&out));
            }
        }
        let before = fstat(from).about_path(path)?;
        let output = Output::create(dir, name)?;
        copy(from, output.file()).about_path(&out)?;
        let lost = output.sync(&self.attributes(from).about_path(path)?)?;
        let now = fstat(from).about_path(path)?;
        let state =
            |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
        if state(&before) != state(&now) {
            return Err(Error::invalid("changed while it was being copied").about_path(path));
        }
        output.commit(if self.force { Existing::Replace } else { Existing::Refuse })?;
        Ok((Copied::Made, lost))
    }

    /// Link a further name of a file to its first one, if that was written in this form. Returns
    /// whether the name is linked.
    ///
    /// # Errors
    /// Io.
    pub fn link_again(&self, file: &Stat, form: Form, to: &Place<'_>) -> Result<bool> {
        let Some((at, first)) = self.written.get(&(file_id(file), form)) else { return Ok(false) };
        let dir = self.to.descend(at)?;
        let id =
            |dir: &Dir, name: &OsStr| dir.stat(name).map(|stat| stat.map(|stat| file_id(&stat)));
        match dir.link(first, to.dir, to.name) {
            Ok(()) => to.dir.sync().map(|()| true),
            Err(e) if e.errno() == Some(libc::EEXIST) => {
                Ok(id(&dir, first)? == id(to.dir, to.name)?)
            }
            // The file system has no hard links, or the file has the maximum already.
            Err(e) => {
                log::debug!("{e}");
                Ok(false)
            }
        }
    }

    /// Record that a file was written in this form: its further names will be linked to it.
    pub fn wrote(&mut self, file: &Stat, form: Form, to: &Place<'_>) {
        if file.st_nlink > 1 {
            let place = || (to.at.to_owned(), to.name.to_owned());
            self.written.entry((file_id(file), form)).or_insert_with(place);
        }
    }

    /// Create a symbolic link to `target`.
    ///
    /// # Errors
    /// Io; invalid argument if something else has the name.
    pub fn symlink(&self, target: &OsStr, dir: &Dir, name: &OsStr) -> Result<Copied> {
        match dir.stat(name)? {
            None => match dir.symlink(target, name) {
                // Another run has just created it.
                Err(e) if e.errno() == Some(libc::EEXIST) && dir.read_link(name)? == target => {}
                made => made?,
            },
            Some(s) if !is(&s, FileType::Symlink) => return Err(in_the_way(&dir.path(name))),
            Some(_) if dir.read_link(name)? == target => return Ok(Copied::AlreadyThere),
            Some(_) if self.force => dir.replace_symlink(target, name)?,
            Some(_) => return Err(in_the_way(&dir.path(name))),
        }
        Ok(Copied::Made)
    }

    /// Give a complete directory the attributes of its original. Returns those that could not be
    /// kept.
    ///
    /// # Errors
    /// Io.
    pub fn finish_directory(&self, from: &Dir, to: &Dir) -> Result<Vec<Lost>> {
        let path = from.own_path();
        to.mark_finished();
        let lost =
            self.attributes(from).and_then(|attributes| attributes.apply(to)).about_path(path)?;
        to.sync().map(|()| lost)
    }
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

fn in_the_way(path: &Path) -> Error {
    Error::invalid("exists and differs; remove it or use --force").about_path(path)
}
