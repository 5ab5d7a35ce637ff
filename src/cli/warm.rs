//! `bsz warm`: read files, so that the kernel keeps them in its page cache.

use super::progress::Bar;
use super::{complain, for_each};
use crate::error::{Context, Error, Result};
use crate::{input, readahead};
use clap::Args;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Read files of a mount into the page cache before a program needs them
#[derive(Args)]
#[command(after_help = "Examples:
  bsz warm /mnt/llama/model-00001-of-00004.safetensors
  bsz warm /mnt/llama/                                    all files in the directory")]
pub struct WarmArgs {
    /// Files, or directories with files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Read what is requested on standard input, below the mountpoint PATH. Started by a daemon, to
    /// have layers in the page cache
    #[arg(long, hide = true)]
    requests: bool,
    /// Use N threads
    #[arg(short = 'j', long = "jobs", value_name = "N", default_value = "4")]
    jobs: NonZeroUsize,
}

/// `bsz warm`
pub fn warm(args: &WarmArgs, quiet: bool) -> Result<()> {
    if let ([mountpoint], true) = (&args.paths[..], args.requests) {
        return readahead::serve_warm_requests(mountpoint);
    }
    let mut files = Vec::new();
    // Paths that cannot be found are reported, and the others warmed.
    let found = for_each("warm", &args.paths, |path| find(path, &mut files));
    let bar = Bar::new(quiet);
    let read = match files.is_empty() {
        true => Ok(()),
        false => for_each("warm", &files, |path| read(path, args.jobs.get(), &bar)),
    };
    if let (Err(e), Err(_)) = (&found, &read) {
        complain(e);
    }
    read.and(found)
}

/// Collect the file `path`, or the regular files below it.
fn find(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.metadata().about_path(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = path.read_dir().about_path(path)?;
    let mut names = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .about_path(path)?;
    names.sort();
    let mut failed = 0;
    for name in names {
        let outcome = match name.symlink_metadata().about_path(&name) {
            Ok(meta) if meta.is_dir() => find(&name, files),
            Ok(meta) if meta.is_file() => {
                files.push(name);
                Ok(())
            }
            // The targets of links are warmed where they are, or are elsewhere. Pipes, sockets and
            // devices have no content to warm.
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        failed += usize::from(outcome.inspect_err(complain).is_err());
    }
    match failed {
        0 => Ok(()),
        _ => {
            Err(Error::invalid(format!("{failed} of its entries could not be read"))
                .about_path(path))
        }
    }
}

/// Read all of a file: the kernel keeps it.
fn read(path: &Path, jobs: usize, bar: &Bar) -> Result<()> {
    const BLOCK: u64 = 4 << 20;
    let file = input::open(path)?;
    let len = file.metadata().about_path(path)?.len();
    bar.start("warming", path, len, 1);
    let next = AtomicU64::new(0);
    let work = || -> std::io::Result<()> {
        let mut buffer = vec![0; BLOCK.min(len) as usize];
        loop {
            let at = next.fetch_add(BLOCK, Ordering::Relaxed);
            if at >= len {
                return Ok(());
            }
            let want = BLOCK.min(len - at) as usize;
            file.read_exact_at(&mut buffer[..want], at)?;
            bar.advance(want as u64);
        }
    };
    let outcome = thread::scope(|s| {
        let threads: Vec<_> = (0..jobs).map(|_| s.spawn(work)).collect();
        threads.into_iter().map(|t| t.join()).collect::<Vec<_>>()
    });
    for part in outcome {
        part.map_err(|_| Error::invalid("a thread panicked").about_path(path))?.about_path(path)?;
    }
    Ok(())
}
