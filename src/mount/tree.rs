//! The file system itself: inodes, attributes, open files, errors as errno. It knows no FUSE types.
//!
//! Inodes are made on lookup and dropped when the kernel forgets them; nothing else is held of files that are
//! not open, so the view follows the source as it changes.

use super::access::{self, Access};
use super::ahead::{Model, Shard, shards_of};
use super::attr::{Attr, Identity, Packed, ROOT, attr};
use super::handles::{Handles, Opener};
use super::inodes::{Inodes, Node, Sameness};
use super::source::Entry;
use super::view::{Found, Listed, View, is_name};
use crate::error::{Error, ErrorKind};
use crate::format::{IndexMemory, Naming};
use crate::read::Archive;
use lru::LruCache;
use rustix::fs::{FileType, SeekFrom, Stat, StatVfs, fstat, seek};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// An open file. It stays what it was when it was opened, whatever takes its name.
pub(super) struct Opened {
    stat: Stat,
    /// What the kernel was told that it is.
    pub same: Sameness,
    /// How many handles the kernel has of it, and how many of these are overlayfs's.
    handles: AtomicUsize,
    holders: AtomicUsize,
    pub content: Content,
}

/// Where an open file's bytes come from.
pub(super) enum Content {
    Archive {
        archive: Arc<Archive>,
        packed: Packed,
        /// The model that it is a shard of, and which, once it has been looked for.
        model: OnceLock<Option<(Arc<Model>, usize)>>,
        /// Whether somebody looks for it, or has.
        sought: AtomicBool,
        /// Relative to the source, to say which archive is damaged.
        path: Arc<Path>,
        /// Relative to the view's root.
        shown: Arc<Path>,
    },
    Plain(File),
}

impl Opened {
    /// The state of the source file when it was opened.
    pub fn identity(&self) -> Identity {
        Identity::of(&self.stat)
    }

    /// The next data or hole from `offset` on: `SEEK_DATA` or `SEEK_HOLE` of lseek(2). An archive shows data throughout.
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
                // The descriptor's own position is nobody's: reads say where.
                match seek(file, if data { SeekFrom::Data(from) } else { SeekFrom::Hole(from) }) {
                    // Its file system does not tell.
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => fstat(file)?.st_size.cast_unsigned(),
                    at => return at.map(|at| at.cast_signed()),
                }
            }
        };
        match () {
            () if from >= size => Err(Errno::NXIO),
            () if data => Ok(offset),
            () => Ok(size.cast_signed()),
        }
    }

    /// Whether the kernel has it open.
    pub fn is_open(&self) -> bool {
        self.handles.load(Ordering::Acquire) > 0
    }

    /// Whether this must stay what its name leads to until it is closed: overlayfs has it open, which would find
    /// the name stale meanwhile, were it another file's.
    pub fn is_held(&self) -> bool {
        self.holders.load(Ordering::Acquire) > 0
    }

    /// The kernel is given a handle.
    pub fn gets_handle(&self, by: Opener) {
        self.holders.fetch_add((by == Opener::Overlay).into(), Ordering::AcqRel);
        self.handles.fetch_add(1, Ordering::AcqRel);
    }

    fn loses_handle(&self, by: Opener) {
        self.handles.fetch_sub(1, Ordering::AcqRel);
        // Afterwards, so that the name is held until it is free.
        self.holders.fetch_sub((by == Opener::Overlay).into(), Ordering::AcqRel);
    }

    fn file(&self) -> &File {
        match &self.content {
            Content::Archive { archive, .. } => archive.file(),
            Content::Plain(file) => file,
        }
    }

    fn packed(&self) -> Option<&Packed> {
        match &self.content {
            Content::Archive { packed, .. } => Some(packed),
            Content::Plain(_) => None,
        }
    }
}

/// A file opened for the kernel.
#[derive(Debug)]
pub(super) struct Handle {
    pub number: u64,
    /// Whether the pages which the kernel has cached of this file are still its content.
    pub keep_cache: bool,
}

/// A line of an open directory's listing.
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
    archives: Mutex<Archives>,
    /// What the indexes of open archives take their memory from.
    indexes: Arc<IndexMemory>,
}

/// Shards of a model whose layers are known, at most: they are open as long as one of them is.
const MOST_SHARDS: usize = 1024;

/// How many archives are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// The archives that are open, for whomever, and those that were: with their numbers, for what is cached of one is its own
/// when it is opened again.
type Archives = LruCache<Identity, (u64, Weak<Archive>)>;

impl Tree {
    pub fn new(view: View, indexes: &Arc<IndexMemory>) -> Self {
        Self {
            view,
            access: Access::default(),
            inodes: Mutex::new(Inodes::new()),
            files: Handles::new(),
            dirs: Handles::new(),
            archives: Mutex::new(LruCache::new(REMEMBERED)),
            indexes: indexes.clone(),
        }
    }

