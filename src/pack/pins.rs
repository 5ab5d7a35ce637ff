//! Pins: hard links of the archives that an archive needs, in its own directory, so that nobody
//! loses a base by removing it. They take no space while the base has its own name, too.
//!
//! A pin is on disk before the archive that needs it has its name, and is removed only after all
//! other archives of the directory were asked. Meanwhile the directory is locked.

use super::{Action, bases::BaseFile};
use crate::{
    error::{Context, Error, Result},
    format::{Base, bases_of, is_pin, peek},
    output::{Dir, Existing, FileId, Output, file_id, is_temporary},
};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, openat},
    io::Errno,
};
use std::{ffi::OsStr, os::fd::OwnedFd, path::Path, sync::Arc};

/// What an archive needs that is about to get its name.
pub(super) struct Needs<'a> {
    pub(super) bases: &'a [Arc<dyn BaseFile>],
    /// Whether it may do without pins. Then this is told why there is none.
    pub(super) unpinned: bool,
    pub(super) warn: &'a dyn Fn(&Error),
}

/// How an archive was packed that needs these.
pub(super) fn packed_from(bases: &[Arc<dyn BaseFile>]) -> Action {
    match bases.iter().map(|base| Path::to_owned(base.path())).collect::<Vec<_>>() {
        none if none.is_empty() => Action::Packed,
        paths => Action::PackedFrom(paths),
    }
}

/// Pin what an archive needs and give it its name, as [`Output::commit`]. What an archive needed
/// that it replaces is unpinned.
///
/// # Errors
/// As [`pin`] and [`Output::commit`].
pub(super) fn commit(
    output: Output,
    existing: Existing,
    (dir, name): (&Dir, &OsStr),
    needs: &Needs<'_>,
) -> Result<FileId> {
    let replaced = match existing {
        // A file that is no readable archive has no pins.
        Existing::Replace => dir.open_file(name).and_then(|file| bases_of(&file)).ok().flatten(),
        Existing::Refuse => None,
    };
    let pinned = match pin(dir, needs.bases) {
        Err(e) if needs.unpinned => {
            (needs.warn)(&e);
            Pinned(None)
        }
        other => other?,
    };
    let committed = output.commit(existing);
    drop(pinned);
    let mut unneeded = replaced.unwrap_or_default();
    if committed.is_err() {
        unneeded.extend(needs.bases.iter().map(|base| base.base().clone()));
    }
    if let Err(e) = unpin(dir, Some(&unneeded)) {
        log::info!("pins stay: {e}");
    }
    committed
}

