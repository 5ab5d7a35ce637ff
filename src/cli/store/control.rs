//! `bsz store pack-now`, `pause` and `resume`: commands to the packers of stores.

use crate::cli::for_each;
use crate::cli::progress::Bar;
use crate::cli::report::{Output, bytes};
use crate::error::{Error, Result};
use crate::mount::{self, PackerCommand, StoreStatus, command_packer};
use clap::Args;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// How often to ask whether everything is packed.
const POLL: Duration = Duration::from_millis(200);

/// The stores that a command is for.
#[derive(Args)]
pub struct ControlArgs {
    /// Stores [default: all]
    pub dirs: Vec<PathBuf>,
}

/// The options of `pack-now`.
#[derive(Args)]
pub struct PackNowOptions {
    /// Return when everything is packed
    #[arg(long)]
    wait: bool,
}

/// `bsz store pack-now`
pub fn pack_now(dirs: &[PathBuf], o: &PackNowOptions, quiet: bool) -> Result<()> {
    let stores = stores(dirs)?;
    for_each("pack-now", &stores, |dir| {
        let before = store_status(dir)?;
        command_packer(dir, PackerCommand::PackNow)?;
        if o.wait { wait(dir, &before, quiet) } else { Ok(()) }
    })
}

/// `bsz store pause`
pub fn pause(dirs: &[PathBuf]) -> Result<()> {
    for_each("pause", &stores(dirs)?, |dir| command_packer(dir, PackerCommand::Pause))
}

/// `bsz store resume`
pub fn resume(dirs: &[PathBuf]) -> Result<()> {
    for_each("resume", &stores(dirs)?, |dir| command_packer(dir, PackerCommand::Resume))
}

/// These stores, or all.
fn stores(dirs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if !dirs.is_empty() {
        return Ok(dirs.to_vec());
    }
    let mounts = mount::mounts()?;
    let statuses = mount::status(&mounts);
    let is_store =
        |status: &Result<mount::Status>| status.as_ref().is_ok_and(|s| s.store.is_some());
    let stores = mounts.into_iter().zip(&statuses).filter(|(_, status)| is_store(status));
    let stores: Vec<PathBuf> = stores.map(|(mount, _)| mount).collect();
    match stores.is_empty() {
        true => Err(Error::invalid("there is none; see `bsz store enable --help`").about("store")),
        false => Ok(stores),
    }
}

/// What the packer of a store does.
fn store_status(dir: &Path) -> Result<StoreStatus> {
    let status = mount::status(&[dir.to_owned()]).pop().transpose()?;
    let store = status.and_then(|status| status.store);
    store.ok_or_else(|| Error::invalid("is not a store").about_path(dir))
}

/// Wait until everything is packed.
fn wait(dir: &Path, before: &StoreStatus, quiet: bool) -> Result<()> {
    let bar = Bar::new(quiet);
    let now = loop {
        let now = store_status(dir)?;
        if now.paused {
            return Err(Error::invalid("packing was paused").about_path(dir));
        }
        if !now.draining && now.packing.is_none() {
            break now;
        }
        bar.say(&what(&now));
        thread::sleep(POLL);
    };
    drop(bar);
    let since = |figure: fn(&StoreStatus) -> u64| figure(&now).saturating_sub(figure(before));
    let saved = since(|s| s.original_bytes).saturating_sub(since(|s| s.stored_bytes));
    let output = Output::new(false, quiet);
    let (packed, left) = (since(|s| s.packed), since(|s| s.left));
    let path = crate::escape::path(dir);
    output.line(format!("{path}: packed {packed} files, saved {}, left {left}", bytes(saved)));
    output.finish(&())?;
    match since(|s| s.failed) {
        0 => Ok(()),
        n => {
            let why = format!("{n} files could not be packed yet; `bsz store status` says why");
            Err(Error::invalid(why).about_path(dir))
        }
    }
}

fn what(now: &StoreStatus) -> String {
    match (&now.packing, &now.waits) {
        (Some(file), _) => format!("packing {file}, {} packed, {} wait", now.packed, now.queued),
        (None, Some(why)) => format!("waiting: {why}"),
        (None, None) => "looking for files to pack".into(),
    }
}
