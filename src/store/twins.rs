//! The large tensors of the store's archives, as far as they are known: where a tensor that is
//! about to be packed is stored already, and how many bytes are stored more than once.
//!
//! This is a cache: what it says of an archive is checked when the archive is used, and archives
//! that nobody has asked for the longest are forgotten first.

use super::names::Key;
use crate::output::CLONE_BLOCK;
use lru::LruCache;
use std::collections::{HashMap, HashSet, VecDeque};
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most memory for what is known, in bytes: about 80,000 tensors.
const MAX_KNOWN: usize = 8 << 20;

/// Most memory for the paths of archives that are to be examined, in bytes.
const MAX_WAITING: usize = 2 << 20;

/// A large tensor of an archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    /// See [`crate::pack::fingerprint`].
    pub fingerprint: u64,
    /// A checksum of all of it.
    pub whole: u64,
    /// Where its stored bytes start in the archive.
    pub at: u64,
    /// How many there are.
    pub stored: u64,
    /// Where on disk they are, if the file system says so.
    pub place: Option<u64>,
}

/// An archive.
pub(super) struct Known {
    /// Its path, relative to the store.
    pub path: PathBuf,
    /// The SHA-256 of its original.
    pub sha256: [u8; 32],
    pub tensors: Vec<Tensor>,
}

impl Known {
    /// The memory that it takes: for each tensor, there is an entry in a hash map, too.
    fn cost(&self) -> usize {
        let entry = size_of::<u64>() + size_of::<(Key, u64)>() + 16;
        let tensors = self.tensors.capacity() * (size_of::<Tensor>() + entry);
        size_of::<Self>() + 2 * size_of::<Key>() + 32 + cost(&self.path) + tensors
    }
}

/// The memory that a path takes.
fn cost(path: &Path) -> usize {
    size_of::<PathBuf>() + path.as_os_str().len() + 16
}

/// What is stored more than once, in bytes of archives and numbers of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// Archives that are known.
    pub archives: u64,
    /// What all copies of a large tensor but one would take if they did not share their place on
    /// disk with another one.
    pub shared: u64,
    /// What all copies but one take.
    pub repeated: u64,
    /// Files of which another one holds the same bytes.
    pub equal_files: u64,
}

struct Table {
    archives: LruCache<Key, Known>,
    cost: usize,
    /// Where tensors are that can be cloned; `None` if it has to be made again.
    by_fingerprint: Option<HashMap<u64, (Key, u64)>>,
    figures: Option<Figures>,
    waiting: VecDeque<PathBuf>,
    waiting_cost: usize,
}

/// See the module's documentation.
pub(super) struct Twins(Mutex<Table>);

impl Twins {
    pub fn new() -> Self {
        Self(Mutex::new(Table {
            archives: LruCache::unbounded(),
            cost: 0,
            by_fingerprint: None,
            figures: None,
            waiting: VecDeque::new(),
            waiting_cost: 0,
        }))
    }

    /// Have an archive examined later, unless it is known already.
    pub fn note(&self, key: Key, path: PathBuf) {
        let mut table = self.table();
        let is_known = table.archives.peek(&key).is_some_and(|known| known.path == path);
        if !is_known && table.waiting_cost + cost(&path) <= MAX_WAITING {
            table.waiting_cost += cost(&path);
            table.waiting.push_back(path);
        }
    }

    /// An archive has been renamed.
    pub fn moved(&self, key: Key, path: PathBuf) {
        let mut table = self.table();
        if let Some(mut known) = table.archives.pop(&key) {
            table.cost -= known.cost();
            known.path = path;
            table.cost += known.cost();
            table.archives.put(key, known);
        }
    }

    /// The next archive to examine.
    pub fn next(&self) -> Option<PathBuf> {
        let mut table = self.table();
        let path = table.waiting.pop_front()?;
        table.waiting_cost -= cost(&path);
        Some(path)
    }

