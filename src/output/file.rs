//! A file that appears whole or not at all: written without a name if possible, synced, then
//! linked.
//!
//! Nobody else can reach a file without a name, whatever they may do in its directory. If the file
//! system does not support unnamed files, the file is created exclusively under a temporary name.
//! Temporary files that exist are never used.

use super::{
    Attributes, Dir, Existing, FileId, Lost, copy, file_id, same_bytes,
    support::{is_unsupported, link_open, sync_file},
    temporary::{Temporary, fresh_name, unfinished},
};
use crate::error::{Context, Error, Result};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, renameat, unlinkat},
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    path::PathBuf,
    sync::Arc,
};

/// A file being written. If it is dropped before [`Output::commit`], nothing is left of it.
pub struct Output {
    file: File,
    dir: Arc<Dir>,
    name: OsString,
    /// Its temporary name, on file systems that need one.
    temporary: Option<Temporary>,
}

impl Output {
    /// Start writing the file `name` of `dir`.
    ///
    /// # Errors
    /// Io.
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

    /// The path that it will have, by which errors name it.
    pub fn path(&self) -> PathBuf {
        self.dir.path(&self.name)
    }

    /// The open file without a name: it is gone once it is closed.
    pub fn into_unnamed(self) -> File {
        self.file
    }

    /// Set the attributes and sync everything to disk; the file does not have its name yet. Returns
    /// the attributes that could not be kept.
    ///
    /// # Errors
    /// Io.
    pub fn sync(&self, attributes: &Attributes) -> Result<Vec<Lost>> {
        let lost = attributes.apply(&self.file).about_path(&self.path())?;
        sync_file(&self.file).about_path(&self.path())?;
        Ok(lost)
    }

    /// Give the file, which [`Output::sync`] has synced, its name: from now on it survives a crash.
    /// Returns its identity.
    ///
    /// # Errors
    /// Io, also if the name is taken; invalid argument if a file that is not regular has it.
    pub fn commit(mut self, existing: Existing) -> Result<FileId> {
        let id = self.link(existing)?;
        self.dir.sync()?;
        Ok(id)
    }

    /// The same, but the file survives a crash only once its directory is synced, too. Where
    /// unnamed files cannot be named, [`Output::file`] is a copy from now on, with an identity of
    /// its own.
    ///
    /// # Errors
    /// As [`Output::commit`].
    pub fn link(&mut self, existing: Existing) -> Result<FileId> {
        let path = self.path();
        if existing == Existing::Replace {
            self.refuse_irregular()?;
        }
        // Nothing is committed once the process is about to end.
        let unfinished = unfinished();
        let committed = match (&self.temporary, existing) {
            (None, Existing::Refuse) => self.link_as(&self.name),
            (None, Existing::Replace) => self.link_over(),
            (Some(temporary), _) => temporary.rename(&self.name, existing),
        };
        drop(unfinished);
        let committed = match committed {
            // Some file systems have unnamed files, but no way to name them.
            Err(e)
                if self.temporary.is_none()
                    && (is_unsupported(e) || matches!(e, Errno::NOENT | Errno::XDEV)) =>
            {
                return self.link_copy(existing);
            }
            other => other,
        };
        committed.about_path(&path)?;
        if let Some(temporary) = &mut self.temporary {
            temporary.forget();
        }
        // Anybody who can write to the directory may have replaced the file just now.
        let ours = fstat(&self.file).about_path(&path)?;
        if self.dir.stat(&self.name)?.is_none_or(|now| file_id(&now) != file_id(&ours)) {
            return Err(Error::invalid("was replaced by another file meanwhile").about_path(&path));
        }
        Ok(file_id(&ours))
    }

    fn refuse_irregular(&self) -> Result<()> {
        match self.dir.stat(&self.name)? {
            Some(stat) if !FileType::from_raw_mode(stat.st_mode).is_file() => {
                Err(Error::invalid("exists and is not a regular file; nothing was replaced")
                    .about_path(&self.path()))
            }
            _ => Ok(()),
        }
    }

    /// Link the unnamed file as `name`, which must be free.
    fn link_as(&self, name: &OsStr) -> Result<(), Errno> {
        link_open(&self.file, &self.dir, name)
    }

    /// Link the unnamed file, and rename it over the file that has its name.
    fn link_over(&self) -> Result<(), Errno> {
        let name = fresh_name();
        self.link_as(&name)?;
        let renamed = renameat(&self.dir, &name, &self.dir, &self.name);
        if renamed.is_err() {
            let _ = unlinkat(&self.dir, &name, AtFlags::empty());
        }
        renamed
    }

    /// Name a copy with a temporary name instead, after comparing all of it.
    fn link_copy(&mut self, existing: Existing) -> Result<FileId> {
        let path = self.path();
        let (file, temporary) = Temporary::create(&self.dir).about_path(&path)?;
        let (dir, name) = (Arc::clone(&self.dir), self.name.clone());
        let mut named = Self { file, dir, name, temporary: Some(temporary) };
        let attributes = Attributes::of(&self.file).about_path(&path)?;
        copy(&self.file, &named.file).about_path(&path)?;
        named.sync(&attributes)?;
        if !same_bytes(&self.file, &named.file).about_path(&path)? {
            return Err(Error::corrupt("the data read back differs from the data written")
                .about_path(&path));
        }
        // Reading has moved its access time.
        attributes.apply_times(&named.file).about_path(&path)?;
        let id = named.link(existing)?;
        *self = named;
        Ok(id)
    }
}

/// An unnamed file in `dir`; `None` if the file system does not support that.
pub(super) fn unnamed(dir: &Dir) -> Result<Option<File>, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(dir, ".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(Some(fd.into())),
        // Kernels that do not know the flag try to open the directory for writing.
        Err(e) if is_unsupported(e) || matches!(e, Errno::ISDIR | Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Call `make`, and once more if its name is taken: another run may have just created the same
/// file.
///
/// # Errors
/// Those of `make`.
pub fn retry_if_taken<T>(mut make: impl FnMut() -> Result<T>) -> Result<T> {
    match make() {
        Err(e) if e.errno() == Some(libc::EEXIST) => make(),
        other => other,
    }
}
