//! Canonical paths and mountpoints, found without waiting for a mount that hangs.

use super::FS_TYPE;
use super::mountinfo::{self, Mount};
use super::probe::{self, PATH_TIMED_OUT, Probe, ProbeError};
use crate::error::{Context, Error, Result};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Most symlinks to follow in a row, as many as the kernel does (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Other,
    /// A bszfs mount, which was not touched.
    BszfsMount,
}

/// The first byte of a probe's result, for each kind.
const KINDS: [(u8, Kind); 4] =
    [(b'd', Kind::Directory), (b'f', Kind::File), (b'o', Kind::Other), (b'm', Kind::BszfsMount)];

/// The canonical path, and the kind of file there.
pub(super) type Resolved = Result<(PathBuf, Kind), ProbeError>;

/// Resolve `path`.
pub(super) fn resolve(path: &Path) -> Resolved {
    run(&[(Probe::Resolve, path)]).pop().unwrap_or(Err(ProbeError::TimedOut))
}

/// Resolve a present or future mountpoint. A bszfs mount that is there is not touched.
pub(super) fn resolve_mountpoint(path: &Path) -> Resolved {
    run(&[(Probe::ResolveMountpoint, path)]).pop().unwrap_or(Err(ProbeError::TimedOut))
}

/// Resolve the source and the mountpoint of a future mount concurrently.
pub(super) fn resolve_both(source: &Path, mountpoint: &Path) -> (Resolved, Resolved) {
    let probes = [(Probe::Resolve, source), (Probe::ResolveMountpoint, mountpoint)];
    let mut results = run(&probes).into_iter();
    let mut next = || results.next().unwrap_or(Err(ProbeError::TimedOut));
    (next(), next())
}

fn run(probes: &[(Probe, &Path)]) -> Vec<Resolved> {
    let known: Vec<_> = probes.iter().map(|(probe, path)| known(*probe, path)).collect();
    let unknown = probes.iter().zip(&known).filter_map(|((probe, _), known)| match known {
        Ok(Known::Absolute(path)) => Some((*probe, &**path)),
        _ => None,
    });
    let mut results = probe::run_all(&unknown.collect::<Vec<_>>()).into_iter();
    let resolved = known.into_iter().map(|known| match known? {
        Known::BszfsMount(mountpoint) => Ok((mountpoint, Kind::BszfsMount)),
        Known::Absolute(_) => results.next().unwrap_or(Err(ProbeError::TimedOut)).and_then(decode),
    });
    resolved.collect()
}

/// What is known of a path without touching it.
enum Known {
    /// The mount table lists a bszfs mount there.
    BszfsMount(PathBuf),
    /// Only its absolute form.
    Absolute(PathBuf),
}

fn known(probe: Probe, path: &Path) -> Result<Known, ProbeError> {
    let absolute = std::path::absolute(path).map_err(|e| ProbeError::Failed(e.into()))?;
    if probe == Probe::ResolveMountpoint && !has_dot_dot(&absolute) {
        let mount = mountinfo::topmost_at(&absolute).map_err(ProbeError::Failed)?;
        if let Some(mount) = mount.filter(|mount| mount.fs_type == FS_TYPE) {
            return Ok(Known::BszfsMount(mount.mountpoint));
        }
    }
    Ok(Known::Absolute(absolute))
}

/// Whether a path contains `..`, which can be resolved only by reading the symlinks before it.
fn has_dot_dot(path: &Path) -> bool {
    path.components().any(|c| c == Component::ParentDir)
}

/// The topmost mount at `path`, if there is one.
///
/// # Errors
/// The path cannot be resolved.
pub(super) fn mount_at(path: &Path) -> Result<Option<Mount>> {
    let absolute = std::path::absolute(path).about_path(path)?;
    // A path that is in the mount table is not resolved, because the mount may hang.
    if let Some(mount) = mountinfo::topmost_at(&absolute)?.filter(|_| !has_dot_dot(&absolute)) {
        return Ok(Some(mount));
    }
    let resolved = resolve_mountpoint(path).map_err(|e| e.into_error(PATH_TIMED_OUT));
    let (canonical, _) = resolved.about_path(path)?;
    mountinfo::topmost_at(&canonical)
}

