//! The subcommands of a build that can mount.

use super::{ask, cache, demo, doctor, hf, mount, status, store, umount, warm};
use crate::error::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(super) enum Command {
    Mount(mount::Given),
    #[command(hide = true)]
    MountHelper(mount::HelperArgs),
    Umount(umount::UmountArgs),
    #[command(hide = true)]
    Ask(ask::AskArgs),
    Status(status::StatusArgs),
    Store(store::StoreArgs),
    Hf(hf::HfArgs),
    Warm(warm::WarmArgs),
    Cache(cache::CacheArgs),
    Doctor(doctor::DoctorArgs),
    Demo(demo::DemoArgs),
}

/// Run one of them.
pub(super) fn run(command: Command, quiet: bool) -> Result<()> {
    match command {
        Command::Mount(args) => mount::mount(args),
        Command::MountHelper(args) => mount::helper(args),
        Command::Umount(args) => umount::umount(args),
        Command::Ask(args) => ask::answer(&args),
        Command::Status(args) => status::status(&args, quiet),
        Command::Store(args) => store::store(args, quiet),
        Command::Hf(args) => hf::hf(args, quiet),
        Command::Warm(args) => warm::warm(&args, quiet),
        Command::Cache(args) => cache::cache(&args),
        Command::Doctor(args) => doctor::doctor(&args, quiet),
        Command::Demo(args) => demo::demo(args),
    }
}
