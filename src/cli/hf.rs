//! `bsz hf`: the store commands for the cache of the Hugging Face hub.

use super::store::{self, DisableOptions, EnableOptions, PackNowOptions, StatusOptions};
use crate::error::{Context, Error, Result};
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Have the cache of the Hugging Face hub compress itself
#[derive(Args)]
#[command(after_help = "Examples:
  bsz hf enable       from now on, downloaded models are packed in the background
  bsz hf status       what is saved, by repository
  bsz hf disable      unpack everything, and leave the cache as it was

Environment:
  The cache is the directory HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub,
  XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub: the first whose variable is set")]
pub struct HfArgs {
    #[command(subcommand)]
    command: HfCommand,
}

#[derive(Subcommand)]
enum HfCommand {
    /// Have the cache compress itself from now on: `bsz store enable`
    #[command(after_help = "Examples:
  bsz hf enable         report what it would save, ask, and start a service
  bsz hf enable --yes   do not ask")]
    Enable(EnableOptions),
    /// Unpack everything, and make the cache an ordinary directory: `bsz store disable`
    #[command(after_help = "Examples:
  bsz hf disable")]
    Disable(DisableOptions),
    /// Show what is packed and saved, by repository: `bsz store status`
    #[command(after_help = "Examples:
  bsz hf status --json")]
    Status(StatusOptions),
    /// Pack everything that waits, now: `bsz store pack-now`
    #[command(after_help = "Examples:
  bsz hf pack-now --wait")]
    PackNow(PackNowOptions),
}

/// `bsz hf`
pub fn hf(args: HfArgs, quiet: bool) -> Result<()> {
    let cache = hub_cache(|name| std::env::var_os(name))?;
    match args.command {
        HfCommand::Enable(o) => {
            // The first download creates it otherwise.
            std::fs::create_dir_all(&cache).about_path(&cache)?;
            store::enable(&cache, &o, quiet)
        }
        HfCommand::Disable(o) => store::disable(Some(&cache), &o, quiet),
        HfCommand::Status(o) => store::status(&[cache], &o, quiet),
        HfCommand::PackNow(o) => store::pack_now(&[cache], &o, quiet),
    }
}

/// Where the hub's clients keep what they have downloaded.
fn hub_cache(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let home = variable("HOME").map(PathBuf::from);
    let expanded = |value: OsString| match (Path::new(&value).strip_prefix("~"), &home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(value),
    };
    let at = |name: &str| variable(name).map(expanded);
    let below = |name: &str, path: &str| at(name).map(|value| value.join(path));
    let known = at("HF_HUB_CACHE")
        .or_else(|| at("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| below("HF_HOME", "hub"))
        .or_else(|| below("XDG_CACHE_HOME", "huggingface/hub"))
        .or_else(|| below("HOME", ".cache/huggingface/hub"));
    known.ok_or_else(|| Error::invalid("is not set, nor is HF_HUB_CACHE").about("HOME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_found_as_the_hub_does() {
        let all = [
            ("HF_HUB_CACHE", "~/a", "/home/u/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/home/u", "/home/u/.cache/huggingface/hub"),
        ];
        for first in 0..all.len() {
            let set = |name: &str| {
                let known = all.iter().enumerate().find(|(_, (known, ..))| *known == name);
                known.filter(|(i, _)| *i >= first).map(|(_, (_, value, _))| value.into())
            };
            assert_eq!(hub_cache(set).expect("known"), Path::new(all[first].2));
        }
        assert!(hub_cache(|_| None).is_err());
    }
}
