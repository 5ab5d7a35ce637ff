//! The checks before mounting. Each error says what to do about it.

use super::files::Files;
use super::probe::{self, Probe, ProbeError};
use super::resolve::{self, Kind, Resolved};
use super::source::Source;
use super::{MountOptions, fusermount, inherited_fd, mountinfo};
#[cfg(feature = "remote")]
use super::{RemoteMount, footers::Footers, remote::RemoteSource};
use crate::error::{Context, Error, Result};
#[cfg(feature = "remote")]
use crate::remote::Place;
use crate::{escape, input, read};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
#[cfg(feature = "remote")]
use std::sync::Arc;

/// A mount that has passed the checks.
pub(super) struct Plan {
    /// The canonical path of the source, for the mount table.
    pub source: PathBuf,
    pub mountpoint: PathBuf,
    /// The inherited `/dev/fuse`, if the mountpoint is a descriptor.
    pub fuse: Option<OwnedFd>,
    pub files: Files,
    /// The one archive in it to show, if the source is one.
    pub only: Option<OsString>,
}

/// Check the options, and open the source.
///
/// # Errors
/// The source cannot be shown, or cannot be mounted at the mountpoint.
pub(super) fn check(o: &MountOptions) -> Result<Plan> {
    #[cfg(feature = "remote")]
    if let Some(remote) = &o.remote {
        return check_remote(o, remote);
    }
    let fuse = inherited_fd::number(&o.mountpoint)
        .map(inherited_fd::take)
        .transpose()
        .about_path(&o.mountpoint)?;
    let (resolved_source, resolved_mountpoint) = if fuse.is_some() {
        (resolve::resolve(&o.source), None)
    } else {
        let (source, mountpoint) = resolve::resolve_both(&o.source, &o.mountpoint);
        (source, Some(mountpoint))
    };
    let (source, kind) = check_source(resolved_source, &o.source)?;
    let (directory, only) = split_source(&source, kind)?;
    let mountpoint = match resolved_mountpoint {
        None => o.mountpoint.clone(),
        Some(resolved) => {
            let mountpoint = check_mountpoint(resolved, &o.mountpoint)?;
            check_overlap(o, &mountpoint, &source, &directory, only.is_none())
                .about_path(&o.mountpoint)?;
            check_fuse()?;
            mountpoint
        }
    };
    let mut opened = Source::open(&directory).about_path(&o.source)?;
    opened.add_alias(if only.is_none() { std::path::absolute(&o.source)? } else { directory });
    Ok(Plan { source, mountpoint, fuse, files: Files::Local(opened), only })
}

/// Check the options for a source on other machines, and find it.
#[cfg(feature = "remote")]
fn check_remote(o: &MountOptions, remote: &RemoteMount) -> Result<Plan> {
    let inherited = inherited_fd::number(&o.mountpoint).map(inherited_fd::take).transpose();
    let fuse = inherited.about_path(&o.mountpoint)?;
    let mountpoint = match &fuse {
        Some(_) => o.mountpoint.clone(),
        None => {
            let mountpoint = check_mountpoint(resolve::resolve(&o.mountpoint), &o.mountpoint)?;
            check_fuse()?;
            mountpoint
        }
    };
    let place = Place::new(&remote.url, &remote.options)?;
    let source = place.name("");
    let (files, only) = RemoteSource::open(place, remote.view)?;
    let files = Files::Remote(Arc::new(files));
    if let Some(name) = &only {
        let found = files.dir(Path::new("")).and_then(|dir| {
            let mut stat = dir.stat(name)?;
            dir.packed(&Footers::new(), name, &mut stat, &source)
        });
        match found {
            Ok(Some(packed)) if packed.naming.original_name(name).is_some() => {}
            Ok(_) => {
                let why = "is not an archive: mount a directory, or a .bsz file";
                return Err(Error::invalid(why).about_path(&source));
            }
            Err(e) => {
                return Err(Error::os(e.raw_os_error(), "cannot be read")).about_path(&source);
            }
        }
    }
    Ok(Plan { source, mountpoint, fuse, files, only })
}

