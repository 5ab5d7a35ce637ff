//! `bsz status`: the mounts and their figures, once or repeatedly.

use super::report::{Output, bytes, ratio, table};
use super::store::packer_line;
use super::{complain, for_each};
use crate::cache::CacheStats;
#[cfg(feature = "remote")]
use crate::error::Error;
use crate::error::{Context, Result};
use crate::escape;
use crate::mount::{self, RemoteStatus, Space, Status};
#[cfg(feature = "remote")]
use crate::remote::{is_remote, shown};

use clap::Args;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Show mounts and their statistics
#[derive(Args)]
#[command(after_help = "Examples:
  bsz status               one line for each of your mounts; as root, for all mounts
  bsz status /mnt/llama    all statistics of one mount
  bsz status s3://b/llama  the same, wherever this URL is mounted
  bsz status --json        all statistics of all mounts, as JSON
  bsz status --watch       current rates, every two seconds until ^C
  bsz status --watch=10 --json    the same as JSON: one line every ten seconds")]
pub struct StatusArgs {
    /// Mounts to show, or URLs that are mounted [default: all]
    mountpoints: Vec<PathBuf>,
    /// Show rates, updated every SECONDS [default: 2]
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = interval
    )]
    watch: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.filter(|s| !s.is_zero()).ok_or_else(|| "must be a positive number of seconds".into())
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
        // The statistics are valid even if the source can no longer be read.
        described.space = mount::space(&described.status.mountpoint).inspect_err(complain).ok();
    }
    let output = Output::new(args.json, quiet);
    if named {
        all.iter().flat_map(figures).for_each(|line| output.line(line));
    } else if all.is_empty() && outcome.is_ok() {
        output.line("nothing is mounted; see `bsz mount --help`");
    } else if !all.is_empty() {
        let head =
            ["MOUNTPOINT", "SOURCE", "FOR", "SERVED", "HITS", "CACHE", "ERRORS"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head.to_vec()).chain(all.iter().map(row)).collect();
        table(&rows, &[3, 4, 5, 6]).into_iter().for_each(|line| output.line(line));
        all.iter().filter_map(store_line).for_each(|line| output.line(line));
        all.iter().flat_map(missing_lines).for_each(|line| output.line(line));
    }
    output.finish(&all)?;
    // Unless it was named, a mount of another user that does not answer is not our concern.
    match outcome {
        Err(e) if named || all.is_empty() => Err(e),
        _ => Ok(()),
    }
}

/// The status of these mounts, or of all mounts, and the outcome for those that did not answer.
fn ask(mountpoints: &[PathBuf]) -> Result<(Vec<Status>, Result<()>)> {
    let mountpoints = if mountpoints.is_empty() { mount::mounts()? } else { named(mountpoints)? };
    let mut answers = mount::status(&mountpoints).into_iter();
    let mut all = Vec::new();
    let outcome = for_each("status", &mountpoints, |_| {
        all.extend(answers.next().transpose()?);
        Ok(())
    });
    Ok((all, outcome))
}

/// The mountpoints that are named, and those of named URLs.
fn named(mounts: &[PathBuf]) -> Result<Vec<PathBuf>> {
    #[cfg(feature = "remote")]
    if mounts.iter().any(|mount| mount.to_str().is_some_and(is_remote)) {
        let places = mounts.iter().map(|mount| match mount.to_str().filter(|url| is_remote(url)) {
            Some(url) => places(url),
            None => Ok(vec![mount.clone()]),
        });
        return Ok(places.collect::<Result<Vec<_>>>()?.concat());
    }
    Ok(mounts.to_vec())
}

/// Where a URL is mounted.
#[cfg(feature = "remote")]
fn places(url: &str) -> Result<Vec<PathBuf>> {
    let shown = shown(url).about("URL")?;
    match mount::mounts_of(&shown)? {
        none if none.is_empty() => Err(Error::invalid("is not mounted")).about_path(&shown),
        places => Ok(places),
    }
}

