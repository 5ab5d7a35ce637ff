//! `bsz detach` and `bsz rebase`.

use super::against::{AgainstArgs, Opened, near};
use super::bases;
use super::common::Common;
use super::interrupt::clean_up_when_interrupted;
use super::progress::Watch;
use super::report::Output;
use super::unpack::open;
use crate::error::{Error, Result};
use crate::pack::{self, Options, Progress};
use clap::Args;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Make archives that are stored as differences stand alone
///
/// Each archive is unpacked to a file without a name in its directory, packed again, verified, and
/// replaced at once; so the directory needs room for the largest original and its archive. The pins
/// that kept its bases are removed if no other archive of the directory needs them. Archives that
/// stand alone already are left as they are.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz detach tune.bsz         no longer needs its base
  bsz detach checkpoints/*.bsz
  bsz detach tune.bsz && bsz cp tune.bsz s3://models/tune.bsz")]
pub struct DetachArgs {
    /// Archives
    #[arg(required = true, value_name = "ARCHIVE")]
    archives: Vec<PathBuf>,
    #[command(flatten)]
    near: bases::BaseArgs,
    #[command(flatten)]
    common: Common,
}

/// Store archives as differences from another base
///
/// As `bsz detach` followed by `bsz pack --base`, at once: each archive is unpacked to a file
/// without a name in its directory, packed against BASE, verified, and replaced; so the directory
/// needs room for the largest original and its archive. Works on archives that stand alone, too.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz rebase tune.bsz --base llama/model.bsz
  bsz rebase checkpoint-*/model.bsz --base checkpoint-100/model.bsz
  bsz rebase tune.bsz --base auto             the nearest archive near by")]
pub struct RebaseArgs {
    /// Archives
    #[arg(required = true, value_name = "ARCHIVE")]
    archives: Vec<PathBuf>,
    #[command(flatten)]
    against: AgainstArgs,
    #[command(flatten)]
    near: bases::BaseArgs,
    #[command(flatten)]
    common: Common,
}

/// `bsz detach`
pub fn detach(args: &DetachArgs, quiet: bool) -> Result<()> {
    args.near.apply();
    repack("detach", &args.archives, None, &args.common, quiet)
}

/// `bsz rebase`
pub fn rebase(args: &RebaseArgs, quiet: bool) -> Result<()> {
    if args.against.is_empty() {
        return Err(Error::invalid("needs --base BASE").about("rebase"));
    }
    args.near.apply();
    repack("rebase", &args.archives, Some(&args.against), &args.common, quiet)
}

fn repack(
    verb: &str,
    archives: &[PathBuf],
    bases: Option<&AgainstArgs>,
    common: &Common,
    quiet: bool,
) -> Result<()> {
    clean_up_when_interrupted()?;
    common.start_threads()?;
    let opened = Arc::new(Opened::default());
    // What is wrong with them is wrong for all.
    bases.map(|bases| bases.open(Vec::new(), &opened)).transpose()?;
    let watch = Watch::new(Output::new(common.json, quiet), quiet);
    for path in archives {
        let one = || {
            let dir = path.parent().unwrap_or(Path::new(""));
            let bases = bases.map(|bases| bases.open(near(dir), &opened)).transpose()?;
            let options = Options { bases: bases.unwrap_or_default(), ..Options::default() };
            let check = |file: &File, p: &dyn Progress| opened.check(file, false, p);
            pack::repack(path, &options, &open, &check, &watch)
        };
        one().map(drop).unwrap_or_else(|e| watch.fail(&e));
    }
    watch.finish(verb)
}
