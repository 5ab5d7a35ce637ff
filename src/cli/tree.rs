//! A directory that holds archives: walked for `verify` and `info`, turned back by `unpack`.

use crate::error::{Context, Error, Result};
use crate::read::Archive;
use std::fs::{self, FileTimes};
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

/// The entries of a directory by name.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries: std::io::Result<Vec<PathBuf>> =
        fs::read_dir(dir).about_path(dir)?.map(|entry| entry.map(|e| e.path())).collect();
    let mut entries = entries.about_path(dir)?;
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

/// Copy a file with its permissions and modification time. Nothing is at `to` until all of it is.
pub fn copy(from: &Path, to: &Path) -> Result<u64> {
    let dir = to.parent().unwrap_or(Path::new("."));
    let source = fs::File::open(from).about_path(from)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir).about_path(to)?;
    let bytes = std::io::copy(&mut &source, temporary.as_file_mut()).about_path(to)?;
    let metadata = source.metadata().about_path(from)?;
    let times = FileTimes::new().set_modified(metadata.modified().about_path(from)?);
    temporary.as_file().set_permissions(metadata.permissions()).about_path(to)?;
    temporary.as_file().set_times(times).about_path(to)?;
    temporary.persist(to).map_err(|e| e.error).about_path(to)?;
    Ok(bytes)
}

/// Make the same link at `to`, in place of a link that is there.
pub fn copy_link(from: &Path, to: &Path) -> Result<()> {
    let target = fs::read_link(from).about_path(from)?;
    if fs::symlink_metadata(to).is_ok_and(|m| m.is_symlink()) {
        fs::remove_file(to).about_path(to)?;
    }
    symlink(target, to).about_path(to)
}
