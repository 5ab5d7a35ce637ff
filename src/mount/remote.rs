//! A source on other machines: listings that are kept for a while, and objects by their names.
//!
//! Inode numbers are hashes: of the path and the state of an object, so that an object which
//! replaces another one is another file.

use super::failure::open_failed;
use super::footers::Footers;
use super::listing::{Listing, Seen, is_same};
use crate::error::{Error, Result as Outcome};
use crate::escape;
use crate::format::FOOTER_LEN;
use crate::remote::{Entry, Facts, Found, Identity, Object, Place, RemoteStats, join};
use lru::LruCache;
use rustix::fs::{FileType, Stat};
use rustix::io::{Errno, Result};
use rustix::process::{getegid, geteuid};
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many listings to remember.
const LISTINGS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Of how many objects to remember what was found.
const FOUND: NonZeroUsize = NonZeroUsize::new(1 << 15).expect("not zero");

/// How long a name that was not found is known to be missing, and what failed is not tried again:
/// those who have waited for it would wait for as long once more, one after another.
const MISSING_FOR: Duration = Duration::from_secs(1);

/// How many archives of a directory are looked at at once.
const AT_ONCE: usize = 32;

/// How a remote source is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoteView {
    /// How long a listing is used; `None` for ever.
    pub listed_for: Option<Duration>,
    /// Whether to refuse objects without a strong entity tag.
    pub requires_etag: bool,
}

/// See the module's documentation.
pub(crate) struct RemoteSource {
    place: Place,
    view: RemoteView,
    /// If the place is one object: its name and what is known of it.
    only: Option<(String, Facts)>,
    listings: Mutex<LruCache<String, Arc<Slot>>>,
    /// What was found at last where a listing has no strong entity tags, by path.
    found: Mutex<LruCache<String, Seen>>,
    /// The footers of archives.
    pub footers: Footers,
    /// What failed at last, and when.
    failures: Mutex<LruCache<String, (Instant, Errno)>>,
    template: Stat,
    since: SystemTime,
}

/// The listing of a directory, if it is known. Locked while it is fetched, so that it is fetched
/// once.
type Slot = Mutex<Option<Arc<Listing>>>;

/// A directory of the source.
pub(crate) struct RemoteDir<'a> {
    source: &'a RemoteSource,
    listing: Arc<Listing>,
    path: String,
}

impl RemoteSource {
    /// The source at `place`. If that is one object, its name comes with it.
    ///
    /// # Errors
    /// Those of [`Place::find`].
    pub fn open(place: Place, view: RemoteView) -> Outcome<(Self, Option<OsString>)> {
        let view = match place.is_pinned() {
            true => RemoteView { listed_for: None, ..view },
            false => view,
        };
        let template = rustix::fs::stat("/").map_err(|e| Error::os(e.raw_os_error(), "/"))?;
        let mut source = Self {
            place,
            view,
            only: None,
            listings: Mutex::new(LruCache::new(LISTINGS)),
            found: Mutex::new(LruCache::new(FOUND)),
            footers: Footers::new(),
            failures: Mutex::new(LruCache::new(LISTINGS)),
            template,
            since: SystemTime::now(),
        };
        match source.place.find() {
            Ok(Found::Directory(entries)) => {
                *locked(&source.slot("")) = Some(Arc::new(Listing::new(entries, true)));
            }
            Ok(Found::Object(object)) => {
                let name = source.place.name("");
                let name = name.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
                source.only = Some((name, object.identity().facts.clone()));
            }
            Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => {
                log::warn!("{e}: files can be opened by their names");
            }
            Err(e) => return Err(e),
        }
        let only = source.only.as_ref().map(|(name, _)| name.into());
        Ok((source, only))
    }

    /// Forget all listings and footers, and the stored bytes that are in memory.
    pub fn forget(&self) {
        self.listings().clear();
        self.footers.clear();
        locked(&self.failures).clear();
        self.place.clear();
    }

    /// Forget the listing of the directory of the object at `path`, which was found to be outdated.
    pub fn forget_beside(&self, path: &Path) {
        if let Some(dir) = path.parent().and_then(Path::to_str) {
            self.listings().pop(dir);
        }
    }

    /// What messages call the file at `path`.
    pub fn name(&self, path: &Path) -> PathBuf {
        self.place.name(&path.to_string_lossy())
    }

