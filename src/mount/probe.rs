//! Probes: operations on paths and mounts that may block forever, each run in a child process with
//! a deadline.
//!
//! A process that uses a mount waits for its daemon. Once the daemon has taken the request, no
//! signal interrupts the wait, and a waiting thread keeps its process from exiting. The same holds
//! for a network disk whose server is gone. Whatever touches a mount or a user's path is therefore
//! done by a process that can be left behind: this program, as `bsz ask`. `probe_runner.rs` is its
//! side.

use super::subprocess::{self, Outcome, Stream, Subprocess};
use crate::error::{Error, Result};
use crate::program::this_program;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a probe may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long [`Probe::Space`] and [`Probe::Usage`] may take, which list all files of a mount.
const SPACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Most probes at a time. Each one takes a process, and a descriptor of this process.
const MAX_CONCURRENT: usize = 4;

/// The error of a path whose probe timed out.
pub(super) const PATH_TIMED_OUT: &str = "does not answer: a mount or a disk on its path hangs";

/// The error of a mount whose probe timed out.
pub(super) const DAEMON_TIMED_OUT: &str =
    "its daemon does not answer; `bsz umount --lazy` ends the mount";

/// An operation on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Find the canonical path, and the kind of file.
    Resolve,
    /// The same for a mountpoint. A bszfs mount that is there is not touched.
    ResolveMountpoint,
    /// Check whether the daemon of a mount is alive.
    Alive,
    /// Get the status of a daemon.
    Status,
    /// Measure how much space the archives of a mount save.
    Space,
    /// Measure the same for each directory of a mount's root.
    Usage,
    /// Drop the cache of a daemon.
    DropCache,
    /// Have a store pack everything that waits.
    PackNow,
    /// Have a store pause packing.
    PausePacking,
    /// Have a store go on packing.
    ResumePacking,
    /// Unmount.
    Unmount,
    /// Unmount lazily.
    Detach,
}

/// The names of probes on the command line.
const NAMES: [(&str, Probe); 12] = [
    ("resolve", Probe::Resolve),
    ("resolve-mountpoint", Probe::ResolveMountpoint),
    ("alive", Probe::Alive),
    ("status", Probe::Status),
    ("space", Probe::Space),
    ("usage", Probe::Usage),
    ("drop-cache", Probe::DropCache),
    ("pack-now", Probe::PackNow),
    ("pause-packing", Probe::PausePacking),
    ("resume-packing", Probe::ResumePacking),
    ("unmount", Probe::Unmount),
    ("detach", Probe::Detach),
];

impl Probe {
    /// The probe with this name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, probe)| *probe)
    }

    fn name(self) -> &'static str {
        NAMES.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }

    fn timeout(self) -> Duration {
        if matches!(self, Self::Space | Self::Usage) { SPACE_TIMEOUT } else { TIMEOUT }
    }
}

/// Why a probe has no result.
#[derive(Debug)]
pub(super) enum ProbeError {
    /// It did not finish before its deadline.
    TimedOut,
    /// The operation failed, or could not be started.
    Failed(Error),
}

impl ProbeError {
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::TimedOut => None,
            Self::Failed(e) => e.errno().map(rustix::io::Errno::from_raw_os_error),
        }
    }

    /// Convert it; `timed_out` is the text of [`ProbeError::TimedOut`].
    pub fn into_error(self, timed_out: &str) -> Error {
        match self {
            Self::TimedOut => Error::invalid(timed_out),
            Self::Failed(e) => e,
        }
    }
}

/// The bytes that a probe returned. Their meaning depends on the probe.
pub(super) type ProbeResult = Result<Vec<u8>, ProbeError>;

/// Run one probe.
pub(super) fn run(probe: Probe, path: &Path) -> ProbeResult {
    run_all(&[(probe, path)]).pop().unwrap_or(Err(ProbeError::TimedOut))
}