    /// How many archives are to be examined.
    pub fn waiting(&self) -> usize {
        self.table().waiting.len()
    }

    /// An archive has been examined.
    pub fn insert(&self, key: Key, mut known: Known) {
        known.tensors.truncate(MAX_KNOWN / 2 / size_of::<Tensor>() / 2);
        known.tensors.shrink_to_fit();
        let mut table = self.table();
        table.remove(key);
        table.cost += known.cost();
        if let Some(map) = &mut table.by_fingerprint {
            map.extend(places(key, &known));
        }
        table.archives.put(key, known);
        while table.cost > MAX_KNOWN {
            let Some((&oldest, _)) = table.archives.peek_lru() else { break };
            table.remove(oldest);
        }
        table.figures = None;
    }

    /// An archive is gone, or is not what it was.
    pub fn forget(&self, key: Key) {
        self.table().remove(key);
    }

    /// All archives that are known, with their paths.
    pub fn known(&self) -> Vec<(Key, PathBuf)> {
        self.table().archives.iter().map(|(key, known)| (*key, known.path.clone())).collect()
    }

    /// The path of an archive that may hold a tensor of this fingerprint, and where.
    pub fn find(&self, fingerprint: u64) -> Option<(Key, PathBuf, u64)> {
        let mut table = self.table();
        if table.by_fingerprint.is_none() {
            let known = table.archives.iter().rev();
            let map = known.flat_map(|(key, known)| places(*key, known)).collect();
            table.by_fingerprint = Some(map);
        }
        let (key, at) = *table.by_fingerprint.as_ref()?.get(&fingerprint)?;
        table.archives.get(&key).map(|known| (key, known.path.clone(), at))
    }

    pub fn figures(&self) -> Figures {
        let mut table = self.table();
        let figures = table.figures.unwrap_or_else(|| figures(&table.archives));
        table.figures = Some(figures);
        figures
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn remove(&mut self, key: Key) {
        let Some(known) = self.archives.pop(&key) else { return };
        self.cost -= known.cost();
        self.figures = None;
        if !known.tensors.is_empty() {
            // Another archive may hold the same tensors.
            self.by_fingerprint = None;
        }
    }
}

/// Where the tensors of an archive are that can be cloned.
fn places(key: Key, known: &Known) -> impl Iterator<Item = (u64, (Key, u64))> {
    let at_block = known.tensors.iter().filter(|t| t.at.is_multiple_of(CLONE_BLOCK));
    at_block.map(move |t| (t.fingerprint, (key, t.at)))
}

fn figures(archives: &LruCache<Key, Known>) -> Figures {
    /// Where a copy is. Those on the same place come after each other.
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Place {
        OnDisk(u64, u64),
        InFile(u64, u64, u64),
    }
    let files: HashSet<_> = archives.iter().map(|(_, known)| known.sha256).collect();
    let mut copies: Vec<(u64, Place, u64)> = archives
        .iter()
        .flat_map(|(key, known)| known.tensors.iter().map(move |tensor| (key, tensor)))
        .map(|(key, tensor)| {
            let in_file = Place::InFile(key.dev, key.ino, tensor.at);
            let place = tensor.place.map_or(in_file, |at| Place::OnDisk(key.dev, at));
            (tensor.whole, place, tensor.stored)
        })
        .collect();
    copies.sort_unstable();
    let sum = |copies: &[(u64, Place, u64)]| copies.iter().map(|(.., stored)| stored).sum::<u64>();
    let all = sum(&copies);
    copies.dedup_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
    let on_disk = sum(&copies);
    copies.dedup_by_key(|copy| copy.0);
    Figures {
        archives: archives.len() as u64,
        shared: all - on_disk,
        repeated: on_disk - sum(&copies),
        equal_files: (archives.len() - files.len()) as u64,
    }
}

#[cfg(test)]
#[path = "twins_tests.rs"]
mod tests;
