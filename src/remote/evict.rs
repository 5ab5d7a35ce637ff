//! The bound of a disk cache that several processes share.
//!
//! The file `evict.lock` holds the number of bytes in use. Whoever writes a part keeps it locked
//! meanwhile, adds the part, and first makes room if there is none. The files themselves are
//! counted only then, or if the number is missing: never at start, however many they are. A process
//! that is killed leaves a number that is too large at most, and its lock ends with it.

use crate::error::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// How the names of files start that are being written.
pub const TEMPORARY: &str = ".tmp-";

/// The ends of archives hold their indexes: without them nothing is read. They start anywhere,
/// while blocks start at multiples of their length.
const END_LEN: u64 = 1 << 20;

/// Keeps a directory within its bound.
pub struct Eviction {
    lock: File,
    objects: PathBuf,
    bound: u64,
}

struct Found {
    is_end: bool,
    used: SystemTime,
    len: u64,
    path: PathBuf,
}

impl Eviction {
    /// Keep the files in `objects` within `bound` bytes.
    ///
    /// # Errors
    /// Io.
    pub fn new(dir: &Path, objects: &Path, bound: u64) -> Result<Self> {
        let path = dir.join("evict.lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(&path).about_path(&path)?;
        Ok(Self { lock, objects: objects.into(), bound })
    }

    /// Have `write` write `len` bytes more, while nobody else writes. Files that were not used for
    /// longest are removed for it. A part that is larger than a tenth of the bound is not written.
    ///
    /// # Errors
    /// Io.
    pub fn admit(&self, len: u64, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if len > self.bound / 10 {
            return Ok(());
        }
        flock(&self.lock, FlockOperation::LockExclusive)?;
        let written = self.count(len).and_then(|()| write());
        flock(&self.lock, FlockOperation::Unlock)?;
        written
    }

    /// Count `len` bytes more, and make room for them if there is none.
    fn count(&self, len: u64) -> io::Result<()> {
        let mut number = [0; 8];
        let known = self.lock.read_exact_at(&mut number, 0).ok();
        let mut used = known.map_or(u64::MAX, |()| u64::from_le_bytes(number));
        if used.saturating_add(len) > self.bound {
            used = self.make_room(len)?;
        }
        self.lock.write_all_at(&(used + len).to_le_bytes(), 0)
    }

    /// Remove files until nine tenths of the bound are in use, if `len` bytes do not fit. Returns
    /// the bytes in use.
    fn make_room(&self, len: u64) -> io::Result<u64> {
        let mut found = self.files()?;
        let mut used: u64 = found.iter().map(|file| file.len).sum();
        if used + len <= self.bound {
            return Ok(used);
        }
        found.sort_by_key(|file| (file.is_end, file.used));
        for file in found {
            if used + len <= self.bound / 10 * 9 {
                break;
            }
            match fs::remove_file(&file.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => used -= file.len,
            }
        }
        Ok(used)
    }

    fn files(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        // What cannot be listed has just been removed.
        let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
        for hash in fs::read_dir(&self.objects)? {
            for object in list(&hash?.path()) {
                let object = object.path();
                let mut any = false;
                for file in list(&object) {
                    any = true;
                    found.extend(measure(&file));
                }
                if !any {
                    let _ = fs::remove_dir(&object);
                }
            }
        }
        Ok(found)
    }
}

/// A file of the cache. One that was not finished is removed: nobody else writes meanwhile.
fn measure(file: &fs::DirEntry) -> Option<Found> {
    let meta = file.metadata().ok()?;
    let (name, used) = (file.file_name(), meta.modified().ok()?);
    let name = name.to_string_lossy();
    let path = file.path();
    if name.starts_with(TEMPORARY) {
        let _ = fs::remove_file(&path);
        return None;
    }
    let start = name.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
    let is_end =
        start.is_some_and(|start| !start.is_multiple_of(END_LEN)) && name.ends_with("-100000");
    Some(Found { is_end, used, len: meta.len(), path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn fill(dir: &Path, name: &str, len: usize, age: u64) {
        let object = dir.join("objects/ab/cd");
        fs::create_dir_all(&object).expect("mkdir");
        fs::write(object.join(name), vec![0; len]).expect("written");
        let file = File::options().write(true).open(object.join(name)).expect("opened");
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("touched");
    }

    /// Whether bytes are admitted, and so written.
    fn admits(eviction: &Eviction, len: u64) -> bool {
        let mut written = false;
        let write = || {
            written = true;
            Ok(())
        };
        eviction.admit(len, write).expect("no error");
        written
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_indexes_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let objects = dir.path().join("objects");
        // An index, the oldest of all; its name tells it, not its length.
        fill(dir.path(), "0000000001-100000", 200, 90_000);
        for i in 0..8u64 {
            fill(dir.path(), &format!("{:010x}-64", i << 20), 100, 1000 - i);
        }
        fill(dir.path(), ".tmp-1-1", 100, 10_000);
        let eviction = Eviction::new(dir.path(), &objects, 1000).expect("a bound");
        let refused = || panic!("more than a tenth of the bound");
        eviction.admit(101, refused).expect("refused");
        assert!(admits(&eviction, 50));
        let mut left: Vec<String> = fs::read_dir(objects.join("ab/cd"))
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        left.sort();
        assert_eq!(left[0], "0000000001-100000");
        assert_eq!(left.len(), 7, "{left:?}");
        assert!(left.contains(&"0000700000-64".to_owned()), "{left:?}");
        assert!(!left.contains(&"0000000000-64".to_owned()), "{left:?}");
    }

    #[test]
    fn the_number_is_shared_and_counted_again_when_it_is_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let objects = dir.path().join("objects");
        fill(dir.path(), "0000000000-64", 100, 5);
        let number = || {
            let bytes = fs::read(dir.path().join("evict.lock")).expect("the lock");
            u64::from_le_bytes(bytes.try_into().expect("a number"))
        };
        let [one, two] = [(); 2].map(|()| Eviction::new(dir.path(), &objects, 1000).expect("new"));
        assert!(admits(&one, 100));
        assert_eq!(number(), 200);
        assert!(admits(&two, 100));
        assert_eq!(number(), 300);
    }
}
