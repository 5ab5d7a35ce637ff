//! Files that are not worth packing: marked where that is permitted, and remembered where not.

use super::names::{Key, LEFT, PLAIN_MARK};
use crate::mount::Entry;
use lru::LruCache;
use rustix::fs::{Mode, OFlags, XattrFlags, fgetxattr, openat, setxattr};
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The version of the rule that decides which files are not worth packing.
const RULE: u32 = 2;

/// Most files to remember that cannot be marked.
const MAX_LEFT: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// What identifies the content of a file that is not worth packing: size and mtime.
pub(super) type Version = (u64, (i64, u32));

/// The files that are remembered.
pub(super) struct Left(Mutex<LruCache<Key, Version>>);

impl Left {
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::new(MAX_LEFT)))
    }

    /// The content of a file is not worth packing. Mark the file, too, if that is permitted.
    pub fn leave(&self, key: Key, dir: impl AsFd, name: &OsStr, version: Version) {
        self.known().put(key, version);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let marked = openat(dir, name, flags, Mode::empty()).and_then(|fd| {
            let value = version_text(version);
            setxattr(Entry::new(fd).path(), LEFT, value.as_bytes(), XattrFlags::empty())
        });
        if let Err(e) = marked {
            log::debug!("a file that is not worth packing cannot be marked: {e}");
        }
    }

    /// Whether a file is known as not worth packing, or marked as that, or as no candidate at all.
    pub fn has(&self, key: Key, dir: impl AsFd, name: &OsStr, version: Version) -> bool {
        self.known().get(&key) == Some(&version) || is_marked(dir, name, version)
    }

    fn known(&self) -> MutexGuard<'_, LruCache<Key, Version>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_marked(dir: impl AsFd, name: &OsStr, version: Version) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(dir, name, flags, Mode::empty()) else { return true };
    let mut value = [0; 64];
    let left = fgetxattr(&file, LEFT, &mut value[..]);
    left.is_ok_and(|len| value[..len] == *version_text(version).as_bytes())
        || fgetxattr(&file, PLAIN_MARK, &mut [0u8; 1]).is_ok()
}

fn version_text((size, (secs, nanos)): Version) -> String {
    format!("{size}:{secs}.{nanos:09}:{RULE}")
}
