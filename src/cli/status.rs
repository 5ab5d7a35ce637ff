//! `bsz status`, `bsz cache` and `bsz warm`: what the daemons do, and having them do it.

use super::progress::Bar;
use super::report::{Output, bytes, ratio, table};
use super::{complain, for_each};
use crate::cache::CacheStats;
use crate::error::{Context, Error, Result};
use crate::mount::{self, Probe, Space, Status};
use crate::{escape, input};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Show the mounts and their figures
#[derive(Args)]
#[command(after_help = "Examples:
  bsz status               a line for each mount of yours; as root, of everybody
  bsz status /mnt/llama    this one, with all its figures
  bsz status --json        all figures of all mounts for a program to read
  bsz status --watch       what they do now, every two seconds until ^C
  bsz status --watch=10 --json    the same for a program: a line of JSON every ten seconds")]
pub struct StatusArgs {
    /// Where they are mounted; all when absent
    mountpoints: Vec<PathBuf>,
    /// Show rates, anew after so many seconds [default: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.filter(|s| !s.is_zero()).ok_or_else(|| "is no number of seconds".into())
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
    /// Read what is asked for on the standard input, below the mountpoint PATH. What a daemon starts, to have layers in
    /// the kernel's page cache
    #[arg(long, hide = true)]
    requests: bool,
    /// Threads that read
    #[arg(short = 'j', long = "jobs", value_name = "N", default_value = "4")]
    jobs: NonZeroUsize,
}

/// Run an operation that may hang, in a process that other commands start for that
#[derive(Args)]
pub struct AskArgs {
    #[arg(value_parser = probe)]
    probe: Probe,
    path: PathBuf,
}

fn probe(name: &str) -> std::result::Result<Probe, String> {
    Probe::named(name).ok_or_else(|| "is not a probe".into())
}

/// `bsz ask`
pub fn answer(args: &AskArgs) -> Result<()> {
    mount::run_probe(args.probe, &args.path)
}

/// `bsz status`
pub fn status(args: &StatusArgs, quiet: bool) -> Result<()> {
    if let Some(interval) = args.watch {
        return watch(args, interval);
    }
    let named = !args.mountpoints.is_empty();
    let (asked, outcome) = ask(&args.mountpoints)?;
    let mut all: Vec<_> = asked.iter().map(Described::new).collect();
    for described in all.iter_mut().filter(|_| named) {
        // The figures are there even where the source cannot be read any more.
        described.space = mount::space(&described.status.mountpoint).inspect_err(complain).ok();
    }
    let output = Output::new(args.json, quiet);
    if named {
        all.iter().flat_map(figures).for_each(|line| output.line(line));
    } else if all.is_empty() && outcome.is_ok() {
        output.line("nothing is mounted; bsz mount --help says how");
    } else if !all.is_empty() {
        let head =
            ["MOUNTPOINT", "SOURCE", "FOR", "SERVED", "HITS", "CACHE", "ERRORS"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head.to_vec()).chain(all.iter().map(row)).collect();
        table(&rows, &[3, 4, 5, 6]).into_iter().for_each(|line| output.line(line));
    }
    output.finish(&all)?;
    // Without a name, a mount of somebody else's is none of ours.
    match outcome {
        Err(e) if named || all.is_empty() => Err(e),
        _ => Ok(()),
    }
}

/// The status of these mounts, or of all; and what went wrong with others.
fn ask(mountpoints: &[PathBuf]) -> Result<(Vec<Status>, Result<()>)> {
    let mountpoints = if mountpoints.is_empty() { mount::mounts()? } else { mountpoints.to_vec() };
    let mut answers = mount::status(&mountpoints).into_iter();
    let mut all = Vec::new();
    let outcome = for_each("status", &mountpoints, |_| {
        all.extend(answers.next().transpose()?);
        Ok(())
    });
    Ok((all, outcome))
}

/// Show what the mounts do, again and again, until a named one has gone or nobody reads it any more.
fn watch(args: &StatusArgs, interval: Duration) -> Result<()> {
    let (mut before, mut outcome) = ask(&args.mountpoints)?;
    let mut asked = Instant::now();
    let named = !args.mountpoints.is_empty();
    let terminal = std::io::stdout().is_terminal();
    let head = ["MOUNTPOINT", "SERVED", "DECODED", "READ", "HITS", "CACHE", "ERRORS"];
    let mut head = Some(head.map(str::to_owned).to_vec());
    loop {
        match outcome {
            Err(e) if named => return Err(e),
            _ => thread::sleep(interval),
        }
        let (now, again) = ask(&args.mountpoints)?;
        let seconds = asked.elapsed().as_secs_f64();
        asked = Instant::now();
        // The first look at a mount tells no rate.
        let known = |status: &Status| {
            let before = before
                .iter()
                .find(|b| (b.pid, &b.mountpoint) == (status.pid, &status.mountpoint))?;
            Some(Rates::new(&before.cache, &status.cache, seconds))
        };
        let all: Vec<_> = now
            .iter()
            .filter_map(|status| {
                Some(Described { rates: Some(known(status)?), ..Described::new(status) })
            })
            .collect();
        let mut out = std::io::stdout().lock();
        let written = if args.json {
            let line =
                serde_json::to_string(&all).map_err(std::io::Error::from).about("the report")?;
            writeln!(out, "{}", escape::json(&line))
        } else {
            let rows: Vec<_> = head.iter().cloned().chain(all.iter().map(rates_row)).collect();
            let lines = table(&rows, &[1, 2, 3, 4, 5, 6]);
            let clear = if terminal { "\x1b[H\x1b[J" } else { "" };
            write!(
                out,
                "{clear}{}",
                lines.iter().map(|line| format!("{line}\n")).collect::<String>()
            )
        };
        written.and_then(|()| out.flush()).about("standard output")?;
        if !terminal {
            head = None;
        }
        (before, outcome) = (now, again);
    }
}

