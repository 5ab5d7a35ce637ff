//! The inode table: which file of the view a number of the kernel's stands for, as long as it knows it.
//!
//! The kernel is told of names by numbers of its own (`nodeid`), which are counted here and never used twice. The
//! inode numbers that programs see are another matter: see `attr.rs`.

use super::attr::{Identity, ROOT};
use super::handles::Opener;
use super::tree::Opened;
use super::view::Found;
use rustix::fs::FileType;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

/// Which file an inode stands for. It may change and stay itself, but an archive whose content changed is
/// another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sameness {
    dev: u64,
    ino: u64,
    kind: FileType,
    /// Of what an archive shows.
    sha256: Option<[u8; 32]>,
}

impl Sameness {
    pub fn of(found: &Found) -> Self {
        let Identity { dev, ino, .. } = Identity::of(&found.stat);
        Self { dev, ino, kind: found.kind(), sha256: found.packed.as_ref().map(|p| p.sha256) }
    }
}

/// What an operation needs to know of an inode.
#[derive(Clone)]
pub(super) struct Node {
    /// Relative to the view's root.
    pub path: Arc<Path>,
    same: Option<Sameness>,
    lookups: u64,
    /// The inode of the file that had the name before, and was open when this one was found.
    before: Option<u64>,
    /// What is open of it, shared by all its handles.
    pub opened: Weak<Opened>,
    /// Held while an archive's index is being loaded, so that it is loaded once.
    pub opening: Arc<Mutex<()>>,
    /// The state of the file from which the kernel last filled its page cache, if it would be told from any other.
    cached: Option<Identity>,
}

impl Node {
    fn new(path: Arc<Path>, same: Option<Sameness>, before: Option<u64>) -> Self {
        let (opened, opening) = (Weak::new(), Arc::default());
        Self { path, same, lookups: 1, before, opened, opening, cached: None }
    }

    /// Whether `found` is the file that this inode stands for.
    pub fn is(&self, found: &Found) -> bool {
        self.same == Some(Sameness::of(found))
    }

    /// The directory that the file is in, and its name there; `None` of the root.
    pub fn place(&self) -> Option<(&Path, &OsStr)> {
        Some((self.path.parent()?, self.path.file_name()?))
    }

    /// What is open of it, where that must stay what the name leads to, although the name is another file's by
    /// now: see [`Opened::is_held`].
    pub fn held(&self) -> Option<Arc<Opened>> {
        self.opened.upgrade().filter(|opened| opened.is_held())
    }

    /// Whether it can stand for another file from now on, that was found under its name. Not while it is open, so
    /// that whoever has the old file open, and the pages which the kernel cached of it, are not mixed up with
    /// the new one; afterwards it should, for overlayfs asks for a name again but never looks it up anew.
    fn can_become(&self, new: Sameness) -> bool {
        use FileType::{Directory, RegularFile, Symlink};
        self.same.is_some_and(|old| old.kind == new.kind)
            && matches!(new.kind, RegularFile | Directory | Symlink)
            && self.opened.upgrade().is_none_or(|opened| !opened.is_open())
    }
}

/// The inodes which the kernel knows.
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

    /// The node of an inode; `ESTALE` if the kernel was never told it, or forgot it.
    pub fn get(&self, node: u64) -> Result<&Node> {
        self.nodes.get(&node).ok_or(Errno::STALE)
    }

    /// Count one lookup of the file found at `path`, and give its number. With it comes what is shown in the file's
    /// stead, if that is [held](Node::held).
    pub fn look_up(&mut self, path: &Path, found: &Found) -> (u64, Option<Arc<Opened>>) {
        let same = Sameness::of(found);
        let newest = self.by_path.get(path).copied();
        for number in self.of_name(newest) {
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            let held = if node.same == Some(same) { None } else { node.held() };
            if node.same == Some(same) || held.is_some() || node.can_become(same) {
                if held.is_none() {
                    node.same = Some(same);
                }
                node.lookups += 1;
                return (number, held);
            }
        }
        let number = self.next;
        self.next += 1;
        let path: Arc<Path> = path.into();
        self.by_path.insert(path.clone(), number);
        self.nodes.insert(number, Node::new(path, Some(same), newest));
        (number, None)
    }

    /// The inodes that files of one name have or had, the oldest first: who looked it up first, and never asks for
    /// another, is served again as soon as can be.
    fn of_name(&self, newest: Option<u64>) -> Vec<u64> {
        let before = |number: &u64| self.nodes.get(number).and_then(|node| node.before);
        let mut numbers: Vec<u64> = std::iter::successors(newest, before).collect();
        numbers.reverse();
        numbers
    }

    /// The kernel forgot `lookups` lookups of an inode.
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

    /// Remember what is open of an inode. Whether the kernel may keep the pages it has cached: only if they
    /// are of this very state of the file. `ESTALE` if the inode stands for another file by now.
    pub fn opened(&mut self, number: u64, opened: &Arc<Opened>, by: Opener) -> Result<bool> {
        let node = self.nodes.get_mut(&number).filter(|node| node.same == Some(opened.same));
        let node = node.ok_or(Errno::STALE)?;
        node.opened = Arc::downgrade(opened);
        opened.gets_handle(by);
        let state = Some(opened.identity()).filter(Identity::is_settled);
        Ok(std::mem::replace(&mut node.cached, state) == state && state.is_some())
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        assert_eq!(self.nodes.len(), self.by_path.len());
        self.nodes.len()
    }
}
