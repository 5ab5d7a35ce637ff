//! `bsz ask`: a process that may hang in place of the one that started it.

use crate::error::Result;
use crate::mount::{self, Probe};
use clap::Args;
use std::path::PathBuf;

/// Answer a question that may block forever; other commands run this
#[derive(Args)]
pub struct AskArgs {
    #[arg(value_parser = probe)]
    probe: Probe,
    path: PathBuf,
}

fn probe(name: &str) -> Result<Probe, &'static str> {
    Probe::named(name).ok_or("is not a probe")
}

/// `bsz ask`
pub fn answer(args: &AskArgs) -> Result<()> {
    mount::run_probe(args.probe, &args.path)
}
