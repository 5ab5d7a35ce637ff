//! Unpacking a whole store while it is not mounted: the directory becomes what it was.
//!
//! Each file is unpacked by the protocol of `unpack`, so this may end anywhere, and be started
//! again. First, what a crash has left is finished.

use super::lock::Lock;
use super::marks;
use super::names::{Form, Found, Key, Listed, PLAIN_MARK, open_unnoticed, shown_name};
use super::packer::Packer;
use super::policy::{Pack, PackPolicy};
use super::tree::{DirFd, Tree, read, stat_at, write};
use super::unpack::{Keep, unlink_if};
use crate::cache::{CacheOptions, ChunkCache};
use crate::codec;
use crate::error::{Context, Error};
use crate::mount::{BaseFinder, Entry, ROOT, Source, default_threads};
use crate::output::{sha256, sync_dir};
use crate::read::peek;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, linkat, openat};
use rustix::io::{Errno, Result};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Nothing is packed meanwhile.
const POLICY: PackPolicy = PackPolicy { pack: Pack::Off, settle: Duration::ZERO, min_size: 0 };

/// Memory for decoded data, in bytes. Whole files are decoded around the cache.
const CACHE: u64 = 64 << 20;

/// Space that must be left, in bytes.
const RESERVE: u64 = 16 << 20;

/// How often to try to take the lock.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// The prefix of all extended attributes of the store.
const PREFIX: &[u8] = b"user.bsz.";

/// A store that is not mounted, and is to be unpacked.
pub struct Restore {
    tree: Arc<Tree>,
    _lock: Lock,
}

/// What is to be unpacked, and the space for it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Number of packed files.
    pub files: u64,
    /// Their total size.
    pub original: u64,
    /// What their archives take.
    pub stored: u64,
    /// What the largest archive takes: it goes only after its file is back.
    pub largest: u64,
}

impl Room {
    /// The free space that unpacking needs: an archive goes as soon as its file is back.
    pub fn needed(&self) -> u64 {
        let grows = self.original.saturating_sub(self.stored);
        let reserve = if self.files == 0 { 0 } else { RESERVE };
        grows.saturating_add(self.largest).saturating_add(reserve)
    }
}

/// A file that is to be unpacked, and what has been done before it.
#[derive(Clone, Copy, Debug)]
pub struct RestoreProgress<'a> {
    /// The file, relative to the store.
    pub path: &'a Path,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Bytes unpacked before.
    pub done: u64,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Files unpacked.
    pub files: u64,
    /// Their total size, in bytes.
    pub bytes: u64,
    /// Files and directories that could not be restored, and why.
    pub failures: Vec<Error>,
}

/// What is known while a store is unpacked.
struct Run<'a> {
    progress: &'a dyn Fn(RestoreProgress<'_>),
    restored: Restored,
    /// Where the file of an archive with several names is.
    unpacked: HashMap<Key, (DirFd, OsString)>,
}

impl Restore {
    /// Open the store `dir`. As long as another process has its lock, `waits` is asked whether to
    /// wait for it.
    ///
    /// # Errors
    /// Io; invalid argument, if another process packs or unpacks its files.
    pub fn open(dir: &Path, mut waits: impl FnMut() -> bool) -> crate::Result<Self> {
        let source = Source::open(dir).about_path(dir)?;
        let cache = ChunkCache::new(CacheOptions {
            capacity: CACHE,
            threads: default_threads(),
            decoder: codec::fastest(),
            readahead: None,
        })?;
        let bases = BaseFinder::new(&cache, true);
        let tree = Tree::new(source, cache, &bases, Packer::new(POLICY)).about_path(dir)?;
        let root = tree.dir(ROOT).about_path(dir)?;
        loop {
            if let Some(lock) = Lock::take(&*root).about_path(dir)? {
                let at_path = rustix::fs::stat(dir).about_path(dir)?;
                if Key::of(&at_path) != Key::of(&fstat(&*root).about_path(dir)?) {
                    return Err(Error::invalid("has been mounted again, or moved").about_path(dir));
                }
                return Ok(Self { tree: Arc::new(tree), _lock: lock });
            }
            if !waits() {
                let why = "another process packs or unpacks its files, or still serves some that \
                           are open";
                return Err(Error::invalid(why).about_path(dir));
            }
            thread::sleep(RETRY_EVERY);
        }
    }

