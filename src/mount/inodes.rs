//! The inode table: which file of the view a `nodeid` of the kernel stands for.
//!
//! A nodeid is allocated here for each looked-up name, lives until the kernel forgets it, and is
//! never reused. The inode numbers that programs see are something else: see `attr.rs`.

use super::attr::{Identity, ROOT};
use super::handles::Opener;
use super::opened::{FileKey, Opened};
use super::view::Found;
use rustix::fs::FileType;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

/// An inode that the kernel knows.
#[derive(Clone)]
pub(super) struct Node {
    /// Relative to the view's root.
    pub path: Arc<Path>,
    key: Option<FileKey>,
    lookups: u64,
    /// The inode of the file that had the name before, and was open when this one was found.
    before: Option<u64>,
    /// The open file, shared by all handles.
    pub opened: Weak<Opened>,
    /// Held while the index of an archive is loaded, so that it is loaded once. When and why that
    /// failed at last.
    pub opening: Arc<Mutex<Option<(Instant, Errno)>>>,
    /// The state of the file when the kernel last filled its page cache, if it can be told from
    /// later states.
    cached: Option<Identity>,
}

impl Node {
    fn new(path: Arc<Path>, key: Option<FileKey>, before: Option<u64>) -> Self {
        let (opened, opening) = (Weak::new(), Arc::default());
        Self { path, key, lookups: 1, before, opened, opening, cached: None }
    }

    /// Whether this inode stands for the file `found`.
    pub fn is(&self, found: &Found) -> bool {
        self.key == Some(FileKey::of(found))
    }

    /// The directory and the name of the file; `None` for the root.
    pub fn dir_and_name(&self) -> Option<(&Path, &OsStr)> {
        Some((self.path.parent()?, self.path.file_name()?))
    }

    /// The open file, if its name must keep referring to it although another file has the name now:
    /// see [`Opened::is_pinned`].
    pub fn pinned(&self) -> Option<Arc<Opened>> {
        self.opened.upgrade().filter(|opened| opened.is_pinned())
    }

    /// Whether the inode can stand for another file that was found under its name. Not while it is
    /// open: its readers, and the pages that the kernel has cached of it, must not be mixed up with
    /// the new file. Once it is closed, it should, because overlayfs keeps using an inode without
    /// looking up its name again.
    fn can_become(&self, new: FileKey) -> bool {
        use FileType::{Directory, RegularFile, Symlink};
        self.key.is_some_and(|old| old.kind() == new.kind())
            && matches!(new.kind(), RegularFile | Directory | Symlink)
            && self.opened.upgrade().is_none_or(|opened| !opened.is_open())
    }
}

/// The inodes that the kernel knows.
pub(super) struct Inodes {
    next: u64,
    nodes: HashMap<u64, Node>,
    by_path: HashMap<Arc<Path>, u64>,
}

impl Inodes {
    pub fn new() -> Self {
        let path: Arc<Path> = Path::new("").into();
        Self {
            next: ROOT + 1,
            nodes: HashMap::from([(ROOT, Node::new(path.clone(), None, None))]),
            by_path: HashMap::from([(path, ROOT)]),
        }
    }

    /// An inode; `ESTALE` if the kernel never knew it, or has forgotten it.
    pub fn get(&self, node: u64) -> Result<&Node> {
        self.nodes.get(&node).ok_or(Errno::STALE)
    }

    /// Count a lookup of the file found at `path`, and return its nodeid. If another file is
    /// [pinned](Node::pinned) under this name, it is returned, too, and shown instead.
    pub fn look_up(&mut self, path: &Path, found: &Found) -> (u64, Option<Arc<Opened>>) {
        let key = FileKey::of(found);
        let newest = self.by_path.get(path).copied();
        for number in self.of_name(newest) {
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            let pinned = if node.key == Some(key) { None } else { node.pinned() };
            if node.key == Some(key) || pinned.is_some() || node.can_become(key) {
                if pinned.is_none() {
                    node.key = Some(key);
                }
                node.lookups += 1;
                return (number, pinned);
            }
        }
        let number = self.next;
        self.next += 1;
        let path: Arc<Path> = path.into();
        self.by_path.insert(path.clone(), number);
        self.nodes.insert(number, Node::new(path, Some(key), newest));
        (number, None)
    }

    /// The inodes of a name, oldest first: a client that keeps using the first one is served again
    /// as soon as possible.
    fn of_name(&self, newest: Option<u64>) -> Vec<u64> {
        let before = |number: &u64| self.nodes.get(number).and_then(|node| node.before);
        let mut numbers: Vec<u64> = std::iter::successors(newest, before).collect();
        numbers.reverse();
        numbers
    }

    /// The kernel has forgotten `lookups` lookups of an inode.
    pub fn forget(&mut self, number: u64, lookups: u64) {
        if number == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0
                && let Some(gone) = self.nodes.remove(&number)
                && self.by_path.get(&gone.path) == Some(&number)
            {
                match gone.before.filter(|before| self.nodes.contains_key(before)) {
                    Some(before) => self.by_path.insert(gone.path, before),
                    None => self.by_path.remove(&gone.path),
                };
            }
        }
    }

    /// An inode is opened. Returns whether the kernel may keep its cached pages: only if they are
    /// of this state of the file. `ESTALE` if the inode stands for another file by now.
    pub fn opened(&mut self, number: u64, opened: &Arc<Opened>, by: Opener) -> Result<bool> {
        let node = self.nodes.get_mut(&number).filter(|node| node.key == Some(opened.key));
        let node = node.ok_or(Errno::STALE)?;
        node.opened = Arc::downgrade(opened);
        opened.add_handle(by);
        let state = Some(opened.identity()).filter(Identity::is_settled);
        Ok(std::mem::replace(&mut node.cached, state) == state && state.is_some())
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        assert_eq!(self.nodes.len(), self.by_path.len());
        self.nodes.len()
    }
}
