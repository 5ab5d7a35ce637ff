//! The tree of a store: directories by descriptor, lookups, attributes and listings.
//!
//! Everything is reached relative to the descriptor of the source's root, which was opened before
//! the store was mounted. No path may be used: it would lead into the mount.

use super::names::{Form, Found, Key, Names, check};
use super::node::Node;
use super::nodes::{Link, Nodes};
use super::packer::Packer;
use super::twins::Twins;
use crate::cache::ChunkCache;
use crate::mount::{Access, Archives, Attr, BaseFinder, Entry, FilesOf, ROOT, Source, attr};
use crate::output::sync_dir;
use lru::LruCache;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatVfs, fstat, openat, readlinkat};
use rustix::io::{Errno, Result};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLockReadGuard, RwLockWriteGuard};

/// Most directories to keep open.
const MAX_DIRS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// How often to look at a node again whose file changes form meanwhile.
const ATTEMPTS: usize = 8;

/// A directory of the source: a descriptor for lookups.
pub(super) type DirFd = Arc<OwnedFd>;

pub(super) struct Tree {
    root: DirFd,
    source: Source,
    pub names: Names,
    pub nodes: Nodes,
    pub access: Access,
    pub archives: Archives,
    pub cache: Arc<ChunkCache>,
    pub packer: Packer,
    pub twins: Twins,
    /// Whether files can share ranges, once that was tried.
    pub shares: OnceLock<bool>,
    /// Whether the file system reserves blocks for root.
    pub reserves: OnceLock<bool>,
    dirs: Mutex<LruCache<u64, DirFd>>,
}

/// An entry of an open directory.
pub(super) struct DirEntry {
    pub ino: u64,
    pub kind: FileType,
    pub name: OsString,
}

/// A node that is about to lose a name, and a descriptor of its file.
pub(super) type Kept = Option<(Arc<Node>, Arc<OwnedFd>)>;

/// The file that a node stands for at the moment, and the directory that it was found in.
pub(super) struct Located {
    pub dir: DirFd,
    pub link: Link,
    pub found: Found,
}

impl Tree {
    /// # Errors
    /// The source is gone.
    pub fn new(
        source: Source,
        cache: Arc<ChunkCache>,
        bases: &Arc<BaseFinder>,
        packer: Packer,
    ) -> Result<Self> {
        let root = Key::of(&source.stat_root()?);
        let archives = Archives::new(bases, FilesOf::Local(source.try_clone()?));
        Ok(Self {
            root: Arc::new(source.root_fd()?),
            source,
            names: Names::new(),
            nodes: Nodes::new(root),
            access: Access::default(),
            archives,
            cache,
            packer,
            twins: Twins::new(),
            shares: OnceLock::new(),
            reserves: OnceLock::new(),
            dirs: Mutex::new(LruCache::new(MAX_DIRS)),
        })
    }

    pub fn statfs(&self) -> Result<StatVfs> {
        self.source.statfs()
    }

