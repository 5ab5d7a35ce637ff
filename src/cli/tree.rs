//! A directory that holds archives: walked for `verify` and `info`.

use crate::error::{Context, Error, Result};
use crate::output::is_temporary;
use crate::read::Archive;
use std::fs;
use std::path::{Path, PathBuf};

/// All archives in `path`, or `path` itself when it is not a directory. They are known by their name, so that a damaged
/// one is not taken for something else. A directory that cannot be read is told to `fail`, and the others go on.
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
        // Links lead to what is found where it is, or elsewhere.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find(&path, found, fail).unwrap_or_else(&mut *fail),
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|e| e == "bsz") => {
                if !is_temporary(&entry.file_name()) {
                    found.push(path);
                }
            }
            Ok(_) => {}
            Err(e) => fail(Error::from(e).about_path(&path)),
        }
    }
    Ok(())
}

/// Refuse an `output` that is `source` or inside it: the walk would meet what it writes.
pub fn refuse_inside(source: &Path, output: &Path) -> Result<()> {
    let source = source.canonicalize().about_path(source)?;
    let absolute = std::path::absolute(output).about_path(output)?;
    let there = absolute.ancestors().find_map(|dir| dir.canonicalize().ok());
    match there.is_some_and(|dir| dir.starts_with(&source)) {
        true => Err(Error::invalid("would be inside of what is read").about_path(output)),
        false => Ok(()),
    }
}

/// The name of the file that the archive at `path` was made from.
pub fn original_name(archive: &Archive, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| archive.footer().naming.original_name(name));
    name.map(PathBuf::from)
        .ok_or_else(|| Error::invalid("its name does not end in .bsz").about_path(path))
}
