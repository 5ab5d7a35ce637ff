//! Starting the daemon of a mount, and telling others when it is ready.
//!
//! `bsz mount` starts this program again as `bsz mount --daemon`, whose standard output and
//! standard error are one pipe. The lines on that pipe are a protocol, see [`Report`].

use super::{ERROR_PREFIX, logfile, say_aside};
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::program::this_program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The line that a daemon writes once its mount is ready.
const READY: &str = "bszfs is ready";

/// How long a daemon may take to become ready. Sources that hang are usually detected sooner.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(60);

/// Start a daemon on `command_line`, whose paths are absolute; return when its mount is ready, or
/// after the time `within`.
pub(super) fn launch(command_line: &[OsString], within: Duration) -> Result<()> {
    let (reader, writer) = io::pipe().about("pipe")?;
    let mut command = this_program();
    command
        .args(["mount", "--daemon"])
        .args(log_flags())
        .args(command_line)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().about("pipe")?)
        .stderr(writer);
    let mut daemon = command.spawn().about("the daemon")?;
    // The command holds our write ends of the pipe, which must close when the daemon ends.
    drop(command);
    match relay(TimedReader { pipe: reader, deadline: Instant::now() + within }) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => {
            // It may hang in a system call that no signal ends, so do not wait for it.
            let _ = daemon.kill();
            Err(e).about("the daemon")
        }
        Err(e) => Err(e).about("the daemon"),
        Ok(Outcome::Ready) => Ok(()),
        Ok(Outcome::Failed(why)) => {
            let status = daemon.wait().about("the daemon")?;
            Err(Error::invalid(why.unwrap_or_else(|| format!("the daemon ended ({status})"))))
        }
    }
}

/// Detach this process from the terminal that it was started from.
pub(super) fn detach() -> Result<()> {
    rustix::process::setsid().about("setsid")?;
    // Nobody reads standard error once the mount is ready.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(())
}

/// Tell `bsz mount` that the mount is ready. Without a log file, log to the system log from now on.
///
/// # Errors
/// Io, if nobody reads the pipe any more: `bsz mount` was ended and must leave no mount.
pub(super) fn report_ready(has_log: bool) -> Result<()> {
    if !has_log {
        logfile::use_syslog();
    }
    writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush()).about("bsz mount")
}

/// Tell the service manager, if one waits for it, that the mount is ready (sd_notify(3)).
pub(super) fn notify_service_manager() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let notify = || {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&socket)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)
    };
    if let Err(e) = notify() {
        log::warn!(
            "cannot notify the service manager that the mount is ready: {}: {e}",
            escape::path(&socket)
        );
    }
}

/// A line from a daemon that is starting.
#[derive(Debug, PartialEq, Eq)]
enum Report<'a> {
    /// [`READY`]: the last line that is read.
    Ready,
    /// `bsz: ` and an error. The last one is why the daemon ended.
    Error(&'a str),
    /// Anything else is its log.
    Log(&'a str),
}

impl<'a> Report<'a> {
    fn parse(line: &'a str) -> Self {
        match line.strip_prefix(ERROR_PREFIX) {
            _ if line == READY => Self::Ready,
            Some(error) => Self::Error(error),
            None => Self::Log(line),
        }
    }
}

/// How the start of a daemon ended.
enum Outcome {
    Ready,
    /// With the daemon's last error, if it reported one.
    Failed(Option<String>),
}

/// Pass the daemon's messages on to standard error until it is ready, or ends.
fn relay(pipe: impl Read) -> io::Result<Outcome> {
    let mut last_error: Option<String> = None;
    for line in BufReader::new(pipe).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        match Report::parse(&line) {
            Report::Ready => return Ok(Outcome::Ready),
            Report::Error(error) => {
                if let Some(earlier) = last_error.replace(error.to_owned()) {
                    say_aside(&format!("{ERROR_PREFIX}{earlier}"));
                }
            }
            Report::Log(line) => say_aside(line),
        }
    }
    Ok(Outcome::Failed(last_error))
}

/// A pipe whose reads fail after a deadline.
struct TimedReader {
    pipe: PipeReader,
    deadline: Instant,
}

impl Read for TimedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&left))? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "not ready after a minute: its source, or a GPU, does not respond",
            )),
            _ => self.pipe.read(out),
        }
    }
}

/// Flags that give the daemon our log level. Levels from the environment are inherited.
fn log_flags() -> &'static [&'static str] {
    match log::max_level() {
        _ if std::env::var_os("BSZ_LOG").or(std::env::var_os("RUST_LOG")).is_some() => &[],
        log::LevelFilter::Off | log::LevelFilter::Error => &["-q"],
        log::LevelFilter::Warn => &[],
        log::LevelFilter::Info => &["-v"],
        log::LevelFilter::Debug => &["-vv"],
        log::LevelFilter::Trace => &["-vvv"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_daemon_are_told_apart() {
        assert_eq!(Report::parse(READY), Report::Ready);
        assert_eq!(Report::parse("bsz: view: is in use"), Report::Error("view: is in use"));
        assert_eq!(Report::parse("[WARN] slow"), Report::Log("[WARN] slow"));
        let outcome = relay(&b"[WARN] slow\nbsz: why\n"[..]).expect("read");
        assert!(matches!(outcome, Outcome::Failed(Some(why)) if why == "why"));
        assert!(matches!(relay(&b"bszfs is ready\nbsz: x"[..]), Ok(Outcome::Ready)));
        assert!(matches!(relay(&b""[..]), Ok(Outcome::Failed(None))));
    }
}
