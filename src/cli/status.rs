//! `bsz status`, `bsz cache` and `bsz warm`: what the daemons do, and having them do it.

use super::progress::Bar;
use super::report::{Output, bytes, printable, table};
use super::{complain, for_each};
use crate::error::{Context, Error, Result};
use crate::mount::{self, Status};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Show the mounts and their figures
#[derive(Args)]
#[command(after_help = "Examples:
  bsz status               a line for each mount of yours; as root, of everybody
  bsz status /mnt/llama    this one, with all its figures
  bsz status --json        all figures of all mounts for a program to read")]
pub struct StatusArgs {
    /// Where they are mounted; all when absent
    mountpoints: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Manage what a mount keeps in memory
#[derive(Args)]
#[command(after_help = "Examples:
  bsz cache drop /mnt/llama    gives back the memory of decoded data; what is open stays open")]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Subcommand)]
enum CacheCommand {
    /// Drop what a mount's cache holds
    #[command(after_help = "Examples:
  bsz cache drop /mnt/llama")]
    Drop {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
}

/// Read files of a mount into the page cache, before a program needs them
#[derive(Args)]
#[command(after_help = "Examples:
  bsz warm /mnt/llama/model-00001-of-00004.safetensors
  bsz warm /mnt/llama/                                    all files in it")]
pub struct WarmArgs {
    /// Files, or directories with files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Threads that read
    #[arg(short = 'j', long = "jobs", value_name = "N", default_value = "4")]
    jobs: NonZeroUsize,
}

/// `bsz status`
pub fn status(args: &StatusArgs, quiet: bool) -> Result<()> {
    let named = !args.mountpoints.is_empty();
    let mountpoints = if named { args.mountpoints.clone() } else { mount::mounts()? };
    let mut all = Vec::new();
    let outcome = for_each("status", &mountpoints, |mountpoint| {
        all.push(mount::status(mountpoint)?);
        Ok(())
    });
    let output = Output::new(args.json, quiet);
    if named {
        all.iter().flat_map(figures).for_each(|line| output.line(line));
    } else if all.is_empty() && outcome.is_ok() {
        output.line("nothing is mounted; bsz mount --help says how");
    } else if !all.is_empty() {
        let head = ["MOUNTPOINT", "SOURCE", "FOR", "SERVED", "HITS", "CACHE", "ERRORS"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head.to_vec()).chain(all.iter().map(row)).collect();
        table(&rows, &[3, 4, 5, 6]).into_iter().for_each(|line| output.line(line));
    }
    output.finish(&all.iter().map(Described::new).collect::<Vec<_>>())?;
    // Without a name, a mount of somebody else's is none of ours.
    match outcome {
        Err(e) if named || all.is_empty() => Err(e),
        _ => Ok(()),
    }
}

/// A mount's status with what follows from it.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    status: &'a Status,
    hit_ratio: Option<f64>,
}

impl<'a> Described<'a> {
    fn new(status: &'a Status) -> Self {
        Self { status, hit_ratio: hit_ratio(status) }
    }
}

/// The part of chunks that were there, or on their way, when they were asked for.
fn hit_ratio(status: &Status) -> Option<f64> {
    let c = &status.cache;
    let asked = c.hits + c.joined + c.misses;
    (asked > 0).then(|| (c.hits + c.joined) as f64 / asked as f64)
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".into(), |r| format!("{:.1} %", r * 100.0))
}

fn uptime(status: &Status) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(status.since);
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

fn row(status: &Status) -> Vec<String> {
    let c = &status.cache;
    vec![
        printable(&status.mountpoint.to_string_lossy()).into_owned(),
        printable(&status.source.to_string_lossy()).into_owned(),
        uptime(status),
        bytes(c.served_bytes),
        percent(hit_ratio(status)),
        format!("{} of {}", bytes(c.held_bytes), bytes(c.capacity_bytes)),
        c.errors.to_string(),
    ]
}

/// All that is known of a mount.
fn figures(status: &Status) -> Vec<String> {
    let c = &status.cache;
    let path = |path: &Path| printable(&path.to_string_lossy()).into_owned();
    let rows = [
        ("mountpoint", path(&status.mountpoint)),
        ("source", path(&status.source)),
        ("process", format!("{}, bsz {}, for {}", status.pid, status.version, uptime(status))),
        ("reads", format!("{} of {}, {} failed", c.reads, bytes(c.served_bytes), c.errors)),
        ("decoded", format!("{} from {} stored", bytes(c.decoded_bytes), bytes(c.stored_bytes))),
        (
            "chunks",
            format!("{} present, {} on their way, {} decoded when asked for", c.hits, c.joined, c.misses),
        ),
        ("ahead", format!("{} chunks, {} used, {} dropped unused", c.ahead, c.ahead_used, c.ahead_dropped)),
        (
            "cache",
            format!(
                "{} of {}, {} chunks dropped for room",
                bytes(c.held_bytes),
                bytes(c.capacity_bytes),
                c.evictions
            ),
        ),
        ("waiting", format!("half of the reads below {}, 99 % below {}", latency(c, 0.5), latency(c, 0.99))),
    ];
    table(&rows.map(|(name, figures)| vec![name.to_owned(), figures]), &[])
}

/// The time below which a part of the reads stayed, as far as the classes tell.
fn latency(c: &crate::read::CacheStats, part: f64) -> String {
    let mut left = (c.reads as f64 * part).ceil() as u64;
    let class = c.latencies.iter().position(|&n| {
        left = left.saturating_sub(n);
        left == 0
    });
    let micros = class.map_or(0, |i| 1u64 << i);
    format!("{:?}", Duration::from_micros(micros))
}

/// `bsz cache`
pub fn cache(args: &CacheArgs) -> Result<()> {
    match &args.command {
        CacheCommand::Drop { mountpoint } => mount::drop_cache(mountpoint),
    }
}

/// `bsz warm`
pub fn warm(args: &WarmArgs, quiet: bool) -> Result<()> {
    let mut files = Vec::new();
    for path in &args.paths {
        find(path, &mut files)?;
    }
    let bar = Bar::new(quiet);
    for_each("warm", &files, |path| read(path, args.jobs.get(), &bar))
}

/// The regular files at and below `path`.
fn find(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.metadata().about_path(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = path.read_dir().about_path(path)?;
    let mut names =
        entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().about_path(path)?;
    names.sort();
    for name in names {
        // A link leads to what is warmed where it is, or elsewhere.
        if name.symlink_metadata().about_path(&name)?.file_type().is_symlink() {
            continue;
        }
        if let Err(e) = find(&name, files) {
            complain(&e);
        }
    }
    Ok(())
}

/// Read all of a file and let go of it: the kernel keeps it.
fn read(path: &Path, jobs: usize, bar: &Bar) -> Result<()> {
    const BLOCK: u64 = 4 << 20;
    let file = File::open(path).about_path(path)?;
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
        part.map_err(|_| Error::invalid("a thread panicked").about(path.display()))?.about_path(path)?;
    }
    Ok(())
}
