//! Layers that were decoded ahead, pulled into the kernel's page cache while their readers compute: from there they are
//! had several times as fast as from here.
//!
//! Only who reads a file has the kernel cache it, and a daemon that reads from its own mount could not be killed: it would
//! wait in the kernel for an answer of threads that have ended. So another process reads, `bsz warm --requests`, started
//! when it is first needed. When the daemon dies its reads fail, and it ends.
//!
//! A mount is busy while a file of it is open. So root has it opened in a copy of the mount, which nobody sees, and which
//! is there for no more than a piece of a layer. Ordinary users may make no such copy: theirs is open as short, and the
//! process is ended when the file's own readers close it.

use super::program::this_program;
use crate::error::{Error, Result};
use crate::escape;
use crate::read::{Taker, Wish};
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

/// Bytes read at a time: as much as the kernel asks for at once.
const BLOCK: usize = 1 << 20;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Puller {
    /// What is mounted where others can see it.
    mountpoint: PathBuf,
    reader: Mutex<Option<Reader>>,
    /// Which archive is pulled from, and the means to end the process that does.
    now: Mutex<Option<(u64, Arc<OwnedFd>)>>,
    /// The process as the kernel names it in requests, or 0.
    pid: AtomicU32,
    /// Its open files: one, and those that the kernel has not told yet that it closed.
    handles: Mutex<HashSet<u64>>,
    /// Whether it was seen to open one. If its requests cannot be told from others, they would be taken for a reader's.
    seen: AtomicBool,
    /// Whether it was let go.
    let_go: AtomicBool,
    failed: AtomicBool,
}

/// The process that reads.
struct Reader {
    child: Child,
    requests: ChildStdin,
    done: ChildStdout,
    pidfd: Arc<OwnedFd>,
}

impl Reader {
    fn start(mountpoint: &Path) -> Result<Self> {
        let mut child = this_program()
            .args(["warm", "--requests", "--"])
            .arg(mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A terminal's ^C is for the daemon alone.
            .process_group(0)
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let pidfd = pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty());
        match (pipes, pidfd) {
            (Some((requests, done)), Ok(pidfd)) => {
                Ok(Self { child, requests, done, pidfd: Arc::new(pidfd) })
            }
            (_, pidfd) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(pidfd.err().map_or_else(
                    || Error::invalid("it has no pipes"),
                    |e| std::io::Error::from(e).into(),
                ))
            }
        }
    }

    /// Have a range of a file read; whether that was done.
    fn read(&mut self, path: &Path, range: &Range<u64>) -> std::io::Result<bool> {
        let mut request = format!("{} {} ", range.start, range.end).into_bytes();
        request.extend_from_slice(path.as_os_str().as_bytes());
        request.push(0);
        self.requests.write_all(&request)?;
        let mut answer = [0];
        self.done.read_exact(&mut answer)?;
        Ok(answer == *b"+")
    }
}

impl Puller {
    pub fn new(mountpoint: PathBuf) -> Self {
        Self { mountpoint, ..Self::default() }
    }

    /// Whether a request is of the process that pulls.
    pub fn is(&self, pid: u32) -> bool {
        pid != 0 && pid == self.pid.load(Ordering::Acquire)
    }

    /// It has opened a file.
    pub fn opened(&self, handle: u64) {
        self.handles().insert(handle);
        self.seen.store(true, Ordering::Release);
    }

    /// Whether that was its file, which is closed now.
    pub fn closed(&self, handle: u64) -> bool {
        self.handles().remove(&handle)
    }

    /// A reader has closed an archive: let go of it at once.
    pub fn let_go(&self, archive: u64) {
        let now = self.now();
        if let Some((_, pidfd)) = now.as_ref().filter(|(of, _)| *of == archive) {
            self.let_go.store(true, Ordering::Release);
            // It may have ended.
            let _ = pidfd_send_signal(&**pidfd, Signal::KILL);
        }
    }

