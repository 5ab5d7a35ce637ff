//! File handles: the numbers by which the kernel refers to open files, and who opened them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Who opens a file. Files that overlayfs has open are pinned to their names: see `opened.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    Overlay,
    Other,
}

impl Opener {
    /// Who opens a file with these flags. Only `O_NOATIME` distinguishes overlayfs from a program.
    pub fn of(flags: i32) -> Self {
        if flags & libc::O_NOATIME != 0 { Self::Overlay } else { Self::Other }
    }
}

/// Open files or directories by handle. Handles are never reused.
pub(crate) struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    pub fn new() -> Self {
        Self { next: AtomicU64::new(1), open: RwLock::default() }
    }

    pub fn insert(&self, value: Arc<T>) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, value);
        handle
    }

    pub fn get(&self, handle: u64) -> Option<Arc<T>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()
    }

    /// Returned to the caller, because dropping it may take a while, and the table is locked here.
    pub fn remove(&self, handle: u64) -> Option<Arc<T>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle)
    }
}
