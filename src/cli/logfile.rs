//! Where the log goes: standard error, a file that is reopened after rotation, or the system log.

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
    /// A file and its path.
    File(PathBuf, File),
    /// syslog(3), which journald receives, too.
    System,
}

static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);

fn sink() -> MutexGuard<'static, Sink> {
    // A panic cannot leave it inconsistent, since it is only ever replaced as a whole.
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Open a log file for appending. A new one is private to its user, since it names paths. Terminals
/// and `/dev/null` are fine. A named pipe is refused: its reader could block the daemon.
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

/// Log to the file at the absolute path `path` from now on.
pub(super) fn redirect(path: &Path) -> Result<()> {
    *sink() = Sink::File(path.to_owned(), open(path)?);
    Ok(())
}

/// Log to the system log from now on.
pub(super) fn use_syslog() {
    // This only fails for names that contain a NUL.
    let _ = openlog(Some(c"bsz"), LogFlags::LOG_PID, Facility::LOG_DAEMON);
    *sink() = Sink::System;
}

/// Reopen the log file, which may have been renamed for rotation.
pub(super) fn reopen() {
    let outcome = match &mut *sink() {
        Sink::File(path, file) => open(path).map(|reopened| *file = reopened),
        Sink::Stderr | Sink::System => Ok(()),
    };
    // Logged after the lock is released, since logging takes it.
    if let Err(e) = outcome {
        log::error!("cannot reopen the log file: {e}");
    }
}

/// Start logging. `lines`, which writes to [`Lines`], formats what does not go to the system log.
pub(super) fn start(lines: env_logger::Logger) {
    log::set_max_level(lines.filter());
    // Fails only if there is a logger already, and there is none.
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
        // It may contain names of files, and those may contain anything.
        let message = record.args().to_string();
        let message = escape::text(&message);
        if matches!(*sink(), Sink::System) {
            // Failures are ignored: there is nowhere left to report them.
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

/// The sink of formatted lines.
pub(super) struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *sink() {
            Sink::File(_, file) => file.write(line),
            Sink::Stderr | Sink::System => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // None of the sinks is buffered.
        Ok(())
    }
}
