//! The control interface of a daemon: its status, and a request to drop its cache.
//!
//! Both are extended attributes of the mount's root. Thus even a read-only mount can be controlled,
//! no other channel is needed, and the kernel tells which user makes the request.

use super::bases::BaseFinder;
use super::mountinfo::{self, Mount};
use super::status::{RemoteStatus, Status, StoreStatus};
use crate::cache::ChunkCache;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::OnceLock;

/// The attribute whose value is the [`Status`] in JSON.
pub(crate) const STATUS: &str = "user.bsz.status";

/// The attribute that drops the cache when it is read. It is not listed, so that no program reads
/// it by accident.
pub(crate) const DROP_CACHE: &str = "user.bsz.cache.drop";

/// The attributes that tell the packer of a store to pack everything that waits, to pause, and to
/// go on. As [`DROP_CACHE`], they act when they are read.
pub(crate) const PACK_NOW: &str = "user.bsz.pack.now";
pub(crate) const PAUSE: &str = "user.bsz.pack.pause";
pub(crate) const RESUME: &str = "user.bsz.pack.resume";

/// Serves the control interface.
pub(crate) struct Control {
    /// The status without current statistics.
    status: Status,
    cache: Arc<ChunkCache>,
    /// Knows which bases are missing.
    bases: Arc<BaseFinder>,
    /// Adds what the file system itself reports.
    store: OnceLock<Box<dyn Fn() -> StoreStatus + Send + Sync>>,
    /// Adds what was fetched from other machines.
    remote: OnceLock<Box<dyn Fn() -> RemoteStatus + Send + Sync>>,
    /// Called with `true` before a signal ends the mount, and with `false` if it does not end.
    ending: OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
    /// The mount, if this process made it.
    mount: OnceLock<Mount>,
    /// Called before the cache is dropped.
    hangup: Box<dyn Fn() + Send + Sync>,
}

impl Control {
    pub fn new(
        status: Status,
        cache: Arc<ChunkCache>,
        bases: Arc<BaseFinder>,
        hangup: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let (store, remote) = (OnceLock::new(), OnceLock::new());
        let (ending, mount) = (OnceLock::new(), OnceLock::new());
        Self { status, cache, bases, store, remote, ending, mount, hangup: Box::new(hangup) }
    }

    /// The current status.
    pub fn status(&self) -> Status {
        let store = self.store.get().map(|status| status());
        let remote = self.remote.get().map(|status| status());
        let (cache, bases) = (self.cache.stats(), self.bases.missing());
        Status { cache, bases, store, remote, ..self.status.clone() }
    }

    /// What finds the bases of the archives of the mount.
    pub fn bases(&self) -> &Arc<BaseFinder> {
        &self.bases
    }

    /// Report what was fetched from other machines, too.
    #[cfg(feature = "remote")]
    pub fn report_remote(&self, status: impl Fn() -> RemoteStatus + Send + Sync + 'static) {
        // The first one stays.
        let _ = self.remote.set(Box::new(status));
    }

    /// Report the status of a store, too.
    pub fn report_store(&self, status: impl Fn() -> StoreStatus + Send + Sync + 'static) {
        // The first one stays.
        let _ = self.store.set(Box::new(status));
    }

    /// Call `ending` with `true` when a signal ends the mount, and with `false` if it cannot be
    /// unmounted. Files that are open then are served on.
    pub fn when_ending(&self, ending: impl Fn(bool) + Send + Sync + 'static) {
        // The first one stays.
        let _ = self.ending.set(Box::new(ending));
    }

    /// A signal ends the mount, or does not, after all.
    pub fn end(&self, ends: bool) {
        self.ending.get().into_iter().for_each(|ending| ending(ends));
    }

    /// The file system is mounted here.
    pub fn set_mount(&self, mount: Mount) {
        // The first one stays.
        let _ = self.mount.set(mount);
    }

    /// Whether the file system is mounted anywhere. After `umount -l`, it is not, although files
    /// that are open are served on. A mount that another program made cannot be seen.
    pub fn is_mounted(&self) -> bool {
        let Some(mount) = self.mount.get() else { return true };
        mountinfo::all().map_or(true, |all| all.iter().any(|m| m.device == mount.device))
    }

    /// Drop the cache, as SIGHUP does.
    pub fn drop_cache(&self) {
        (self.hangup)();
        log::info!("dropping the cache");
        self.cache.clear();
    }
}

/// Whether the user `uid` may drop the cache: root and the user who mounted may.
pub(crate) fn may_control(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Whether `name` is an attribute of the control interface.
pub(crate) fn is_control(name: &OsStr) -> bool {
    name == STATUS || name == DROP_CACHE
}
