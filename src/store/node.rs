//! One node: a file as the kernel knows it, and where its bytes are at the moment.

use crate::mount::Packed;
use crate::readahead::OpenArchive;
use rustix::fs::FileType;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// Where the bytes of an open file come from. It belongs to the node and not to a handle, so that
/// handles follow when the packer replaces a file by its archive.
#[derive(Clone)]
pub(super) enum Content {
    Plain(Arc<File>),
    Archive { archive: Arc<OpenArchive>, packed: Arc<Packed> },
}

/// What changes about a node.
#[derive(Default)]
pub(super) struct State {
    /// What the file shows, if it is an archive in the source.
    pub packed: Option<Arc<Packed>>,
    /// The content, while it is open.
    pub content: Option<Content>,
    /// What a handle has opened for writing last.
    pub written: Weak<File>,
    /// Handles, and those of them that may write.
    pub opens: u32,
    pub writers: u32,
    /// It was to be packed, but somebody was writing: it is packed when the last writer closes it,
    /// although files are packed only on request.
    pub requested: bool,
    /// Raised by whatever may change the file. The packer gives up if it moves.
    pub epoch: u64,
    /// Size and mtime of the content that the kernel's page cache holds, once known.
    pub cached: Option<Box<(u64, (i64, u32))>>,
    /// The file, once it has no name.
    pub orphan: Option<Arc<OwnedFd>>,
    /// The file that is being packed; its lease makes writers wait.
    pub leased: Option<Arc<File>>,
}

pub(super) struct Node {
    /// The nodeid.
    pub id: u64,
    /// The inode number that programs see. It does not change while the kernel knows the node.
    pub number: u64,
    pub kind: FileType,
    /// Of a directory: shared by those who look up its names, exclusive to those who change them.
    pub names: RwLock<()>,
    /// Held while the file is unpacked, so that this happens once.
    pub unpacking: Mutex<()>,
    /// Whether the file is known to have no capabilities, for which the kernel asks before each
    /// write.
    pub no_capability: AtomicBool,
    /// Whether the access time of an open archive has moved.
    pub accessed: AtomicBool,
    state: Mutex<State>,
}

impl Node {
    pub fn new(id: u64, number: u64, kind: FileType, packed: Option<Arc<Packed>>) -> Self {
        let state = State { packed, ..State::default() };
        Self {
            id,
            number,
            kind,
            names: RwLock::default(),
            unpacking: Mutex::default(),
            no_capability: AtomicBool::new(false),
            accessed: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    /// Whether this is the first time that the content is read since it was opened.
    pub fn is_first_access(&self) -> bool {
        !self.accessed.swap(true, Ordering::Relaxed)
    }

    /// The file, once it has no name.
    pub fn orphan(&self) -> Option<Arc<OwnedFd>> {
        self.state().orphan.clone()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
