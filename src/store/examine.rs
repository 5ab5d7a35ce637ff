//! Examining archives: which large tensors they hold, so that equal ones share their place on disk
//! where the file system can do that, and so that the status can say what that saves, or would.
//!
//! Of an archive, only its index and the header of its model are read.

use super::names::{Form, Key, Listed, packed_name, stem_name};
use super::nodes::Link;
use super::tree::{DirFd, Tree};
use super::twins::{Known, Tensor};
use super::unpack::writable_dir;
use crate::codec;
use crate::error::{Error, Result};
use crate::format::{Header, Index};
use crate::mount::{ROOT, StoreStatus};
use crate::output::{CLONE_BLOCK, Dir, can_clone, place_on_disk};
use crate::pack::{MIN_TWIN, Twins, fingerprint, sampled_chunks};
use crate::read::{Archive, header_json};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest header of a model that is examined, in bytes.
const MAX_HEADER: u64 = 16 << 20;

impl Tree {
    /// Whether files of the store can share ranges, found by trying once, in this directory.
    pub fn can_share(&self, dir: &Dir) -> bool {
        let known = self.shares.get().copied();
        known.or_else(|| can_clone(dir)).is_some_and(|shares| *self.shares.get_or_init(|| shares))
    }

    /// What the packer does, and what is stored more than once.
    pub fn status(&self) -> StoreStatus {
        let figures = self.twins.figures();
        StoreStatus {
            shares: self.shares.get().copied(),
            examined: figures.archives,
            unexamined: self.twins.waiting() as u64,
            shared_bytes: figures.shared,
            repeated_bytes: figures.repeated,
            equal_files: figures.equal_files,
            ..self.packer.status()
        }
    }

    /// A walk has found an archive in a directory.
    pub fn note_archive(&self, parent: u64, dir: &DirFd, entry: &Listed) {
        let name = match entry.form {
            Form::Packed => packed_name(&entry.name),
            Form::PackedStem => stem_name(&entry.name).unwrap_or_default(),
            Form::Over | Form::Plain | Form::Old => return,
        };
        if let Ok(stat) = fstat(dir) {
            let key = Key { ino: entry.ino, ..Key::of(&stat) };
            self.twins.note(key, self.path(&(parent, name)));
        }
    }

    /// Examine the archive that has waited longest.
    pub fn examine_next(&self) {
        if let Some(path) = self.twins.next() {
            self.examine(&path);
        }
    }

    /// Examine the archive that a file has just become.
    pub fn examine_packed(&self, (parent, name): &Link) {
        self.examine(&self.path(&(*parent, packed_name(name))));
    }

    fn examine(&self, path: &Path) {
        let examined = self.open_archive(path).and_then(|(file, key)| {
            let known = self.tensors_of(file, path)?;
            self.twins.insert(key, known);
            Ok(())
        });
        if let Err(e) = examined {
            log::debug!("{}: is not examined: {e}", crate::escape::path(path));
        }
    }

    /// Forget what is no longer there.
    pub fn forget_missing_archives(&self) {
        for (key, path) in self.twins.known() {
            if self.packer.is_stopped() {
                return;
            }
            let stat = self.dir_of(&path).and_then(|(dir, name)| dir.stat(name));
            if !stat.is_ok_and(|stat| stat.is_some_and(|stat| Key::of(&stat) == key)) {
                self.twins.forget(key);
            }
        }
    }

    /// The directory of a path below the store, and its last component.
    fn dir_of<'a>(&self, path: &'a Path) -> Result<(Arc<Dir>, &'a OsStr)> {
        let name = path.file_name().ok_or_else(|| Error::invalid("not a file name"))?;
        let root = writable_dir(&self.dir(ROOT)?, Path::new(""))?;
        Ok((root.descend(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// Open an archive such that reading it does not move its access time, which is that of the
    /// file that it shows.
    fn open_archive(&self, path: &Path) -> Result<(File, Key)> {
        let (dir, name) = self.dir_of(path)?;
        let file = dir.open_file(name)?;
        let flags = fcntl_getfl(&file)?;
        fcntl_setfl(&file, flags | OFlags::NOATIME)?;
        let key = Key::of(&fstat(&file)?);
        self.can_share(&dir);
        Ok((file, key))
    }

    fn tensors_of(&self, file: File, path: &Path) -> Result<Known> {
        let archive = Archive::from_file_within(file, self.cache.archive_memory())?;
        let len = archive.footer().original_len;
        let json = header_json(&archive, &*codec::fastest(), MAX_HEADER)?;
        let header = json.and_then(|json| Header::parse(&json, len)).unwrap_or_default();
        let mut tensors = Vec::new();
        let mut seen = HashSet::new();
        for tensor in header.tensors.iter().filter(|t| t.end - t.start >= MIN_TWIN) {
            let found = stored_tensor(archive.index(), tensor.start, tensor.end)?;
            // Equal tensors of one file are stored once.
            let Some(mut found) = found.filter(|found| seen.insert(found.at)) else { continue };
            if self.shares.get() == Some(&true) {
                let middle = (found.at + found.stored / 2) / CLONE_BLOCK * CLONE_BLOCK;
                found.place = place_on_disk(archive.local_file(), middle);
            }
            tensors.push(found);
        }
        let sha256 = archive.footer().sha256;
        Ok(Known { path: path.to_owned(), sha256, tensors })
    }
}

/// The tensor in these bytes of the original; `None` if no chunk starts or ends with it.
fn stored_tensor(index: &Index, start: u64, end: u64) -> Result<Option<Tensor>> {
    let first = index.find(start)?;
    let mut checksums = Vec::new();
    let (mut at, mut stored, mut reached) = (0, 0, start);
    for id in first..index.len() {
        let chunk = index.chunk(id)?;
        if chunk.original.start != reached || chunk.original.end > end {
            return Ok(None);
        }
        if id == first {
            at = chunk.stored_at;
        }
        checksums.push(chunk.checksum);
        stored += u64::from(chunk.stored_len);
        reached = chunk.original.end;
        if reached == end {
            break;
        }
    }
    if reached != end || checksums.is_empty() {
        return Ok(None);
    }
    let sampled = sampled_chunks(checksums.len()).map(|i| checksums[i]);
    let bytes: Vec<u8> = checksums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    let (fingerprint, whole) = (fingerprint(end - start, sampled), codec::checksum(&bytes));
    Ok(Some(Tensor { fingerprint, whole, at, stored, place: None }))
}

/// What finds equal tensors for one file that is being packed.
pub(super) struct Finder<'a> {
    tree: &'a Tree,
    /// The archives found so far.
    used: Mutex<HashSet<Key>>,
}

impl<'a> Finder<'a> {
    pub fn new(tree: &'a Tree) -> Self {
        Self { tree, used: Mutex::default() }
    }
}

impl Twins for Finder<'_> {
    fn find(&self, fingerprint: u64) -> Option<(File, u64)> {
        let twins = &self.tree.twins;
        // Each round forgets an archive that is not what it was.
        while let Some((key, path, at)) = twins.find(fingerprint) {
            match self.tree.open_archive(&path) {
                Ok((file, now)) if now == key => {
                    self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
                    return Some((file, at));
                }
                _ => twins.forget(key),
            }
        }
        None
    }

    fn distrust(&self) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        used.into_iter().for_each(|key| self.tree.twins.forget(key));
    }
}
