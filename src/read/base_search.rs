//! Where the bases of an archive are looked for: beside it, and in directories that the user names.

use super::bases::missing;
#[cfg(feature = "mount")]
use crate::error::Context;
use crate::{
    error::{Error, Result},
    escape,
    format::{Base, Naming, is_pin, peek},
    input,
};
use rustix::fs::{Dir, Mode, OFlags, Stat, open, openat};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// Most archives of a directory whose footers are read to find a base by its content.
const MAX_SCAN: usize = 4096;
/// The directories of this variable are searched, too. They are separated by colons.
const VARIABLE: &str = "BSZ_BASES";

/// Replaces [`VARIABLE`].
static DIRECTORIES: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Look for bases in these directories, too, instead of those of the environment variable
/// `BSZ_BASES`. This can be done once per process.
pub fn look_for_bases_in(directories: Vec<PathBuf>) {
    // The first one stays.
    let _ = DIRECTORIES.set(directories);
}

/// The directories that the user names.
pub(crate) fn named_directories() -> Vec<PathBuf> {
    let of_variable = || {
        let value = std::env::var_os(VARIABLE).unwrap_or_default();
        std::env::split_paths(&value).filter(|dir| !dir.as_os_str().is_empty()).collect()
    };
    DIRECTORIES.get().cloned().unwrap_or_else(of_variable)
}

/// A directory to search.
#[derive(Clone)]
pub(crate) struct SearchDir {
    /// How messages call it.
    path: PathBuf,
    /// The directory, if it is open; else it is opened by its path.
    opened: Option<Arc<OwnedFd>>,
    /// Whether symbolic links in it are followed.
    follows: bool,
}

impl SearchDir {
    /// The directory at `path`, whatever that is when it is searched.
    pub(crate) fn at(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { path, opened: None, follows: true }
    }

    /// An open directory, in which symbolic links are not followed.
    #[cfg(feature = "mount")]
    pub(crate) fn opened(dir: OwnedFd, path: &Path) -> Self {
        Self { path: path.to_owned(), opened: Some(Arc::new(dir)), follows: false }
    }

    /// Open it now, so that it stays this one whatever is mounted over it.
    ///
    /// # Errors
    /// Io.
    #[cfg(feature = "mount")]
    pub(crate) fn open_now(self) -> Result<Self> {
        let opened = Some(self.dir().about_path(&self.path)?);
        Ok(Self { opened, ..self })
    }

    fn dir(&self) -> Result<Arc<OwnedFd>> {
        match &self.opened {
            Some(dir) => Ok(Arc::clone(dir)),
            None => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                Ok(Arc::new(open(&self.path, flags, Mode::empty())?))
            }
        }
    }
}

/// A file that may be a base, and its path for messages.
pub(crate) struct Candidate {
    pub(crate) file: File,
    #[cfg_attr(not(feature = "mount"), allow(dead_code))]
    pub(crate) stat: Stat,
    pub(crate) path: PathBuf,
    /// Whether it is an archive whose footer says that it is the base. Else it is a plain file of
    /// the right name and length.
    pub(crate) is_archive: bool,
}

/// One search for a base.
pub(crate) struct Search<'a, T> {
    base: &'a Base,
    /// Whether plain files count.
    with_plain: bool,
    /// Makes something of a candidate. If it fails, the search goes on.
    accept: &'a dyn Fn(Candidate) -> Result<T>,
    /// The first reason why a file that could have been the base is not.
    refused: Option<String>,
}

impl<'a, T> Search<'a, T> {
    pub(crate) fn new(
        base: &'a Base,
        with_plain: bool,
        accept: &'a dyn Fn(Candidate) -> Result<T>,
    ) -> Self {
        Self { base, with_plain, accept, refused: None }
    }

    /// Search these directories in order.
    ///
    /// # Errors
    /// Io, if the base is in none of them.
    pub(crate) fn run(mut self, dirs: &[SearchDir]) -> Result<T> {
        for dir in dirs {
            match dir.dir() {
                Ok(opened) => {
                    if let Some(found) = self.directory(dir, &opened) {
                        return Ok(found);
                    }
                }
                Err(e) => self.note(&dir.path, &e.to_string()),
            }
        }
        Err(self.missing(dirs))
    }