/// Run several probes concurrently. The results are in their order.
pub(super) fn run_all(probes: &[(Probe, &Path)]) -> Vec<ProbeResult> {
    let mut results = Vec::new();
    for batch in probes.chunks(MAX_CONCURRENT) {
        let mut running: Vec<_> = batch.iter().map(|(probe, path)| start(*probe, path)).collect();
        let timeout = batch.iter().map(|(probe, _)| probe.timeout()).max().unwrap_or_default();
        let mut children: Vec<&mut Subprocess> =
            running.iter_mut().filter_map(|child| child.as_mut().ok()).collect();
        subprocess::read_until(&mut children, Instant::now() + timeout);
        let finished = running.into_iter().zip(batch);
        results.extend(finished.map(|(child, (probe, path))| finish(child?, *probe, path)));
    }
    results
}

/// A process that could not be killed, with its probe.
type Stuck = (Probe, PathBuf, Child);

/// The processes that could not be killed. A probe is not started again while one is stuck in it.
fn stuck() -> MutexGuard<'static, Vec<Stuck>> {
    static STUCK: Mutex<Vec<Stuck>> = Mutex::new(Vec::new());
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_stuck(probe: Probe, path: &Path) -> bool {
    let mut stuck = stuck();
    stuck.retain_mut(|(_, _, child)| matches!(child.try_wait(), Ok(None)));
    stuck.iter().any(|(other, at, _)| (*other, &**at) == (probe, path))
}

fn start(probe: Probe, path: &Path) -> Result<Subprocess, ProbeError> {
    if is_stuck(probe, path) {
        return Err(ProbeError::TimedOut);
    }
    let mut command = this_program();
    command.args(["ask", probe.name(), "--"]).arg(path);
    Subprocess::start(&mut command, Stream::Stdout).map_err(ProbeError::Failed)
}

fn finish(child: Subprocess, probe: Probe, path: &Path) -> ProbeResult {
    match child.finish() {
        Outcome::Finished(_, output) => decode(output),
        Outcome::Killed => Err(ProbeError::TimedOut),
        Outcome::Stuck(child) => {
            stuck().push((probe, path.to_owned(), child));
            Err(ProbeError::TimedOut)
        }
    }
}

/// The output of a child: `+` and the result; or `-`, the errno or 0, a space and the message.
pub(super) fn encode(result: Result<Vec<u8>>) -> Vec<u8> {
    match result {
        Ok(result) => [b"+", &result[..]].concat(),
        Err(e) => format!("-{} {e}", e.errno().unwrap_or(0)).into_bytes(),
    }
}

/// The inverse of [`encode`].
fn decode(output: Vec<u8>) -> ProbeResult {
    if let Some(result) = output.strip_prefix(b"+") {
        return Ok(result.to_vec());
    }
    let text = std::str::from_utf8(&output).ok();
    let failed = text.and_then(|text| text.strip_prefix('-')?.split_once(' '));
    Err(ProbeError::Failed(match failed.map(|(number, message)| (number.parse(), message)) {
        Some((Ok(0), message)) => Error::invalid(message),
        Some((Ok(number), _)) => io::Error::from_raw_os_error(number).into(),
        _ => Error::invalid("the helper process `bsz ask` has crashed"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_survives_its_encoding() {
        assert_eq!(decode(encode(Ok(b"yes".to_vec()))).ok(), Some(b"yes".to_vec()));
        let dead = encode(Err(io::Error::from_raw_os_error(libc::ENOTCONN).into()));
        assert_eq!(decode(dead).err().and_then(|e| e.errno()), Some(rustix::io::Errno::NOTCONN));
        let error = decode(encode(Err(Error::invalid("why")))).err();
        assert_eq!(error.map(|e| e.into_error("").to_string()).as_deref(), Some("why"));
        for malformed in [&b""[..], b"-", b"-x y", b"\xff"] {
            assert!(matches!(decode(malformed.to_vec()), Err(ProbeError::Failed(_))));
        }
    }
}
