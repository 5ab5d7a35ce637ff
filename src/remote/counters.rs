//! What was fetched, and what went wrong, for those who ask how a mount fares.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// What was fetched since the process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// Requests for bytes that were sent, repetitions included.
    pub requests: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Bytes that came from the disk cache instead.
    pub disk_bytes: u64,
    /// Requests on their way now.
    pub in_flight: u64,
    /// Requests that failed, whether or not they were repeated.
    pub failed: u64,
    /// Why the last one did.
    pub last_failure: Option<String>,
}

/// Counts it.
#[derive(Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    disk_bytes: AtomicU64,
    failed: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

impl Counters {
    /// A request is about to be sent.
    pub fn asking(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// So many bytes have arrived.
    pub fn fetched(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes were found on disk.
    pub fn found_on_disk(&self, bytes: usize) {
        self.disk_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A request about the object at `url` has failed.
    pub fn failed(&self, url: &str, why: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let why = format!("{url}: {why}");
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// All of it, and that so many requests are on their way.
    pub fn stats(&self, in_flight: usize) -> RemoteStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RemoteStats {
            requests: of(&self.requests),
            bytes: of(&self.bytes),
            disk_bytes: of(&self.disk_bytes),
            in_flight: in_flight as u64,
            failed: of(&self.failed),
            last_failure: self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
