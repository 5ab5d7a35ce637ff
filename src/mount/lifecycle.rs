//! The life of a mount: check, mount, say ready, serve, end on a signal or when it is unmounted.

use super::control::Control;
use super::fuse::{BszFs, READAHEAD};
use super::mountinfo::{self, Mount};
use super::tree::Tree;
use super::unmount::{self, Refused};
use super::{FS_TYPE, MountOptions, Prefetch, Status, limits, metrics, preflight};
use crate::cache::{CacheOptions, ChunkCache, ReadaheadPolicy};
use crate::codec;
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::log_once::LogOnce;
use crate::readahead::{
    self, OpenArchive, PageCacheWarmer, Prefetcher, Readahead, SequentialReadahead,
};
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Most threads that read `/dev/fuse`. They only look up and hand on; two reach what the kernel can do.
const MOST_SESSION_THREADS: usize = 4;

/// How often to look whether the session's threads run, or have ended before they served anything.
const SESSION_CHECK: Duration = Duration::from_millis(1);

/// When to take it that they run, where `/proc` does not tell.
const START_WITHIN: Duration = Duration::from_secs(1);

/// Mount, call `ready` once the mount can be used, and serve it until it is unmounted, or SIGTERM or SIGINT ends it. Where
/// `ready` fails, nobody wants the mount any more, and it is ended.
/// SIGHUP empties the cache, and calls `hangup`; what was said of errors is said again where they show again.
///
/// At a signal a mount in use is detached, and served until its last file is closed; a second signal ends the
/// process at once. What somebody else has mounted ends with the process, at the first. The process's handling of these
/// signals is changed for good.
pub fn run(
    o: &MountOptions,
    ready: impl FnOnce() -> Result<()>,
    hangup: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    let plan = preflight::check(o)?;
    limits::raise_open_files();
    let cache = ChunkCache::new(CacheOptions {
        capacity: o.cache_bytes,
        threads: o.threads,
        decoder: codec::fastest(),
        readahead: (o.prefetch != Prefetch::Off)
            .then(|| Box::new(SequentialReadahead) as Box<dyn ReadaheadPolicy>),
    })?;
    let prefetcher = Prefetcher::start(&cache)?;
    use_gpu(&prefetcher, o);
    // Before mounting: a signal from now on ends the mount, not only the process.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).about("signal handlers")?;

    let status = Status {
        source: plan.source.clone(),
        mountpoint: plan.mountpoint.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        cache: cache.stats(),
    };
    let errors: Arc<LogOnce> = Arc::default();
    let logged = errors.clone();
    let control = Arc::new(Control::new(status, cache.clone(), move || {
        hangup();
        logged.reset();
    }));
    let asked = control.clone();
    let _listening = o
        .metrics
        .as_ref()
        .map(|address| metrics::listen(address, move || asked.status()))
        .transpose()?;
    let tree = Arc::new(Tree::new(plan.view, cache.archive_memory()));
    let readahead = {
        // A mount that was handed over may be invisible to this process.
        let is_visible = plan.fuse.is_none();
        let warmer = is_visible.then(|| Arc::new(PageCacheWarmer::new(plan.mountpoint.clone())));
        let tree = tree.clone();
        let find_shards = Box::new(move |archive: &OpenArchive| tree.shards(archive));
        Readahead::new(cache.clone(), prefetcher, o.prefetch, find_shards, warmer, errors.clone())
    };
    let file_system = BszFs::new(tree, cache, readahead, control.clone(), errors);
    let replier = file_system.replier();
    let config = config(o, &plan.source);
    let session = match plan.fuse {
        // Who mounted it has said whom the kernel lets in.
        Some(fuse) => Session::from_fd(file_system, fuse, SessionACL::All, config),
        None => Session::new(file_system, &plan.mountpoint, &config),
    };
    let session = session.map_err(mount_failed).about_path(&o.mountpoint)?;
    replier.write_to(&session).about_path(&o.mountpoint)?;
    // None if it was unmounted, or detached, already; and if it is somebody else's. Up to here, a failure drops the
    // session, and with it the mount.
    let mount = mountinfo::topmost_at(&plan.mountpoint)?.filter(|m| m.fs_type == FS_TYPE);
    let serving = serve(session).about_path(&o.mountpoint)?;
    let ended = match threads_run(&serving) {
        true => {
            log::info!("{} shows {}", escape::path(&plan.mountpoint), escape::path(&plan.source));
            mount.iter().for_each(raise_readahead);
            on_signals(signals, mount.clone(), control)
                .and_then(|()| ready())
                .and_then(|()| wait(serving))
        }
        false => wait(serving),
    };
    if ended.is_err() {
        // The session has ended but the mount may not have: nobody would ever answer it.
        mount.iter().for_each(end);
    }
    ended.about_path(&o.mountpoint)
}

/// Decode layers on a GPU if that is requested and possible. A mount works without one.
#[cfg(feature = "cuda")]
fn use_gpu(prefetcher: &Prefetcher, o: &MountOptions) {
    match o.prefetch {
        Prefetch::Cuda => {
            if let Err(e) = readahead::use_gpu(prefetcher, o.gpu_memory) {
                log::warn!("{e}; layers are decoded ahead by the cores");
            }
        }
        Prefetch::Auto => {
            if let Err(e) = readahead::use_faster_gpu(prefetcher, o.gpu_memory) {
                log::debug!("no GPU is looked for: {e}");
            }
        }
        Prefetch::Off | Prefetch::Layers(_) => {}
    }
}

