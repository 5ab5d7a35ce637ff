//! `bsz store status`: what the packers of stores do, and the space saved, by directory.

use crate::cli::report::{Output, bytes, ratio, table};
use crate::cli::{complain, for_each};
use crate::error::{Error, Result};
use crate::escape;
use crate::mount::{self, DirectoryUsage, Status, StoreStatus};
use clap::Args;
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Characters of a bar.
const BAR: u64 = 24;

/// The options of `status`.
#[derive(Args)]
pub struct StatusOptions {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A store, as it is reported.
#[derive(Serialize)]
struct Report {
    #[serde(flatten, serialize_with = "escape::field::mountpoint")]
    mountpoint: PathBuf,
    pid: u32,
    version: String,
    since: u64,
    /// What the packer does, and has done since the store was mounted.
    store: StoreStatus,
    /// All that is packed now.
    packed: u64,
    original_bytes: u64,
    stored_bytes: u64,
    saved_bytes: u64,
    /// The directories of its root, those first that save most; `None` if they cannot be measured.
    directories: Option<Vec<Row>>,
}

/// A directory of a store.
#[derive(Serialize)]
struct Row {
    /// The repository, for a directory of the hub's cache; else as the path.
    name: String,
    #[serde(flatten)]
    usage: DirectoryUsage,
    saved_bytes: u64,
}

/// `bsz store status`
pub fn status(dirs: &[PathBuf], o: &StatusOptions, quiet: bool) -> Result<()> {
    let named = !dirs.is_empty();
    let mounts = if named { dirs.to_vec() } else { mount::mounts()? };
    let mut answers = mount::status(&mounts).into_iter();
    let mut reports = Vec::new();
    let outcome = for_each("status", &mounts, |dir| {
        let Some(status) = answers.next().transpose()? else { return Ok(()) };
        match status.store.clone() {
            Some(store) => reports.push(report(status, store)),
            None if named => return Err(Error::invalid("is not a store").about_path(dir)),
            None => {}
        }
        Ok(())
    });
    let output = Output::new(o.json, quiet);
    if reports.is_empty() && outcome.is_ok() {
        output.line("there is no store; see `bsz store enable --help`");
    }
    let bars = std::io::stdout().is_terminal();
    reports.iter().flat_map(|report| lines(report, bars)).for_each(|line| output.line(line));
    output.finish(&reports)?;
    if named || reports.is_empty() { outcome } else { Ok(()) }
}

fn report(status: Status, store: StoreStatus) -> Report {
    // What the packer does is known even if the files cannot be measured.
    let usage = mount::usage(&status.mountpoint).inspect_err(complain).ok();
    let directories = usage.map(|usage| {
        let mut rows: Vec<Row> = usage.directories.into_iter().map(row).collect();
        rows.sort_by(|a, b| (b.saved_bytes, &a.name).cmp(&(a.saved_bytes, &b.name)));
        rows
    });
    let rows = directories.as_deref().unwrap_or_default();
    let sum = |figure: fn(&Row) -> u64| rows.iter().map(figure).sum();
    Report {
        packed: sum(|row| row.usage.packed),
        original_bytes: sum(|row| row.usage.original_bytes),
        stored_bytes: sum(|row| row.usage.stored_bytes),
        saved_bytes: sum(|row| row.saved_bytes),
        mountpoint: status.mountpoint,
        pid: status.pid,
        version: status.version,
        since: status.since,
        store,
        directories,
    }
}

fn row(usage: DirectoryUsage) -> Row {
    let saved_bytes = usage.saved();
    Row { name: name(&usage.path), usage, saved_bytes }
}

/// The repository that a directory of the hub's cache holds: `models--org--name` is `org/name`.
fn name(path: &Path) -> String {
    let shown = escape::path(path).into_owned();
    let (kind, repository) = shown.split_once("--").unwrap_or_default();
    match kind {
        "models" => repository.replace("--", "/"),
        "datasets" | "spaces" => format!("{kind}/{}", repository.replace("--", "/")),
        _ => shown,
    }
}

/// What the packer of a store does, in one line.
pub fn packer_line(store: &StoreStatus) -> String {
    let saved = store.original_bytes.saturating_sub(store.stored_bytes);
    let mut parts = vec![format!("packed {} files, saved {}", store.packed, bytes(saved))];
    match (&store.packing, store.paused, &store.waits) {
        (_, true, _) => parts.push("paused".into()),
        (Some(file), ..) => parts.push(format!("packing {file}")),
        (None, _, Some(why)) => parts.push(format!("waits: {why}")),
        (None, false, None) if store.pack == "off" => parts.push("packs only when told to".into()),
        _ => {}
    }
    for (count, what) in [
        (store.queued, "wait"),
        (store.left, "left plain"),
        (store.unpacked, "unpacked again"),
        (store.failed, "attempts failed"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join("; ")
}

/// What is stored more than once, or would be without sharing; `None` if nothing is.
fn twins_line(store: &StoreStatus) -> Option<String> {
    let mut parts = Vec::new();
    if store.shared_bytes > 0 {
        parts.push(format!("equal tensors share {}", bytes(store.shared_bytes)));
    }
    if store.repeated_bytes > 0 {
        let again = bytes(store.repeated_bytes);
        parts.push(match store.shares {
            Some(true) => {
                format!("equal tensors of {again} are stored again: packed without sharing")
            }
            _ => format!("equal tensors take {again} that XFS, btrfs or bcachefs would save"),
        });
    }
    if store.equal_files > 0 {
        parts.push(format!("{} files equal others", store.equal_files));
    }
    if parts.is_empty() {
        return None;
    }
    if store.unexamined > 0 {
        parts.push(format!("{} archives not examined yet", store.unexamined));
    }
    Some(parts.join("; "))
}

fn lines(report: &Report, bars: bool) -> Vec<String> {
    let at = escape::path(&report.mountpoint);
    let mut lines = vec![
        format!("{at}: {}", packer_line(&report.store)),
        format!(
            "{at}: {} packed files, {} in {} ({}), saved {}",
            report.packed,
            bytes(report.original_bytes),
            bytes(report.stored_bytes),
            ratio(report.stored_bytes, report.original_bytes),
            bytes(report.saved_bytes)
        ),
    ];
    lines.extend(twins_line(&report.store).map(|line| format!("{at}: {line}")));
    let rows = report.directories.as_deref().unwrap_or_default();
    if !rows.is_empty() {
        let head = ["NAME", "FILES", "PACKED", "SIZE", "SAVED"].map(str::to_owned).to_vec();
        let largest = rows.iter().map(|row| row.usage.bytes).max().unwrap_or(0);
        let cells = |row: &Row| {
            let usage = &row.usage;
            let mut cells = vec![
                row.name.clone(),
                usage.files.to_string(),
                usage.packed.to_string(),
                bytes(usage.bytes),
                bytes(row.saved_bytes),
            ];
            if bars {
                cells.push(bar(usage.bytes, row.saved_bytes, largest));
            }
            cells
        };
        let rows: Vec<_> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
        lines.extend(table(&rows, &[1, 2, 3, 4]).into_iter().map(|line| format!("  {line}")));
    }
    for (path, why) in &report.store.reasons {
        lines.push(format!("  {path}: {why}"));
    }
    lines
}

/// A bar whose length is the size, and whose light part is saved.
fn bar(size: u64, saved: u64, largest: u64) -> String {
    let scaled = |bytes: u64| {
        let of = u128::from(bytes) * u128::from(BAR);
        usize::try_from(of.div_ceil(u128::from(largest.max(1)))).unwrap_or(0)
    };
    let (whole, full) = (scaled(size), scaled(size.saturating_sub(saved)));
    format!("{}{}", "█".repeat(full), "░".repeat(whole.saturating_sub(full)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_hub_are_called_as_their_repositories() {
        for (directory, shown) in [
            ("models--org--name", "org/name"),
            ("models--gpt2", "gpt2"),
            ("datasets--org--d", "datasets/org/d"),
            ("loras", "loras"),
            ("my--models", "my--models"),
        ] {
            assert_eq!(name(Path::new(directory)), shown);
        }
    }

    #[test]
    fn equal_tensors_are_mentioned_if_there_are_any() {
        let mut store = StoreStatus { unexamined: 3, ..StoreStatus::default() };
        assert_eq!(twins_line(&store), None);
        store.repeated_bytes = 5 << 20;
        let line = twins_line(&store).expect("a line");
        assert!(line.contains("XFS, btrfs or bcachefs would save"), "{line}");
        assert!(line.ends_with("3 archives not examined yet"), "{line}");
        store = StoreStatus { shares: Some(true), shared_bytes: 1, ..store };
        let line = twins_line(&store).expect("a line");
        assert!(line.contains("share") && line.contains("stored again"), "{line}");
    }

    #[test]
    fn a_bar_shows_the_size_and_what_is_saved() {
        assert_eq!(bar(100, 50, 200), "██████░░░░░░");
        assert_eq!(bar(200, 0, 200).chars().count(), 24);
        assert_eq!(bar(0, 0, 0), "");
    }
}
