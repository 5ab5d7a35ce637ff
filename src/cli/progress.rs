//! Progress of a command: a bar on a terminal, and a line and a report row for each file.

use super::report::{Outcome, Output, Row, Summary};
use super::{complain, outcome};
use crate::error::{Error, Result};
use crate::escape;
use crate::pack::{self, Action, FileReport, Task};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A progress bar on standard error. It is hidden if that is not a terminal, or with --quiet.
pub struct Bar {
    bar: ProgressBar,
    /// Bytes counted so far, and how often each byte is counted.
    done: AtomicU64,
    passes: AtomicU64,
}

impl Bar {
    pub fn new(quiet: bool) -> Self {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        Self { bar, done: AtomicU64::new(0), passes: AtomicU64::new(1) }
    }

    /// Start on the file `path` of `bytes` bytes; `passes` is how often each byte will be counted.
    pub fn start(&self, verb: &str, path: &Path, bytes: u64, passes: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.passes.store(passes, Ordering::Relaxed);
        let name = escape::path(path.file_name().unwrap_or(path.as_os_str()));
        self.bar.set_style(style(
            "{msg} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes}, \
             {decimal_bytes_per_sec}, {eta} left",
        ));
        self.bar.set_message(format!("{verb} {name}"));
        self.bar.set_length(bytes);
        self.bar.reset();
    }

    /// Show what is being done, without counting bytes.
    pub fn say(&self, what: &str) {
        self.bar.set_style(style("{msg}"));
        self.bar.set_message(escape::text(what).into_owned());
        self.bar.tick();
    }

    /// `bytes` more bytes are done.
    pub fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set_position(done / self.passes.load(Ordering::Relaxed));
    }

    /// So many bytes are done altogether.
    pub fn reach(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// Print something else, with the bar out of the way.
    pub fn aside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
}

/// Templates are constants. If one is ever wrong, the default bar is good enough.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Watches the files of one command: a bar while they run, a line and a row when they end.
pub struct Watch {
    pub bar: Bar,
    output: Output,
    begun: Instant,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    running: HashMap<PathBuf, Instant>,
    rows: Vec<Row>,
    warnings: Vec<String>,
    left: Vec<String>,
    failures: Vec<Error>,
}

impl Watch {
    pub fn new(output: Output, quiet: bool) -> Self {
        Self { bar: Bar::new(quiet), output, begun: Instant::now(), log: Mutex::default() }
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Print a file's line now, and keep its row for the report.
    pub fn add(&self, row: Row) {
        if let Some(line) = row.line() {
            self.bar.aside(|| self.output.line(line));
        }
        self.add_silently(row);
    }

    /// Keep a row without printing its line, because an error will be printed.
    pub fn add_silently(&self, row: Row) {
        self.log().rows.push(row);
    }

    /// Print an error that does not end the command.
    fn complain(&self, e: &Error) {
        self.bar.aside(|| complain(e));
    }

    pub fn warn(&self, warning: String) {
        self.complain(&Error::invalid(warning.as_str()).about("warning"));
        self.log().warnings.push(warning);
    }

    /// Keep an error that does not end the command; it is printed at the end.
    pub fn fail(&self, e: &Error) {
        self.log().failures.push(e.clone());
    }

    /// Print the total, or the JSON, of everything including failures.
    ///
    /// # Errors
    /// The failures, if any.
    pub fn finish(self, verb: &str) -> Result<()> {
        let log = self.log.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(self.bar);
        let done = log.rows.iter().filter(|row| row.outcome != Outcome::Damaged).count();
        let outcome = outcome(verb, &log.failures, done + log.failures.len());
        let why = log.failures.iter().map(Error::to_string).collect();
        let mut summary = Summary::new(log.rows, log.warnings, why, self.begun.elapsed());
        log.left.iter().for_each(|left| self.output.line(left));
        summary.left = log.left;
        if summary.files.len() > 1 || summary.files.is_empty() && outcome.is_ok() {
            self.output.line(summary.line());
        }
        outcome.and(self.output.finish(&summary))
    }
}

impl pack::Progress for Watch {
    fn begin(&self, path: &Path, task: Task, bytes: u64) {
        self.log().running.insert(path.into(), Instant::now());
        let verb = match task {
            Task::Pack => "packing",
            Task::Copy => "copying",
            Task::Unpack => "unpacking",
        };
        self.bar.start(verb, path, bytes, task.passes());
    }

    fn advance(&self, bytes: u64) {
        self.bar.advance(bytes);
    }

    fn end(&self, report: &FileReport) {
        let took =
            self.log().running.remove(&report.path).map_or(Duration::ZERO, |begun| begun.elapsed());
        let (outcome, why) = match &report.action {
            Action::Packed | Action::PackedFrom(_) => (Outcome::Packed, None),
            Action::Unpacked => (Outcome::Unpacked, None),
            Action::Copied => (Outcome::Copied, None),
            Action::Linked => (Outcome::Linked, None),
            Action::AlreadyDone => (Outcome::AlreadyDone, None),
            Action::Skipped(why) => (Outcome::Skipped, Some(why.clone())),
        };
        let bases = match &report.action {
            Action::PackedFrom(bases) => &bases[..],
            _ => &[],
        };
        self.add(Row {
            bases: bases.iter().map(|base| escape::path(base).into_owned()).collect(),
            path: report.path.clone(),
            output: Some(report.output.clone()),
            outcome,
            why,
            original: report.original,
            stored: report.stored,
            seconds: took.as_secs_f64(),
        });
    }

    fn warn(&self, path: &Path, what: &str) {
        self.warn(format!("{}: {what}", escape::path(path)));
    }

    fn left(&self, dir: &Path, what: &str) {
        self.log().left.push(format!("{}: left as they are: {what}", escape::path(dir)));
    }

    fn fail(&self, e: &Error) {
        self.fail(e);
    }
}
