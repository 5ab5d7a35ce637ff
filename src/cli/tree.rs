//! A directory that holds archives: walked for `verify` and `info`, turned back by `unpack`.

use crate::error::{Context, Error, Result};
use crate::output::{Attributes, Output, is_temporary};
use crate::read::Archive;
use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

/// What one entry of a directory is to bszfs.
pub enum Entry {
    Directory,
    Archive,
    Link,
    Plain,
    /// A socket, pipe or device.
    Special,
}

/// What `path` itself is; links are not followed. Archives are known by their name, so that a damaged one
/// is not taken for something else.
pub fn classify(path: &Path) -> Result<Entry> {
    let kind = fs::symlink_metadata(path).about_path(path)?.file_type();
    Ok(match kind {
        _ if kind.is_dir() => Entry::Directory,
        _ if kind.is_symlink() => Entry::Link,
        _ if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() => {
            Entry::Special
        }
        _ if path.extension().is_some_and(|e| e == "bsz") => Entry::Archive,
        _ => Entry::Plain,
    })
}

/// The entries of a directory by name, without what is still being written.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries: std::io::Result<Vec<PathBuf>> =
        fs::read_dir(dir).about_path(dir)?.map(|entry| entry.map(|e| e.path())).collect();
    let mut entries = entries.about_path(dir)?;
    entries.retain(|path| !path.file_name().is_some_and(is_temporary));
    entries.sort();
    Ok(entries)
}

/// All archives in `path`, or `path` itself when it is not a directory.
pub fn archives(path: &Path) -> Result<Vec<PathBuf>> {
    if !fs::metadata(path).about_path(path)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    for path in entries(path)? {
        match classify(&path)? {
            Entry::Directory => found.extend(archives(&path)?),
            Entry::Archive => found.push(path),
            _ => {}
        }
    }
    Ok(found)
}

/// Refuse an `output` that is `source` or inside it: the walk would meet what it writes.
pub fn refuse_inside(source: &Path, output: &Path) -> Result<()> {
    let source = source.canonicalize().about_path(source)?;
    let absolute = std::path::absolute(output).about_path(output)?;
    let there = absolute.ancestors().find_map(|dir| dir.canonicalize().ok());
    match there.is_some_and(|dir| dir.starts_with(&source)) {
        true => Err(Error::invalid("is inside the source").about(output.display())),
        false => Ok(()),
    }
}

/// The name of the file that the archive at `path` was made from.
pub fn original_name(archive: &Archive, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| archive.footer().naming.original_name(name));
    name.map(PathBuf::from)
        .ok_or_else(|| Error::invalid("its name does not end in .bsz").about(path.display()))
}

/// Whether `output` is there with this length and modification time, as an earlier run left it.
///
/// # Errors
/// Invalid argument, where something else is there.
pub fn is_done(output: &Path, len: u64, mtime: (i64, u32)) -> Result<bool> {
    match fs::symlink_metadata(output) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).about_path(output),
        Ok(m) if m.is_file() && m.len() == len && Attributes::of(&m).mtime == mtime => Ok(true),
        Ok(_) => {
            Err(Error::invalid("exists and is something else; remove it or use --force")
                .about(output.display()))
        }
    }
}

/// Copy a file with its attributes: what was done, and its bytes.
pub fn copy(from: &Path, to: &Path, force: bool) -> Result<(&'static str, u64)> {
    let source = fs::File::open(from).about_path(from)?;
    let metadata = source.metadata().about_path(from)?;
    let attributes = Attributes::of(&metadata);
    if !force && is_done(to, metadata.len(), attributes.mtime)? {
        return Ok(("already done", metadata.len()));
    }
    let output = Output::create(to)?;
    let bytes = std::io::copy(&mut &source, &mut output.file()).about_path(to)?;
    output.sync(attributes)?;
    output.commit(force)?;
    Ok(("copied", bytes))
}

/// Make the same link at `to`, unless it is there already; `force` replaces another link.
pub fn copy_link(from: &Path, to: &Path, force: bool) -> Result<()> {
    let target = fs::read_link(from).about_path(from)?;
    if fs::read_link(to).is_ok_and(|there| there == target) {
        return Ok(());
    }
    if force && fs::symlink_metadata(to).is_ok_and(|m| m.is_symlink()) {
        fs::remove_file(to).about_path(to)?;
    }
    symlink(target, to).about_path(to)
}