    /// Who may read, beyond permission bits.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Find `name` in a directory, and count the lookup: its number for the kernel, and its attributes.
    pub fn look_up(&self, parent: u64, name: &OsStr) -> Result<(u64, Attr)> {
        if !is_name(name) {
            return Err(Errno::NOENT);
        }
        let dir = self.node(parent)?.path;
        let found = self.view.find(&dir, name)?;
        // What can fail, first: a lookup that is counted is one that the kernel will forget.
        let attr = self.attr_of(&dir, &found)?;
        let (number, held) = self.inodes().look_up(&dir.join(name), &found);
        match held.map(|held| self.attr_of_opened(&held)).transpose() {
            Ok(held) => Ok((number, held.unwrap_or(attr))),
            Err(e) => {
                self.forget(number, 1);
                Err(e)
            }
        }
    }

    /// The attributes of what was found in the directory at `dir`.
    fn attr_of(&self, dir: &Path, found: &Found) -> Result<Attr> {
        let mut attr = attr(
            self.view.number(&found.stat, found.packed.is_some()),
            &found.stat,
            found.packed.as_ref(),
        );
        if attr.kind == FileType::Symlink {
            attr.size = self.view.read_link(dir, found)?.len() as u64;
        } else {
            let dev = Identity::of(&found.stat).dev;
            attr.perm = self.access.bits(attr.perm, dev, || self.view.open_entry(dir, found));
        }
        Ok(attr)
    }

