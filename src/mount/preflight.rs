//! The checks before mounting: each failure says what to do about it.

use super::handed;
use super::source::Source;
use super::unmount::{canonical_mountpoint, find_helper};
use super::view::View;
use super::{FS_TYPE, MountOptions, mountinfo};
use crate::error::{Context, Error, Result};
use crate::read;
use rustix::fs::{Mode, OFlags, open};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A mount that can be tried.
pub(super) struct Plan {
    /// The source as it was found, for the mount table.
    pub source: PathBuf,
    pub mountpoint: PathBuf,
    /// What is mounted there already, by somebody else.
    pub fuse: Option<OwnedFd>,
    pub view: View,
}

/// Check what is asked for, and open the source.
pub(super) fn check(o: &MountOptions) -> Result<Plan> {
    let (source, metadata) = existing(&o.source)?;
    let (directory, only) = split_source(&source, &metadata)?;
    let (mountpoint, fuse) = match handed::number(&o.mountpoint) {
        Some(fd) => (o.mountpoint.clone(), Some(handed::take(fd).about_path(&o.mountpoint)?)),
        None => (check_place(&o.mountpoint, &source, &directory, only.is_none())?, None),
    };
    let mut shown = Source::open(&directory).about_path(&o.source)?;
    shown.also_known_as(if only.is_none() { std::path::absolute(&o.source)? } else { directory });
    let view = View::new(shown, only).about_path(&o.source)?;
    Ok(Plan { source, mountpoint, fuse, view })
}

/// Whether `source`, of which all of `directory` is shown or one file, can be mounted at `path`; and its canonical form.
fn check_place(path: &Path, source: &Path, directory: &Path, all: bool) -> Result<PathBuf> {
    let mountpoint = check_mountpoint(path)?;
    if mountpoint == directory && all {
        return Err(Error::invalid("is the source itself: mount on another directory").about(path.display()));
    }
    if source.starts_with(&mountpoint) {
        return Err(Error::invalid("has the source inside: the mount would hide it").about(path.display()));
    }
    if all && mountpoint.starts_with(directory) {
        return Err(Error::invalid("is inside the source, and would show itself: mount elsewhere")
            .about(path.display()));
    }
    check_fuse()?;
    Ok(mountpoint)
}

fn existing(path: &Path) -> Result<(PathBuf, Metadata)> {
    let look = || path.canonicalize().and_then(|canonical| Ok((canonical.clone(), canonical.metadata()?)));
    look()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::invalid("does not exist"),
            _ => e.into(),
        })
        .about_path(path)
}

/// The directory to show, and the one archive in it if that is the source.
fn split_source(source: &Path, metadata: &Metadata) -> Result<(PathBuf, Option<OsString>)> {
    if metadata.is_dir() {
        return Ok((source.to_owned(), None));
    }
    let (true, Some(directory), Some(name)) = (metadata.is_file(), source.parent(), source.file_name())
    else {
        return Err(Error::invalid("is neither a directory nor an archive").about(source.display()));
    };
    // Non-blocking, for a FIFO may have taken its place.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open(source, flags, Mode::empty()).about_path(source)?);
    let footer = read::peek(&file).about_path(source)?;
    let shown = footer.and_then(|f| f.naming.original_name(name));
    match shown {
        Some(_) => Ok((directory.to_owned(), Some(name.to_owned()))),
        None => {
            Err(Error::invalid("is not an archive: mount a directory, or a .bsz file")
                .about(source.display()))
        }
    }
}

fn check_mountpoint(path: &Path) -> Result<PathBuf> {
    let unresolved =
        canonical_mountpoint(path).map_err(|_| Error::invalid("does not exist: make it with mkdir"));
    // Before anything touches the directory: it may be a mount whose daemon has died.
    check_not_ours(&unresolved.about_path(path)?, path)?;
    let mountpoint = path
        .canonicalize()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::invalid("does not exist: make it with mkdir"),
            io::ErrorKind::NotConnected => {
                Error::invalid("is a FUSE mount whose daemon has died: unmount it with fusermount3 -u")
            }
            _ => e.into(),
        })
        .about_path(path)?;
    check_not_ours(&mountpoint, path)?;
    if !mountpoint.metadata().about_path(path)?.is_dir() {
        return Err(Error::invalid("is not a directory").about(path.display()));
    }
    Ok(mountpoint)
}

fn check_not_ours(canonical: &Path, path: &Path) -> Result<()> {
    let Some(mount) = mountinfo::topmost_at(canonical)?.filter(|m| m.fs_type == FS_TYPE) else {
        return Ok(());
    };
    let shown = path.display();
    let dead = canonical.metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotConnected);
    let why = match dead {
        true => format!("is a bszfs mount whose daemon has died: run `bsz umount {shown}` first"),
        false => {
            let source = mount.source.display();
            format!("is already a bszfs mount, of {source}: run `bsz umount {shown}` first")
        }
    };
    Err(Error::invalid(why).about(shown))
}

fn check_fuse() -> Result<()> {
    // Opened as every session thread will; the setuid helper opens it with the user's rights, too.
    if let Err(e) = File::options().read(true).write(true).open("/dev/fuse") {
        let todo = match e.kind() {
            io::ErrorKind::NotFound => {
                "load the kernel's module (modprobe fuse); a container needs --device /dev/fuse"
            }
            io::ErrorKind::PermissionDenied => {
                "an administrator must let users open it (mode 0666); a container needs --device /dev/fuse and \
                 CAP_SYS_ADMIN"
            }
            _ => "the kernel has no FUSE: load its module (modprobe fuse)",
        };
        return Err(Error::invalid(format!("{e}: {todo}")).about("/dev/fuse"));
    }
    if !rustix::process::geteuid().is_root() && find_helper().is_none() {
        let why = "not found: ordinary users mount with its help; install the package fuse3";
        return Err(Error::invalid(why).about("fusermount3"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(source: &Path, mountpoint: &Path) -> String {
        let o = MountOptions {
            source: source.into(),
            mountpoint: mountpoint.into(),
            cache_bytes: 1 << 20,
            threads: 1,
            prefetch: crate::mount::Prefetch::Auto,
            gpu_memory: 0,
            allow_other: false,
            metrics: None,
        };
        check(&o).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_mount_that_cannot_be_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("source/inside")).expect("mkdir");
        std::fs::create_dir_all(at("view")).expect("mkdir");
        std::fs::write(at("file"), "no archive").expect("write");
        for (source, mountpoint, why) in [
            ("none", "view", "none: does not exist"),
            ("source", "none", "none: does not exist: make it with mkdir"),
            ("source", "none/none", "none/none: does not exist: make it with mkdir"),
            ("source", "file", "file: is not a directory"),
            ("file", "view", "file: is not an archive: mount a directory, or a .bsz file"),
            ("source", "source", "source: is the source itself: mount on another directory"),
            (
                "source",
                "source/inside",
                "inside: is inside the source, and would show itself: mount elsewhere",
            ),
            ("source/inside", "source", "source: has the source inside: the mount would hide it"),
        ] {
            let refusal = refusal(&at(source), &at(mountpoint));
            assert!(refusal.ends_with(why), "{source} on {mountpoint}: {refusal}");
        }
    }
}
