//! The inode table: numbers for the files which the kernel knows, as long as it knows them.

use super::attr::Identity;
use super::tree::Opened;
use super::view::Found;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

/// The inode number of the view's root.
pub(super) const ROOT: u64 = 1;

/// Which file an inode stands for: another file under the same name is another inode, so that whoever has the
/// old one open, and the pages which the kernel cached of it, are not mixed up with the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sameness {
    /// A file or directory may change and stay itself.
    Changing { dev: u64, ino: u64 },
    /// A symlink cannot change, but its number can be used again, and the kernel caches its target.
    /// An archive that changes shows other bytes.
    Fixed { identity: Identity, archive: bool },
}

impl Sameness {
    fn of(found: &Found) -> Self {
        let identity = Identity::of(&found.stat);
        let archive = found.packed.is_some();
        if archive || found.kind().is_symlink() {
            Self::Fixed { identity, archive }
        } else {
            Self::Changing { dev: identity.dev, ino: identity.ino }
        }
    }
}

/// What an operation needs to know of an inode.
#[derive(Clone)]
pub(super) struct Node {
    /// Relative to the view's root.
    pub path: Arc<Path>,
    same: Option<Sameness>,
    lookups: u64,
    /// What is open of it, shared by all its handles.
    pub opened: Weak<Opened>,
    /// Held while an archive's index is being loaded, so that it is loaded once.
    pub opening: Arc<Mutex<()>>,
    /// The state of the file from which the kernel last filled its page cache.
    cached: Option<Identity>,
}

impl Node {
    fn new(path: Arc<Path>, same: Option<Sameness>) -> Self {
        Self { path, same, lookups: 1, opened: Weak::new(), opening: Arc::default(), cached: None }
    }

    /// Whether `found` is the file that this inode was made for.
    pub fn is(&self, found: &Found) -> bool {
        self.same == Some(Sameness::of(found))
    }

    /// The directory and the name under which the file is found; the root has none.
    pub fn place(&self) -> Option<(&Path, &OsStr)> {
        Some((self.path.parent()?, self.path.file_name()?))
    }
}

pub(super) struct Inodes {
    next: u64,
    nodes: HashMap<u64, Node>,
    /// The newest inode at each path.
    numbers: HashMap<Arc<Path>, u64>,
}

impl Inodes {
    pub fn new() -> Self {
        let path: Arc<Path> = Path::new("").into();
        Self {
            next: ROOT + 1,
            nodes: HashMap::from([(ROOT, Node::new(path.clone(), None))]),
            numbers: HashMap::from([(path, ROOT)]),
        }
    }

    /// The node of an inode; `ESTALE` if the kernel was never told it, or forgot it.
    pub fn get(&self, ino: u64) -> Result<&Node> {
        self.nodes.get(&ino).ok_or(Errno::STALE)
    }

    /// The number at a path, if the kernel knows it.
    pub fn number(&self, path: &Path) -> Option<u64> {
        self.numbers.get(path).copied()
    }

    /// Count one lookup of the file found at `path`, and give its inode number.
    pub fn look_up(&mut self, path: &Path, found: &Found) -> u64 {
        if let Some(ino) = self.number(path)
            && let Some(node) = self.nodes.get_mut(&ino)
            && node.is(found)
        {
            node.lookups += 1;
            return ino;
        }
        let ino = self.next;
        self.next += 1;
        let path: Arc<Path> = path.into();
        self.numbers.insert(path.clone(), ino);
        self.nodes.insert(ino, Node::new(path, Some(Sameness::of(found))));
        ino
    }

    /// The kernel forgot `lookups` lookups of an inode.
    pub fn forget(&mut self, ino: u64, lookups: u64) {
        if ino == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0
                && let Some(gone) = self.nodes.remove(&ino)
                && self.number(&gone.path) == Some(ino)
            {
                self.numbers.remove(&gone.path);
            }
        }
    }

    /// Remember what is open of an inode. Whether the kernel may keep the pages it has cached: only if they
    /// are of this very state of the file.
    pub fn opened(&mut self, ino: u64, opened: &Arc<Opened>) -> bool {
        let Some(node) = self.nodes.get_mut(&ino) else { return false };
        node.opened = Arc::downgrade(opened);
        let state = Some(opened.identity());
        std::mem::replace(&mut node.cached, state) == state
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        assert_eq!(self.nodes.len(), self.numbers.len());
        self.nodes.len()
    }
}
