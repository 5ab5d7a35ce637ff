//! The page-cache warmer: reads prefetched data into the kernel's page cache while programs
//! compute. A program gets it from there several times as fast as from the daemon.
//!
//! The kernel caches a file only for a process that reads it. A daemon that read from its own mount
//! could not be killed: it would wait in the kernel for a reply from its own dead threads. So a
//! child process reads, `bsz warm --requests`, which is started on first use. When the daemon dies,
//! the child's reads fail, and the child ends.
//!
//! A mount is busy while one of its files is open. As root, the child therefore opens the file in a
//! private copy of the mount that exists only while it reads a piece of a layer. Ordinary users
//! cannot copy a mount. Their child has the file open in the mount itself for as long, and is
//! killed when the readers of the file close it.

use crate::cache::FileId;
use crate::error::{Error, Result};
use crate::escape;
use crate::program::this_program;
use rustix::fs::{Advice, CWD, Mode, OFlags, fadvise, openat};
use rustix::mount::OpenTreeFlags;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes to read at a time: the largest request of the kernel.
const BLOCK: usize = 1 << 20;

/// See the module's documentation.
#[derive(Default)]
pub struct PageCacheWarmer {
    /// The mount as other processes see it.
    mountpoint: PathBuf,
    process: Mutex<Option<Process>>,
    /// The file that is being warmed, and a handle to kill the process.
    current: Mutex<Option<(FileId, Arc<OwnedFd>)>>,
    /// The process id that the kernel puts in requests, or 0.
    pid: AtomicU32,
    /// The handles of the process: one, and those whose release the kernel has not reported yet.
    handles: Mutex<HashSet<u64>>,
    /// Whether the process was seen to open a file. If its requests cannot be told from others,
    /// they would count as those of a program.
    has_opened: AtomicBool,
    /// Whether the process was killed to let go of a file.
    was_killed: AtomicBool,
    has_failed: AtomicBool,
}

/// The process that reads.
struct Process {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
    pidfd: Arc<OwnedFd>,
}

impl Process {
    fn start(mountpoint: &Path) -> Result<Self> {
        let mut child = this_program()
            .args(["warm", "--requests", "--"])
            .arg(mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The terminal's ^C is meant for the daemon alone.
            .process_group(0)
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let pidfd = pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty());
        match (pipes, pidfd) {
            (Some((requests, replies)), Ok(pidfd)) => {
                Ok(Self { child, requests, replies, pidfd: Arc::new(pidfd) })
            }
            (_, pidfd) => {
                let _ = child.kill();
                let _ = child.wait();
                let error = pidfd.err().map(|e| std::io::Error::from(e).into());
                Err(error.unwrap_or_else(|| Error::invalid("the process has no pipes")))
            }
        }
    }

    /// Have a range of a file read. Returns whether that succeeded.
    fn read(&mut self, path: &Path, range: &Range<u64>) -> std::io::Result<bool> {
        let mut request = format!("{} {} ", range.start, range.end).into_bytes();
        request.extend_from_slice(path.as_os_str().as_bytes());
        request.push(0);
        self.requests.write_all(&request)?;
        let mut reply = [0];
        self.replies.read_exact(&mut reply)?;
        Ok(reply == *b"+")
    }
}

impl PageCacheWarmer {
    /// A warmer for the mount at `mountpoint`.
    pub fn new(mountpoint: PathBuf) -> Self {
        Self { mountpoint, ..Self::default() }
    }

    /// Whether a request comes from the warmer's process.
    pub(super) fn is_process(&self, pid: u32) -> bool {
        pid != 0 && pid == self.pid.load(Ordering::Acquire)
    }

    /// The process has opened a file.
    pub(super) fn opened(&self, handle: u64) {
        self.handles().insert(handle);
        self.has_opened.store(true, Ordering::Release);
    }

    /// A handle is closed. Returns whether it was the process's.
    pub(super) fn closed(&self, handle: u64) -> bool {
        self.handles().remove(&handle)
    }

    /// A program has closed a file: stop warming it at once.
    pub(super) fn abandon(&self, file: FileId) {
        let current = self.current();
        if let Some((_, pidfd)) = current.as_ref().filter(|(id, _)| *id == file) {
            self.was_killed.store(true, Ordering::Release);
            // It may have ended already.
            let _ = pidfd_send_signal(&**pidfd, Signal::KILL);
        }
    }

    /// Read a range of the file shown at `shown`. Returns when that is done.
    pub(super) fn warm(&self, file: FileId, shown: &Path, range: &Range<u64>) {
        if self.has_failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = self.try_warm(file, shown, range) {
            log::warn!("the page cache is not warmed: {e}");
            self.has_failed.store(true, Ordering::Relaxed);
        }
    }

