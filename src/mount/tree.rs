//! The file system itself: inodes, attributes, open files, errors as errno. It knows no FUSE types.
//!
//! Inodes are created by lookups and dropped when the kernel forgets them. No other state is kept
//! of files that are not open, so the view follows the source as it changes.

use super::access::{self, Access};
use super::archives::{Archives, FilesOf};
use super::attr::{Attr, Identity, ROOT, attr};
use super::bases::BaseFinder;
use super::files::{Directory, Files};
use super::handles::{Handles, Opener};
use super::inodes::{Inodes, Node};
use super::opened::{Content, Opened, SourceEntry, stored};
#[cfg(feature = "remote")]
use super::remote::RemoteSource;
use super::source::{Entry, is_name};
use super::view::{Found, Listed, View};
use crate::cache::CachedFile;
use crate::format::Naming;
use crate::readahead::{OpenArchive, Shard, shard_pattern};
use rustix::fs::{FileType, Stat, StatVfs};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A handle for the kernel.
#[derive(Debug)]
pub(super) struct Handle {
    pub number: u64,
    /// Whether the kernel may keep the pages that it has cached of this file.
    pub keep_cache: bool,
}

/// An entry of an open directory.
pub(super) struct DirEntry {
    pub ino: u64,
    pub kind: FileType,
    pub name: OsString,
}

pub(super) struct Tree {
    view: View,
    access: Access,
    inodes: Mutex<Inodes>,
    files: Handles<Opened>,
    dirs: Handles<Vec<DirEntry>>,
    archives: Archives,
}

/// Most shards of a model to prefetch from. All of them stay open as long as one of them is.
const MAX_SHARDS: usize = 1024;

impl Tree {
    pub fn new(view: View, bases: &Arc<BaseFinder>) -> Result<Self> {
        let source = match view.files() {
            Files::Local(source) => FilesOf::Local(source.try_clone()?),
            #[cfg(feature = "remote")]
            Files::Remote(source) => FilesOf::Remote(Arc::clone(source)),
        };
        Ok(Self {
            archives: Archives::new(bases, source),
            view,
            access: Access::default(),
            inodes: Mutex::new(Inodes::new()),
            files: Handles::new(),
            dirs: Handles::new(),
        })
    }

    /// The source, if it is on other machines.
    #[cfg(feature = "remote")]
    pub fn remote(&self) -> Option<&Arc<RemoteSource>> {
        self.view.files().remote()
    }

    /// Access control beyond permission bits.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Look up `name` in a directory. Returns its nodeid and its attributes.
    pub fn look_up(&self, parent: u64, name: &OsStr) -> Result<(u64, Attr)> {
        if !is_name(name) {
            return Err(Errno::NOENT);
        }
        let dir = self.node(parent)?.path;
        let found = self.view.find(&dir, name)?;
        // Everything that can fail comes first, because the kernel forgets each counted lookup.
        let attr = self.attr_of(&dir, &found)?;
        let (number, pinned) = self.inodes().look_up(&dir.join(name), &found);
        match pinned.map(|pinned| self.attr_of_opened(&pinned)).transpose() {
            Ok(pinned) => Ok((number, pinned.unwrap_or(attr))),
            Err(e) => {
                self.forget(number, 1);
                Err(e)
            }
        }
    }

    /// The attributes of a file found in the directory `dir`.
    fn attr_of(&self, dir: &Path, found: &Found) -> Result<Attr> {
        let mut attr = attr(
            self.view.number(&found.stat, found.packed.is_some()),
            &found.stat,
            found.packed.as_ref(),
        );
        if attr.kind == FileType::Symlink {
            attr.size = self.view.read_link(dir, found)?.len() as u64;
        } else {
            attr.perm = self.bits(attr.perm, &found.stat, || self.view.open_entry(dir, found));
        }
        Ok(attr)
    }

    /// The permission bits to show for a file. Objects on other machines have no ACLs.
    fn bits(&self, perm: u16, stat: &Stat, entry: impl Fn() -> Result<Entry>) -> u16 {
        match self.view.files().local() {
            Some(_) => self.access.bits(perm, Identity::of(stat).dev, entry),
            None => perm,
        }
    }

    fn root_entry(&self) -> Result<Entry> {
        self.view.files().local().ok_or(Errno::OPNOTSUPP)?.root_entry()
    }

