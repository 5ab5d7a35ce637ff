//! What can be asked of a daemon: what it does, and to drop what its cache holds. It is asked through its mount, by
//! extended attributes of the root, which also a read-only mount can be asked for, and the kernel says by whom.

use super::Status;
use crate::cache::ChunkCache;
use std::ffi::OsStr;
use std::sync::Arc;

/// The attribute whose value is the [`Status`] in JSON.
pub(super) const STATUS: &str = "user.bsz.status";

/// The attribute to ask for which has the cache dropped. It is in no list, so that nobody asks for it by accident.
pub(super) const DROP_CACHE: &str = "user.bsz.cache.drop";

/// A daemon's answers.
pub(super) struct Control {
    /// All but the figures stays as it is.
    status: Status,
    cache: Arc<ChunkCache>,
    /// What is done besides when the cache is dropped.
    hangup: Box<dyn Fn() + Send + Sync>,
}

impl Control {
    pub fn new(
        status: Status,
        cache: Arc<ChunkCache>,
        hangup: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { status, cache, hangup: Box::new(hangup) }
    }

    /// What the daemon says of itself now.
    pub fn status(&self) -> Status {
        Status { cache: self.cache.stats(), ..self.status.clone() }
    }

    /// Drop what the cache holds, as SIGHUP does.
    pub fn drop_cache(&self) {
        (self.hangup)();
        log::info!("dropping what the cache holds");
        self.cache.clear();
    }
}

/// Whether the user `uid` may have the cache dropped: root, and who mounted.
pub(super) fn may_drop(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Whether the root has an attribute of this name.
pub(super) fn is_known(name: &OsStr) -> bool {
    name == STATUS || name == DROP_CACHE
}
