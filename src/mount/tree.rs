//! The file system itself: inodes, attributes, open files, errors as errno. It knows no FUSE types.
//!
//! Inodes are made on lookup and dropped when the kernel forgets them; nothing else is held of files that are
//! not open, so the view follows the source as it changes.

use super::ahead::{Model, Shard, shards_of};
use super::attr::{Attr, Identity, Packed, attr};
use super::handles::Handles;
use super::inodes::{Inodes, Node, ROOT};
use super::view::{Found, Listed, View, is_name};
use crate::error::{Error, ErrorKind};
use crate::format::{IndexMemory, Naming};
use crate::read::Archive;
use lru::LruCache;
use rustix::fs::{FileType, Stat, StatVfs, fstat};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// An open file. It stays what it was when it was opened, whatever takes its name.
pub(super) struct Opened {
    stat: Stat,
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

    fn attr(&self, ino: u64) -> Result<Attr> {
        match &self.content {
            Content::Archive { packed, .. } => Ok(attr(ino, &self.stat, Some(packed))),
            Content::Plain(file) => Ok(attr(ino, &fstat(file)?, None)),
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

/// What `readdir` shows as the inode number of a file which has none, since nobody looked it up.
const UNKNOWN_INO: u64 = u32::MAX as u64;

pub(super) struct Tree {
    view: View,
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
            inodes: Mutex::new(Inodes::new()),
            files: Handles::new(),
            dirs: Handles::new(),
            archives: Mutex::new(LruCache::new(REMEMBERED)),
            indexes: indexes.clone(),
        }
    }

    /// Find `name` in a directory, and count the lookup.
    pub fn look_up(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        if !is_name(name) {
            return Err(Errno::NOENT);
        }
        let dir = self.node(parent)?.path;
        let found = self.view.find(&dir, name)?;
        let ino = self.inodes().look_up(&dir.join(name), &found);
        Ok(attr(ino, &found.stat, found.packed.as_ref()))
    }

    /// The kernel dropped `lookups` of its references to an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.inodes().forget(ino, lookups);
    }

    pub fn attr(&self, ino: u64) -> Result<Attr> {
        if ino == ROOT {
            return Ok(attr(ROOT, &self.view.source().stat_root()?, None));
        }
        let node = self.node(ino)?;
        match self.find(&node) {
            Ok(found) => Ok(attr(ino, &found.stat, found.packed.as_ref())),
            // Its name is gone, or is another file's by now, but it is still open.
            Err(e) => node.opened.upgrade().ok_or(e)?.attr(ino),
        }
    }

    pub fn read_link(&self, ino: u64) -> Result<OsString> {
        let node = self.node(ino)?;
        let (dir, name) = node.place().ok_or(Errno::INVAL)?;
        self.view.source().dir(dir)?.read_link(name)
    }

    pub fn statfs(&self) -> Result<StatVfs> {
        self.view.source().statfs()
    }

    /// Open a file if that needs no more than opening it: `None` if an archive's index must be loaded first,
    /// which [`Tree::open`] does, and takes its time.
    pub fn open_at_once(&self, ino: u64) -> Result<Option<Handle>> {
        let node = self.node(ino)?;
        let found = self.find_file(&node)?;
        if let Some(opened) = still_open(&node, &found) {
            return Ok(Some(self.handle(ino, opened)));
        }
        if found.packed.is_some() {
            return Ok(None);
        }
        let opened = self.open_content(&node, &found)?;
        Ok(Some(self.handle(ino, opened)))
    }

    /// Open a file.
    pub fn open(&self, ino: u64) -> Result<Handle> {
        let opened = self.opened(ino)?;
        Ok(self.handle(ino, opened))
    }

