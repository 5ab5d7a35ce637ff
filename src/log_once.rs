//! Log messages that are written once, so that retries of a failing read do not fill the log.

use lru::LruCache;
use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

/// Remembers the hashes of the last messages.
pub struct LogOnce {
    logged: Mutex<LruCache<u64, ()>>,
    hasher: RandomState,
}

impl Default for LogOnce {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(1024).expect("not zero");
        Self { logged: Mutex::new(LruCache::new(capacity)), hasher: RandomState::new() }
    }
}

impl LogOnce {
    /// Log a message unless it has been logged before.
    pub fn log(&self, level: log::Level, message: &str) {
        let hash = self.hasher.hash_one(message);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.put(hash, ()).is_none() {
            log::log!(target: "bszfs", level, "{message}");
        }
    }

    /// Forget all messages, so that they are logged again.
    pub fn reset(&self) {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