    fn pull(&self, wish: &Wish, shown: &Path) -> Result<()> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match reader.take() {
            Some(running) => running,
            None => Reader::start(&self.mountpoint)?,
        };
        let running = reader.insert(running);
        self.pid.store(running.child.id(), Ordering::Release);
        *self.now() = Some((wish.archive.id(), Arc::clone(&running.pidfd)));
        self.seen.store(false, Ordering::Release);
        let outcome = running.read(shown, &wish.range);
        *self.now() = None;
        log::trace!("pulled {:?} of {}: {outcome:?}", wish.range, escape::path(shown));
        match outcome {
            Ok(true) if !self.seen.load(Ordering::Acquire) => {
                Err(Error::invalid("its requests are not told from those of others"))
            }
            Ok(_) => Ok(()),
            Err(e) => {
                if let Some(mut ended) = reader.take() {
                    let _ = ended.child.kill();
                    self.end(ended);
                }
                if self.let_go.swap(false, Ordering::AcqRel) { Ok(()) } else { Err(e.into()) }
            }
        }
    }

    /// Wait for the process to end, which it does when nobody asks any more.
    fn end(&self, reader: Reader) {
        let Reader { mut child, requests, .. } = reader;
        drop(requests);
        self.pid.store(0, Ordering::Release);
        let _ = child.wait();
    }

    fn handles(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> MutexGuard<'_, Option<(u64, Arc<OwnedFd>)>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taker for Puller {
    fn take(&self, wish: &Wish, shown: &Path) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = self.pull(wish, shown) {
            log::warn!("layers are not pulled into the page cache: {e}");
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    fn rest(&self) {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = reader {
            self.end(reader);
        }
    }
}

/// Read what is asked for on `requests`, each a start, an end and a path below `mountpoint`, ended by a zero, and say on
/// `done` that it was, or was not. Ends with `requests`.
///
/// # Errors
/// Io, where nobody listens any more; invalid argument, where that is no request.
fn warm_on_request(
    mountpoint: &Path,
    mut requests: impl BufRead,
    mut done: impl Write,
) -> Result<()> {
    let mut buffer = vec![0; BLOCK];
    let mut request = Vec::new();
    while requests.read_until(0, &mut request)? > 0 {
        let (range, path) =
            parse(&request).ok_or_else(|| Error::invalid("not a request to warm"))?;
        let answer = if read(mountpoint, path, range, &mut buffer).is_ok() { b"+" } else { b"-" };
        done.write_all(answer).and_then(|()| done.flush())?;
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
    // Whatever has taken the file's name is not waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match rustix::mount::open_tree(CWD, mountpoint, copy) {
        Ok(root) => openat(root, path, flags, Mode::empty())?,
        Err(_) => openat(CWD, mountpoint.join(path), flags, Mode::empty())?,
    };
    let file = File::from(file);
    // No more than was asked for.
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

/// Read what a daemon asks for on the standard input, below its `mountpoint`, as long as it does.
///
/// # Errors
/// Io, where nobody listens any more; invalid argument, where that is no request.
pub fn warm_on_standard_request(mountpoint: &Path) -> Result<()> {
    warm_on_request(mountpoint, BufReader::new(std::io::stdin().lock()), std::io::stdout().lock())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_what_cannot_be_is_said() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("a b"), vec![7; 3 * BLOCK]).expect("write");
        let ask = |requests: &[u8]| {
            let mut said = Vec::new();
            warm_on_request(dir.path(), requests, &mut said)
                .map(|()| String::from_utf8(said).expect("answers"))
        };
        assert_eq!(ask(b"").ok(), Some(String::new()));
        let asked = b"0 99 a b\x005 4000000 a b\x000 1 none\x007 7 a b\0";
        assert_eq!(ask(asked).ok().as_deref(), Some("++-+"));
        for bad in ["x", "1 2\0", "1 -2 a\0", "a b c\0", "\0", "1 2 a"] {
            assert!(ask(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
