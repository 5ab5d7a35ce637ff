//! The life of a mount: check, mount, report ready, serve, and unmount.

use super::bases::BaseFinder;
use super::control::Control;
use super::files::Files;
use super::fuse::BszFs;
use super::mountinfo::{self, Mount};
use super::negotiate::READAHEAD;
use super::preflight::{self, Plan};
use super::reply::Replier;
use super::session::{self, Serving};
#[cfg(feature = "remote")]
use super::status::RemoteStatus;
use super::status::Status;
use super::tree::Tree;
use super::unmount::{self, UnmountError};
use super::view::View;
use super::waiting::Waiting;
use super::{FS_TYPE, MountOptions, limits, metrics};
use crate::cache::{CacheOptions, ChunkCache, ReadaheadPolicy};
use crate::codec;
use crate::error::{Context, Result};
use crate::escape;
use crate::log_once::LogOnce;
use crate::readahead::{
    FindShards, LOCAL_PIECE, OpenArchive, PageCacheWarmer, Prefetch, Prefetcher, REMOTE_PIECE,
    Readahead, SequentialReadahead,
};
use fuser::Filesystem;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// Mount, call `ready` once the mount can be used, and serve it until it is unmounted or a signal
/// ends it. If `ready` fails, the mount is ended.
///
/// SIGHUP drops the cache, calls `hangup`, and lets errors be logged again that were logged before.
/// SIGTERM and SIGINT unmount. If the mount is in use, it is detached, and served until its last
/// file is closed; SIGINT then ends the process at once, but not SIGTERM, which service managers
/// repeat. A mount that another program made ends with the process, at the first signal. These
/// signal handlers stay installed.
///
/// # Errors
/// A check failed, mounting failed, or the session ended with an error.
pub fn run(
    o: &MountOptions,
    ready: impl FnOnce() -> Result<()>,
    hangup: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    serve(o, ready, hangup, |parts| {
        let waiting = match parts.files.local() {
            Some(_) => None,
            None => Some(Waiting::start(Arc::clone(&parts.replier))?),
        };
        let view = View::new(parts.files, parts.only)?;
        let tree = Arc::new(Tree::new(view, parts.control.bases())?);
        let shards = Arc::clone(&tree);
        let readahead =
            parts.readahead.start(Box::new(move |archive: &OpenArchive| shards.shards(archive)));
        let Parts { cache, control, errors, replier, .. } = parts;
        let readahead = Arc::new(readahead);
        Ok(BszFs { tree, cache, readahead, control, errors, replier, waiting })
    })
}

/// What a file system is made of, apart from its tree.
pub(crate) struct Parts {
    pub files: Files,
    /// If a single archive is mounted: its name.
    pub only: Option<OsString>,
    pub cache: Arc<ChunkCache>,
    pub readahead: ReadaheadParts,
    pub control: Arc<Control>,
    pub errors: Arc<LogOnce>,
    pub replier: Arc<Replier>,
}

/// What readahead is made of.
pub(crate) struct ReadaheadParts {
    cache: Arc<ChunkCache>,
    prefetcher: Prefetcher,
    prefetch: Prefetch,
    warmer: Option<Arc<PageCacheWarmer>>,
    errors: Arc<LogOnce>,
}

impl ReadaheadParts {
    /// Start it for a tree that knows which files are the shards of a model.
    pub fn start(self, shards: FindShards) -> Readahead {
        let Self { cache, prefetcher, prefetch, warmer, errors } = self;
        Readahead::new(cache, prefetcher, prefetch, shards, warmer, errors)
    }
}

