//! Directories of a place, remembered for a while. Each is asked for once at a time, and no thread
//! waits: whoever asks is called back.

use super::{answer::Entry, identity::Facts, object::Object, place::Place};
use crate::error::{Error, Result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The entries of a directory, by name in order.
pub type Entries = Arc<[Entry]>;

/// Called once with the entries, on the thread that asks if they are known, else on one that must
/// not be held up.
pub type Listed = Box<dyn FnOnce(Result<Entries>) + Send>;

/// How long it is believed that a directory is not there, or cannot be seen.
const MISSING: Duration = Duration::from_secs(1);

/// The most directories that are remembered.
const MOST: usize = 100_000;

/// The directories of a place.
pub struct Tree {
    place: Arc<Place>,
    /// How long a listing is believed; `None` for ever, as for a commit.
    ttl: Option<Duration>,
    directories: Mutex<HashMap<String, Directory>>,
}

enum Directory {
    /// These wait for an answer.
    Asked(Vec<Listed>),
    Known(Result<Entries>, Instant),
}

impl Tree {
    /// Believe listings of `place` for `ttl`, or for ever.
    pub fn new(place: Arc<Place>, ttl: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { place, ttl, directories: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Directory>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries of the directory `path`, for `done`.
    pub fn list(self: &Arc<Self>, path: &str, done: Listed) {
        let known = {
            let mut directories = self.lock();
            match directories.get_mut(path) {
                Some(Directory::Asked(waiting)) => return waiting.push(done),
                Some(Directory::Known(entries, at)) if self.is_fresh(entries, *at) => {
                    entries.clone()
                }
                _ => {
                    if directories.len() >= MOST {
                        directories.retain(|_, known| matches!(known, Directory::Asked(_)));
                    }
                    directories.insert(path.to_owned(), Directory::Asked(vec![done]));
                    drop(directories);
                    return self.ask(path);
                }
            }
        };
        done(known);
    }

    fn ask(self: &Arc<Self>, path: &str) {
        let (tree, asked) = (Arc::downgrade(self), path.to_owned());
        self.place.list_then(path, move |listed| {
            // Nobody waits if it is gone: they were dropped with it.
            if let Some(tree) = tree.upgrade() {
                tree.answer(&asked, listed.map(Into::into));
            }
        });
    }

    fn answer(&self, path: &str, entries: Result<Entries>) {
        let known = Directory::Known(entries.clone(), Instant::now());
        let before = self.lock().insert(path.to_owned(), known);
        if let Some(Directory::Asked(waiting)) = before {
            waiting.into_iter().for_each(|done| done(entries.clone()));
        }
    }

    fn is_fresh(&self, entries: &Result<Entries>, at: Instant) -> bool {
        match (entries, self.ttl) {
            (Err(_), _) => at.elapsed() < MISSING,
            (Ok(_), Some(ttl)) => at.elapsed() < ttl,
            (Ok(_), None) => true,
        }
    }

    /// Forget what is known.
    pub fn forget(&self) {
        self.lock().retain(|_, directory| matches!(directory, Directory::Asked(_)));
    }

    /// Open the object `path`, whose facts are known from its directory. Waits for the network if
    /// the listing has told no ETag.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn open(&self, path: &str, facts: &Facts) -> Result<Object> {
        self.place.open(path, Some(facts))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let gone = std::mem::take(&mut *self.lock());
        for directory in gone.into_values() {
            if let Directory::Asked(waiting) = directory {
                let e = Error::os(libc::EIO, "the listing was abandoned");
                waiting.into_iter().for_each(|done| done(Err(e.clone())));
            }
        }
    }
}
