//! A file that appears whole or not at all: written without a name where that can be had, synced, then linked.
//!
//! Whoever can write to the directory cannot reach a file that has no name. Where the file system has no such files
//! it is made under a fresh name, exclusively; a temporary file that is found is never used.

mod acl;
mod attributes;
mod copier;
mod copy;
mod dir;

pub use attributes::{Attributes, mtime};
pub use copier::{Copied, Copier, Form, Place, could_not_keep, worth_telling};
pub use copy::{copy, same_bytes, sha256, write_sparse};
pub use dir::{Dir, DirEntry, FileId, file_id};

use crate::error::{Context, Error, Result};
use dir::is_missing;
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, fstat, linkat, openat, renameat,
        renameat_with, statat, unlinkat,
    },
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// How temporary names end; they start with a dot.
const SUFFIX: &str = ".bsz-partial";

/// The temporary names of the files being written by this process.
static UNFINISHED: Mutex<Vec<(Arc<Dir>, OsString)>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<(Arc<Dir>, OsString)>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remove what is being written, for a process that is about to end: nothing is begun or finished afterwards.
pub fn abandon() {
    let unfinished = unfinished();
    for (dir, name) in &*unfinished {
        let _ = unlinkat(dir, name, AtFlags::empty());
    }
    std::mem::forget(unfinished);
}

/// Whether `name` is one that a file has only while it is written.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(SUFFIX.as_bytes())
}

/// What may stand at a file's name when it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing; an entry that is there is an error.
    Refuse,
    /// A regular file, which goes.
    Replace,
}

/// A file being written. Dropped before [`Output::commit`], it leaves nothing.
pub struct Output {
    file: File,
    dir: Arc<Dir>,
    name: OsString,
    /// Its name while it is written, where it has one.
    temporary: Option<Temporary>,
}

impl Output {
    /// Start writing the file `name` of `dir`.
    ///
    /// # Errors
    /// Io, where the directory cannot be written.
    pub fn create(dir: &Arc<Dir>, name: &OsStr) -> Result<Self> {
        let (file, temporary) = match unnamed(dir) {
            Ok(Some(file)) => (file, None),
            Ok(None) => Temporary::create(dir)
                .map(|(file, t)| (file, Some(t)))
                .about_path(&dir.path(name))?,
            Err(e) => return Err(e).about_path(&dir.path(name)),
        };
        Ok(Self { file, dir: Arc::clone(dir), name: name.to_owned(), temporary })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it is to have, by which errors name it.
    pub fn path(&self) -> PathBuf {
        self.dir.path(&self.name)
    }

    /// The open file, which nobody keeps: it is gone when it is closed.
    pub fn into_unnamed(self) -> File {
        self.file
    }

    /// Set the attributes and bring bytes and attributes to the disk; the file still has no name of its own. Returns what
    /// could not be kept of the attributes.
    ///
    /// # Errors
    /// Io.
    pub fn sync(&self, attributes: &Attributes) -> Result<Vec<String>> {
        let lost = attributes.apply(&self.file).about_path(&self.path())?;
        sync_file(&self.file).about_path(&self.path())?;
        Ok(lost)
    }

    /// Give the file its name; afterwards it survives a crash. [`Output::sync`] comes first. Returns which file it is.
    ///
    /// # Errors
    /// Io, among them that the name is taken; invalid argument, where what has it is no regular file.
    pub fn commit(mut self, existing: Existing) -> Result<FileId> {
        let path = self.path();
        if existing == Existing::Replace {
            self.refuse_irregular()?;
        }
        // Nothing is committed once the process is about to end.
        let unfinished = unfinished();
        let committed = match (self.temporary.take(), existing) {
            (None, Existing::Refuse) => self.link(&self.name),
            (None, Existing::Replace) => self.link_over(),
            (Some(temporary), _) => {
                let renamed = temporary.rename(&self.name, existing);
                self.temporary = Some(temporary);
                renamed
            }
        };
        drop(unfinished);
        let committed = match committed {
            // There are files without a name, and then no way to give them one.
            Err(e)
                if self.temporary.is_none()
                    && (is_missing(e) || matches!(e, Errno::NOENT | Errno::XDEV)) =>
            {
                return self.commit_copy(existing);
            }
            other => other,
        };
        committed.about_path(&path)?;
        if let Some(temporary) = &mut self.temporary {
            temporary.forget();
        }
        // Whoever can write to the directory may have put another file in the way of a rename.
        let ours = fstat(&self.file).about_path(&path)?;
        if self.dir.stat(&self.name)?.is_none_or(|now| file_id(&now) != file_id(&ours)) {
            return Err(Error::invalid("another file has taken its name").about_path(&path));
        }
        self.dir.sync()?;
        Ok(file_id(&ours))
    }

    fn refuse_irregular(&self) -> Result<()> {
        match self.dir.stat(&self.name)? {
            Some(stat) if !FileType::from_raw_mode(stat.st_mode).is_file() => {
                Err(Error::invalid("is there and is not a regular file; nothing was replaced")
                    .about_path(&self.path()))
            }
            _ => Ok(()),
        }
    }

    /// Link the file that has no name to `name`, where there must be none.
    fn link(&self, name: &OsStr) -> Result<(), Errno> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match linkat(CWD, own, &self.dir, name, AtFlags::SYMLINK_FOLLOW) {
            // Without /proc; kernels before 6.10 let only some users do this.
            Err(Errno::NOENT) => linkat(&self.file, "", &self.dir, name, AtFlags::EMPTY_PATH),
            other => other,
        }
    }

