//! Finding the archives in a directory.

use crate::error::{Context, Error, Result};
use crate::format::is_pin;
use crate::output::is_temporary;
use std::fs;
use std::path::{Path, PathBuf};

/// All archives in the directory `path`, or `path` itself if it is not a directory. Archives are
/// recognised by name, so that damaged ones are found, too. `fail` is told of directories that
/// cannot be read.
///
/// # Errors
/// Io, if `path` does not exist, or cannot be read.
pub fn archives(path: &Path, fail: &mut dyn FnMut(Error)) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if fs::metadata(path).about_path(path)?.is_dir() {
        find(path, &mut found, fail)?;
    } else {
        found.push(path.to_owned());
    }
    Ok(found)
}

fn find(dir: &Path, found: &mut Vec<PathBuf>, fail: &mut dyn FnMut(Error)) -> Result<()> {
    let entries: std::io::Result<Vec<_>> = fs::read_dir(dir).and_then(Iterator::collect);
    let mut entries = entries.about_path(dir)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // Links are skipped: their targets are found where they are, or are elsewhere.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find(&path, found, fail).unwrap_or_else(&mut *fail),
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|e| e == "bsz") => {
                // A pin is read for those that need it.
                if !is_temporary(&entry.file_name()) && !is_pin(&entry.file_name()) {
                    found.push(path);
                }
            }
            Ok(_) => {}
            Err(e) => fail(Error::from(e).about_path(&path)),
        }
    }
    Ok(())
}
