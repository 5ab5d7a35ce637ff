//! What the bases of all archives of a mount have in common: where the user says that they are, who
//! may be one, and which are missing. They are read through the cache of the mount.

use crate::cache::{CachedFile, ChunkCache};
use crate::error::Result;
use crate::escape;
use crate::format::Base;
use crate::log_once::LogOnce;
use crate::read::{ArchiveMemory, BaseBytes, SearchDir, named_directories};
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most missing bases to report.
const MAX_MISSING: usize = 64;

/// A base that was not found when it was needed at last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingBase {
    /// Its file name, as the archives that need it remember it.
    pub name: String,
    /// SHA-256 of its original, in hexadecimal.
    pub sha256: String,
    /// Why it was not found.
    pub why: String,
}

/// What the bases of a mount have in common.
pub(crate) struct BaseFinder {
    cache: Arc<ChunkCache>,
    /// The directories that the user names, opened before the mount could be one of them.
    named: Vec<SearchDir>,
    /// Whether other users than the daemon's read the mount.
    is_shared: bool,
    /// By SHA-256 in hexadecimal.
    missing: Mutex<BTreeMap<String, MissingBase>>,
    errors: LogOnce,
}

impl BaseFinder {
    pub fn new(cache: &Arc<ChunkCache>, is_shared: bool) -> Arc<Self> {
        let open = |dir: &PathBuf| {
            let opened = SearchDir::at(dir).open_now();
            opened.inspect_err(|e| log::warn!("bases are not looked for there: {e}")).ok()
        };
        Arc::new(Self {
            cache: Arc::clone(cache),
            named: named_directories().iter().filter_map(open).collect(),
            is_shared,
            missing: Mutex::default(),
            errors: LogOnce::default(),
        })
    }

    /// The memory that open archives share.
    pub(super) fn memory(&self) -> &Arc<ArchiveMemory> {
        self.cache.archive_memory()
    }

    /// The bases that were missing at last.
    pub fn missing(&self) -> Vec<MissingBase> {
        self.known().values().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, MissingBase>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directories to search after that of an archive.
    pub(super) fn named(&self) -> &[SearchDir] {
        &self.named
    }

    /// Whether archives with the attributes `archive` may be given the bytes of the file `base`.
    pub(super) fn permits(&self, base: &Stat, archive: &Stat) -> bool {
        !self.is_shared || is_as_public(base, archive)
    }

    /// The bytes of an open archive, which was found at `path`.
    pub(super) fn bytes(&self, file: Arc<CachedFile>, path: PathBuf) -> Arc<dyn BaseBytes> {
        self.cache.base(file, path)
    }

    /// Remember whether a base was found.
    pub(super) fn note<T>(&self, base: &Base, found: &Result<T>) {
        let mut known = self.known();
        match found {
            Ok(_) => {
                if known.remove(&base.hex()).is_some() {
                    log::info!("the base {} is back", escape::text(&base.name));
                    self.errors.reset();
                }
            }
            Err(e) if known.len() < MAX_MISSING => {
                let (name, sha256, why) = (base.name.clone(), base.hex(), e.detail());
                known.insert(base.hex(), MissingBase { name, sha256, why });
            }
            Err(_) => {}
        }
    }
}

/// Whether those who can make an archive with the attributes `archive` can read the file `base`,
/// too. Otherwise an archive made up by them would tell what is in it: each chunk that is guessed
/// right can be read.
fn is_as_public(base: &Stat, archive: &Stat) -> bool {
    base.st_uid == archive.st_uid
        || base.st_mode & 0o004 != 0
        || (base.st_mode & 0o040 != 0 && base.st_gid == archive.st_gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_archive_tells_what_its_owner_may_not_read() {
        let stat = |uid, gid, mode| {
            let mut stat = rustix::fs::stat("/").expect("stat");
            (stat.st_uid, stat.st_gid, stat.st_mode) = (uid, gid, mode);
            stat
        };
        let archive = stat(1000, 100, 0o644);
        for (base, is_public) in [
            (stat(1000, 5, 0o600), true),
            (stat(0, 0, 0o644), true),
            (stat(0, 100, 0o640), true),
            (stat(0, 5, 0o640), false),
            (stat(0, 100, 0o600), false),
        ] {
            assert_eq!(is_as_public(&base, &archive), is_public);
        }
    }
}