/// Check that the mount would neither hide its source nor show itself. `whole` tells whether all of
/// `directory` is shown, or only one file in it, `source`.
fn check_overlap(
    o: &MountOptions,
    mountpoint: &Path,
    source: &Path,
    directory: &Path,
    whole: bool,
) -> Result<()> {
    if mountpoint == directory && whole && o.over_itself {
        return Ok(());
    }
    if mountpoint == directory && whole {
        return Err(Error::invalid(
            "is the source itself: leave MOUNTPOINT out to mount it over itself",
        ));
    }
    if source.starts_with(mountpoint) {
        return Err(Error::invalid("contains the source: the mount would hide it"));
    }
    if whole && mountpoint.starts_with(directory) {
        return Err(Error::invalid("is inside the source, and would show itself: mount elsewhere"));
    }
    Ok(())
}

fn check_source(resolved: Resolved, path: &Path) -> Result<(PathBuf, Kind)> {
    let resolved = resolved.map_err(|e| match e.errno() {
        Some(Errno::NOENT) => Error::invalid("does not exist"),
        _ => e.into_error("does not answer: is it on a disk or a mount whose server is gone?"),
    });
    resolved.about_path(path)
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

fn check_mountpoint(resolved: Resolved, path: &Path) -> Result<PathBuf> {
    let resolved = resolved.map_err(|e| match e.errno() {
        Some(Errno::NOENT) => Error::invalid("does not exist: make it with mkdir"),
        Some(Errno::NOTCONN) => {
            Error::invalid("is a FUSE mount whose daemon has died: unmount it with fusermount3 -u")
        }
        _ => e.into_error("does not answer: a mount there, or on the path to it, hangs"),
    });
    match resolved.about_path(path)? {
        (mountpoint, Kind::Directory) => Ok(mountpoint),
        (mountpoint, Kind::BszfsMount) => {
            Err(Error::invalid(already_mounted(&mountpoint, path)?).about_path(path))
        }
        _ => Err(Error::invalid("is not a directory").about_path(path)),
    }
}

/// Why nothing can be mounted on the bszfs mount that the user calls `path`.
fn already_mounted(mountpoint: &Path, path: &Path) -> Result<String> {
    let shown = escape::path(path);
    Ok(match probe::run(Probe::Alive, mountpoint) {
        Err(ProbeError::TimedOut) => format!(
            "is a bszfs mount whose daemon does not answer: end it with `bsz umount --lazy {shown}`"
        ),
        Err(e) if e.errno() == Some(Errno::NOTCONN) => {
            format!("is a bszfs mount whose daemon has died: run `bsz umount {shown}` first")
        }
        _ => {
            let mount = mountinfo::topmost_at(mountpoint)?;
            let source = mount.map(|mount| mount.source).unwrap_or_default();
            let source = escape::path(&source);
            format!("is already a bszfs mount, of {source}: run `bsz umount {shown}` first")
        }
    })
}

fn check_fuse() -> Result<()> {
    // Opened for reading and writing, as the session does. The set-user-id helper opens it with the
    // rights of the user, too.
    if let Err(e) = File::options().read(true).write(true).open("/dev/fuse") {
        let advice = match e.kind() {
            io::ErrorKind::NotFound => {
                "load the kernel module (modprobe fuse); a container needs --device /dev/fuse"
            }
            io::ErrorKind::PermissionDenied => {
                "an administrator must let users open it (mode 0666); a container needs --device \
                 /dev/fuse and CAP_SYS_ADMIN"
            }
            _ => "the kernel has no FUSE: load its module (modprobe fuse)",
        };
        return Err(Error::invalid(format!("{e}: {advice}")).about("/dev/fuse"));
    }
    if !rustix::process::geteuid().is_root() && fusermount::find_helper().is_none() {
        let why = "not found, and ordinary users need it to mount: install the package fuse3";
        return Err(Error::invalid(why).about("fusermount3"));
    }
    Ok(())
}