    fn try_warm(&self, file: FileId, shown: &Path, range: &Range<u64>) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match process.take() {
            Some(running) => running,
            None => Process::start(&self.mountpoint)?,
        };
        let running = process.insert(running);
        self.pid.store(running.child.id(), Ordering::Release);
        *self.current() = Some((file, Arc::clone(&running.pidfd)));
        self.has_opened.store(false, Ordering::Release);
        let outcome = running.read(shown, range);
        *self.current() = None;
        log::trace!("warmed {range:?} of {}: {outcome:?}", escape::path(shown));
        match outcome {
            Ok(true) if !self.has_opened.load(Ordering::Acquire) => {
                Err(Error::invalid("the requests of its process cannot be told from others"))
            }
            Ok(_) => Ok(()),
            Err(e) => {
                if let Some(mut ended) = process.take() {
                    let _ = ended.child.kill();
                    self.wait(ended);
                }
                if self.was_killed.swap(false, Ordering::AcqRel) { Ok(()) } else { Err(e.into()) }
            }
        }
    }

    /// Nothing is to be warmed at present: end the process.
    pub(super) fn release(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(process) = process {
            self.wait(process);
        }
    }

    /// Wait for the process to end, which it does when its standard input closes.
    fn wait(&self, process: Process) {
        let Process { mut child, requests, .. } = process;
        drop(requests);
        self.pid.store(0, Ordering::Release);
        let _ = child.wait();
    }

    fn handles(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, Option<(FileId, Arc<OwnedFd>)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Read what `requests` ask for until they end. A request is a start, an end and a path below
/// `mountpoint`, terminated by a zero byte. The reply is `+` or `-`.
///
/// # Errors
/// Io, if the other end is closed; invalid argument, if a request is malformed.
fn serve(mountpoint: &Path, mut requests: impl BufRead, mut replies: impl Write) -> Result<()> {
    let mut buffer = vec![0; BLOCK];
    let mut request = Vec::new();
    while requests.read_until(0, &mut request)? > 0 {
        let (range, path) = parse(&request).ok_or_else(|| Error::invalid("malformed request"))?;
        let reply = if read(mountpoint, path, range, &mut buffer).is_ok() { b"+" } else { b"-" };
        replies.write_all(reply).and_then(|()| replies.flush())?;
        request.clear();
    }
    Ok(())
}

fn parse(request: &[u8]) -> Option<(Range<u64>, &Path)> {
    let mut fields = request.strip_suffix(&[0])?.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let range = number()?..number()?;
    Some((range, Path::new(OsStr::from_bytes(fields.next()?))))
}

fn read(
    mountpoint: &Path,
    path: &Path,
    range: Range<u64>,
    buffer: &mut [u8],
) -> std::io::Result<()> {
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // Do not block if another kind of file has this name now.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match rustix::mount::open_tree(CWD, mountpoint, copy) {
        Ok(root) => openat(root, path, flags, Mode::empty())?,
        Err(_) => openat(CWD, mountpoint.join(path), flags, Mode::empty())?,
    };
    let file = File::from(file);
    // Read no more than requested.
    fadvise(&file, 0, None, Advice::Random)?;
    let mut at = range.start;
    while at < range.end {
        let most = buffer.len().min((range.end - at) as usize);
        match file.read_at(&mut buffer[..most], at)? {
            0 => break,
            n => at += n as u64,
        }
    }
    Ok(())
}

/// Serve the requests of a [`PageCacheWarmer`] on standard input, with replies on standard output.
///
/// # Errors
/// Io, if the daemon has died; invalid argument, if a request is malformed.
pub fn serve_warm_requests(mountpoint: &Path) -> Result<()> {
    serve(mountpoint, BufReader::new(std::io::stdin().lock()), std::io::stdout().lock())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_failures_are_reported() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("a b"), vec![7; 3 * BLOCK]).expect("write");
        let ask = |requests: &[u8]| {
            let mut replies = Vec::new();
            serve(dir.path(), requests, &mut replies)
                .map(|()| String::from_utf8(replies).expect("replies"))
        };
        assert_eq!(ask(b"").ok(), Some(String::new()));
        let asked = b"0 99 a b\x005 4000000 a b\x000 1 none\x007 7 a b\0";
        assert_eq!(ask(asked).ok().as_deref(), Some("++-+"));
        for bad in ["x", "1 2\0", "1 -2 a\0", "a b c\0", "\0", "1 2 a"] {
            assert!(ask(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
