//! Open handles: small numbers to hand to the kernel for what is open, and who opens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Who opens a file, as far as that matters: see `Opened::is_held`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opener {
    Overlay,
    Other,
}

impl Opener {
    /// By the flags with which a file is opened. That it sets `O_NOATIME` is all that tells overlayfs from a program.
    pub fn of(flags: i32) -> Self {
        if flags & libc::O_NOATIME != 0 { Self::Overlay } else { Self::Other }
    }
}

/// Numbered things, each until it is removed. Numbers are never used twice.
pub(super) struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    pub fn new() -> Self {
        Self { next: AtomicU64::new(1), open: RwLock::default() }
    }

    pub fn insert(&self, thing: Arc<T>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, thing);
        number
    }

    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// What is dropped with the last number of it may take a while: that is not done while the table is locked.
    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}