    /// Run `job` on a thread that may wait for the network. If none can be started, it is dropped.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(e) = self.place.spawn(job) {
            log::error!("{e}");
        }
    }

    /// What was fetched so far.
    pub fn stats(&self) -> RemoteStats {
        self.place.stats()
    }

    /// The directory at `path`.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; `EIO` after the deadline.
    pub fn dir(&self, path: &Path) -> Result<RemoteDir<'_>> {
        let path = path.to_str().ok_or(Errno::NOENT)?;
        let slot = self.slot(path);
        let mut known = locked(&slot);
        let fresh = known
            .as_ref()
            .filter(|listing| self.view.listed_for.is_none_or(|most| listing.at.elapsed() < most));
        let listing = match fresh {
            Some(listing) => Arc::clone(listing),
            None => Arc::new(self.fetch(path)?),
        };
        *known = Some(Arc::clone(&listing));
        Ok(RemoteDir { source: self, listing, path: path.to_owned() })
    }

    fn fetch(&self, path: &str) -> Result<Listing> {
        if let Some((name, facts)) = &self.only {
            let entry = Entry { name: name.clone(), file: Some(facts.clone()) };
            return Ok(Listing::new(vec![entry], true));
        }
        let begun = Instant::now();
        let listing = self.attempt(path, |place| match place.list(path) {
            Ok(entries) => Ok(Listing::new(entries, true)),
            Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => Ok(Listing::new(Vec::new(), false)),
            Err(e) => Err(e),
        });
        listing.map(|listing| Listing { took: begun.elapsed(), ..listing })
    }

    /// Ask for what is at `path`, unless that has just failed.
    fn attempt<T>(&self, path: &str, ask: impl FnOnce(&Place) -> Outcome<T>) -> Result<T> {
        let failed = locked(&self.failures).get(path).copied();
        if let Some((_, e)) = failed.filter(|(at, _)| at.elapsed() < MISSING_FOR) {
            return Err(e);
        }
        ask(&self.place).map_err(|e| {
            if e.errno() == Some(libc::ENOENT) {
                return Errno::NOENT;
            }
            let errno = open_failed(&self.place.name(path), &e);
            locked(&self.failures).put(path.to_owned(), (Instant::now(), errno));
            errno
        })
    }

    /// See [`Files::renew`](super::files::Files::renew).
    pub fn renew(&self, path: &Path) -> bool {
        let Some(path) = path.to_str() else { return false };
        let slot = self.slot(path);
        let mut known = locked(&slot);
        let most = |listing: &Listing| MISSING_FOR.max(10 * listing.took);
        let is_old = known.as_ref().is_some_and(|known| known.at.elapsed() >= most(known));
        let may_change = self.view.listed_for.is_some() && self.only.is_none();
        if is_old && may_change {
            *known = None;
        }
        is_old && may_change
    }

    fn slot(&self, path: &str) -> Arc<Slot> {
        let mut listings = self.listings();
        Arc::clone(listings.get_or_insert(path.to_owned(), Arc::default))
    }

    fn listings(&self) -> MutexGuard<'_, LruCache<String, Arc<Slot>>> {
        locked(&self.listings)
    }

    /// The attributes of the directory at `path`.
    #[allow(clippy::unnecessary_cast)]
    pub fn dir_stat(&self, path: &str) -> Stat {
        let id = Identity { url: path.into(), facts: Facts::default() }.key("directory");
        let mut stat = self.stat(id, self.since);
        stat.st_mode = (FileType::Directory.as_raw_mode() | 0o555) as _;
        stat
    }

    #[allow(clippy::unnecessary_cast)]
    fn file_stat(&self, path: &str, facts: &Facts) -> Stat {
        let other = locked(&self.found).peek(path).and_then(|seen| seen.other_than(facts));
        let own = other.unwrap_or_else(|| facts.clone());
        let id = Identity { url: path.into(), facts: own }.key("file");
        let mut stat = self.stat(id, facts.modified.unwrap_or(self.since));
        stat.st_mode = (FileType::RegularFile.as_raw_mode() | 0o444) as _;
        stat.st_size = facts.size as _;
        stat.st_blocks = facts.size.div_ceil(512) as _;
        stat
    }

    /// What files and directories have in common.
    #[allow(clippy::unnecessary_cast)]
    fn stat(&self, id: u128, time: SystemTime) -> Stat {
        let mut stat = self.template;
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        (stat.st_dev, stat.st_rdev, stat.st_nlink) = (0, 0, 1);
        (stat.st_size, stat.st_blocks, stat.st_blksize) = (0, 0, 4096);
        // Small enough to be shown as it is: see `inode_number`.
        stat.st_ino = (id as u64 >> 4 | 1 << 32) as _;
        (stat.st_uid, stat.st_gid) = (geteuid().as_raw() as _, getegid().as_raw() as _);
        let (seconds, nanos) = (since_epoch.as_secs(), since_epoch.subsec_nanos());
        (stat.st_atime, stat.st_mtime, stat.st_ctime) = (seconds as _, seconds as _, seconds as _);
        stat.st_atime_nsec = nanos as _;
        stat.st_mtime_nsec = nanos as _;
        stat.st_ctime_nsec = nanos as _;
        stat
    }
}

