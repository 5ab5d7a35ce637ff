//! A tree made again elsewhere: files copied, links linked, directories with what they had.

use super::{Attributes, Dir, Existing, FileId, Output, again_if_taken, copy, file_id, same_bytes};
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

/// Makes files of one tree again in another. Names that are one file (hard links) are one file there, too.
pub struct Copier {
    to: Arc<Dir>,
    force: bool,
    /// Whether files of other owners keep all permissions.
    trust: bool,
    /// Where the first name of a file with several went, by file and form.
    written: HashMap<(FileId, Form), (PathBuf, OsString)>,
}

/// In which form a file is written again: a name of one form cannot be linked to one of another.
pub type Form = u8;

/// A file's place in the new tree.
pub struct Place<'a> {
    /// Its directory.
    pub dir: &'a Arc<Dir>,
    /// The same, relative to the root.
    pub at: &'a Path,
    /// Its name.
    pub name: &'a OsStr,
}

/// How something came to be where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It was made.
    Made,
    /// It was there.
    AlreadyThere,
}

impl Copier {
    /// Copy to the tree at `to`; with `force`, files and links that are there are replaced. Without `trust`, what belongs to
    /// others does not keep [what could do harm](Attributes::distrust_others).
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

    /// Copy the bytes and attributes of `from`, which messages call `path`. Returns the attributes that could not be kept.
    ///
    /// # Errors
    /// Io; invalid argument, where something else is there.
    pub fn file(&self, from: &File, path: &Path, to: &Place<'_>) -> Result<(Copied, Vec<String>)> {
        again_if_taken(|| self.file_once(from, path, to))
    }

    fn file_once(&self, from: &File, path: &Path, to: &Place<'_>) -> Result<(Copied, Vec<String>)> {
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
            return Err(
                Error::invalid("the file changed while it was being copied").about_path(path)
            );
        }
        output.commit(if self.force { Existing::Replace } else { Existing::Refuse })?;
        Ok((Copied::Made, lost))
    }

    /// Give a file the name that it has further, if its first name was written in this form; whether it has it now.
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
            // No hard links here, or no more of them.
            Err(e) => {
                log::debug!("{e}");
                Ok(false)
            }
        }
    }

    /// A file was written in this form: its further names are linked to it.
    pub fn wrote(&mut self, file: &Stat, form: Form, to: &Place<'_>) {
        if file.st_nlink > 1 {
            let place = || (to.at.to_owned(), to.name.to_owned());
            self.written.entry((file_id(file), form)).or_insert_with(place);
        }
    }

    /// Make a symbolic link to `target`.
    ///
    /// # Errors
    /// Io; invalid argument, where something else is there.
    pub fn symlink(&self, target: &OsStr, dir: &Dir, name: &OsStr) -> Result<Copied> {
        match dir.stat(name)? {
            None => match dir.symlink(target, name) {
                // Another run has just made it.
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

    /// Give a directory that is filled what its original has besides entries. Returns what could not be kept.
    ///
    /// # Errors
    /// Io.
    pub fn finish_directory(&self, from: &Dir, to: &Dir) -> Result<Vec<String>> {
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
    Error::invalid("exists and is something else; remove it or use --force").about_path(path)
}

/// What is worth telling of the attributes that a copy could not keep. A copy belongs to whoever makes it, unless that is
/// root.
pub fn worth_telling(mut lost: Vec<String>) -> Option<String> {
    lost.retain(|what| what != "owner" && what != "group");
    (!lost.is_empty()).then(|| could_not_keep(&lost))
}

/// That these attributes could not be kept, in words.
pub fn could_not_keep(lost: &[String]) -> String {
    format!("could not keep its {}", lost.join(", "))
}