/// Keeps others from removing pins of a directory.
pub(super) struct Pinned(#[expect(dead_code, reason = "it holds a lock")] Option<OwnedFd>);

/// Pin `bases` in `dir`, where an archive that needs them is about to get its name. It must have
/// it before the result is dropped.
///
/// # Errors
/// Invalid argument if one of them cannot be pinned; Io.
pub(super) fn pin(dir: &Dir, bases: &[Arc<dyn BaseFile>]) -> Result<Pinned> {
    if bases.is_empty() {
        return Ok(Pinned(None));
    }
    let pinned = Pinned(lock(dir, FlockOperation::LockShared)?);
    for base in bases {
        pin_one(dir, &**base)?;
    }
    dir.sync()?;
    Ok(pinned)
}

fn pin_one(dir: &Dir, base: &dyn BaseFile) -> Result<()> {
    let name = base.base().pin_name();
    let name = OsStr::new(&name);
    let mut linked = dir.link_file(base.file(), name);
    if linked.as_ref().is_err_and(|e| e.errno() == Some(libc::EEXIST)) {
        if holds(dir, name, base.base()) {
            return Ok(());
        }
        // What has the name is of no use as a pin, and nobody else gives such names.
        if let Some(stat) = dir.stat(name)? {
            dir.unlink(name, file_id(&stat))?;
        }
        linked = dir.link_file(base.file(), name);
    }
    let Err(e) = linked else { return Ok(()) };
    let why = match e.errno() {
        Some(libc::EXDEV) => "it is on another file system, so a hard link cannot keep it",
        Some(libc::EPERM | libc::EACCES) => "a hard link that would keep it is not permitted here",
        Some(libc::EMLINK) => "it has too many hard links",
        Some(libc::EOPNOTSUPP) => "this file system has no hard links, which would keep it",
        _ => return Err(e),
    };
    let why = format!(
        "cannot be the base of an archive in {}: {why}; if you keep it yourself, use --unpinned",
        crate::escape::path(dir.own_path()),
    );
    Err(Error::invalid(why).about_path(base.path()))
}

/// Whether the file `name` is an archive of this base.
fn holds(dir: &Dir, name: &OsStr, base: &Base) -> bool {
    let footer = dir.open_file(name).and_then(|file| peek(&file));
    footer.is_ok_and(|footer| footer.is_some_and(|f| f.sha256 == base.sha256 && f.base_count == 0))
}

/// Pin in `to` what the archive `name` of `from` needs, and has pinned there.
///
/// # Errors
/// Io.
pub(super) fn pin_again(from: &Dir, name: &OsStr, to: &Dir) -> Result<Pinned> {
    let needed = bases_of(&from.open_file(name)?).about_path(&from.path(name))?;
    let needed = needed.unwrap_or_default();
    if needed.is_empty() {
        return Ok(Pinned(None));
    }
    let pinned = Pinned(lock(to, FlockOperation::LockShared)?);
    for base in needed {
        let pin = base.pin_name();
        match from.link(pin.as_ref(), to, pin.as_ref()) {
            // Without a pin there, it was not wanted.
            Err(e) if matches!(e.errno(), Some(libc::EEXIST | libc::ENOENT)) => {}
            other => other?,
        }
    }
    to.sync()?;
    Ok(pinned)
}

/// Remove the pins of `dir` that none of its archives needs: those of `bases`, or all. In doubt,
/// they stay.
///
/// # Errors
/// Io.
pub(super) fn unpin(dir: &Dir, bases: Option<&[Base]>) -> Result<()> {
    let entries = dir.entries()?;
    let names: Option<Vec<String>> = bases.map(|all| all.iter().map(Base::pin_name).collect());
    let wanted = |name: &OsStr| {
        is_pin(name) && names.as_ref().is_none_or(|all| all.iter().any(|one| name == &**one))
    };
    if !entries.iter().any(|entry| wanted(&entry.name)) {
        return Ok(());
    }
    // Somebody is making an archive.
    let Ok(Some(_locked)) = lock(dir, FlockOperation::NonBlockingLockExclusive) else {
        return Ok(());
    };
    let mut needed = Vec::new();
    for entry in dir.entries()?.iter().filter(|e| e.kind.is_file() && !is_pin(&e.name)) {
        let found = dir.open_file(&entry.name).and_then(|file| bases_of(&file));
        match found {
            Ok(found) => needed.extend(found.into_iter().flatten().map(|base| base.pin_name())),
            Err(e) if e.errno() == Some(libc::ENOENT) => {}
            // Nobody can tell what it needs.
            Err(_) if is_temporary(&entry.name) => return Ok(()),
            Err(e) => {
                log::info!("pins stay: {}: {e}", dir.path(&entry.name).display());
                return Ok(());
            }
        }
    }
    for entry in entries.iter().filter(|entry| wanted(&entry.name)) {
        if !needed.iter().any(|pin| *entry.name == **pin)
            && let Some(stat) = dir.stat(&entry.name)?
        {
            dir.unlink(&entry.name, file_id(&stat))?;
        }
    }
    dir.sync()
}

/// Lock a directory; `None` where that is not possible.
fn lock(dir: &Dir, how: FlockOperation) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(fd) = openat(dir, ".", flags, Mode::empty()) else { return Ok(None) };
    match flock(&fd, how) {
        Ok(()) => Ok(Some(fd)),
        Err(e @ Errno::AGAIN) => Err(e).about_path(dir.own_path()),
        Err(_) => Ok(None),
    }
}
