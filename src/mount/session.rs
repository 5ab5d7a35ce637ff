//! The FUSE session: mounting, and the threads of `fuser` that serve the mount.

use super::reply::Replier;
use super::{MountOptions, fusermount};
use crate::error::{Error, Result};
use crate::escape;
use fuser::{BackgroundSession, Config, Filesystem, MountOption, Session, SessionACL};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Most threads that read `/dev/fuse`. They only look things up and pass reads on, and two of them
/// saturate the kernel's side.
const MAX_SESSION_THREADS: usize = 4;

/// The number of them in a read-write mount, where they also write to files.
const WRITING_THREADS: usize = 8;

/// Interval between checks whether the session's threads run.
const START_CHECK: Duration = Duration::from_millis(1);

/// When to assume that they run, if `/proc` cannot tell.
const START_WITHIN: Duration = Duration::from_secs(1);

/// Mount the file system; or serve `fuse`, an open `/dev/fuse` that is mounted already. The mount
/// ends when the session is dropped.
///
/// # Errors
/// Mounting failed, or the process is out of descriptors.
pub(super) fn open<F: Filesystem>(
    file_system: F,
    replier: &Replier,
    fuse: Option<OwnedFd>,
    mountpoint: &Path,
    config: &Config,
) -> Result<Session<F>> {
    let session = match fuse {
        // Whoever mounted it has decided whom the kernel admits.
        Some(fuse) => Session::from_fd(file_system, fuse, SessionACL::All, config.clone()),
        None => Session::new(file_system, mountpoint, config),
    };
    let session = session.map_err(mount_error)?;
    replier.write_to(&session)?;
    Ok(session)
}

/// The configuration of the session, and the options of the mount.
pub(super) fn config(o: &MountOptions, source: &Path) -> Config {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let mut config = Config::default();
    config.n_threads = Some(match o.read_write {
        true => WRITING_THREADS,
        false => cores.clamp(2, MAX_SESSION_THREADS),
    });
    // A descriptor for each thread is not faster, and replies must be written to the descriptor
    // that their requests were read from.
    config.clone_fd = false;
    config.acl = if o.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.mount_options = vec![
        if o.read_write { MountOption::RW } else { MountOption::RO },
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
        MountOption::FSName(fs_name(source)),
        // fuser passes `MountOption::Subtype` on only when it mounts with the helper.
        MountOption::CUSTOM("subtype=bszfs".into()),
    ];
    config
}

/// The source for the mount table. The helper splits options at commas unless they are escaped. The
/// system call, which root uses, takes the name as it is.
fn fs_name(source: &Path) -> String {
    let name = escape::path(source);
    match rustix::process::geteuid().is_root() {
        true => name.into_owned(),
        false => name.replace('\\', "\\\\").replace(',', "\\,"),
    }
}

fn mount_error(e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EPERM) => Error::invalid(format!(
            "{e}: only root may mount; an inherited descriptor must be mounted before bsz starts"
        )),
        Some(_) => Error::invalid(e.to_string()),
        // The helper failed, and `fuser` passes on its message. There is no other information.
        None => Error::invalid(match fusermount::message(&e.to_string()) {
            "" => "fusermount3 failed without a message",
            message => message,
        }),
    }
}

/// A session that is served by its own threads.
///
/// When `fuser` drops a session, it unmounts whatever is mounted at the path, even if the session's
/// mount is long gone and another one has taken its place. Therefore the session is never dropped,
/// and `lifecycle.rs` unmounts.
pub(super) struct Serving(JoinHandle<io::Result<()>>);

impl Serving {
    /// Start the threads of `session`.
    ///
    /// # Errors
    /// Io, if a thread cannot be started. The mount has ended then.
    pub fn start<F: Filesystem + Send + 'static>(session: Session<F>) -> io::Result<Self> {
        let mut background: BackgroundSession = session.spawn()?;
        let placeholder = thread::Builder::new().spawn(|| Ok(()))?;
        let serving = std::mem::replace(&mut background.guard, placeholder);
        std::mem::forget(background);
        Ok(Self(serving))
    }

    /// Wait until the threads run. Returns false if the session has ended before, because of an
    /// error or an early unmount.
    ///
    /// The threads are looked up in `/proc`. A request to the mount would tell, too, but a daemon
    /// that waits for itself cannot even be killed: the kernel ends the threads first, and then
    /// waits for their reply.
    pub fn wait_until_started(&self) -> bool {
        let started = Instant::now();
        while !session_threads_run() && started.elapsed() < START_WITHIN {
            if self.0.is_finished() {
                return false;
            }
            thread::sleep(START_CHECK);
        }
        true
    }

    /// Wait until the session ends.
    ///
    /// # Errors
    /// It was ended by an error.
    pub fn wait(self) -> Result<()> {
        match self.0.join() {
            // The session was aborted while a request was being read, which `fuser` takes for an
            // error.
            Ok(Err(e)) if e.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            Ok(outcome) => outcome.map_err(Into::into),
            Err(_) => Err(Error::invalid("a session thread panicked")),
        }
    }
}

/// Whether `fuser` has started its threads, which it names `fuser-0`, `fuser-1` and so on.
fn session_threads_run() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .any(|name| name.trim_end() == "fuser-0")
}