/// As [`run`], for any file system.
///
/// # Errors
/// As [`run`]; those of `make`.
pub(crate) fn serve<F: Filesystem + Send + 'static>(
    o: &MountOptions,
    ready: impl FnOnce() -> Result<()>,
    hangup: impl Fn() + Send + Sync + 'static,
    make: impl FnOnce(Parts) -> Result<F>,
) -> Result<()> {
    let plan = preflight::check(o)?;
    limits::raise_open_files();
    let cache = start_cache(o)?;
    let is_local = plan.files.local().is_some();
    let prefetcher = start_prefetcher(o, &cache, is_local)?;
    // Before mounting: from now on, a signal ends the mount, and not only the process.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).about("signal handlers")?;
    let errors: Arc<LogOnce> = Arc::default();
    let control = control(o, &plan, &cache, &errors, hangup);
    #[cfg(feature = "remote")]
    report_remote(&plan.files, &control);
    let reporter = control.clone();
    let metrics = o.metrics.as_ref();
    let _metrics_socket =
        metrics.map(|at| metrics::serve(at, move || reporter.status())).transpose()?;

    let Plan { source: path, mountpoint, fuse, files, only } = plan;
    let config = session::config(o, &path);
    let replier: Arc<Replier> = Arc::default();
    // An inherited mount may be invisible to this process, and on a network the reads of a warmer
    // would go first, as those of programs do.
    let warmer =
        (fuse.is_none() && is_local).then(|| Arc::new(PageCacheWarmer::new(mountpoint.clone())));
    let (prefetch, of_cache, of_errors) = (o.prefetch, cache.clone(), errors.clone());
    let readahead =
        ReadaheadParts { cache: of_cache, prefetcher, prefetch, warmer, errors: of_errors };
    let (control_, replier_) = (control.clone(), replier.clone());
    let parts =
        Parts { files, only, cache, readahead, control: control_, errors, replier: replier_ };
    let file_system = make(parts).about_path(&path)?;
    let session = session::open(file_system, &replier, fuse, &mountpoint, &config)
        .about_path(&o.mountpoint)?;
    // None if it has been unmounted or detached already, and if another program mounted it. Until
    // `Serving::start`, an error drops the session, which ends the mount.
    let mount = mountinfo::topmost_at(&mountpoint)?.filter(|m| m.fs_type == FS_TYPE);
    let serving = Serving::start(session).about_path(&o.mountpoint)?;
    let outcome = if serving.wait_until_started() {
        log::info!("{} shows {}", escape::path(&mountpoint), escape::path(&path));
        mount.iter().for_each(raise_readahead);
        mount.iter().for_each(|mount| control.set_mount(mount.clone()));
        handle_signals(signals, mount.clone(), control)
            .and_then(|()| ready())
            .and_then(|()| serving.wait())
    } else {
        serving.wait()
    };
    if outcome.is_err() {
        // The session has ended, but perhaps not the mount, which would hang.
        let _ = mount.as_ref().map(end);
    }
    outcome.about_path(&o.mountpoint)
}

fn start_prefetcher(
    o: &MountOptions,
    cache: &Arc<ChunkCache>,
    is_local: bool,
) -> Result<Prefetcher> {
    let piece = if is_local { LOCAL_PIECE } else { REMOTE_PIECE };
    let prefetcher = Prefetcher::start(cache, piece)?;
    // A GPU would wait for the network.
    if is_local {
        use_gpu(&prefetcher, o);
    }
    Ok(prefetcher)
}

fn start_cache(o: &MountOptions) -> Result<Arc<ChunkCache>> {
    let readahead = o.prefetch != Prefetch::Off;
    ChunkCache::new(CacheOptions {
        capacity: o.cache_bytes,
        threads: o.threads,
        decoder: codec::fastest(),
        readahead: readahead.then(|| Box::new(SequentialReadahead) as Box<dyn ReadaheadPolicy>),
    })
}

fn control(
    o: &MountOptions,
    plan: &Plan,
    cache: &Arc<ChunkCache>,
    errors: &Arc<LogOnce>,
    hangup: impl Fn() + Send + Sync + 'static,
) -> Arc<Control> {
    let status = Status {
        source: plan.source.clone(),
        mountpoint: plan.mountpoint.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        cache: cache.stats(),
        bases: Vec::new(),
        store: None,
        remote: None,
    };
    let errors = errors.clone();
    #[cfg(feature = "remote")]
    let remote = plan.files.remote().cloned();
    // Before mounting, which may hide directories.
    let bases = BaseFinder::new(cache, o.allow_other);
    Arc::new(Control::new(status, cache.clone(), bases, move || {
        hangup();
        errors.reset();
        #[cfg(feature = "remote")]
        remote.iter().for_each(|remote| remote.forget());
    }))
}