    /// Whether an inode is a file that is shown from an archive.
    pub fn is_archive(&self, ino: u64) -> Result<bool> {
        Ok(ino != ROOT && self.find(&self.node(ino)?)?.packed.is_some())
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
    pub fn release(&self, handle: u64) -> Option<Arc<Opened>> {
        self.files.remove(handle)
    }

    /// List a directory as it is now; the handle keeps this listing, so that offsets into it hold.
    pub fn open_dir(&self, ino: u64) -> Result<u64> {
        let path = self.node(ino)?.path;
        let listed = self.view.list(&path)?;
        let inodes = self.inodes();
        let number = |path: &Path| inodes.number(path).unwrap_or(UNKNOWN_INO);
        let dot = |ino, name: &str| DirEntry { ino, kind: FileType::Directory, name: name.into() };
        let mut entries = vec![dot(ino, "."), dot(path.parent().map_or(ROOT, number), "..")];
        entries.extend(listed.into_iter().map(|Listed { name, kind }| DirEntry {
            ino: number(&path.join(&name)),
            kind,
            name,
        }));
        drop(inodes);
        Ok(self.dirs.insert(Arc::new(entries)))
    }

    pub fn dir(&self, handle: u64) -> Result<Arc<Vec<DirEntry>>> {
        self.dirs.get(handle).ok_or(Errno::BADF)
    }

    pub fn release_dir(&self, handle: u64) {
        drop(self.dirs.remove(handle));
    }

    /// The file that an inode was made for, if its name still leads to it.
    fn find(&self, node: &Node) -> Result<Found> {
        let (dir, name) = node.place().ok_or(Errno::ISDIR)?;
        let found = self.view.find(dir, name)?;
        if node.is(&found) { Ok(found) } else { Err(Errno::STALE) }
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
        let content = match &found.packed {
            None => Content::Plain(file),
            // What the kernel was told of this inode must be what it reads.
            Some(_) if Identity::of(&stat) != Identity::of(&found.stat) => return Err(Errno::STALE),
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
        Ok(Arc::new(Opened { stat, content }))
    }

    /// The archive that `file` is: the one that is open already, if one is.
    fn open_archive(&self, file: File, stat: &Stat, path: &Path) -> Result<Arc<Archive>> {
        let identity = Identity::of(stat);
        let archives = || self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            |archives: &mut Archives| archives.get(&identity).and_then(|(_, archive)| archive.upgrade());
        if let Some(archive) = known(&mut archives()) {
            return Ok(archive);
        }
        let mut archive =
            Archive::from_file_within(file, &self.indexes).map_err(|e| open_failed(path, &e))?;
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
        archives.put(identity, (archive.id(), Arc::downgrade(&archive)));
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
            let opened = self.view.source().dir(dir).and_then(|dir| dir.open_file(&found.source_name));
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

    fn handle(&self, ino: u64, opened: Arc<Opened>) -> Handle {
        let keep_cache = self.inodes().opened(ino, &opened);
        Handle { number: self.files.insert(opened), keep_cache }
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
    log::error!("{}: {e}", path.display());
    match (e.kind(), e.errno()) {
        (ErrorKind::Io, Some(errno)) => Errno::from_raw_os_error(errno),
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::source::Source;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn tree() -> (TempDir, Tree) {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(dir.path().join("sub/deep")).expect("mkdir");
        std::fs::write(dir.path().join("sub/file"), "content").expect("write");
        symlink("sub/file", dir.path().join("link")).expect("symlink");
        let tree = Tree::new(View::new(Source::open(dir.path()).expect("source"), None), &Arc::default());
        (dir, tree)
    }

    fn look_up(tree: &Tree, path: &str) -> Result<Attr> {
        let mut at = tree.attr(ROOT)?;
        for name in path.split('/') {
            at = tree.look_up(at.ino, OsStr::new(name))?;
        }
        Ok(at)
    }

    #[test]
    fn an_inode_lives_until_every_lookup_is_forgotten() {
        let (_dir, tree) = tree();
        let first = look_up(&tree, "sub").expect("found");
        let again = look_up(&tree, "sub").expect("found");
        assert_eq!(first.ino, again.ino);
        tree.forget(first.ino, 1);
        assert!(tree.attr(first.ino).is_ok());
        tree.forget(first.ino, 1);
        assert_eq!(tree.attr(first.ino), Err(Errno::STALE));
        assert_eq!(tree.inodes().count(), 1);
        tree.forget(ROOT, 99);
        assert!(tree.attr(ROOT).is_ok());
    }

    #[test]
    fn another_file_under_a_name_is_another_inode_and_the_open_one_stays() {
        let (dir, tree) = tree();
        let old = look_up(&tree, "sub/file").expect("found");
        let handle = tree.open_at_once(old.ino).expect("opens").expect("at once");
        std::fs::write(dir.path().join("new"), "other content").expect("write");
        std::fs::rename(dir.path().join("new"), dir.path().join("sub/file")).expect("rename");
        let new = look_up(&tree, "sub/file").expect("found");
        assert_ne!(old.ino, new.ino);
        assert_eq!((new.size, tree.attr(old.ino).expect("still open").size), (13, 7));
        assert_eq!(tree.open(old.ino).err(), Some(Errno::STALE));
        tree.release(handle.number);
        assert_eq!(tree.attr(old.ino), Err(Errno::STALE));
        tree.forget(old.ino, 1);
        assert!(tree.attr(new.ino).is_ok(), "the old inode does not take the name with it");
    }

    #[test]
    fn the_kernels_pages_are_kept_only_for_the_same_state_of_a_file() {
        let (dir, tree) = tree();
        let file = look_up(&tree, "sub/file").expect("found");
        let keep = || tree.open(file.ino).expect("opens").keep_cache;
        assert!(!keep());
        assert!(keep());
        std::fs::write(dir.path().join("sub/file"), "longer content").expect("write");
        assert!(!keep());
        assert!(keep());
    }

    #[test]
    fn a_symlink_is_shown_and_never_followed() {
        let (_dir, tree) = tree();
        let link = look_up(&tree, "link").expect("found");
        assert_eq!(link.kind, FileType::Symlink);
        assert_eq!(tree.read_link(link.ino), Ok("sub/file".into()));
        assert_eq!(tree.open(link.ino).err(), Some(Errno::INVAL));
        assert!(tree.look_up(link.ino, OsStr::new("x")).is_err());
    }

    #[test]
    fn errors_are_those_of_a_directory_tree() {
        let (_dir, tree) = tree();
        assert_eq!(look_up(&tree, "none"), Err(Errno::NOENT));
        assert_eq!(look_up(&tree, ".."), Err(Errno::NOENT));
        let file = look_up(&tree, "sub/file").expect("found").ino;
        assert_eq!(tree.look_up(file, OsStr::new("x")), Err(Errno::NOTDIR));
        assert_eq!(tree.open_dir(file).err(), Some(Errno::NOTDIR));
        let sub = look_up(&tree, "sub").expect("found").ino;
        assert_eq!(tree.open(sub).err(), Some(Errno::ISDIR));
        assert_eq!(tree.attr(4711), Err(Errno::STALE));
        assert_eq!(tree.file(4711).err().map(|e| e.raw_os_error()), Some(libc::EBADF));
    }

    #[test]
    fn a_listing_is_kept_as_it_was_when_the_directory_was_opened() {
        let (dir, tree) = tree();
        let sub = look_up(&tree, "sub").expect("found").ino;
        let handle = tree.open_dir(sub).expect("opens");
        std::fs::remove_file(dir.path().join("sub/file")).expect("remove");
        let names: Vec<_> = tree.dir(handle).expect("open").iter().map(|e| e.name.clone()).collect();
        assert_eq!(names, [".", "..", "deep", "file"]);
        tree.release_dir(handle);
        assert!(tree.dir(handle).is_err());
    }
}
