//! What a URL names: an object, or a directory of objects.

use super::{
    answer::Entry,
    failure::Failure,
    fetch::Fetcher,
    identity::Facts,
    object::Object,
    options::RemoteOptions,
    retry::repeat,
    store::Store,
    url::{RemoteUrl, Service},
};
use crate::error::{Context, Error, Result};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

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
        let url = RemoteUrl::parse(url)?;
        let store = Arc::new(Store::new(&url, options.deadlines)?);
        let fetcher = Arc::new(Fetcher::new(options)?);
        Ok(Self { fetcher, store, url })
    }

    /// Its URL, as it may be shown to anybody.
    pub fn url(&self) -> &RemoteUrl {
        &self.url
    }

    /// What messages call an entry below this place.
    pub fn name(&self, path: &str) -> PathBuf {
        let url = self.url.to_string();
        match path {
            "" => url.into(),
            _ if url.ends_with('/') => format!("{url}{path}").into(),
            _ => format!("{url}/{path}").into(),
        }
    }

    /// Find out what is there.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; `EIO` after the deadline, or if the server lists no directories.
    pub fn find(&self) -> Result<Found> {
        let name = self.name("");
        if !self.url.is_directory {
            match self.open("", None) {
                Err(e) if e.errno() == Some(libc::ENOENT) => {}
                found => return found.map(|object| Found::Object(Arc::new(object))),
            }
            // A web server has said that it is not there.
            if matches!(self.url.service, Service::Web { .. }) {
                return Err(Error::from(Failure::Missing)).about_path(&name);
            }
        }
        self.list("").map(Found::Directory)
    }

    /// The entries of the directory `path` below this place.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let (store, key) = (Arc::clone(&self.store), self.key(path));
        let listed = self.fetcher.wait(listed(store, key, self.fetcher.deadlines().total));
        listed.about_path(&self.name(path))
    }

    /// Like [`Place::list`], without waiting: `done` is called with the entries.
    pub fn list_then(&self, path: &str, done: impl FnOnce(Result<Vec<Entry>>) + Send + 'static) {
        let (store, key, name) = (Arc::clone(&self.store), self.key(path), self.name(path));
        let entries = listed(store, key, self.fetcher.deadlines().total);
        self.fetcher.spawn(entries, move |listed| done(listed.about_path(&name)));
    }

    /// Open the object `path` below this place, whose facts may be known from a listing.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub fn open(&self, path: &str, known: Option<&Facts>) -> Result<Object> {
        let name = self.name(path);
        let shown = name.to_string_lossy();
        Object::open(&self.fetcher, &self.store, &self.key(path), &shown, known).about_path(&name)
    }

    fn key(&self, path: &str) -> String {
        match (self.url.path.as_str(), path) {
            (base, "") => base.to_owned(),
            ("", path) => path.to_owned(),
            (base, path) => format!("{base}/{path}"),
        }
    }
}

/// The entries of a directory, by name in order.
async fn listed(store: Arc<Store>, key: String, total: Duration) -> Result<Vec<Entry>, Failure> {
    // A listing may have many pages, so that no time without a byte is known.
    let ask = || store.list(&key);
    let mut entries = repeat(&store, total, Instant::now() + total, ask).await?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}