    /// Link the file that has no name, and rename it over what has its name.
    fn link_over(&self) -> Result<(), Errno> {
        let name = fresh_name();
        self.link(&name)?;
        let renamed = renameat(&self.dir, &name, &self.dir, &self.name);
        if renamed.is_err() {
            let _ = unlinkat(&self.dir, &name, AtFlags::empty());
        }
        renamed
    }

    /// Commit a copy that has a temporary name, after comparing all of it.
    fn commit_copy(self, existing: Existing) -> Result<FileId> {
        let path = self.path();
        let (file, temporary) = Temporary::create(&self.dir).about_path(&path)?;
        let named = Self { file, dir: self.dir, name: self.name, temporary: Some(temporary) };
        copy(&self.file, &named.file).about_path(&path)?;
        let attributes = Attributes::of(&self.file).about_path(&path)?;
        named.sync(&attributes)?;
        if !same_bytes(&self.file, &named.file).about_path(&path)? {
            return Err(
                Error::corrupt("what was written is not what is read back").about_path(&path)
            );
        }
        named.commit(existing)
    }
}

/// A file without a name in `dir`; `None` where there are none on its file system.
fn unnamed(dir: &Dir) -> Result<Option<File>, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(dir, ".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(Some(fd.into())),
        // A kernel that does not know the flag opens the directory, and may not.
        Err(e) if is_missing(e) || matches!(e, Errno::ISDIR | Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A temporary name, removed when dropped unless it was forgotten.
struct Temporary {
    dir: Arc<Dir>,
    name: OsString,
}

impl Temporary {
    /// Make a file that was not there.
    fn create(dir: &Arc<Dir>) -> Result<(File, Self), Errno> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let name = fresh_name();
            let mut unfinished = unfinished();
            match openat(dir, &name, flags, Mode::RUSR | Mode::WUSR) {
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
                Ok(fd) => {
                    unfinished.push((Arc::clone(dir), name.clone()));
                    return Ok((fd.into(), Self { dir: Arc::clone(dir), name }));
                }
            }
        }
    }

    fn rename(&self, to: &OsStr, existing: Existing) -> Result<(), Errno> {
        let dir = &self.dir;
        if existing == Existing::Replace {
            return renameat(dir, &self.name, dir, to);
        }
        rename_to_free(dir, &self.name, to)
    }

    /// It is the file's own name no longer.
    fn forget(&mut self) {
        let name = std::mem::take(&mut self.name);
        unfinished().retain(|(dir, other)| !(Arc::ptr_eq(dir, &self.dir) && *other == name));
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = unlinkat(&self.dir, &self.name, AtFlags::empty());
            self.forget();
        }
    }
}

/// Make something, and once more where its name was taken meanwhile: by another run, which has just made it.
///
/// # Errors
/// Those of `make`.
pub fn again_if_taken<T>(mut make: impl FnMut() -> Result<T>) -> Result<T> {
    match make() {
        Err(e) if e.errno() == Some(libc::EEXIST) => make(),
        other => other,
    }
}

/// Rename a file of a directory to a name that nothing has.
fn rename_to_free(dir: &Dir, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
    match renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
        Err(e) if is_missing(e) => {}
        other => return other,
    }
    // A link does not replace anything, either.
    match linkat(dir, from, dir, to, AtFlags::empty()) {
        Ok(()) => {
            let _ = unlinkat(dir, from, AtFlags::empty());
            return Ok(());
        }
        Err(e) if is_missing(e) || e == Errno::MLINK => {}
        Err(e) => return Err(e),
    }
    match statat(dir, to, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => renameat(dir, from, dir, to),
        Err(e) => Err(e),
    }
}

/// A temporary name that nothing is likely to have.
fn fresh_name() -> OsString {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |t| t.as_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".{:x}-{count:x}-{:x}{SUFFIX}", std::process::id(), nanos as u64).into()
}

/// Bring a file to the disk.
///
/// # Errors
/// Whatever says that the disk fails, not that the file system does not offer it.
pub fn sync_file(file: &File) -> Result<(), Errno> {
    match rustix::fs::fsync(file) {
        Err(e) if is_missing(e) => match rustix::fs::syncfs(file) {
            Err(e) if is_missing(e) => Ok(()),
            other => other,
        },
        other => other,
    }
}
