//! Nodes: which file of the source a nodeid of the kernel stands for.
//!
//! A node is a file, found by device and inode number, whatever its names are: two names of one
//! file must be one inode for the kernel, or they would have separate page caches and locks. When
//! an archive takes the place of a plain file, the node gets another key and stays the same node.
//!
//! Nodeids are counted and never reused. The inode numbers that programs see are those of the
//! source where possible: see [`Node::number`].

use super::names::{Found, Key};
use super::node::Node;
use crate::mount::{ROOT, inode_number};
use rustix::fs::FileType;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Set in the inode numbers of files whose own number is taken by another file.
const COUNTED: u64 = 3 << 61;

/// A name of a node: the nodeid of a directory, and the name in it.
pub(super) type Link = (u64, OsString);

/// What is known of a node besides its state.
struct Entry {
    node: Arc<Node>,
    key: Key,
    is_packed: bool,
    lookups: u64,
    /// How many names lead through it, if it is a directory. They keep it, too.
    children: u64,
    /// The latest one that was looked up comes first.
    links: Vec<Link>,
}

struct Table {
    root_dev: u64,
    next: u64,
    by_id: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    /// The nodes whose inode numbers are no longer those of their files.
    displaced: HashMap<u64, u64>,
}

impl Table {
    fn derived(&self, key: Key, is_packed: bool) -> u64 {
        inode_number(self.root_dev, key.dev, key.ino, is_packed)
    }

    fn insert(&mut self, found: &Found) -> u64 {
        let (id, key) = (self.next, found.key());
        self.next += 1;
        let number = self.derived(key, found.packed.is_some());
        let is_taken = self.displaced.contains_key(&number);
        let number = if is_taken { COUNTED | id } else { number };
        let packed = found.packed.clone().map(Arc::new);
        let node = Arc::new(Node::new(id, number, found.kind(), packed));
        let is_packed = found.packed.is_some();
        let entry = Entry { node, key, is_packed, lookups: 0, children: 0, links: Vec::new() };
        self.by_id.insert(id, entry);
        self.by_key.insert(key, id);
        id
    }

    /// Give a node another name, which becomes the first one.
    fn add_link(&mut self, id: u64, link: Link) {
        let Some(entry) = self.by_id.get_mut(&id) else { return };
        if let Some(at) = entry.links.iter().position(|other| *other == link) {
            return entry.links.swap(0, at);
        }
        let parent = link.0;
        // A directory has one name. If another one was known, it was moved around the store.
        let is_dir = entry.node.kind == FileType::Directory;
        let old = if is_dir { std::mem::take(&mut entry.links) } else { Vec::new() };
        // Most files have one name, and there are many of them.
        entry.links.reserve_exact(1);
        entry.links.insert(0, link);
        if let Some(parent) = self.by_id.get_mut(&parent) {
            parent.children += 1;
        }
        drop(self.collect(old));
    }

    /// Take names from a node. Returns the directories that are gone now.
    fn remove_links(&mut self, id: u64, which: impl Fn(&Link) -> bool) -> Vec<Entry> {
        let Some(entry) = self.by_id.get_mut(&id) else { return Vec::new() };
        let (removed, kept) = std::mem::take(&mut entry.links).into_iter().partition(which);
        entry.links = kept;
        self.collect(removed)
    }

    /// Directories have lost these names in them. Remove those that nobody knows any more, and then
    /// their own directories likewise.
    fn collect(&mut self, mut lost: Vec<Link>) -> Vec<Entry> {
        let mut gone = Vec::new();
        while let Some((parent, _)) = lost.pop() {
            if let Some(entry) = self.by_id.get_mut(&parent) {
                entry.children -= 1;
            }
            if let Some(mut entry) = self.take_unused(parent) {
                lost.append(&mut entry.links);
                gone.push(entry);
            }
        }
        gone
    }

    /// Give memory back once most of the nodes are gone.
    fn shrink(&mut self) {
        const KEPT: usize = 1 << 10;
        if self.by_id.capacity() > 4 * self.by_id.len().max(KEPT) {
            self.by_id.shrink_to(2 * self.by_id.len());
            self.by_key.shrink_to(2 * self.by_key.len());
            self.displaced.shrink_to_fit();
        }
    }

    /// Remove a node if nobody knows it any more; its names still count as children.
    fn take_unused(&mut self, id: u64) -> Option<Entry> {
        let is_used = |entry: &Entry| entry.lookups > 0 || entry.children > 0;
        if id == ROOT || self.by_id.get(&id).is_none_or(is_used) {
            return None;
        }
        let entry = self.by_id.remove(&id)?;
        if self.by_key.get(&entry.key) == Some(&id) {
            self.by_key.remove(&entry.key);
        }
        if self.displaced.get(&entry.node.number) == Some(&id) {
            self.displaced.remove(&entry.node.number);
        }
        Some(entry)
    }
}

/// All nodes that the kernel or the packer knows.
pub(super) struct Nodes(Mutex<Table>);