impl RemoteDir<'_> {
    /// What it is a directory of.
    pub fn source(&self) -> &RemoteSource {
        self.source
    }

    /// Names, types and inode numbers of all entries.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, if the server has no listings.
    pub fn entries(&self) -> Result<Vec<(OsString, FileType, Option<u64>)>> {
        if !self.listing.is_complete {
            return Err(Errno::OPNOTSUPP);
        }
        let entries = locked(&self.listing.entries);
        let entry = |(name, file): (&String, &Option<Facts>)| {
            let stat = self.stat_of(name, file.as_ref());
            let kind = FileType::from_raw_mode(stat.st_mode);
            (name.into(), kind, Some(super::attr::Identity::of(&stat).ino))
        };
        Ok(entries.iter().map(entry).collect())
    }

    /// The attributes of an entry.
    pub fn stat(&self, name: &OsStr) -> Result<Stat> {
        let name = name.to_str().ok_or(Errno::NOENT)?;
        Ok(self.stat_of(name, self.find(name)?.as_ref()))
    }

    fn stat_of(&self, name: &str, file: Option<&Facts>) -> Stat {
        let path = join(&self.path, name);
        match file {
            Some(facts) => self.source.file_stat(&path, facts),
            None => self.source.dir_stat(&path),
        }
    }

    /// What is known of an entry; `None` of a directory.
    fn find(&self, name: &str) -> Result<Option<Facts>> {
        if let Some(known) = locked(&self.listing.entries).get(name) {
            return Ok(known.clone());
        }
        if self.listing.is_complete {
            return Err(Errno::NOENT);
        }
        let path = join(&self.path, name);
        let facts = self.source.attempt(&path, |place| place.stat(&path))?;
        locked(&self.listing.entries).insert(name.to_owned(), Some(facts.clone()));
        Ok(Some(facts))
    }

    /// Open the object `name`, with its attributes. `ESTALE`, if it is not the one that was listed.
    pub fn open(&self, name: &OsStr) -> Result<(Arc<Object>, Stat)> {
        self.open_by(name, |place, at, listed| place.open(at, Some(listed)))
    }

    /// Open the object `name` to read its footer.
    pub fn open_end(&self, name: &OsStr) -> Result<(Arc<Object>, Stat)> {
        self.open_by(name, |place, at, listed| place.open_end(at, Some(listed), FOOTER_LEN))
    }

    /// If the listing is outdated, as `result` says, forget it: the kernel looks the name up again.
    pub fn noted<T>(&self, result: Result<T>) -> Result<T> {
        if matches!(result, Err(Errno::STALE)) {
            self.source.listings().pop(&self.path);
        }
        result
    }

    fn open_by(
        &self,
        name: &OsStr,
        open: impl FnOnce(&Place, &str, &Facts) -> Outcome<Object>,
    ) -> Result<(Arc<Object>, Stat)> {
        let name = name.to_str().ok_or(Errno::NOENT)?;
        let listed = self.find(name)?.ok_or(Errno::ISDIR)?;
        let path = join(&self.path, name);
        let at = if self.source.only.is_some() { "" } else { &path };
        let opened = self.source.attempt(at, |place| open(place, at, &listed));
        let object = match opened {
            Ok(object) if self.is_expected(&path, &listed, &object.identity().facts) => object,
            Ok(_) | Err(Errno::NOENT) => {
                self.source.forget_beside(Path::new(&path));
                return Err(Errno::STALE);
            }
            Err(e) => return Err(e),
        };
        if self.source.view.requires_etag && !object.identity().facts.is_strong() {
            log::error!("{}: has no strong ETag", escape::path(&self.source.place.name(at)));
            return Err(Errno::IO);
        }
        Ok((Arc::new(object), self.source.file_stat(&path, &listed)))
    }

    /// Whether an opened object is the one that the entry of the listing stood for before.
    fn is_expected(&self, path: &str, listed: &Facts, opened: &Facts) -> bool {
        if listed.is_strong() || !is_same(listed, opened) {
            return is_same(listed, opened);
        }
        let mut found = locked(&self.source.found);
        let seen = Seen::after(found.get(path), listed, opened);
        let is_other = seen.is_other_than(found.get(path));
        found.put(path.to_owned(), seen);
        !is_other
    }
}

/// Call `look` with all of these names, several at once, until one fails.
pub(super) fn at_once(names: &[&OsStr], look: impl Fn(&OsStr) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = look(name) {
                *locked(&failed) = Some(e);
                next.store(names.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..names.len().min(AT_ONCE) {
            // Without more threads, it takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    locked(&failed).map_or(Ok(()), Err)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
