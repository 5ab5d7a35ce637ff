//! Where the log goes: standard error, a file that can be opened anew after it was rotated, or the system's log.

use crate::error::{Context, Error, Result};
use crate::escape;
use log::{Level, Log, Metadata, Record};
use nix::syslog::{Facility, LogFlags, Priority, Severity, openlog, syslog};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

enum Sink {
    Stderr,
    /// With its path.
    File(PathBuf, File),
    /// syslog(3), which journald listens to as well.
    System,
}

static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);

fn sink() -> MutexGuard<'static, Sink> {
    // It is whole whatever panicked, being replaced as a whole.
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Open a log file at its end. One that is made is its user's alone, for paths are in it. A terminal and `/dev/null` do
/// as well; a named pipe does not, for whoever reads it could make a daemon wait.
fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).about_path(path)?;
    let kind = file.metadata().about_path(path)?.file_type();
    match kind.is_file() || kind.is_char_device() {
        true => Ok(file),
        false => Err(Error::invalid("not a regular file").about_path(path)),
    }
}

/// Log to the file at `path`, an absolute one, from now on.
pub(super) fn redirect(path: &Path) -> Result<()> {
    *sink() = Sink::File(path.to_owned(), open(path)?);
    Ok(())
}

/// Log to the system's log from now on.
pub(super) fn use_syslog() {
    // It fails for names with a zero in them only.
    let _ = openlog(Some(c"bsz"), LogFlags::LOG_PID, Facility::LOG_DAEMON);
    *sink() = Sink::System;
}

/// Open the log file anew, for the one that is open may have been renamed.
pub(super) fn reopen() {
    let outcome = match &mut *sink() {
        Sink::File(path, file) => open(path).map(|anew| *file = anew),
        Sink::Stderr | Sink::System => Ok(()),
    };
    // Not while the file is locked, since this goes to the file.
    if let Err(e) = outcome {
        log::error!("the log stays where it was: {e}");
    }
}

/// Have `lines`, which writes to [`Lines`], log what is not for the system's log.
pub(super) fn start(lines: env_logger::Logger) {
    log::set_max_level(lines.filter());
    // There is none before.
    let _ = log::set_boxed_logger(Box::new(Logger { lines }));
}

struct Logger {
    lines: env_logger::Logger,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.lines.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if !self.lines.matches(record) {
            return;
        }
        // Names are in it, and may have anything in them.
        let message = record.args().to_string();
        let message = escape::text(&message);
        if matches!(*sink(), Sink::System) {
            // There is nowhere left to say that it cannot be said.
            let _ =
                syslog(Priority::new(severity(record.level()), Facility::LOG_DAEMON), &*message);
        } else {
            let metadata = record.metadata().clone();
            self.lines
                .log(&Record::builder().metadata(metadata).args(format_args!("{message}")).build());
        }
    }

    fn flush(&self) {
        self.lines.flush();
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::LOG_ERR,
        Level::Warn => Severity::LOG_WARNING,
        Level::Info => Severity::LOG_INFO,
        Level::Debug | Level::Trace => Severity::LOG_DEBUG,
    }
}

/// What lines are written to.
pub(super) struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *sink() {
            Sink::File(_, file) => file.write(line),
            Sink::Stderr | Sink::System => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // None of them holds anything back.
        Ok(())
    }
}
