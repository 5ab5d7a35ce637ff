//! Where the log goes: standard error, or a file that can be opened anew after it was rotated.

use crate::error::{Context, Result};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The log file and its path; standard error while there is none.
static FILE: Mutex<Option<(PathBuf, File)>> = Mutex::new(None);

/// Open a log file at its end. One that is made is its user's alone, for paths are in it.
fn open(path: &Path) -> Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path).about_path(path)
}

/// Log to the file at `path`, an absolute one, from now on.
pub(super) fn redirect(path: &Path) -> Result<()> {
    *file() = Some((path.to_owned(), open(path)?));
    Ok(())
}

/// Open the log file anew, for the one that is open may have been renamed.
pub(super) fn reopen() {
    let outcome = match &mut *file() {
        Some((path, file)) => open(path).map(|anew| *file = anew),
        None => Ok(()),
    };
    // Not while the file is locked, since this goes to the file.
    if let Err(e) = outcome {
        log::error!("the log stays where it was: {e}");
    }
}

fn file() -> MutexGuard<'static, Option<(PathBuf, File)>> {
    // It is whole whatever panicked, being replaced as a whole.
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the logger writes to.
pub(super) struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *file() {
            Some((_, file)) => file.write(line),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Neither of them holds anything back.
        Ok(())
    }
}
