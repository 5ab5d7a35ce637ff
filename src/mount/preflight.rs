//! The checks before mounting: each failure says what to do about it.

use super::ask::{self, Question, Unanswered};
use super::place::{self, Kind};
use super::source::Source;
use super::unmount::find_helper;
use super::view::View;
use super::{MountOptions, inherited_fd, mountinfo};
use crate::error::{Context, Error, Result};
use crate::{escape, input, read};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
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
    let fuse = inherited_fd::number(&o.mountpoint)
        .map(inherited_fd::take)
        .transpose()
        .about_path(&o.mountpoint)?;
    let (at_source, at_mountpoint) = if fuse.is_some() {
        (place::look(&o.source), None)
    } else {
        let (at_source, at_mountpoint) = place::look_and_place(&o.source, &o.mountpoint);
        (at_source, Some(at_mountpoint))
    };
    let (source, kind) = existing(at_source, &o.source)?;
    let (directory, only) = split_source(&source, kind)?;
    let mountpoint = match at_mountpoint {
        None => o.mountpoint.clone(),
        Some(found) => {
            let mountpoint = check_mountpoint(found, &o.mountpoint)?;
            check_place(&mountpoint, &source, &directory, only.is_none())
                .about_path(&o.mountpoint)?;
            check_fuse()?;
            mountpoint
        }
    };
    let mut shown = Source::open(&directory).about_path(&o.source)?;
    shown.also_known_as(if only.is_none() { std::path::absolute(&o.source)? } else { directory });
    let view = View::new(shown, only).about_path(&o.source)?;
    Ok(Plan { source, mountpoint, fuse, view })
}

/// Whether `source`, of which all of `directory` is shown or one file, can be mounted at `mountpoint`.
fn check_place(mountpoint: &Path, source: &Path, directory: &Path, all: bool) -> Result<()> {
    if mountpoint == directory && all {
        return Err(Error::invalid("is the source itself: mount on another directory"));
    }
    if source.starts_with(mountpoint) {
        return Err(Error::invalid("has the source inside: the mount would hide it"));
    }
    if all && mountpoint.starts_with(directory) {
        return Err(Error::invalid("is inside the source, and would show itself: mount elsewhere"));
    }
    Ok(())
}

fn existing(found: place::Found, path: &Path) -> Result<(PathBuf, Kind)> {
    let found = found.map_err(|e| match e.errno() {
        Some(Errno::NOENT) => Error::invalid("does not exist"),
        _ => e.or_silent("does not answer: is it on a disk, or a mount, whose server is gone?"),
    });
    found.about_path(path)
}

/// The directory to show, and the one archive in it if that is the source.
fn split_source(source: &Path, kind: Kind) -> Result<(PathBuf, Option<OsString>)> {
    if kind == Kind::Directory {
        return Ok((source.to_owned(), None));
    }
    let (Kind::File, Some(directory), Some(name)) = (kind, source.parent(), source.file_name())
    else {
        return Err(Error::invalid("is neither a directory nor an archive").about_path(source));
    };
    let footer = read::peek(&input::open(source)?).about_path(source)?;
    let shown = footer.and_then(|f| f.naming.original_name(name));
    match shown {
        Some(_) => Ok((directory.to_owned(), Some(name.to_owned()))),
        None => Err(Error::invalid("is not an archive: mount a directory, or a .bsz file")
            .about_path(source)),
    }
}

fn check_mountpoint(found: place::Found, path: &Path) -> Result<PathBuf> {
    let found = found.map_err(|e| match e.errno() {
        Some(Errno::NOENT) => Error::invalid("does not exist: make it with mkdir"),
        Some(Errno::NOTCONN) => {
            Error::invalid("is a FUSE mount whose daemon has died: unmount it with fusermount3 -u")
        }
        _ => e.or_silent("does not answer: what is mounted there, or on the way, does not"),
    });
    match found.about_path(path)? {
        (mountpoint, Kind::Directory) => Ok(mountpoint),
        (mountpoint, Kind::Ours) => {
            Err(Error::invalid(refuse_ours(&mountpoint, path)?).about_path(path))
        }
        _ => Err(Error::invalid("is not a directory").about_path(path)),
    }
}

/// Why nothing is mounted on a mount of ours, as `path` names it.
fn refuse_ours(mountpoint: &Path, path: &Path) -> Result<String> {
    let shown = escape::path(path);
    Ok(match ask::ask(Question::Alive, mountpoint) {
        Err(Unanswered::Silent) => {
            format!(
                "is a bszfs mount whose daemon does not answer: `bsz umount --lazy {shown}` ends it"
            )
        }
        Err(e) if e.errno() == Some(Errno::NOTCONN) => {
            format!("is a bszfs mount whose daemon has died: run `bsz umount {shown}` first")
        }
        _ => {
            let source =
                mountinfo::topmost_at(mountpoint)?.map(|mount| mount.source).unwrap_or_default();
            let source = escape::path(&source);
            format!("is already a bszfs mount, of {source}: run `bsz umount {shown}` first")
        }
    })
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
