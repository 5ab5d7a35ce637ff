//! Temporary names: what a file has only while it is written, removed when the process is
//! interrupted.

use super::{Dir, Existing, support::is_unsupported};
use rustix::{
    fs::{
        AtFlags, Mode, OFlags, RenameFlags, linkat, openat, renameat, renameat_with, statat,
        unlinkat,
    },
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// The suffix of temporary names, which start with a dot.
const SUFFIX: &str = ".bsz-partial";

/// The temporary names of the files that this process is writing.
static UNFINISHED: Mutex<Vec<(Arc<Dir>, OsString)>> = Mutex::new(Vec::new());

/// The list of unfinished files. While it is locked, [`abandon`] waits: no signal ends the process.
pub(super) fn unfinished() -> MutexGuard<'static, Vec<(Arc<Dir>, OsString)>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remove the files being written, for a process that is about to end. No file is started or
/// committed afterwards.
pub fn abandon() {
    let unfinished = unfinished();
    for (dir, name) in &*unfinished {
        let _ = unlinkat(dir, name, AtFlags::empty());
    }
    std::mem::forget(unfinished);
}

/// Whether `name` is a temporary name.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(SUFFIX.as_bytes())
}

/// A temporary name that is unlikely to be taken.
pub(super) fn fresh_name() -> OsString {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |t| t.as_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".{:x}-{count:x}-{:x}{SUFFIX}", std::process::id(), nanos as u64).into()
}

/// A temporary name, removed when dropped unless it was forgotten.
pub(super) struct Temporary {
    dir: Arc<Dir>,
    name: OsString,
}

impl Temporary {
    /// Create a new file in `dir`; one that exists is never used.
    pub(super) fn create(dir: &Arc<Dir>) -> Result<(File, Self), Errno> {
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

    pub(super) fn rename(&self, to: &OsStr, existing: Existing) -> Result<(), Errno> {
        let dir = &self.dir;
        if existing == Existing::Replace {
            return renameat(dir, &self.name, dir, to);
        }
        rename_noreplace(dir, &self.name, to)
    }

    /// The file was renamed: its temporary name is gone.
    pub(super) fn forget(&mut self) {
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

/// Rename a file within `dir` to a name that must be free.
pub(super) fn rename_noreplace(dir: &Dir, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
    match renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
        Err(e) if is_unsupported(e) => {}
        other => return other,
    }
    // linkat replaces nothing, either.
    match linkat(dir, from, dir, to, AtFlags::empty()) {
        Ok(()) => {
            let _ = unlinkat(dir, from, AtFlags::empty());
            return Ok(());
        }
        Err(e) if is_unsupported(e) || e == Errno::MLINK => {}
        Err(e) => return Err(e),
    }
    match statat(dir, to, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => renameat(dir, from, dir, to),
        Err(e) => Err(e),
    }
}
