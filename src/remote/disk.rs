//! Stored bytes on disk, for the next time: a file for each part, named by object and offset.
//!
//! A file appears by being renamed, and is checked whenever it is read, so that nothing needs to be
//! synced or locked: what a crash or a fault of the disk leaves is not used. Several processes may
//! share a directory. They also share its bound, see [`evict`](super::evict).

use super::{
    blocks::PartKey,
    evict::{Eviction, TEMPORARY},
    options::DiskCacheOptions,
};
use crate::error::{Context, Error, Result};
use bytes::Bytes;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, SystemTime},
};
use twox_hash::XxHash3_64;

const MAGIC: [u8; 8] = *b"BSZPART\x01";

/// Magic, start, length and checksum.
const HEADER: usize = 32;

/// A file that is read counts as used at most so often.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

/// A directory of stored bytes.
pub struct DiskCache {
    objects: PathBuf,
    eviction: Eviction,
    /// Set when writing has failed, as on a full disk.
    is_off: AtomicBool,
    next_temporary: AtomicU64,
}

impl DiskCache {
    /// Use a directory, which is created if need be. What is in it is not looked at.
    ///
    /// # Errors
    /// Io; invalid argument, if others can write to the files in it, or read them.
    pub fn open(options: &DiskCacheOptions) -> Result<Self> {
        let objects = options.dir.join("objects");
        DirBuilder::new().recursive(true).mode(0o700).create(&objects).about_path(&objects)?;
        let meta = fs::symlink_metadata(&objects).about_path(&objects)?;
        let own = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
            let why = "must be a directory of this user that is closed to others (mode 0700)";
            return Err(Error::invalid(why).about_path(&objects));
        }
        let eviction = Eviction::new(&options.dir, &objects, options.size)?;
        let (is_off, next_temporary) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self { objects, eviction, is_off, next_temporary })
    }

    fn dir(&self, object: u128) -> PathBuf {
        let name = format!("{object:032x}");
        self.objects.join(&name[..2]).join(&name[2..])
    }

    fn path(&self, key: PartKey) -> PathBuf {
        self.dir(key.object).join(format!("{:010x}-{:x}", key.start, key.len))
    }

    /// Whether there is a file for a part.
    pub fn has(&self, key: PartKey) -> bool {
        self.path(key).exists()
    }

    /// A part, if it is there and as it was written.
    pub fn read(&self, key: PartKey) -> Option<Bytes> {
        let path = self.path(key);
        let mut file = File::open(&path).ok()?;
        match read_checked(&mut file, key) {
            Ok(bytes) => {
                touch(&file);
                Some(bytes)
            }
            Err(e) => {
                log::warn!("a file of the disk cache is damaged, and is fetched again: {e}");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keep a part. A failure turns writing off.
    pub fn write(&self, key: PartKey, bytes: &[u8]) {
        if self.is_off.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = self.try_write(key, bytes)
            && !self.is_off.swap(true, Ordering::Relaxed)
        {
            log::warn!("{}: the disk cache is off from now on: {e}", self.objects.display());
        }
    }

    fn try_write(&self, key: PartKey, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        if path.exists() {
            return Ok(());
        }
        self.eviction.admit((HEADER + bytes.len()) as u64, || self.create(key, bytes, &path))
    }

    fn create(&self, key: PartKey, bytes: &[u8], path: &Path) -> io::Result<()> {
        let dir = self.dir(key.object);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
        let written = write_whole(&temporary, &header(key, bytes), bytes)
            .and_then(|()| fs::rename(&temporary, path));
        written.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Remove what overlaps these bytes of an object.
    pub fn forget(&self, object: u128, range: &std::ops::Range<u64>) {
        let Ok(files) = fs::read_dir(self.dir(object)) else { return };
        for file in files.flatten() {
            let overlaps = parse(&file.file_name().to_string_lossy())
                .is_some_and(|(start, len)| start < range.end && range.start < start + len);
            if overlaps {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

/// Start and length from the name of a file.
fn parse(name: &str) -> Option<(u64, u64)> {
    let (start, len) = name.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(len, 16).ok()?))
}

fn header(key: PartKey, bytes: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&key.start.to_le_bytes());
    header[16..24].copy_from_slice(&u64::from(key.len).to_le_bytes());
    // Of the object, too: a file that was moved is no part of another one.
    let seed = (key.object >> 64) as u64 ^ key.object as u64 ^ key.start;
    header[24..].copy_from_slice(&XxHash3_64::oneshot_with_seed(seed, bytes).to_le_bytes());
    header
}

fn write_whole(path: &Path, header: &[u8], bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(header)?;
    file.write_all(bytes)
}

fn read_checked(file: &mut File, key: PartKey) -> io::Result<Bytes> {
    let damaged = |what: &str| io::Error::other(what.to_owned());
    if file.metadata()?.len() != HEADER as u64 + u64::from(key.len) {
        return Err(damaged("its length"));
    }
    let mut found = [0; HEADER];
    file.read_exact(&mut found)?;
    let mut bytes = vec![0; key.len as usize];
    file.read_exact(&mut bytes)?;
    if found != header(key, &bytes) {
        return Err(damaged("its checksum"));
    }
    Ok(bytes.into())
}

/// The time of modification is that of the last use.
fn touch(file: &File) {
    let now = SystemTime::now();
    let used = file.metadata().and_then(|meta| meta.modified());
    let long_ago = |used| now.duration_since(used).is_ok_and(|age| age > TOUCH_EVERY);
    if used.is_ok_and(long_ago) {
        let _ = file.set_modified(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path, size: u64) -> DiskCache {
        DiskCache::open(&DiskCacheOptions { dir: dir.into(), size }).expect("a cache")
    }

    fn key(start: u64, len: usize) -> PartKey {
        PartKey { object: 7 << 100 | 9, start, len: len as u32 }
    }

    #[test]
    fn a_part_is_read_as_it_was_written_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = cache(dir.path(), 1 << 30);
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i >> 3) as u8).collect();
        let one = key(4096, bytes.len());
        assert!(cache.read(one).is_none() && !cache.has(one));
        cache.write(one, &bytes);
        assert_eq!(cache.read(one).expect("kept"), bytes);
        let whole = fs::read(cache.path(one)).expect("its file");
        let cuts = (0..whole.len()).step_by(97).map(|len| whole[..len].to_vec());
        let flips = (0..whole.len()).step_by(61).map(|at| {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            flipped
        });
        for damaged in cuts.chain(flips) {
            fs::write(cache.path(one), &damaged).expect("written");
            assert!(cache.read(one).is_none(), "damage was not found");
            assert!(!cache.has(one), "a damaged file is kept");
        }
        // A file in the place of another.
        cache.write(one, &bytes);
        fs::rename(cache.path(one), cache.path(key(8192, bytes.len()))).expect("renamed");
        assert!(cache.read(key(8192, bytes.len())).is_none());
    }

    #[test]
    fn forgetting_removes_what_overlaps() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = cache(dir.path(), 1 << 30);
        let parts = [key(0, 10), key(10, 10), key(20, 10)];
        parts.iter().for_each(|part| cache.write(*part, &[1; 10]));
        cache.forget(parts[0].object, &(19..20));
        assert_eq!(parts.map(|part| cache.has(part)), [true, false, true]);
    }

    #[test]
    fn the_cache_is_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let cache = cache(dir.path(), 1 << 30);
        cache.write(key(0, 3), b"abc");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&cache.objects), mode(&cache.path(key(0, 3)))), (0o700, 0o600));
        fs::set_permissions(&cache.objects, fs::Permissions::from_mode(0o750)).expect("chmod");
        let options = DiskCacheOptions { dir: dir.path().into(), size: 1 };
        assert!(DiskCache::open(&options).is_err());
    }

    #[test]
    fn writing_stops_when_it_fails() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = cache(dir.path(), 1 << 30);
        fs::remove_dir(&cache.objects).expect("removed");
        fs::write(&cache.objects, "a file in its place").expect("written");
        cache.write(key(0, 3), b"abc");
        assert!(cache.is_off.load(Ordering::Relaxed) && cache.read(key(0, 3)).is_none());
    }
}
