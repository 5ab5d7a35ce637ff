//! The lock of a store: of all processes that have it open, only one packs or unpacks its files.
//!
//! It is a flock(2) on the source's root itself, so that no file is needed. A daemon whose mount
//! was detached, and that serves files which are still open, keeps it.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, OwnedFd};

/// The lock. It is released when this is dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "held, not used")] OwnedFd);

impl Lock {
    /// Take the lock; `None` if another process has it.
    pub fn take(root: impl AsFd) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(root, ".", flags, Mode::empty())?;
        match flock(&root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(root))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e),
        }
    }
}
