//! Following the work: a bar with bytes, rate and time left on a terminal, a line and a row for each file.

use super::report::{Output, Row, Summary};
use super::{complain, outcome};
use crate::error::{Error, Result};
use crate::escape;
use crate::pack::{self, Action, FileReport};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A bar on standard error, or nothing where that is not a terminal or the user wants quiet.
pub struct Bar {
    bar: ProgressBar,
    /// Bytes advanced over, and how often each byte of the file is.
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

    /// Start on `path`, doing what `verb` says: `bytes` will be advanced over, in `passes` over the file.
    pub fn start(&self, verb: &str, path: &Path, bytes: u64, passes: u64) {
        let passes = passes.max(1);
        self.done.store(0, Ordering::Relaxed);
        self.passes.store(passes, Ordering::Relaxed);
        let name = escape::path(path.file_name().unwrap_or(path.as_os_str()));
        self.bar.set_style(style(
            "{msg} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
        ));
        self.bar.set_message(format!("{verb} {name}"));
        self.bar.set_length(bytes / passes);
        self.bar.reset();
    }

    /// Say what is being done, where no bytes are counted.
    pub fn say(&self, what: &str) {
        self.bar.set_style(style("{msg}"));
        self.bar.set_message(escape::text(what).into_owned());
        self.bar.tick();
    }

    /// `bytes` more are done.
    pub fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set_position(done / self.passes.load(Ordering::Relaxed));
    }

    /// Print something else without the bar in its way.
    pub fn aside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
}

/// Templates are constants; should one ever be wrong, the default bar still shows the work.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Follows one command's files: the bar while they run, a line and a row when they end.
pub struct Watch {
    pub bar: Bar,
    output: Output,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: HashMap<PathBuf, Instant>,
    rows: Vec<Row>,
    warnings: Vec<String>,
    failures: Vec<Error>,
}

impl Watch {
    pub fn new(output: Output, quiet: bool) -> Self {
        Self { bar: Bar::new(quiet), output, begun: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A file's outcome: its line now, its row in the end.
    pub fn add(&self, row: Row) {
        if let Some(line) = row.line() {
            self.bar.aside(|| self.output.line(line));
        }
        self.add_silently(row);
    }

    /// A row without its line, where an error says it.
    pub fn add_silently(&self, row: Row) {
        self.state().rows.push(row);
    }

    /// Print an error that does not end the command.
    fn complain(&self, e: &Error) {
        self.bar.aside(|| complain(e));
    }

    pub fn warn(&self, warning: String) {
        self.complain(&Error::invalid(warning.as_str()).about("warning"));
        self.state().warnings.push(warning);
    }

    /// Remember an error that does not end the command: it is printed in the end, with the others.
    pub fn fail(&self, e: &Error) {
        self.state().failures.push(e.clone());
    }

    /// The sum, and the JSON where that was asked for, also of what came before a failure.
    ///
    /// # Errors
    /// What failed.
    pub fn finish(self, verb: &str) -> Result<()> {
        let state = self.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(self.bar);
        let done = state.rows.iter().filter(|row| row.action != "damaged").count();
        let outcome = outcome(verb, &state.failures, done + state.failures.len());
        let why = state.failures.iter().map(Error::to_string).collect();
        let summary = Summary::new(state.rows, state.warnings, why, self.begun.elapsed());
        if summary.files.len() > 1 || summary.files.is_empty() && outcome.is_ok() {
            self.output.line(summary.line());
        }
        outcome.and(self.output.finish(&summary))
    }
}

impl pack::Progress for Watch {
    fn begin(&self, path: &Path, bytes: u64) {
        self.state().running.insert(path.into(), Instant::now());
        // What is packed is passed over twice: coded, then verified.
        let passes = fs::metadata(path).map_or(1, |m| bytes / m.len().max(1));
        self.bar.start("packing", path, bytes, passes);
    }

    fn advance(&self, bytes: u64) {
        self.bar.advance(bytes);
    }

    fn end(&self, outcome: &FileReport) {
        let took = self
            .state()
            .running
            .remove(&outcome.path)
            .map_or(Duration::ZERO, |begun| begun.elapsed());
        let (action, why) = match &outcome.action {
            Action::Packed => ("packed", None),
            Action::Copied => ("copied", None),
            Action::Linked => ("linked", None),
            Action::AlreadyDone => ("already done", None),
            Action::Skipped(why) => ("skipped", Some(why.clone())),
        };
        self.add(Row {
            path: outcome.path.clone(),
            output: Some(outcome.output.clone()),
            action,
            why,
            original: outcome.original,
            stored: outcome.stored,
            seconds: took.as_secs_f64(),
        });
    }

    fn warn(&self, path: &Path, what: &str) {
        self.warn(format!("{}: {what}", escape::path(path)));
    }

    fn fail(&self, e: &Error) {
        self.fail(e);
    }
}