/// Decode the result of a probe.
fn decode(result: Vec<u8>) -> Resolved {
    let resolved = result.split_first().and_then(|(first, path)| {
        let (_, kind) = KINDS.iter().find(|(byte, _)| byte == first)?;
        Some((OsStr::from_bytes(path).into(), *kind))
    });
    resolved.ok_or_else(|| ProbeError::Failed(Error::invalid("the probe's result is malformed")))
}

fn encode(path: PathBuf, kind: Kind) -> Vec<u8> {
    let first = KINDS.iter().find(|(_, known)| *known == kind).map_or(b'o', |(byte, _)| *byte);
    [&[first], &path.into_os_string().into_vec()[..]].concat()
}

/// Run [`Probe::Resolve`].
pub(super) fn resolve_blocking(path: &Path) -> Result<Vec<u8>> {
    let canonical = path.canonicalize()?;
    let meta = canonical.metadata()?;
    let kind = match () {
        () if meta.is_dir() => Kind::Directory,
        () if meta.is_file() => Kind::File,
        () => Kind::Other,
    };
    Ok(encode(canonical, kind))
}

/// Run [`Probe::ResolveMountpoint`].
pub(super) fn resolve_mountpoint_blocking(path: &Path) -> Result<Vec<u8>> {
    let mountpoint = walk(path)?;
    match mountinfo::topmost_at(&mountpoint)? {
        Some(mount) if mount.fs_type == FS_TYPE => Ok(encode(mountpoint, Kind::BszfsMount)),
        _ => resolve_blocking(path),
    }
}

/// The canonical form of an absolute path. A mount at the end of the path is not touched, because
/// its daemon may be dead.
fn walk(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_SYMLINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The path is the root, or ends in `..`.
            return path.canonicalize();
        };
        let parent = parent.canonicalize()?;
        let here = parent.join(name);
        let is_mountpoint = mountinfo::topmost_at(&here).is_ok_and(|mount| mount.is_some());
        match here.read_link() {
            Ok(target) if !is_mountpoint => path = parent.join(target),
            _ => return Ok(here),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountpoint_is_resolved_to_its_path_in_the_mount_table() {
        let dir = tempfile::tempdir().expect("tempdir");
        let real = dir.path().canonicalize().expect("canonical").join("real");
        std::fs::create_dir_all(real.join("view")).expect("mkdir");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("symlink");
        std::os::unix::fs::symlink("../link/view", real.join("to-view")).expect("symlink");
        std::os::unix::fs::symlink("round", dir.path().join("round")).expect("symlink");
        for spelled in
            ["link/view", "real/view", "real/./view/", "link/../real/view", "link/to-view"]
        {
            assert_eq!(
                walk(&dir.path().join(spelled)).expect(spelled),
                real.join("view"),
                "{spelled}"
            );
        }
        assert_eq!(
            walk(&dir.path().join("round")).err().and_then(|e| e.raw_os_error()),
            Some(libc::ELOOP)
        );
    }

    #[test]
    fn a_result_has_the_kind_and_the_path() {
        let dir = tempfile::tempdir().expect("tempdir");
        let real = dir.path().canonicalize().expect("canonical");
        std::fs::write(real.join("file"), "").expect("write");
        for (path, kind) in [
            (real.clone(), Kind::Directory),
            (real.join("file"), Kind::File),
            ("/dev/null".into(), Kind::Other),
        ] {
            for result in [resolve_blocking(&path), resolve_mountpoint_blocking(&path)] {
                assert_eq!(decode(result.expect("there")).expect("valid"), (path.clone(), kind));
            }
        }
    }
}