impl Nodes {
    /// A table with only the root, whose key is `root`.
    pub fn new(root: Key) -> Self {
        let node = Arc::new(Node::new(ROOT, root.ino, FileType::Directory, None));
        let links = Vec::new();
        let entry = Entry { node, key: root, is_packed: false, lookups: 1, children: 0, links };
        Self(Mutex::new(Table {
            root_dev: root.dev,
            next: ROOT + 1,
            by_id: HashMap::from([(ROOT, entry)]),
            by_key: HashMap::from([(root, ROOT)]),
            displaced: HashMap::new(),
        }))
    }

    /// Count a lookup of a file that was found as `name` in the directory `parent`.
    pub fn look_up(&self, parent: u64, name: &OsStr, found: &Found) -> Arc<Node> {
        let mut table = self.table();
        let known = table.by_key.get(&found.key()).copied();
        // The source may have given the number of a removed file to another one, or somebody may
        // have completed an archive.
        let (kind, is_packed) = (found.kind(), found.packed.is_some());
        let is_same = |id: &u64| {
            table.by_id.get(id).is_some_and(|e| (e.node.kind, e.is_packed) == (kind, is_packed))
        };
        let known = known.filter(is_same);
        let id = known.unwrap_or_else(|| table.insert(found));
        table.add_link(id, (parent, name.to_owned()));
        let entry = table.by_id.get_mut(&id).expect("it is known, or was inserted");
        entry.lookups += 1;
        Arc::clone(&entry.node)
    }

    /// Count a lookup of a node that is known, so that it stays known until it is forgotten.
    pub fn hold(&self, id: u64) -> Option<Arc<Node>> {
        let mut table = self.table();
        let entry = table.by_id.get_mut(&id)?;
        entry.lookups += 1;
        Some(Arc::clone(&entry.node))
    }

    /// The inode number that the file `key` has, or would have.
    pub fn number(&self, key: Key, is_packed: bool) -> u64 {
        let table = self.table();
        let known = table.by_key.get(&key).and_then(|id| table.by_id.get(id));
        known.map_or_else(|| table.derived(key, is_packed), |entry| entry.node.number)
    }

    /// `lookups` references to a node are dropped. Returns the nodes that are gone.
    pub fn forget(&self, id: u64, lookups: u64) -> Vec<u64> {
        let mut table = self.table();
        if let Some(entry) = table.by_id.get_mut(&id).filter(|_| id != ROOT) {
            entry.lookups = entry.lookups.saturating_sub(lookups);
        }
        let Some(mut entry) = table.take_unused(id) else { return Vec::new() };
        let mut gone = table.collect(std::mem::take(&mut entry.links));
        gone.push(entry);
        table.shrink();
        // Dropping them may close files.
        drop(table);
        gone.iter().map(|entry| entry.node.id).collect()
    }

    /// A node; `ESTALE` if the kernel never knew it, or has forgotten it.
    pub fn get(&self, id: u64) -> Result<Arc<Node>> {
        self.table().by_id.get(&id).map(|e| Arc::clone(&e.node)).ok_or(Errno::STALE)
    }

    /// The node of a file.
    pub fn of_key(&self, key: Key) -> Option<Arc<Node>> {
        let table = self.table();
        let entry = table.by_key.get(&key).and_then(|id| table.by_id.get(id))?;
        Some(Arc::clone(&entry.node))
    }

    /// The file that a node stands for, and one of its names, if it has any.
    pub fn place(&self, id: u64) -> Result<(Key, Option<Link>)> {
        let table = self.table();
        let entry = table.by_id.get(&id).ok_or(Errno::STALE)?;
        Ok((entry.key, entry.links.first().cloned()))
    }

    /// A node has another name.
    pub fn link(&self, id: u64, parent: u64, name: &OsStr) {
        self.table().add_link(id, (parent, name.to_owned()));
    }

    /// A file has lost a name. If `was_last`, its inode number may be given to another file.
    /// Returns whether another name is known.
    pub fn unlink(&self, id: u64, parent: u64, name: &OsStr, was_last: bool) -> bool {
        let mut table = self.table();
        let is_it = |link: &Link| was_last || (link.0, &*link.1) == (parent, name);
        let gone = table.remove_links(id, is_it);
        if let Some(entry) = table.by_id.get(&id).filter(|_| was_last) {
            let (key, number) = (entry.key, entry.node.number);
            if table.by_key.get(&key) == Some(&id) {
                table.by_key.remove(&key);
            }
            // Until the kernel forgets it, no other file gets its number.
            table.displaced.insert(number, id);
        }
        let has_name = table.by_id.get(&id).is_some_and(|entry| !entry.links.is_empty());
        drop(table);
        drop(gone);
        has_name
    }

    /// From now on, a node stands for the file `key`, which has only the name `link`.
    pub fn replace(&self, id: u64, key: Key, is_packed: bool, link: Option<Link>) {
        let mut table = self.table();
        let gone = table.remove_links(id, |other| Some(other) != link.as_ref());
        let Some(entry) = table.by_id.get_mut(&id) else { return };
        let old = std::mem::replace(&mut entry.key, key);
        entry.is_packed = is_packed;
        let number = entry.node.number;
        if table.by_key.get(&old) == Some(&id) {
            table.by_key.remove(&old);
        }
        if let Some(link) = link {
            table.by_key.insert(key, id);
            table.add_link(id, link);
        }
        table.displaced.insert(number, id);
        drop(table);
        drop(gone);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