    /// The space that is free for ordinary users, in bytes.
    ///
    /// # Errors
    /// Io.
    pub fn free(&self) -> crate::Result<u64> {
        let space = self.tree.statfs()?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Measure what is packed.
    pub fn room(&self) -> Room {
        let mut room = Room::default();
        let mut seen = HashSet::new();
        self.tree.visit(&mut |_, dir, listed| {
            if let Some(found) = self.tree.packed(dir, &listed)?.filter(|f| seen.insert(f.key())) {
                let stored = stored(&found);
                room.files += 1;
                room.original += found.packed.as_ref().map_or(0, |packed| packed.size);
                room.stored += stored;
                room.largest = room.largest.max(stored);
            }
            Ok(())
        });
        room
    }

    /// Unpack everything, and remove what else the store has added.
    pub fn run(&self, progress: &dyn Fn(RestoreProgress<'_>)) -> Restored {
        self.tree.recover();
        let mut run = Run { progress, restored: Restored::default(), unpacked: HashMap::new() };
        let mut failures =
            self.tree.visit(&mut |id, dir, listed| self.tree.restore(id, dir, &listed, &mut run));
        // Last, since these attributes tell which archives are the user's own.
        if failures.is_empty() {
            failures = self.tree.visit(&mut |_, dir, listed| match listed.form {
                Form::Plain => clear(dir, &listed.name),
                _ => Ok(()),
            });
        }
        run.restored.failures = failures;
        run.restored
    }
}

impl Tree {
    /// Call `visit` for each regular file, with its directory. Returns the errors.
    fn visit(&self, visit: &mut dyn FnMut(u64, &DirFd, Listed) -> crate::Result<()>) -> Vec<Error> {
        let mut failures = Vec::new();
        let mut left = vec![ROOT];
        while let Some(id) = left.pop() {
            let place = self.nodes.place(id).ok().and_then(|(_, link)| link);
            let below = place.map_or_else(PathBuf::new, |link| self.path(&link));
            match self.list_files(id) {
                Ok((dir, listed)) => {
                    for entry in listed {
                        if entry.kind == FileType::Directory {
                            left.extend(self.look_up(id, &entry.name).map(|(node, _)| node.id));
                        } else if entry.kind.is_file() {
                            let path = below.join(&entry.name);
                            failures.extend(visit(id, &dir, entry).about_path(&path).err());
                        }
                    }
                }
                Err(e) => failures.push(Error::from(e).about_path(&below)),
            }
            if id != ROOT {
                self.forget(id, 1);
            }
        }
        failures
    }

    fn list_files(&self, id: u64) -> Result<(DirFd, Vec<Listed>)> {
        let dir = self.dir(id)?;
        let node = self.nodes.get(id)?;
        let _names = read(&node);
        let listed = self.names.list(dir.as_fd())?;
        Ok((dir, listed))
    }

    /// The archive of an entry, if it is packed.
    fn packed(&self, dir: &DirFd, listed: &Listed) -> crate::Result<Option<Found>> {
        let is_plain = listed.form == Form::Plain;
        Ok(if is_plain { None } else { Some(self.names.find(dir.as_fd(), &listed.name)?) })
    }

    /// Bring the plain file of an entry back.
    fn restore(
        &self,
        id: u64,
        dir: &DirFd,
        listed: &Listed,
        run: &mut Run<'_>,
    ) -> crate::Result<()> {
        let name = &listed.name;
        let Some(found) = self.packed(dir, listed)? else { return self.drop_twin(id, dir, name) };
        if let Some(first) = run.unpacked.get(&found.key()) {
            return Ok(self.restore_link(dir, name, &found, first)?);
        }
        let (node, attr) = self.look_up(id, name)?;
        let path = self.path(&(id, name.clone()));
        let done = run.restored.bytes;
        (run.progress)(RestoreProgress { path: &path, bytes: attr.size, done });
        let unpacked = self.unpack(&node, Keep::All, false);
        self.forget(node.id, 1);
        unpacked?;
        run.restored.files += 1;
        run.restored.bytes += attr.size;
        if found.stat.st_nlink > 1 {
            run.unpacked.insert(found.key(), (DirFd::clone(dir), name.clone()));
        }
        Ok(())
    }

    /// Restore another name of a file whose archive had several.
    fn restore_link(
        &self,
        dir: &DirFd,
        name: &OsStr,
        archive: &Found,
        (first_dir, first): &(DirFd, OsString),
    ) -> Result<()> {
        linkat(first_dir, first, dir, name, AtFlags::empty())?;
        sync_dir(dir)?;
        unlink_if(dir, &archive.source_name, archive.key())
    }

    /// Remove the archive beside a plain file if it shows the same bytes: a crash has left it.
    fn drop_twin(&self, id: u64, dir: &DirFd, name: &OsStr) -> crate::Result<()> {
        for found in self.names.forms(dir.as_fd(), name)? {
            let Some(packed) = &found.packed else { continue };
            if !self.names.may_be_own(dir.as_fd(), &found)? {
                continue;
            }
            let (file, stat) = open_unnoticed(dir, name)?;
            let mtime = |stat| crate::mount::attr(0, stat, None).mtime;
            let is_like =
                stat.st_size.cast_unsigned() == packed.size && mtime(&stat) == mtime(&found.stat);
            if is_like && sha256(&file, Path::new(name))? == packed.sha256 {
                sync_dir(dir)?;
                let node = self.nodes.get(id)?;
                let _names = write(&node);
                unlink_if(dir, &found.source_name, found.key())?;
            }
        }
        Ok(())
    }
}

/// What an archive takes on disk, in bytes.
fn stored(found: &Found) -> u64 {
    u64::try_from(found.stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// Whether a file needs the mark that shows it under its own name: without it, an archive that was
/// made through the store would be taken for one of the store's own, should this directory be one
/// again. A link of it may have the name of an archive, although this one has not.
fn needs_mark(dir: &DirFd, name: &OsStr) -> bool {
    let shown = [Form::Packed, Form::PackedStem].map(|form| shown_name(name, form));
    let has_plain = |shown: &OsString| stat_at(dir, shown).is_ok();
    !shown.iter().flatten().any(has_plain)
        && open_unnoticed(dir, name).is_ok_and(|(file, _)| peek(&file).is_ok_and(|f| f.is_some()))
}

/// Remove the attributes of the store from a file.
fn clear(dir: &DirFd, name: &OsStr) -> crate::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = Entry::new(openat(dir, name, flags, Mode::empty())?);
    let names = match entry.xattrs() {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for mark in names.split(|&byte| byte == 0).filter(|mark| mark.starts_with(PREFIX)) {
        let mark = String::from_utf8_lossy(mark);
        if mark != PLAIN_MARK || !needs_mark(dir, name) {
            marks::remove(&entry, &mark)?;
        }
    }
    Ok(())
}