    /// The descriptor of a directory.
    pub fn dir(&self, id: u64) -> Result<DirFd> {
        // Up to a directory that is open, and down again. Not by recursion: users decide how deep
        // directories are.
        let (mut at, mut closed, mut seen) = (id, Vec::new(), HashSet::new());
        let mut dir = loop {
            if let Some(dir) = self.open_dir(at)? {
                break dir;
            }
            if !seen.insert(at) {
                // Somebody has moved directories around the store.
                return Err(Errno::STALE);
            }
            let (key, link) = self.nodes.place(at)?;
            let (parent, name) = link.ok_or(Errno::STALE)?;
            closed.push((at, key, name));
            at = parent;
        };
        for (id, key, name) in closed.into_iter().rev() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(&dir, &name, flags, Mode::empty()).map_err(stale)?;
            if Key::of(&fstat(&fd)?) != key {
                return Err(Errno::STALE);
            }
            dir = Arc::new(fd);
            self.dirs().put(id, Arc::clone(&dir));
        }
        Ok(dir)
    }

    /// The descriptor of a directory, if it is open.
    fn open_dir(&self, id: u64) -> Result<Option<DirFd>> {
        if id == ROOT {
            return Ok(Some(Arc::clone(&self.root)));
        }
        if let Some(dir) = self.dirs().get(&id) {
            return Ok(Some(Arc::clone(dir)));
        }
        let node = self.nodes.get(id)?;
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok(node.orphan())
    }

    /// Sync the entries of a directory.
    pub fn sync_names(&self, id: u64) -> Result<()> {
        sync_dir(&*self.dir(id)?)
    }

    /// A path for messages, relative to the mount.
    pub fn path(&self, (parent, name): &Link) -> PathBuf {
        let mut names = vec![name.clone()];
        let mut at = *parent;
        // Directories may be renamed meanwhile.
        while let Ok((_, Some((parent, name)))) = self.nodes.place(at) {
            names.push(name);
            at = parent;
            if names.len() > 1000 {
                break;
            }
        }
        names.iter().rev().collect()
    }

    /// Look up `name` in a directory, and count the lookup.
    pub fn look_up(&self, parent: u64, name: &OsStr) -> Result<(Arc<Node>, Attr)> {
        check(name).map_err(|e| if e == Errno::INVAL { Errno::NOENT } else { e })?;
        let dir_node = self.nodes.get(parent)?;
        let dir = self.dir(parent)?;
        let _names = read(&dir_node);
        let found = self.names.find(dir.as_fd(), name)?;
        self.found(parent, name, &dir, &found)
    }

    /// The node and the attributes of a file found in a directory whose names are locked. Counts a
    /// lookup.
    pub fn found(
        &self,
        parent: u64,
        name: &OsStr,
        dir: &DirFd,
        found: &Found,
    ) -> Result<(Arc<Node>, Attr)> {
        let node = self.nodes.look_up(parent, name, found);
        // It may have lost the only other name that was known.
        node.state().orphan = None;
        Ok((Arc::clone(&node), self.attr_of(&node, dir, found)))
    }

    /// The kernel has dropped `lookups` of its references to a node.
    pub fn forget(&self, id: u64, lookups: u64) {
        for gone in self.nodes.forget(id, lookups) {
            let closed = self.dirs().pop(&gone);
            drop(closed);
        }
    }

    pub fn attr(&self, id: u64) -> Result<Attr> {
        let node = self.nodes.get(id)?;
        if id == ROOT {
            let stat = self.source.stat_root()?;
            let root = attr(node.number, &stat, None);
            let entry = || self.source.root_entry();
            let perm = self.access.bits(root.perm, Key::of(&stat).dev, entry);
            return Ok(Attr { perm, ..root });
        }
        if let Some(orphan) = node.orphan() {
            return self.attr_of_orphan(&node, &orphan);
        }
        match self.locate(&node) {
            Ok(located) => Ok(self.attr_of(&node, &located.dir, &located.found)),
            Err(Errno::STALE) => self.attr_of_orphan(&node, &self.opened(&node)?),
            Err(e) => Err(e),
        }
    }

    /// The file of a node, by one of its names. `ESTALE` if none of them refers to it any more,
    /// which makes the kernel look up the path again.
    pub fn locate(&self, node: &Node) -> Result<Located> {
        let located = self.locate_once(node);
        if !matches!(located, Err(Errno::STALE)) {
            return located;
        }
        // The directory and the table may be out of step while a name changes.
        if let Some((parent, _)) = self.nodes.place(node.id)?.1 {
            drop(read(&*self.nodes.get(parent)?));
        }
        self.locate_once(node)
    }

    /// The same for a caller that has locked the names of the directory.
    pub fn locate_once(&self, node: &Node) -> Result<Located> {
        for _ in 0..ATTEMPTS {
            let (key, link) = self.nodes.place(node.id)?;
            let Some(link) = link else { break };
            let dir = self.dir(link.0)?;
            match self.names.find(dir.as_fd(), &link.1) {
                Ok(found) if found.key() == key => return Ok(Located { dir, link, found }),
                // It may have been renamed, or changed its form, since the place was looked up.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    if self.nodes.place(node.id)? == (key, Some(link)) {
                        break;
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(Errno::STALE)
    }

    /// Change the attributes of a file through a descriptor of it. Meanwhile, its form stays, and
    /// an archive that is being made is given up.
    pub fn with_entry(&self, node: &Node, change: impl Fn(&Entry) -> Result<()>) -> Result<()> {
        node.state().epoch += 1;
        let Some((parent, _)) = self.nodes.place(node.id)?.1 else {
            return change(&self.entry(node)?);
        };
        let parent = self.nodes.get(parent)?;
        let _names = read(&parent);
        // It may have been moved to another directory meanwhile, which changes no form.
        change(&self.entry_once(node, |node| self.locate_once(node))?)
    }

    /// A descriptor of the file of a node, for its attributes.
    pub fn entry(&self, node: &Node) -> Result<Entry> {
        if node.id == ROOT {
            return self.source.root_entry();
        }
        self.entry_once(node, |node| self.locate(node))
    }

    fn entry_once(&self, node: &Node, locate: impl Fn(&Node) -> Result<Located>) -> Result<Entry> {
        let orphan = node.orphan();
        if let Some(orphan) = orphan {
            return Entry::of(&*orphan);
        }
        for _ in 0..ATTEMPTS {
            let located = match locate(node) {
                Err(Errno::STALE) => return self.opened(node).map(Entry::new),
                other => other?,
            };
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&located.dir, &located.found.source_name, flags, Mode::empty()) {
                Ok(fd) if Key::of(&fstat(&fd)?) == located.found.key() => {
                    return Ok(Entry::new(fd));
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::STALE)
    }

    fn attr_of(&self, node: &Node, dir: &DirFd, found: &Found) -> Attr {
        let attr = shown(node.number, found);
        let entry = || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(dir, &found.source_name, flags, Mode::empty()).map(Entry::new)
        };
        match attr.kind {
            FileType::Symlink => attr,
            _ => Attr { perm: self.access.bits(attr.perm, found.key().dev, entry), ..attr },
        }
    }

    fn attr_of_orphan(&self, node: &Node, orphan: &OwnedFd) -> Result<Attr> {
        let stat = fstat(orphan)?;
        let packed = node.state().packed.as_deref().cloned();
        let form = if packed.is_some() { Form::Packed } else { Form::Plain };
        let found = Found { form, source_name: OsString::new(), stat, packed };
        let attr = shown(node.number, &found);
        let perm = self.access.bits(attr.perm, found.key().dev, || Entry::of(orphan));
        // The archive itself may have other names, but this file has none.
        Ok(Attr { perm, ..attr })
    }

    pub fn read_link(&self, id: u64) -> Result<OsString> {
        let node = self.nodes.get(id)?;
        if let Some(orphan) = node.orphan() {
            return Ok(OsString::from_vec(readlinkat(&*orphan, "", Vec::new())?.into_bytes()));
        }
        let Located { dir, found, .. } = self.locate(&node)?;
        Ok(OsString::from_vec(readlinkat(&dir, &found.source_name, Vec::new())?.into_bytes()))
    }

    /// Keep a descriptor of a file that is about to lose its name, if anybody may still use it.
    pub fn keep(&self, dir: &DirFd, found: &Found) -> Result<Kept> {
        let Some(node) = self.nodes.of_key(found.key()) else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, &found.source_name, flags, Mode::empty())?;
        Ok(Some((node, Arc::new(fd))))
    }

    /// A file has lost the name `link`; `kept` is what [`Tree::keep`] returned.
    pub fn lost(&self, kept: Kept, link: &Link) -> Result<()> {
        let Some((node, fd)) = kept else { return Ok(()) };
        let stat = fstat(&fd)?;
        let was_last = node.kind == FileType::Directory || stat.st_nlink == 0;
        let has_name = self.nodes.unlink(node.id, link.0, &link.1, was_last);
        if !has_name {
            let mut state = node.state();
            state.orphan = Some(fd);
            state.epoch += 1;
        } else if stat.st_nlink == 1 {
            // A file with several names is not packed.
            self.settle(node.id, &attr(node.number, &stat, None));
        }
        if was_last {
            self.twins.forget(Key::of(&stat));
        }
        if was_last && self.packer.remove(node.id) {
            self.forget(node.id, 1);
        }
        Ok(())
    }

    fn dirs(&self) -> std::sync::MutexGuard<'_, LruCache<u64, DirFd>> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The attributes of a file. In a store, the mode, the owner and the times of an archive are those
/// of the file that it shows, so that they can be changed.
fn shown(number: u64, found: &Found) -> Attr {
    let own = attr(number, &found.stat, None);
    let Some(packed) = &found.packed else { return own };
    Attr { size: packed.size, blocks: own.blocks.max((packed.size > 0).into()), ..own }
}

/// The names of a directory, for looking them up.
pub(super) fn read(dir: &Node) -> RwLockReadGuard<'_, ()> {
    dir.names.read().unwrap_or_else(PoisonError::into_inner)
}

/// The names of a directory, for changing them.
pub(super) fn write(dir: &Node) -> RwLockWriteGuard<'_, ()> {
    dir.names.write().unwrap_or_else(PoisonError::into_inner)
}

/// The error for a name that no longer leads to its directory.
fn stale(e: Errno) -> Errno {
    if matches!(e, Errno::NOENT | Errno::NOTDIR | Errno::LOOP) { Errno::STALE } else { e }
}

/// The attributes of a file in the source, not followed if it is a symlink.
pub(super) fn stat_at(dir: &DirFd, name: &OsStr) -> Result<rustix::fs::Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}