/// Show rates repeatedly, until a named mount is gone or nobody reads the output any more.
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
        // There is no rate before the second look at a mount.
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

/// The status of a mount, with derived figures.
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

/// What a mount did between two looks at it; bytes are per second.
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

/// The share of requested chunks that were decoded, or in flight, already.
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

/// What the packer of a store does.
fn store_line(described: &Described) -> Option<String> {
    let store = described.status.store.as_ref()?;
    let at = escape::path(&described.status.mountpoint);
    Some(format!("{at}: {}", packer_line(store)))
}

/// The bases that are missing.
fn missing_lines(described: &Described) -> Vec<String> {
    let at = escape::path(&described.status.mountpoint);
    let bases = described.status.bases.iter();
    bases.map(|base| format!("{at}: a base is missing: {}", escape::text(&base.why))).collect()
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

/// All figures of a mount.
fn figures(described: &Described) -> Vec<String> {
    let status = described.status;
    let c = &status.cache;
    let space = described.space.map_or_else(|| "unknown".to_owned(), space);
    let path = |path: &Path| escape::path(path).into_owned();
    let chunks =
        format!("{} present, {} in flight, {} decoded on demand", c.hits, c.joined, c.misses);
    let readahead =
        format!("{} chunks, {} used, {} dropped unused", c.ahead, c.ahead_used, c.ahead_dropped);
    let cache = format!(
        "{} of {}, {} chunks evicted",
        bytes(c.held_bytes),
        bytes(c.capacity_bytes),
        c.evictions
    );
    let rows = [
        ("mountpoint", path(&status.mountpoint)),
        ("source", path(&status.source)),
        ("process", format!("{}, bsz {}, for {}", status.pid, status.version, uptime(status))),
        ("space", space),
        ("reads", format!("{} of {}, {} failed", c.reads, bytes(c.served_bytes), c.errors)),
        ("decoded", format!("{} from {} stored", bytes(c.decoded_bytes), bytes(c.stored_bytes))),
        ("chunks", chunks),
        ("readahead", readahead),
        ("cache", cache),
        ("latency", format!("50 % below {}, 99 % below {}", latency(c, 0.5), latency(c, 0.99))),
    ];
    let packer = status.store.as_ref().map(|store| ("packer", packer_line(store)));
    let remote = status.remote.as_ref().map(|remote| ("network", remote_line(remote)));
    let bases = status.bases.iter().map(|base| ("missing", escape::text(&base.why).into_owned()));
    let rows = rows.into_iter().chain(remote).chain(packer).chain(bases);
    let rows: Vec<_> = rows.map(|(name, figures)| vec![name.to_owned(), figures]).collect();
    table(&rows, &[])
}

/// What was fetched from other machines.
fn remote_line(r: &RemoteStatus) -> String {
    let last = r.last_failure.as_ref().map(|why| format!(", at last: {}", escape::text(why)));
    format!(
        "{} in {} requests, {} from the disk cache, {} in flight, {} failed{}",
        bytes(r.bytes),
        r.requests,
        bytes(r.disk_bytes),
        r.in_flight,
        r.failed,
        last.unwrap_or_default()
    )
}

fn space(s: Space) -> String {
    let (original, stored) = (s.original_bytes, s.stored_bytes);
    let percent = ratio(stored, original);
    format!("{} in {} ({percent}), archives: {}", bytes(original), bytes(stored), s.archives)
}

/// The latency below which a share of the reads stayed, as the upper bound of its histogram bucket.
fn latency(c: &CacheStats, part: f64) -> String {
    let mut left = (c.reads as f64 * part).ceil() as u64;
    let class = c.latencies.iter().position(|&n| {
        left = left.saturating_sub(n);
        left == 0
    });
    let micros = class.map_or(0, |i| 1u64 << i);
    format!("{:?}", Duration::from_micros(micros))
}
