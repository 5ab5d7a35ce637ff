//! `bsz cache`.

use crate::error::Result;
use crate::mount;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Manage the decoded data that a mount keeps in memory
#[derive(Args)]
#[command(after_help = "Examples:
  bsz cache drop /mnt/llama    frees the memory of decoded data; open files stay open")]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Subcommand)]
enum CacheCommand {
    /// Empty the cache of a mount
    #[command(after_help = "Examples:
  bsz cache drop /mnt/llama")]
    Drop {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
}

/// `bsz cache`
pub fn cache(args: &CacheArgs) -> Result<()> {
    match &args.command {
        CacheCommand::Drop { mountpoint } => mount::drop_cache(mountpoint),
    }
}