#[cfg(feature = "remote")]
fn report_remote(files: &Files, control: &Control) {
    let Some(remote) = files.remote().cloned() else { return };
    control.report_remote(move || {
        let stats = remote.stats();
        RemoteStatus {
            requests: stats.requests,
            bytes: stats.bytes,
            disk_bytes: stats.disk_bytes,
            in_flight: stats.in_flight,
            failed: stats.failed,
            last_failure: stats.last_failure,
        }
    });
}

/// Decode layers on a GPU if that is requested and possible. A mount works without one.
#[cfg(feature = "cuda")]
fn use_gpu(prefetcher: &Prefetcher, o: &MountOptions) {
    if o.prefetch == Prefetch::Cuda
        && let Err(e) = crate::readahead::use_gpu(prefetcher, o.gpu, o.gpu_memory)
    {
        log::warn!("{e}; the CPU decodes layers instead");
    }
}

#[cfg(not(feature = "cuda"))]
fn use_gpu(_: &Prefetcher, o: &MountOptions) {
    if o.prefetch == Prefetch::Cuda {
        log::warn!("CUDA: this bsz was built without it; the CPU decodes layers instead");
    }
}

/// Request larger reads than the kernel does by default. Only root may.
fn raise_readahead(mount: &Mount) {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(e) = std::fs::write(&path, (READAHEAD / 1024).to_string()) {
        log::debug!("the kernel's readahead stays at its default: {path}: {e}");
    }
}

fn handle_signals(mut signals: Signals, mount: Option<Mount>, control: Arc<Control>) -> Result<()> {
    let handle = move || {
        let mut ending: Option<thread::JoinHandle<()>> = None;
        let is_gone = Arc::new(AtomicBool::new(false));
        for signal in signals.forever() {
            if signal == SIGHUP {
                control.drop_cache();
                continue;
            }
            // It may be served on for long, until its last file is closed.
            if let Some(thread) = &ending {
                if signal == SIGINT {
                    break;
                }
                if !thread.is_finished() || is_gone.load(Ordering::Relaxed) {
                    continue;
                }
            }
            log::info!("ending the mount, because of a signal");
            control.end(true);
            let Some(mount) = mount.clone() else { break };
            let (control, is_gone) = (control.clone(), is_gone.clone());
            // On another thread, because unmounting may take a while, and further signals must be
            // handled.
            let thread = thread::Builder::new().spawn(move || {
                is_gone.store(end(&mount), Ordering::Relaxed);
                if !is_gone.load(Ordering::Relaxed) {
                    control.end(false);
                }
            });
            match thread {
                Ok(thread) => ending = Some(thread),
                Err(_) => break,
            }
        }
        std::process::exit(0);
    };
    thread::Builder::new().name("signals".into()).spawn(handle)?;
    Ok(())
}

/// Unmount, unless the mount is gone already; detach it if it is in use. Returns whether it is
/// gone.
fn end(mount: &Mount) -> bool {
    let at = escape::path(&mount.mountpoint);
    match mountinfo::topmost_at(&mount.mountpoint) {
        Ok(Some(now)) if now == *mount => {}
        Ok(None) => return true,
        Ok(Some(other)) => {
            let kind = escape::text(&other.fs_type);
            log::error!("{at}: cannot be unmounted: a {kind} mount covers it");
            return false;
        }
        Err(e) => {
            log::error!("{at}: cannot be unmounted: {e}");
            return false;
        }
    }
    let outcome = match unmount::try_unmount(mount, false) {
        Err(UnmountError::Busy) => {
            log::warn!("{at}: is in use: detached, and served until its last file is closed");
            unmount::try_unmount(mount, true)
        }
        other => other,
    };
    if let Err(e) = &outcome {
        log::error!("{at}: cannot be unmounted: {e}");
    }
    outcome.is_ok()
}