#[cfg(not(feature = "cuda"))]
fn use_gpu(_: &Prefetcher, o: &MountOptions) {
    if o.prefetch == Prefetch::Cuda {
        log::warn!("CUDA: this bsz was built without; layers are decoded ahead by the cores");
    }
}

fn config(o: &MountOptions, source: &Path) -> Config {
    let threads =
        thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST_SESSION_THREADS);
    let mut config = Config::default();
    config.n_threads = Some(threads);
    // A descriptor of its own for each thread was no faster, and replies must go where their requests came from.
    config.clone_fd = false;
    config.acl = if o.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
        MountOption::FSName(fs_name(source)),
        // Not `MountOption::Subtype`, which fuser passes on only when it mounts through the helper.
        MountOption::CUSTOM("subtype=bszfs".into()),
    ];
    config
}

/// The source for the mount table. The helper takes options apart at commas unless they are escaped; root's
/// system call takes the name as it is.
fn fs_name(source: &Path) -> String {
    let name = escape::path(source);
    match rustix::process::geteuid().is_root() {
        true => name.into_owned(),
        false => name.replace('\\', "\\\\").replace(',', "\\,"),
    }
}

fn mount_failed(e: io::Error) -> Error {
    let why = e.to_string();
    match why.trim() {
        _ if e.raw_os_error() == Some(libc::EPERM) => Error::invalid(format!(
            "{e}: only root may mount; a descriptor must be mounted before it is handed over"
        )),
        "" => Error::invalid("could not be mounted"),
        // The helper's own message, which says enough.
        why => Error::invalid(why.trim_start_matches("fusermount3: ")),
    }
}

/// Start the session's threads. The handle gives their outcome.
///
/// `fuser` would unmount whatever is mounted at our path when its session is dropped, even where ours was
/// unmounted long ago and another mount has taken its place. So the session is never dropped, and we unmount.
fn serve(session: Session<BszFs>) -> io::Result<JoinHandle<io::Result<()>>> {
    let mut background: BackgroundSession = session.spawn()?;
    let placeholder = thread::Builder::new().spawn(|| Ok(()))?;
    let serving = std::mem::replace(&mut background.guard, placeholder);
    std::mem::forget(background);
    Ok(serving)
}

/// Wait until the session's threads run; false if it has ended before, by an error or an early unmount.
///
/// They are seen, not asked: a daemon that waits for an answer from its own mount cannot even be killed, for
/// the kernel would wait with it for the answer of the threads that it has just ended.
fn threads_run(serving: &JoinHandle<io::Result<()>>) -> bool {
    let started = Instant::now();
    while !session_threads_run() && started.elapsed() < START_WITHIN {
        if serving.is_finished() {
            return false;
        }
        thread::sleep(SESSION_CHECK);
    }
    true
}

/// Whether `fuser` has started its threads, which it names `fuser-0`, `fuser-1` and so on.
fn session_threads_run() -> bool {
    let names = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    names
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .any(|name| name.trim_end() == "fuser-0")
}

fn wait(serving: JoinHandle<io::Result<()>>) -> Result<()> {
    match serving.join() {
        // A session that ended while a request was being read, which fuser takes for an error.
        Ok(Err(e)) if e.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Error::invalid("a session thread panicked")),
    }
}

/// Ask for larger reads than an ordinary mount gets; only root may.
fn raise_readahead(mount: &Mount) {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(e) = std::fs::write(&path, (READAHEAD / 1024).to_string()) {
        log::debug!("readahead stays as the kernel set it: {path}: {e}");
    }
}

fn on_signals(mut signals: Signals, mount: Option<Mount>, control: Arc<Control>) -> Result<()> {
    let watch = move || {
        let mut received = signals.forever();
        while received.next() == Some(SIGHUP) {
            control.drop_cache();
        }
        log::info!("a signal ends the mount");
        let Some(mount) = mount else { std::process::exit(0) };
        // On another thread, for unmounting may take its time and a second signal must be heard.
        let ending = thread::Builder::new().spawn(move || end(&mount));
        if ending.is_ok() {
            received.find(|&signal| signal != SIGHUP);
        }
        std::process::exit(0);
    };
    thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(())
}

/// Unmount, unless that was done by other means; detach what is in use.
fn end(mount: &Mount) {
    let at = escape::path(&mount.mountpoint);
    match mountinfo::topmost_at(&mount.mountpoint) {
        Ok(Some(now)) if now == *mount => {}
        Ok(None) => return,
        other => return log::error!("{at}: cannot be unmounted, something covers it: {other:?}"),
    }
    let outcome = match unmount::end(mount, false) {
        Err(Refused::Busy) => {
            log::warn!("{at}: is in use: detached, and served until that ends");
            unmount::end(mount, true)
        }
        other => other,
    };
    if let Err(e) = outcome {
        log::error!("{at}: cannot be unmounted: {e:?}");
    }
}