/// A mount's status with what follows from it.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    status: &'a Status,
    hit_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    space: Option<Space>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
}

impl<'a> Described<'a> {
    fn new(status: &'a Status) -> Self {
        let c = &status.cache;
        Self {
            status,
            hit_ratio: hit_ratio(c.hits.saturating_add(c.joined), c.misses),
            space: None,
            rates: None,
        }
    }
}

/// What a mount did between two looks at it; bytes are for each second.
#[derive(Serialize)]
struct Rates {
    seconds: f64,
    served_bytes: u64,
    decoded_bytes: u64,
    stored_bytes: u64,
    hit_ratio: Option<f64>,
}

impl Rates {
    fn new(before: &CacheStats, now: &CacheStats, seconds: f64) -> Self {
        let since = |figure: fn(&CacheStats) -> u64| figure(now).saturating_sub(figure(before));
        let rate = |figure| (since(figure) as f64 / seconds) as u64;
        Self {
            seconds,
            served_bytes: rate(|c| c.served_bytes),
            decoded_bytes: rate(|c| c.decoded_bytes),
            stored_bytes: rate(|c| c.stored_bytes),
            hit_ratio: hit_ratio(since(|c| c.hits.saturating_add(c.joined)), since(|c| c.misses)),
        }
    }
}

/// The part of chunks that were there, or on their way, when they were asked for.
fn hit_ratio(there: u64, misses: u64) -> Option<f64> {
    let asked = there.saturating_add(misses);
    (asked > 0).then(|| there as f64 / asked as f64)
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

fn row(described: &Described) -> Vec<String> {
    let status = described.status;
    let c = &status.cache;
    vec![
        escape::path(&status.mountpoint).into_owned(),
        escape::path(&status.source).into_owned(),
        uptime(status),
        bytes(c.served_bytes),
        percent(described.hit_ratio),
        format!("{} of {}", bytes(c.held_bytes), bytes(c.capacity_bytes)),
        c.errors.to_string(),
    ]
}

/// A line of `--watch`.
fn rates_row(described: &Described) -> Vec<String> {
    let c = &described.status.cache;
    let mut row = vec![escape::path(&described.status.mountpoint).into_owned()];
    if let Some(r) = &described.rates {
        row.extend(
            [r.served_bytes, r.decoded_bytes, r.stored_bytes].map(|b| format!("{}/s", bytes(b))),
        );
        row.push(percent(r.hit_ratio));
    }
    row.extend([bytes(c.held_bytes), c.errors.to_string()]);
    row
}

/// All that is known of a mount.
fn figures(described: &Described) -> Vec<String> {
    let status = described.status;
    let c = &status.cache;
    let space = described.space.map_or_else(
        || "cannot be told".to_owned(),
        |s| {
            let (original, stored) = (s.original_bytes, s.stored_bytes);
            let percent = ratio(stored, original);
            format!(
                "{} in {} ({percent}), archives: {}",
                bytes(original),
                bytes(stored),
                s.archives
            )
        },
    );
    let path = |path: &Path| escape::path(path).into_owned();
    let rows = [
        ("mountpoint", path(&status.mountpoint)),
        ("source", path(&status.source)),
        ("process", format!("{}, bsz {}, for {}", status.pid, status.version, uptime(status))),
        ("space", space),
        ("reads", format!("{} of {}, {} failed", c.reads, bytes(c.served_bytes), c.errors)),
        ("decoded", format!("{} from {} stored", bytes(c.decoded_bytes), bytes(c.stored_bytes))),
        (
            "chunks",
            format!(
                "{} present, {} on their way, {} decoded when asked for",
                c.hits, c.joined, c.misses
            ),
        ),
        (
            "ahead",
            format!(
                "{} chunks, {} used, {} dropped unused",
                c.ahead, c.ahead_used, c.ahead_dropped
            ),
        ),
        (
            "cache",
            format!(
                "{} of {}, {} chunks dropped for room",
                bytes(c.held_bytes),
                bytes(c.capacity_bytes),
                c.evictions
            ),
        ),
        (
            "waiting",
            format!("half of the reads below {}, 99 % below {}", latency(c, 0.5), latency(c, 0.99)),
        ),
    ];
    table(&rows.map(|(name, figures)| vec![name.to_owned(), figures]), &[])
}

/// The time below which a part of the reads stayed, as far as the classes tell.
fn latency(c: &CacheStats, part: f64) -> String {
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
    if let ([mountpoint], true) = (&args.paths[..], args.requests) {
        return mount::serve_warm_requests(mountpoint);
    }
    let mut files = Vec::new();
    // What cannot be found is said, and the rest is warmed.
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

/// The file `path`, or the regular files below it.
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
            // A link leads to what is warmed where it is, or elsewhere; pipes, sockets and devices hold nothing.
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        failed += usize::from(outcome.inspect_err(complain).is_err());
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::invalid(format!("{failed} of its entries failed")).about_path(path)),
    }
}

/// Read all of a file and let go of it: the kernel keeps it.
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