    fn directory(&mut self, dir: &SearchDir, opened: &OwnedFd) -> Option<T> {
        let (name, names) = (OsStr::new(&self.base.name), archive_names(self.base));
        for name in &names {
            if let Some(found) = self.archive(dir, opened, name, true) {
                return Some(found);
            }
        }
        if self.with_plain
            && let Some(found) = self.plain(dir, opened, name)
        {
            return Some(found);
        }
        let others = archives(opened).unwrap_or_else(|e| {
            self.note(&dir.path, &e.to_string());
            Vec::new()
        });
        let others = others.iter().filter(|other| !names.contains(other));
        others.take(MAX_SCAN).find_map(|other| self.archive(dir, opened, other, false))
    }

    /// What is made of the archive `name`, if it is one of the base. `expected`: by its name, it
    /// should be.
    fn archive(
        &mut self,
        dir: &SearchDir,
        opened: &OwnedFd,
        name: &OsStr,
        expected: bool,
    ) -> Option<T> {
        let path = dir.path.join(name);
        let (file, stat) = self.open(dir, opened, name, expected)?;
        match peek(&file) {
            Ok(Some(footer)) => {
                let is_base =
                    (footer.sha256, footer.original_len) == (self.base.sha256, self.base.len);
                if !is_base {
                    self.note_if(expected, &path, "is the archive of another file");
                    return None;
                }
            }
            Ok(None) => {
                self.note_if(expected, &path, "is no archive");
                return None;
            }
            Err(e) => {
                self.note_if(expected, &path, &e.detail());
                return None;
            }
        }
        self.accept(Candidate { file, stat, path, is_archive: true })
    }

    fn plain(&mut self, dir: &SearchDir, opened: &OwnedFd, name: &OsStr) -> Option<T> {
        let path = dir.path.join(name);
        let (file, stat) = self.open(dir, opened, name, true)?;
        if u64::try_from(stat.st_size) != Ok(self.base.len) {
            let why = format!("has {} bytes instead of {}", stat.st_size, self.base.len);
            self.note(&path, &why);
            return None;
        }
        self.accept(Candidate { file, stat, path, is_archive: false })
    }

    fn accept(&mut self, candidate: Candidate) -> Option<T> {
        let path = candidate.path.clone();
        (self.accept)(candidate).map_err(|e| self.note(&path, &e.detail())).ok()
    }

    /// The regular file `name`. Why it cannot be opened is noted if it is there and `expected`.
    fn open(
        &mut self,
        dir: &SearchDir,
        opened: &OwnedFd,
        name: &OsStr,
        expected: bool,
    ) -> Option<(File, Stat)> {
        let flags = if dir.follows { OFlags::empty() } else { OFlags::NOFOLLOW };
        let file = input::open_at(opened, Path::new(name), flags);
        file.map_err(|e| {
            let is_there = !matches!(e.errno(), Some(libc::ENOENT | libc::ENAMETOOLONG));
            self.note_if(expected && is_there, &dir.path.join(name), &e.detail());
        })
        .ok()
    }

    fn note_if(&mut self, condition: bool, path: &Path, why: &str) {
        if condition {
            self.note(path, why);
        }
    }

    fn note(&mut self, path: &Path, why: &str) {
        self.refused.get_or_insert_with(|| format!("{}: {why}", escape::path(path)));
    }

    fn missing(self, dirs: &[SearchDir]) -> Error {
        let places: Vec<_> = dirs.iter().map(|dir| escape::path(&dir.path)).collect();
        let places = if places.is_empty() { "no directory".into() } else { places.join(", ") };
        let refused = self.refused.map(|why| format!(" ({why})")).unwrap_or_default();
        let why = format!(
            "is not in {places}{refused}: bring it or its archive there, or name its directory \
             with --bases or in {VARIABLE}"
        );
        missing(self.base, why)
    }
}

/// The names that the archive of a base should have.
pub(super) fn archive_names(base: &Base) -> Vec<OsString> {
    let name = OsStr::new(&base.name);
    let mut names = vec![OsString::from(base.pin_name())];
    names.extend([Naming::of(name), Naming::Appended].map(|naming| naming.archive_name(name)));
    names.dedup();
    names
}

/// The names of possible archives in a directory, without the pins of bases, which have been tried.
fn archives(dir: impl AsFd) -> Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::new(openat(dir, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name.as_bytes().ends_with(b".bsz") && !is_pin(name) {
            names.push(name.to_owned());
        }
    }
    // So that each run finds the same one.
    names.sort();
    Ok(names)
}
