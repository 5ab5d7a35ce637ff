//! Opening archives, each once for all who read it.

use super::attr::Identity;
use crate::cache::{CachedFile, FileTable};
use crate::error::{Error, ErrorKind};
use crate::read::{Archive, ArchiveMemory};
#[cfg(feature = "remote")]
use crate::remote::Object;
use rustix::fs::{Stat, fstat};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The open archives of a mount.
pub(crate) struct Archives {
    open: FileTable<Identity>,
    /// The memory that open archives share.
    memory: Arc<ArchiveMemory>,
}

impl Archives {
    pub fn new(memory: &Arc<ArchiveMemory>) -> Self {
        Self { open: FileTable::default(), memory: memory.clone() }
    }

    /// The archive in `file`, which has the state `stat` and may be open already. May read its
    /// index. `path` names it in messages.
    pub fn open(&self, file: File, stat: &Stat, path: &Path) -> Result<Arc<CachedFile>> {
        let identity = Identity::of(stat);
        if let Some(open) = self.open.get(&identity) {
            return Ok(open);
        }
        let opened = file.try_clone().map_err(|_| Errno::MFILE)?;
        let loaded = Archive::from_file_within(file, &self.memory);
        // The index belongs to this identity only if the file had it before and after reading. An
        // error does not count either if the archive was replaced meanwhile.
        if Identity::of(&fstat(&opened)?) != identity {
            return Err(Errno::STALE);
        }
        let archive = loaded.map_err(|e| open_failed(path, &e))?;
        archive.read_directly();
        Ok(self.open.insert(Some(identity).filter(Identity::is_settled), archive))
    }

    /// The archive in `object`, as [`Archives::open`]. Waits for the network.
    #[cfg(feature = "remote")]
    pub fn open_remote(
        &self,
        object: Arc<Object>,
        stat: &Stat,
        path: &Path,
    ) -> Result<Arc<CachedFile>> {
        let identity = Identity::of(stat);
        if let Some(open) = self.open.get(&identity) {
            return Ok(open);
        }
        let archive = Archive::from_object_within(object, &self.memory);
        let archive = archive.map_err(|e| open_failed(path, &e))?;
        // A listing without entity tags does not tell what has just changed.
        Ok(self.open.insert(Some(identity).filter(Identity::is_settled), archive))
    }
}

/// Log why a file could not be opened, and return the error number for the program.
pub(super) fn open_failed(path: &Path, e: &Error) -> Errno {
    log::error!("{}", e.clone().about_path(path));
    errno_of(e)
}

/// The error number of an error of reading.
pub(super) fn errno_of(e: &Error) -> Errno {
    match (e.kind(), e.errno()) {
        (ErrorKind::Io, Some(errno)) => Errno::from_raw_os_error(errno),
        _ => Errno::IO,
    }
}
