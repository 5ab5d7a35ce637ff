//! Child processes with a deadline, and with a bound on how much of their output is read.
//!
//! A child that waits for a hung mount cannot be killed until the mount answers. Such a child is
//! left behind, so that nobody waits with it.

use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a killed process may take to exit before it is left behind.
const EXIT_WITHIN: Duration = Duration::from_millis(100);

/// Interval between checks whether a killed process has exited.
const EXIT_CHECK: Duration = Duration::from_millis(5);

/// Most bytes of output to read. The output may come from the daemon of a FUSE file system, which
/// anybody can mount.
const MAX_OUTPUT: u64 = 1 << 20;

/// Which output of a child is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// What has become of a child.
pub(super) enum Outcome {
    /// It closed its output within the deadline, and exited.
    Finished(ExitStatus, Vec<u8>),
    /// It missed the deadline, and was killed.
    Killed,
    /// It cannot be killed at the moment.
    Stuck(Child),
}

/// A running child and its output so far.
pub(super) struct Subprocess {
    child: Child,
    pipe: File,
    output: Vec<u8>,
    /// No more output is read.
    closed: bool,
}

impl Subprocess {
    /// Start a command whose `stream` is read.
    ///
    /// # Errors
    /// Io.
    pub fn start(command: &mut Command, stream: Stream) -> Result<Self> {
        // Pipes whose other ends are closed replace /dev/null, which may be missing. A child that
        // is left behind must not keep the streams of a shell open.
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // In a process group of its own, so that ^C on a terminal reaches only this process.
        let mut child = command.process_group(0).spawn()?;
        drop(child.stdin.take());
        let (stdout, stderr) =
            (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
        let pipe = if stream == Stream::Stdout { stdout } else { stderr };
        let pipe = pipe.ok_or_else(|| Error::invalid("the child process has no pipe"))?.into();
        Ok(Self { child, pipe, output: Vec::new(), closed: false })
    }

    /// Read the output that is available.
    fn read_available(&mut self) {
        let mut block = [0; 1 << 14];
        match self.pipe.read(&mut block) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => self.closed = true,
            Ok(n) if self.output.len() as u64 + n as u64 <= MAX_OUTPUT => {
                self.output.extend_from_slice(&block[..n])
            }
            // Too long: the rest is not read.
            Ok(_) => self.closed = true,
        }
    }

    /// Kill the child unless it has closed its output, and wait a moment until it exits.
    pub fn finish(mut self) -> Outcome {
        if !self.closed {
            let _ = self.child.kill();
        }
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if self.closed => return Outcome::Finished(status, self.output),
                Ok(Some(_)) => return Outcome::Killed,
                Ok(None) if started.elapsed() < EXIT_WITHIN => thread::sleep(EXIT_CHECK),
                _ => return Outcome::Stuck(self.child),
            }
        }
    }
}

/// Read the output of all children until they have closed it, or until the deadline.
pub(super) fn read_until(children: &mut [&mut Subprocess], deadline: Instant) {
    loop {
        let mut open: Vec<_> = children.iter_mut().filter(|child| !child.closed).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        if open.is_empty() || left.is_zero() {
            return;
        }
        let left =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut pipes: Vec<_> =
            open.iter().map(|child| PollFd::new(&child.pipe, PollFlags::IN)).collect();
        let outcome = poll(&mut pipes, Some(&left));
        let ready: Vec<bool> = pipes.iter().map(|pipe| !pipe.revents().is_empty()).collect();
        match outcome {
            Ok(_) => open
                .iter_mut()
                .zip(ready)
                .filter(|(_, ready)| *ready)
                .for_each(|(child, _)| child.read_available()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_exit_is_killed_at_the_deadline() {
        let mut sleep = Command::new("sleep");
        let mut child = Subprocess::start(sleep.arg("60"), Stream::Stdout).expect("sleep");
        let started = Instant::now();
        read_until(&mut [&mut child], started + Duration::from_millis(50));
        assert!(!child.closed && matches!(child.finish(), Outcome::Killed));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn endless_output_is_not_read_endlessly() {
        let mut endless = Command::new("cat");
        let mut child = Subprocess::start(endless.arg("/dev/zero"), Stream::Stdout).expect("cat");
        read_until(&mut [&mut child], Instant::now() + Duration::from_secs(30));
        assert!(child.closed && child.output.len() as u64 <= MAX_OUTPUT);
        let _ = child.child.kill();
        let _ = child.child.wait();
    }
}
