//! A file that appears whole or not at all: written under a temporary name, synced, renamed.

use crate::error::{Context, Error, Result};
use rustix::fs::{FlockOperation, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What is added to a name while the file is written.
const SUFFIX: &str = ".bsz-partial";

/// The temporary paths of the files being written by this process.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remove what is being written, for a process that is about to end: nothing is begun or finished afterwards.
pub fn abandon() {
    let unfinished = unfinished();
    for temporary in &*unfinished {
        let _ = fs::remove_file(temporary);
    }
    std::mem::forget(unfinished);
}

/// A file being written. Dropped before [`Output::commit`], it leaves nothing.
///
/// The temporary name follows from the final one, so that a rerun takes over what a crash left behind; a lock
/// keeps two writers apart.
pub struct Output {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

/// What a committed file is to have besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// User and group; kept where permitted, which takes root unless they are the caller's own.
    pub owner: (u32, u32),
}

impl Attributes {
    /// Those of an existing file.
    pub fn of(meta: &fs::Metadata) -> Self {
        Self {
            mode: meta.mode() & 0o7777,
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            owner: (meta.uid(), meta.gid()),
        }
    }
}

/// Whether `name` is one that a file has only while it is written.
pub fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().ends_with(SUFFIX.as_bytes())
}

impl Output {
    /// Start writing `path`.
    ///
    /// # Errors
    /// Io, where the directory cannot be written; invalid argument, where another process is writing `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let name =
            path.file_name().ok_or_else(|| Error::invalid("not the name of a file").about(path.display()))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(SUFFIX);
        let temporary = path.with_file_name(hidden);
        loop {
            let mut unfinished = unfinished();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&temporary)
                .about_path(path)?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(Error::invalid("another bsz is writing this file").about(path.display()));
            }
            // The other writer may have renamed or removed it between our open and our lock.
            let ours = file.metadata().about_path(path)?;
            if !fs::symlink_metadata(&temporary)
                .is_ok_and(|now| now.ino() == ours.ino() && now.dev() == ours.dev())
            {
                continue;
            }
            unfinished.insert(temporary.clone());
            file.set_len(0).about_path(path)?;
            return Ok(Self { file, temporary, path: path.to_owned(), committed: false });
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it is to have, by which errors name it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its temporary path.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Set the attributes and bring bytes and attributes to the disk; the name stays temporary.
    pub fn sync(&self, a: Attributes) -> Result<()> {
        let (uid, gid) = a.owner;
        // Not permitted to most users, and then the file is simply theirs.
        let _ = std::os::unix::fs::fchown(&self.file, Some(uid), Some(gid));
        self.file.set_permissions(fs::Permissions::from_mode(a.mode)).about_path(&self.path)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: a.mtime.0, tv_nsec: a.mtime.1.into() },
        };
        rustix::fs::futimens(&self.file, &times).about_path(&self.path)?;
        self.file.sync_all().about_path(&self.path)
    }

    /// Give the file its name; afterwards it survives a crash. [`Output::sync`] comes first.
    ///
    /// # Errors
    /// Io, among them that `path` exists where it is not to be replaced.
    pub fn commit(mut self, replace: bool) -> Result<()> {
        let cwd = rustix::fs::CWD;
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let mut unfinished = unfinished();
        let renamed = match rustix::fs::renameat_with(cwd, &self.temporary, cwd, &self.path, flags) {
            // Some network file systems know no flags.
            Err(rustix::io::Errno::INVAL) if !replace && !self.path.exists() => {
                rustix::fs::rename(&self.temporary, &self.path)
            }
            other => other,
        };
        if renamed.is_ok() {
            unfinished.remove(&self.temporary);
        }
        drop(unfinished);
        renamed.about_path(&self.path)?;
        self.committed = true;
        sync_directory(&self.path)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.committed {
            let mut unfinished = unfinished();
            let _ = fs::remove_file(&self.temporary);
            unfinished.remove(&self.temporary);
        }
    }
}

/// A file that nobody keeps, empty at first: gone when dropped, or [abandoned](abandon).
pub struct Scratch(PathBuf);

impl Scratch {
    /// Make one in `parent`, with a name of its own.
    ///
    /// # Errors
    /// Io, where `parent` cannot be written.
    pub fn new(parent: &Path) -> Result<Self> {
        let mut unfinished = unfinished();
        let file = tempfile::Builder::new().prefix(".").suffix(SUFFIX).tempfile_in(parent);
        let path =
            file.about_path(parent)?.into_temp_path().keep().map_err(|e| e.error).about_path(parent)?;
        unfinished.insert(path.clone());
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        let _ = fs::remove_file(&self.0);
        unfinished.remove(&self.0);
    }
}

/// Bring the directory entry of `path` to the disk.
pub fn sync_directory(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|d| d.sync_all()).about_path(parent)
}
