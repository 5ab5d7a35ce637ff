//! What a URL names: an object, or a directory of objects.

use super::{
    answer::Entry,
    counters::RemoteStats,
    failure::Failure,
    fetch::Fetcher,
    identity::Facts,
    object::{Object, TAIL},
    options::{Deadlines, RemoteOptions},
    retry::repeat,
    store::Store,
    url::{RemoteUrl, Service},
};
use crate::error::{Context, Error, Result};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Directories may be nested so deeply.
const DEEPEST: usize = 100;

/// The place that a URL names.
pub struct Place {
    fetcher: Arc<Fetcher>,
    store: Arc<Store>,
    url: RemoteUrl,
}

/// What is there.
pub enum Found {
    /// An object.
    Object(Arc<Object>),
    /// A directory, with its entries.
    Directory(Vec<Entry>),
}

impl Place {
    /// The place of a URL. Nothing is asked for yet, and no thread is started.
    ///
    /// # Errors
    /// Invalid argument: the URL, or the configuration in the environment. Io: the disk cache.
    pub fn new(url: &str, options: &RemoteOptions) -> Result<Self> {
        // Not the URL itself: a malformed one may hold secrets.
        let url = RemoteUrl::parse(url).about("URL")?;
        let store = Arc::new(Store::new(&url, options.deadlines)?);
        let fetcher = Arc::new(Fetcher::new(options)?);
        Ok(Self { fetcher, store, url })
    }

    /// What messages call an entry below this place.
    pub fn name(&self, path: &str) -> PathBuf {
        self.url.name(path)
    }

    /// Find out what is there.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; `EIO` after the deadline, or if the server lists no directories.
    pub fn find(&self) -> Result<Found> {
        let object = || self.open("", None).map(|object| Found::Object(Arc::new(object)));
        if self.url.is_directory {
            return self.list("").map(Found::Directory);
        }
        // A web server knows the difference by the URL. Elsewhere, what looks more likely is asked
        // for first; there are stores that fail when they are asked for a directory as an object.
        let missing = |e: &Error| e.errno() == Some(libc::ENOENT);
        match &self.url.service {
            Service::Web { .. } => object(),
            _ if self.url.path.ends_with(".bsz") => match object() {
                Err(e) if missing(&e) => self.list("").map(Found::Directory),
                found => found,
            },
            _ => match self.list("") {
                Err(e) if missing(&e) => object(),
                listed => listed.map(Found::Directory),
            },
        }
    }

    /// The entries of the directory `path` below this place.
    ///
    /// # Errors
    /// As [`Place::find`]; invalid argument, if it is nested too deeply.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let name = self.name(path);
        if path.split('/').count() > DEEPEST {
            return Err(Error::invalid("too deeply nested")).about_path(&name);
        }
        let total = self.fetcher.deadlines().total;
        self.noted(&name, self.fetcher.wait(listed(&self.store, &self.url.key(path), total)))
    }

    /// Open the object `path` below this place, whose facts may be known from a listing.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub fn open(&self, path: &str, known: Option<&Facts>) -> Result<Object> {
        self.open_end(path, known, TAIL)
    }

    /// What is known of the object `path` below this place, whether or not there are listings.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub fn stat(&self, path: &str) -> Result<Facts> {
        let Deadlines { silence, total, .. } = self.fetcher.deadlines();
        let key = self.url.key(path);
        let ask = || self.store.stat(&key);
        let stat = repeat(&self.store, silence, Instant::now() + total, ask);
        self.noted(&self.name(path), self.fetcher.wait(stat))
    }

    /// Whether what is there never changes: a commit of a repository.
    pub fn is_pinned(&self) -> bool {
        matches!(self.url.service, Service::Hub { .. })
    }

    /// Run `job` on a thread that may wait for the network.
    ///
    /// # Errors
    /// Io, if no threads can be started.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        self.fetcher.spawn(job)
    }

    /// What was fetched so far.
    pub fn stats(&self) -> RemoteStats {
        self.fetcher.stats()
    }

    /// Forget the stored bytes that are kept in memory.
    pub fn clear(&self) {
        self.fetcher.clear();
    }

    /// As [`Place::open`], of an object of which only the last `end` bytes are likely to be read.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub fn open_end(&self, path: &str, known: Option<&Facts>, end: u64) -> Result<Object> {
        let name = self.name(path);
        let (shown, key) = (name.to_string_lossy(), self.url.key(path));
        let object = Object::open(&self.fetcher, &self.store, (&key, &shown), known, end);
        self.noted(&name, object)
    }

    /// Name what is at `name` in an error, and remember that.
    fn noted<T>(&self, name: &Path, result: Result<T>) -> Result<T> {
        if let Err(e) = &result
            && e.errno() != Some(libc::ENOENT)
        {
            self.fetcher.failed(&name.to_string_lossy(), e);
        }
        result.about_path(name)
    }
}

/// The entries of a directory, by name in order.
async fn listed(store: &Store, key: &str, total: Duration) -> Result<Vec<Entry>, Failure> {
    // A listing may have many pages, so that no time without a byte is known.
    let ask = || store.list(key);
    let mut entries = repeat(store, total, Instant::now() + total, ask).await?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}
