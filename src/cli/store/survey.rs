//! What packing a directory would save, estimated from samples of its files.

use super::check::ollama;
use crate::cli::report::{bytes, ratio};
use crate::error::{Context, Result};
use crate::pack::estimate;
use crate::read;
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Smaller files are not packed, in bytes.
const MIN_SIZE: u64 = 1 << 20;

/// The least share that packing must save.
const MIN_SAVING: f64 = 0.03;

/// Bytes that a core packs in a second, with verification: a cautious guess.
const RATE: f64 = 200e6;

/// Directories below each other that are visited.
const MAX_DEPTH: usize = 200;

/// What is in a directory, in files and bytes.
#[derive(Debug, Default)]
pub(super) struct Survey {
    files: u64,
    bytes: u64,
    /// What would be packed, and the size of the archives.
    models: u64,
    original: u64,
    stored: u64,
    /// Models that would not become smaller.
    left: u64,
    /// Archives that are there already.
    archives: u64,
    archive_original: u64,
    archive_stored: u64,
}

/// Examine a directory. `say` is told of each directory.
///
/// # Errors
/// Io; invalid argument, for the directories of Ollama.
pub(super) fn survey(dir: &Path, say: &dyn Fn(&Path)) -> Result<Survey> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags, Mode::empty()).about_path(dir)?;
    let mut survey = Survey::default();
    survey.walk(&root, dir, 0, say)?;
    Ok(survey)
}

impl Survey {
    fn walk(
        &mut self,
        dir: &OwnedFd,
        path: &Path,
        depth: usize,
        say: &dyn Fn(&Path),
    ) -> Result<()> {
        say(path);
        let names = names(dir).about_path(path)?;
        if is_ollama(path, &names) {
            return Err(ollama(path));
        }
        for name in names {
            let below = path.join(&name);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            // Without moving the time of access, if that is permitted.
            let open = |extra| openat(dir, &name, flags | extra, Mode::empty());
            let kind = rustix::fs::statat(dir, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            let kind = kind.map(|stat| FileType::from_raw_mode(stat.st_mode));
            if !matches!(kind, Ok(FileType::RegularFile | FileType::Directory)) {
                continue;
            }
            // What cannot be read is not packed.
            let Ok(fd) = open(OFlags::NOATIME).or_else(|_| open(OFlags::empty())) else { continue };
            let Ok(stat) = fstat(&fd) else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth < MAX_DEPTH => {
                    self.walk(&fd, &below, depth + 1, say)?;
                }
                FileType::RegularFile => self.file(&File::from(fd), &below, &stat),
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &File, path: &Path, stat: &Stat) {
        let len = stat.st_size.cast_unsigned();
        self.files += 1;
        self.bytes += len;
        if path.as_os_str().as_bytes().ends_with(b".bsz")
            && let Ok(Some(footer)) = read::peek(file)
        {
            self.archives += 1;
            self.archive_original += footer.original_len;
            self.archive_stored += len;
        } else if stat.st_nlink == 1
            && len >= MIN_SIZE
            && let Ok(Some(estimate)) = estimate(file, path, len)
        {
            if estimate.saving() < MIN_SAVING {
                self.left += 1;
                return;
            }
            self.models += 1;
            self.original += estimate.original;
            self.stored += estimate.stored;
        }
    }

    /// What to tell people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{} files, {}", self.files, bytes(self.bytes))];
        if self.models == 0 {
            lines.push("nothing to pack at the moment; what is added later is packed".into());
        } else {
            let saved = self.original.saturating_sub(self.stored);
            lines.push(format!(
                "{} models, {}, can be packed to about {} ({}): {} less",
                self.models,
                bytes(self.original),
                bytes(self.stored),
                ratio(self.stored, self.original),
                bytes(saved)
            ));
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let seconds = self.original as f64 / (RATE * cores as f64);
            lines.push(format!("that takes about {} while the machine is idle", duration(seconds)));
        }
        if self.archives > 0 {
            let (stored, original) = (self.archive_stored, self.archive_original);
            lines.push(format!(
                "{} are archives already: {} in {}",
                self.archives,
                bytes(original),
                bytes(stored)
            ));
        }
        if self.left > 0 {
            lines.push(format!("{} models would not become smaller, and stay", self.left));
        }
        lines
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{} s", s.ceil()),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Whether Ollama keeps its models in a directory with these entries.
fn is_ollama(path: &Path, names: &[OsString]) -> bool {
    let has = |name: &str| names.iter().any(|other| other == name);
    let is_blob = |name: &OsString| {
        let hex = name.as_bytes().strip_prefix(b"sha256-");
        hex.is_some_and(|hex| hex.len() == 64 && hex.iter().all(u8::is_ascii_hexdigit))
    };
    let is_blobs = path.file_name().is_some_and(|name| name == "blobs");
    has("manifests") && has("blobs") || is_blobs && names.iter().any(is_blob)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_of_ollama_are_recognised_and_those_of_the_hub_are_not() {
        let hash = "a".repeat(64);
        let names = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
        let blobs = Path::new("/m/blobs");
        assert!(is_ollama(blobs, &names(&[&format!("sha256-{hash}")])));
        assert!(!is_ollama(blobs, &names(&[&hash])));
        assert!(!is_ollama(Path::new("/m/other"), &names(&[&format!("sha256-{hash}")])));
        assert!(is_ollama(Path::new("/m"), &names(&["manifests", "blobs"])));
        assert!(!is_ollama(Path::new("/m"), &names(&["blobs", "refs", "snapshots"])));
        assert!(ollama(blobs).to_string().starts_with("/m/blobs: "));
    }
}
