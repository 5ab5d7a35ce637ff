//! `bsz store disable`.

use super::is_store_of;
use super::service::Service;
use crate::cli::interrupt::clean_up_when_interrupted;
use crate::cli::outcome;
use crate::cli::progress::Bar;
use crate::cli::report::{Output, bytes};
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::mount::{self, Place};
use crate::store::{Restore, RestoreProgress, Restored, Room};
use clap::Args;
use rustix::process::geteuid;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a daemon may take to end after its mount is gone.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// The options of `disable`.
#[derive(Args)]
pub struct DisableOptions {
    /// Do so even if files are in use: detach the mount, and unpack once they are closed
    #[arg(short, long)]
    lazy: bool,
}

/// `bsz store disable`. A directory that is not named must be a store.
pub fn disable(dir: Option<&Path>, o: &DisableOptions, quiet: bool) -> Result<()> {
    let place = mount::place(dir.unwrap_or(Path::new(".")))?;
    let path = &*place.path;
    let output = Output::new(false, quiet);
    let shown = escape::path(path).into_owned();
    let ends = unmount(&place, o.lazy, &output)?;
    let systems = if geteuid().is_root() { vec![true] } else { vec![false, true] };
    let services = systems.into_iter().filter_map(|is_system| Service::of(path, is_system));
    let services: Vec<Service> = services.filter(Service::is_known).collect();
    if dir.is_none() && !place.is_bszfs() && services.is_empty() {
        let why = "is not a store now: name it, to unpack the archives in it";
        return Err(Error::invalid(why).about_path(path));
    }
    for service in services {
        service.disable(!ends)?;
        output.line(format!("{shown}: disabled {}", service.unit));
    }
    clean_up_when_interrupted()?;
    let bar = Bar::new(quiet);
    let started = Instant::now();
    let restore = Restore::open(path, || {
        if o.lazy {
            bar.say("waiting until the last file is closed");
        }
        o.lazy || started.elapsed() < ENDS_WITHIN
    })?;
    let room = restore.room();
    fits(path, &room, restore.free()?)?;
    bar.start("unpacking", path, room.original, 1);
    let restored = restore.run(&|progress: RestoreProgress<'_>| bar.reach(progress.done));
    drop(bar);
    let Restored { files, bytes: size, failures } = restored;
    output.line(format!("{shown}: unpacked {files} files, {}", bytes(size)));
    output.finish(&())?;
    let failed: Vec<Error> = failures.into_iter().map(|e| under(path, e)).collect();
    let of = usize::try_from(files).unwrap_or(usize::MAX).saturating_add(failed.len());
    outcome("disable", &failed, of)
}

/// An error of a file in a store, with the whole path.
fn under(dir: &Path, e: Error) -> Error {
    let path = e.path().map(|path| dir.join(path));
    path.map_or(e.clone(), |path| e.about_path(&path))
}

/// Unmount the store, if there is room to unpack it. Returns whether its daemon ends by itself;
/// else there is none, or its service is about to start another one.
fn unmount(place: &Place, lazy: bool, output: &Output) -> Result<bool> {
    let path = &*place.path;
    if let Some(outer) = &place.inside {
        let why = format!("is inside the bszfs mount {}", escape::path(outer));
        return Err(Error::invalid(why).about_path(path));
    }
    if let Some(inner) = &place.contains {
        let why = format!("contains the bszfs mount {}", escape::path(inner));
        return Err(Error::invalid(why).about_path(path));
    }
    if !place.is_bszfs() {
        return Ok(false);
    }
    match mount::status(std::slice::from_ref(&place.path)).pop().transpose() {
        Ok(Some(status)) if is_store_of(&status, path) => {}
        Ok(_) => {
            let why = "is a bszfs mount that is not the store of this directory";
            return Err(Error::invalid(why).about_path(path));
        }
        Err(e) if e.errno() == Some(libc::ENOTCONN) => {
            return mount::detach(path).map(|()| false);
        }
        Err(e) => return Err(e),
    }
    let room = room(path)?;
    let space = rustix::fs::statvfs(path).about_path(path)?;
    fits(path, &room, space.f_bavail.saturating_mul(space.f_frsize))?;
    let shown = escape::path(path);
    let (needed, original) = (bytes(room.needed()), bytes(room.original));
    output.line(format!("{shown}: unpacking {original} needs {needed} of free space"));
    if lazy {
        mount::detach(path)?
    } else {
        mount::unmount(path)?
    }
    Ok(true)
}

/// What is packed in a mounted store.
fn room(path: &Path) -> Result<Room> {
    let usage = mount::usage(path)?;
    let sum =
        |figure: fn(&mount::DirectoryUsage) -> u64| usage.directories.iter().map(figure).sum();
    Ok(Room {
        files: sum(|d| d.packed),
        original: sum(|d| d.original_bytes),
        stored: sum(|d| d.stored_bytes),
        largest: usage.largest,
    })
}

/// Check that there is room.
fn fits(path: &Path, room: &Room, free: u64) -> Result<()> {
    let needed = room.needed();
    if needed <= free {
        return Ok(());
    }
    let why = format!(
        "unpacking {} needs {} of free space, but there are {}",
        bytes(room.original),
        bytes(needed),
        bytes(free)
    );
    Err(Error::invalid(why).about_path(path))
}