    /// The kernel has dropped `lookups` of its references to an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.inodes().forget(ino, lookups);
    }

    pub fn attr(&self, ino: u64) -> Result<Attr> {
        if ino == ROOT {
            let stat = self.view.files().stat_root()?;
            let root = attr(ROOT, &stat, None);
            return Ok(Attr { perm: self.bits(root.perm, &stat, || self.root_entry()), ..root });
        }
        let node = self.node(ino)?;
        match self.find(&node) {
            Ok(found) => {
                let (dir, _) = node.dir_and_name().ok_or(Errno::ISDIR)?;
                self.attr_of(dir, &found)
            }
            // The name is gone or refers to another file, but the file is still open.
            Err(e) => {
                let opened = node.opened.upgrade().ok_or(e)?;
                self.attr_of_opened(&opened)
            }
        }
    }

    pub fn read_link(&self, ino: u64) -> Result<OsString> {
        let node = self.node(ino)?;
        let found = self.find(&node)?;
        let (dir, _) = node.dir_and_name().ok_or(Errno::INVAL)?;
        self.view.read_link(dir, &found)
    }

    fn attr_of_opened(&self, opened: &Opened) -> Result<Attr> {
        let stat = opened.stat()?;
        let number = self.view.number(&stat, opened.packed().is_some());
        let attr = attr(number, &stat, opened.packed());
        let entry = || opened.file().ok_or(Errno::OPNOTSUPP).and_then(Entry::of);
        Ok(Attr { perm: self.bits(attr.perm, &stat, entry), ..attr })
    }

    /// The entry of the source behind an inode, and what it shows if it is an archive.
    pub fn entry(&self, ino: u64) -> Result<SourceEntry> {
        let is_local = self.view.files().local().is_some();
        if ino == ROOT {
            let entry = is_local.then(|| self.root_entry()).transpose()?;
            return Ok(SourceEntry { entry, stored: 0, packed: None });
        }
        let node = self.node(ino)?;
        let found = match self.find(&node) {
            Ok(found) => found,
            Err(e) => {
                let opened = node.opened.upgrade().ok_or(e)?;
                let (stored, packed) = (stored(&opened.stat()?), opened.packed().cloned());
                let entry = opened.file().map(Entry::of).transpose()?;
                return Ok(SourceEntry { entry, stored, packed });
            }
        };
        let (dir, _) = node.dir_and_name().ok_or(Errno::ISDIR)?;
        let entry = is_local.then(|| self.view.open_entry(dir, &found)).transpose()?;
        Ok(SourceEntry { entry, stored: stored(&found.stat), packed: found.packed })
    }

    /// An ACL of a file or a directory: `name` is one of the two ACL attributes.
    pub fn acl(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let SourceEntry { entry, packed, .. } = self.entry(ino)?;
        access::acl(&entry.ok_or(Errno::NODATA)?, name, packed.as_ref())
    }

    pub fn statfs(&self) -> Result<StatVfs> {
        self.view.files().statfs()
    }

    /// Open a file without blocking. `None` if the index of an archive must be loaded first: then
    /// call [`Tree::open`] on another thread.
    pub fn try_open(&self, ino: u64, by: Opener) -> Result<Option<Handle>> {
        let node = self.node(ino)?;
        let found = match (self.find_file(&node), node.pinned()) {
            (Err(Errno::STALE), Some(pinned)) => return self.handle(ino, pinned, by).map(Some),
            (found, _) => found?,
        };
        if let Some(opened) = still_open(&node, &found) {
            return self.handle(ino, opened, by).map(Some);
        }
        if found.packed.is_some() {
            return Ok(None);
        }
        let opened = self.open_content(&node, &found)?;
        self.handle(ino, opened, by).map(Some)
    }

    /// Open a file. May read the index of an archive.
    pub fn open(&self, ino: u64, by: Opener) -> Result<Handle> {
        let opened = self.opened(ino)?;
        self.handle(ino, opened, by)
    }

    /// An open file, without a handle for the kernel.
    pub fn opened(&self, ino: u64) -> Result<Arc<Opened>> {
        let (node, asked) = (self.node(ino)?, Instant::now());
        let mut failed = node.opening.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have failed meanwhile, perhaps after a deadline.
        if let Some((_, e)) = failed.filter(|(at, _)| *at >= asked) {
            return Err(e);
        }
        // Look again: it may have opened it.
        let node = self.node(ino)?;
        let found = self.find_file(&node)?;
        let opened = match still_open(&node, &found) {
            Some(opened) => Ok(opened),
            None => self.open_content(&node, &found),
        };
        *failed = opened.as_ref().err().map(|e| (Instant::now(), *e));
        opened
    }

    pub fn file(&self, handle: u64) -> Result<Arc<Opened>> {
        self.files.get(handle).ok_or(Errno::BADF)
    }

    /// Close a handle. Returns its file.
    pub fn release(&self, handle: u64, by: Opener) -> Option<Arc<Opened>> {
        let opened = self.files.remove(handle)?;
        opened.remove_handle(by);
        Some(opened)
    }

    /// Open a directory. The handle keeps the present listing, so that offsets stay valid.
    pub fn open_dir(&self, ino: u64) -> Result<u64> {
        let path = self.node(ino)?.path;
        let listed = self.view.list(&path)?;
        let itself = if ino == ROOT { ROOT } else { self.view.dir_number(&path)? };
        let parent = match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.view.dir_number(parent)?,
            None => ROOT,
        };
        let dot = |ino, name: &str| DirEntry { ino, kind: FileType::Directory, name: name.into() };
        let mut entries = vec![dot(itself, "."), dot(parent, "..")];
        entries.extend(listed.into_iter().map(|Listed { name, kind, ino }| DirEntry {
            ino,
            kind,
            name,
        }));
        Ok(self.dirs.insert(Arc::new(entries)))
    }

    pub fn dir(&self, handle: u64) -> Result<Arc<Vec<DirEntry>>> {
        self.dirs.get(handle).ok_or(Errno::BADF)
    }

    pub fn release_dir(&self, handle: u64) {
        drop(self.dirs.remove(handle));
    }

    /// The file of an inode, if its name still refers to it. Otherwise `ESTALE`, which makes the
    /// kernel look up the path again.
    fn find(&self, node: &Node) -> Result<Found> {
        let (dir, name) = node.dir_and_name().ok_or(Errno::ISDIR)?;
        match self.view.find(dir, name) {
            Ok(found) if node.is(&found) => Ok(found),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(Errno::STALE),
            Err(e) => Err(e),
        }
    }

    fn find_file(&self, node: &Node) -> Result<Found> {
        let found = self.find(node)?;
        match found.kind() {
            FileType::RegularFile => Ok(found),
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    fn open_content(&self, node: &Node, found: &Found) -> Result<Arc<Opened>> {
        let (dir, _) = node.dir_and_name().ok_or(Errno::ISDIR)?;
        let stat = found.stat;
        if let Some(packed) = found.packed.clone() {
            let (file, path) = self.open_archive(dir, found)?;
            let archive = Arc::new(OpenArchive::new(file, path, node.path.clone()));
            let content = Content::Archive { archive, packed };
            return Ok(Arc::new(Opened::new(stat, found, content)));
        }
        #[cfg(feature = "remote")]
        let dir_path = dir;
        let (content, now) = match self.view.files().dir(dir)? {
            Directory::Local(dir) => {
                let (file, stat) = dir.open_file(&found.source_name)?;
                (Content::Plain(Arc::new(file)), stat)
            }
            #[cfg(feature = "remote")]
            Directory::Remote(dir) => {
                let (object, stat) = dir.open(&found.source_name)?;
                (Content::Object(object, dir_path.join(&found.source_name).into()), stat)
            }
        };
        // The kernel must read the file that it knows by this inode.
        let (is, was) = (Identity::of(&now), Identity::of(&stat));
        match (is.dev, is.ino) == (was.dev, was.ino) {
            true => Ok(Arc::new(Opened::new(now, found, content))),
            false => Err(Errno::STALE),
        }
    }

    /// Open the archive `found` in the directory `dir`. Returns its path, too. `ESTALE` if it is
    /// another one by now.
    fn open_archive(&self, dir: &Path, found: &Found) -> Result<(Arc<CachedFile>, Arc<Path>)> {
        let path: Arc<Path> = dir.join(&found.source_name).into();
        let check = |stat: &Stat| match Identity::of(stat) == Identity::of(&found.stat) {
            true => Ok(()),
            false => Err(Errno::STALE),
        };
        let file = match self.view.files().dir(dir)? {
            Directory::Local(dir) => {
                let (file, stat) = dir.open_file(&found.source_name)?;
                check(&stat)?;
                self.archives.open(file, &stat, &path)
            }
            #[cfg(feature = "remote")]
            Directory::Remote(dir) => {
                let (object, stat) = dir.open(&found.source_name)?;
                check(&stat)?;
                let opened = self.archives.open_remote(object, &stat, &path);
                dir.noted(opened)
            }
        };
        Ok((file?, path))
    }

    /// All shards of the model that an open archive belongs to, without those that cannot be
    /// opened.
    pub fn shards(&self, archive: &OpenArchive) -> Vec<Shard> {
        let (Some(dir), Some(name)) = (archive.path().parent(), archive.path().file_name()) else {
            return Vec::new();
        };
        let shown = Naming::Safetensors.original_name(name);
        let pattern = shown.as_deref().and_then(OsStr::to_str).and_then(shard_pattern);
        let (Some(pattern), Ok(listed)) = (pattern, self.view.list(dir)) else {
            return Vec::new();
        };
        let belongs =
            |listed: &&Listed| listed.name.to_str().and_then(shard_pattern) == Some(pattern);
        let open = |listed: &Listed| {
            let found = self.view.find(dir, &listed.name)?;
            found.packed.as_ref().ok_or(Errno::INVAL)?;
            let (file, _) = self.open_archive(dir, &found)?;
            Ok::<_, Errno>(Shard { file, shown: dir.join(&listed.name).into() })
        };
        listed.iter().filter(belongs).take(MAX_SHARDS).filter_map(|l| open(l).ok()).collect()
    }

    fn handle(&self, ino: u64, opened: Arc<Opened>, by: Opener) -> Result<Handle> {
        let keep_cache = self.inodes().opened(ino, &opened, by)?;
        Ok(Handle { number: self.files.insert(opened), keep_cache })
    }

    fn node(&self, ino: u64) -> Result<Node> {
        self.inodes().get(ino).cloned()
    }

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open file of an inode, unless the file has changed since.
fn still_open(node: &Node, found: &Found) -> Option<Arc<Opened>> {
    node.opened.upgrade().filter(|opened| opened.identity() == Identity::of(&found.stat))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
