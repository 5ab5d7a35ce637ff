//! `bsz store`: directories that compress themselves while they are used.

mod check;
mod control;
mod disable;
mod enable;
mod service;
mod status;
mod survey;

pub(super) use control::{ControlArgs, PackNowOptions, pack_now, pause, resume};
pub(super) use disable::{DisableOptions, disable};
pub(super) use enable::{EnableOptions, enable};
pub(super) use status::{StatusOptions, packer_line, status};

use crate::error::Result;
use crate::store;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// Have directories compress themselves while they are used
#[derive(Args)]
#[command(after_help = "Examples:
  bsz store enable /srv/models     from now on, models in there are packed in the background
  bsz store status                 what is packed, what is saved, what is left and why
  bsz store pack-now --wait        pack everything that waits, and return when that is done
  bsz store disable /srv/models    make it an ordinary directory again")]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand)]
enum StoreCommand {
    Enable(EnableArgs),
    Disable(DisableArgs),
    Status(StatusArgs),
    PackNow(PackNowArgs),
    /// Pause packing, also in the middle of a file
    #[command(after_help = "Examples:
  bsz store pause                  all stores, until `bsz store resume` or a restart
  bsz store pause /srv/models      one store")]
    Pause(ControlArgs),
    /// Go on packing
    #[command(after_help = "Examples:
  bsz store resume                 all stores
  bsz store resume /srv/models     one store")]
    Resume(ControlArgs),
    /// List the steps of the protocols that change names, at which tests end the process
    #[command(hide = true)]
    Steps,
}

/// Have a directory compress itself from now on
///
/// It is mounted over itself. Programs see the same files as before, and change them as before; in
/// the background, while the machine is idle, models that nobody writes to are packed. First, this
/// command reports what that would save. `bsz store disable` undoes it.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz store enable /srv/models              report, ask, and start a service
  bsz store enable --yes ~/models           do not ask
  bsz store enable --no-unit ~/models       without a service: until the machine is restarted
  bsz store enable --no-unit -o pack=now .  set options of `bsz mount`")]
struct EnableArgs {
    /// The directory
    #[arg(default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    options: EnableOptions,
}

/// Make a store an ordinary directory again: unpack everything
///
/// This can be interrupted at any time, and started again. Archives that were in the directory
/// before it was enabled are unpacked, too.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz store disable /srv/models           ends the service, and unpacks everything
  bsz store disable --lazy /srv/models    even if files are in use: unpacks once they are closed")]
struct DisableArgs {
    /// The directory [default: the current one, if it is a store]
    dir: Option<PathBuf>,
    #[command(flatten)]
    options: DisableOptions,
}

/// Show what stores have packed and saved, what is left, and why
///
/// If several files hold the same tensor of 1 MiB or more, its stored bytes share their place on
/// disk on XFS, btrfs and bcachefs: the status says what that saves, and what is stored again. On
/// other file systems the latter is what sharing would save. Sizes of files do not show what is
/// shared; the free space does.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz store status                 all stores
  bsz store status /srv/models     one store
  bsz store status --json          the same as JSON, with a row for each directory of a store")]
struct StatusArgs {
    /// Stores to show [default: all]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    options: StatusOptions,
}

/// Pack everything that waits, now
#[derive(Args)]
#[command(after_help = "Examples:
  bsz store pack-now                      all stores, also if the machine is not idle
  bsz store pack-now --wait /srv/models   return when everything is packed")]
struct PackNowArgs {
    #[command(flatten)]
    stores: ControlArgs,
    #[command(flatten)]
    options: PackNowOptions,
}

/// `bsz store`
pub fn store(args: StoreArgs, quiet: bool) -> Result<()> {
    match args.command {
        StoreCommand::Enable(args) => enable(&args.dir, &args.options, quiet),
        StoreCommand::Disable(args) => disable(args.dir.as_deref(), &args.options, quiet),
        StoreCommand::Status(args) => status(&args.dirs, &args.options, quiet),
        StoreCommand::PackNow(args) => pack_now(&args.stores.dirs, &args.options, quiet),
        StoreCommand::Pause(args) => pause(&args.dirs),
        StoreCommand::Resume(args) => resume(&args.dirs),
        StoreCommand::Steps => steps(),
    }
}

fn steps() -> Result<()> {
    let output = super::report::Output::new(false, false);
    for (number, text) in store::STEPS {
        output.line(format!("{number} {text}"));
    }
    output.finish(&())
}

/// Whether the bszfs that is mounted at `path` is the store of that directory.
fn is_store_of(status: &crate::mount::Status, path: &Path) -> bool {
    status.store.is_some() && status.source == path
}