    /// The kernel dropped `lookups` of its references to an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.inodes().forget(ino, lookups);
    }

    pub fn attr(&self, ino: u64) -> Result<Attr> {
        if ino == ROOT {
            let stat = self.view.source().stat_root()?;
            let root = attr(ROOT, &stat, None);
            let entry = || self.view.source().root_entry();
            return Ok(Attr {
                perm: self.access.bits(root.perm, Identity::of(&stat).dev, entry),
                ..root
            });
        }
        let node = self.node(ino)?;
        match self.find(&node) {
            Ok(found) => {
                let (dir, _) = node.place().ok_or(Errno::ISDIR)?;
                self.attr_of(dir, &found)
            }
            // Its name is gone, or is another file's by now, but it is still open.
            Err(e) => {
                let opened = node.opened.upgrade().ok_or(e)?;
                self.attr_of_opened(&opened)
            }
        }
    }

    pub fn read_link(&self, ino: u64) -> Result<OsString> {
        let node = self.node(ino)?;
        let found = self.find(&node)?;
        let (dir, _) = node.place().ok_or(Errno::INVAL)?;
        self.view.read_link(dir, &found)
    }

    fn attr_of_opened(&self, opened: &Opened) -> Result<Attr> {
        let stat = fstat(opened.file())?;
        let (number, dev) =
            (self.view.number(&stat, opened.packed().is_some()), Identity::of(&stat).dev);
        let attr = attr(number, &stat, opened.packed());
        Ok(Attr { perm: self.access.bits(attr.perm, dev, || Entry::of(opened.file())), ..attr })
    }

    /// The source's entry that an inode shows, and what it shows if it is an archive.
    pub fn entry(&self, ino: u64) -> Result<(Entry, Option<Packed>)> {
        if ino == ROOT {
            return Ok((self.view.source().root_entry()?, None));
        }
        let node = self.node(ino)?;
        let found = match self.find(&node) {
            Ok(found) => found,
            Err(e) => {
                let opened = node.opened.upgrade().ok_or(e)?;
                return Ok((Entry::of(opened.file())?, opened.packed().cloned()));
            }
        };
        let (dir, _) = node.place().ok_or(Errno::ISDIR)?;
        Ok((self.view.open_entry(dir, &found)?, found.packed))
    }

    /// An ACL of a file or directory: `name` is one of the two attributes.
    pub fn acl(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let (entry, packed) = self.entry(ino)?;
        access::acl(&entry, name, packed.as_ref())
    }

    pub fn statfs(&self) -> Result<StatVfs> {
        self.view.source().statfs()
    }

    /// Open a file if that needs no more than opening it: `None` if an archive's index must be loaded first,
    /// which [`Tree::open`] does, and takes its time.
    pub fn open_at_once(&self, ino: u64, by: Opener) -> Result<Option<Handle>> {
        let node = self.node(ino)?;
        let found = match (self.find_file(&node), node.held()) {
            (Err(Errno::STALE), Some(held)) => return self.handle(ino, held, by).map(Some),
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

    /// Open a file.
    pub fn open(&self, ino: u64, by: Opener) -> Result<Handle> {
        let opened = self.opened(ino)?;
        self.handle(ino, opened, by)
    }

    /// A file, without a handle for the kernel.
    pub fn opened(&self, ino: u64) -> Result<Arc<Opened>> {
        let node = self.node(ino)?;
        let _alone = node.opening.lock().unwrap_or_else(PoisonError::into_inner);
        // Again, since another thread may have opened it meanwhile.
        let node = self.node(ino)?;
        let found = self.find_file(&node)?;
        match still_open(&node, &found) {
            Some(opened) => Ok(opened),
            None => self.open_content(&node, &found),
        }
    }

    pub fn file(&self, handle: u64) -> Result<Arc<Opened>> {
        self.files.get(handle).ok_or(Errno::BADF)
    }

    /// Close a file; returns it.
    pub fn release(&self, handle: u64, by: Opener) -> Option<Arc<Opened>> {
        let opened = self.files.remove(handle)?;
        opened.loses_handle(by);
        Some(opened)
    }

    /// List a directory as it is now; the handle keeps this listing, so that offsets into it hold.
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

    /// The file that an inode stands for, if its name still leads to it. Where it does not, the kernel looks up
    /// again what it was asked for.
    fn find(&self, node: &Node) -> Result<Found> {
        let (dir, name) = node.place().ok_or(Errno::ISDIR)?;
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
        let (dir, _) = node.place().ok_or(Errno::ISDIR)?;
        let (file, stat) = self.view.source().dir(dir)?.open_file(&found.source_name)?;
        // What the kernel was told of this inode must be what it reads.
        let (now, then) = (Identity::of(&stat), Identity::of(&found.stat));
        let content = match &found.packed {
            None if (now.dev, now.ino) != (then.dev, then.ino) => return Err(Errno::STALE),
            None => Content::Plain(file),
            Some(_) if now != then => return Err(Errno::STALE),
            Some(packed) => {
                let path: Arc<Path> = dir.join(&found.source_name).into();
                let archive = self.open_archive(file, &stat, &path)?;
                Content::Archive {
                    archive,
                    packed: packed.clone(),
                    model: OnceLock::new(),
                    sought: AtomicBool::new(false),
                    path,
                    shown: node.path.clone(),
                }
            }
        };
        Ok(Arc::new(Opened {
            stat,
            same: Sameness::of(found),
            handles: AtomicUsize::new(0),
            holders: AtomicUsize::new(0),
            content,
        }))
    }

    /// The archive that `file` is: the one that is open already, if one is.
    fn open_archive(&self, file: File, stat: &Stat, path: &Path) -> Result<Arc<Archive>> {
        let identity = Identity::of(stat);
        let archives = || self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |archives: &mut Archives| {
            archives.get(&identity).and_then(|(_, archive)| archive.upgrade())
        };
        if let Some(archive) = known(&mut archives()) {
            return Ok(archive);
        }
        let opened = file.try_clone().map_err(|_| Errno::MFILE)?;
        let loaded = Archive::from_file_within(file, &self.indexes);
        // What was read is of this state of the file only if it was in it before and after: nothing else may be
        // known by its identity. Nor is an error that of an archive which was replaced meanwhile.
        if Identity::of(&fstat(&opened)?) != identity {
            return Err(Errno::STALE);
        }
        let mut archive = loaded.map_err(|e| open_failed(path, &e))?;
        archive.read_directly();
        let mut archives = archives();
        // Meanwhile another thread may have opened it.
        if let Some(archive) = known(&mut archives) {
            return Ok(archive);
        }
        if let Some((id, _)) = archives.peek(&identity) {
            archive.be_again(*id);
        }
        let archive = Arc::new(archive);
        if identity.is_settled() {
            archives.put(identity, (archive.id(), Arc::downgrade(&archive)));
        }
        Ok(archive)
    }

    /// The shards of the model that an open archive is one of, and which. Those that cannot be opened are left out.
    pub fn shards(&self, path: &Path, this: Shard) -> (Vec<Shard>, usize) {
        let alone = |this| (vec![this], 0);
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return alone(this) };
        let shown = Naming::Safetensors.original_name(name);
        let shown = shown.as_deref().and_then(OsStr::to_str);
        let (Some(of), Ok(listed)) = (shown.and_then(shards_of), self.view.list(dir)) else {
            return alone(this);
        };
        let mut shards = Vec::new();
        let mut place = None;
        let belongs = |listed: &&Listed| listed.name.to_str().and_then(shards_of) == Some(of);
        for Listed { name, .. } in listed.iter().filter(belongs).take(MOST_SHARDS) {
            let Ok(found) = self.view.find(dir, name) else { continue };
            let opened =
                self.view.source().dir(dir).and_then(|dir| dir.open_file(&found.source_name));
            let archive = opened.and_then(|(file, stat)| {
                let path = dir.join(&found.source_name);
                found.packed.as_ref().ok_or(Errno::INVAL)?;
                self.open_archive(file, &stat, &path)
            });
            if let Ok(archive) = archive {
                if archive.id() == this.archive.id() {
                    place = Some(shards.len());
                }
                shards.push(Shard { archive, shown: dir.join(name).into() });
            }
        }
        match place {
            Some(place) => (shards, place),
            None => alone(this),
        }
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

/// What is open of this file already, unless the file has changed since.
fn still_open(node: &Node, found: &Found) -> Option<Arc<Opened>> {
    node.opened.upgrade().filter(|opened| opened.identity() == Identity::of(&found.stat))
}

fn open_failed(path: &Path, e: &Error) -> Errno {
    log::error!("{}: {e}", crate::escape::path(path));
    match (e.kind(), e.errno()) {
        (ErrorKind::Io, Some(errno)) => Errno::from_raw_os_error(errno),
        _ => Errno::IO,
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
