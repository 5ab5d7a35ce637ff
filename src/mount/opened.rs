//! Open files: where their bytes come from, and who has them open.

use super::attr::{Identity, Packed};
use super::handles::Opener;
use super::source::Entry;
use super::view::Found;
use crate::readahead::OpenArchive;
#[cfg(feature = "remote")]
use crate::remote::Object;
use rustix::fs::{FileType, SeekFrom, Stat, fstat, seek};
use rustix::io::{Errno, Result};
use std::fs::File;
#[cfg(feature = "remote")]
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Identifies the file that an inode stands for. A plain file keeps its key when it changes; an
/// archive with other content is another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileKey {
    dev: u64,
    ino: u64,
    kind: FileType,
    /// The hash of the file that an archive shows.
    sha256: Option<[u8; 32]>,
}

impl FileKey {
    pub fn of(found: &Found) -> Self {
        let Identity { dev, ino, .. } = Identity::of(&found.stat);
        Self { dev, ino, kind: found.kind(), sha256: found.packed.as_ref().map(|p| p.sha256) }
    }

    pub fn kind(&self) -> FileType {
        self.kind
    }
}

/// An open file. It stays the same file, whatever takes its name.
pub(super) struct Opened {
    stat: Stat,
    pub key: FileKey,
    /// The kernel's handles, and how many of them belong to overlayfs.
    handles: AtomicUsize,
    overlay_handles: AtomicUsize,
    pub content: Content,
}

/// Where the bytes of an open file come from. An object has its path below the source.
pub(super) enum Content {
    Archive {
        archive: Arc<OpenArchive>,
        packed: Packed,
    },
    Plain(Arc<File>),
    #[cfg(feature = "remote")]
    Object(Arc<Object>, Arc<Path>),
}

impl Opened {
    /// A file that was found as `found` and had the state `stat` when it was opened.
    pub fn new(stat: Stat, found: &Found, content: Content) -> Self {
        let (handles, overlay_handles) = Default::default();
        Self { stat, key: FileKey::of(found), handles, overlay_handles, content }
    }

    /// The state of the source file when it was opened.
    pub fn identity(&self) -> Identity {
        Identity::of(&self.stat)
    }

    /// `SEEK_DATA` and `SEEK_HOLE` of lseek(2). An archive has no holes.
    pub fn seek(&self, offset: i64, whence: i32) -> Result<i64> {
        let from = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Err(Errno::INVAL),
        };
        let size = match &self.content {
            Content::Archive { packed, .. } => packed.size,
            Content::Plain(file) => {
                // Nobody uses the descriptor's position, because all reads are positional.
                match seek(file, if data { SeekFrom::Data(from) } else { SeekFrom::Hole(from) }) {
                    // The file system does not support it.
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => fstat(file)?.st_size.cast_unsigned(),
                    at => return at.map(|at| at.cast_signed()),
                }
            }
            #[cfg(feature = "remote")]
            Content::Object(object, _) => object.size(),
        };
        match () {
            () if from >= size => Err(Errno::NXIO),
            () if data => Ok(offset),
            () => Ok(size.cast_signed()),
        }
    }

    /// Whether the kernel has a handle.
    pub fn is_open(&self) -> bool {
        self.handles.load(Ordering::Acquire) > 0
    }

    /// Whether the name must refer to this file until it is closed: overlayfs has it open, and
    /// would find the name stale if it referred to another file meanwhile.
    pub fn is_pinned(&self) -> bool {
        self.overlay_handles.load(Ordering::Acquire) > 0
    }

    /// Count a handle.
    pub fn add_handle(&self, by: Opener) {
        self.overlay_handles.fetch_add((by == Opener::Overlay).into(), Ordering::AcqRel);
        self.handles.fetch_add(1, Ordering::AcqRel);
    }

    /// A handle is closed.
    pub fn remove_handle(&self, by: Opener) {
        self.handles.fetch_sub(1, Ordering::AcqRel);
        // Last, so that the name stays pinned until the file is closed.
        self.overlay_handles.fetch_sub((by == Opener::Overlay).into(), Ordering::AcqRel);
    }

    /// The open file of the source, if it is on this machine.
    pub fn file(&self) -> Option<&File> {
        match &self.content {
            Content::Archive { archive, .. } => archive.file().archive().file(),
            Content::Plain(file) => Some(file),
            #[cfg(feature = "remote")]
            Content::Object(..) => None,
        }
    }

    /// The present attributes of the file of the source. An object keeps those that it had.
    pub fn stat(&self) -> Result<Stat> {
        self.file().map_or(Ok(self.stat), fstat)
    }

    /// The open archive, unless the file is shown as it is.
    pub fn archive(&self) -> Option<&OpenArchive> {
        match &self.content {
            Content::Archive { archive, .. } => Some(archive),
            _ => None,
        }
    }

    /// What the file shows, if it is an archive.
    pub fn packed(&self) -> Option<&Packed> {
        match &self.content {
            Content::Archive { packed, .. } => Some(packed),
            _ => None,
        }
    }
}

/// The entry of the source behind an inode.
pub(super) struct SourceEntry {
    /// The entry, if it is on this machine.
    pub entry: Option<Entry>,
    /// Its size in bytes.
    pub stored: u64,
    /// What it shows, if it is an archive.
    pub packed: Option<Packed>,
}

/// The size of a file of the source in bytes.
#[allow(clippy::unnecessary_cast)]
pub(super) fn stored(stat: &Stat) -> u64 {
    stat.st_size as u64
}
