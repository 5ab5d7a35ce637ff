//! What a URL's server can do, and how fast: for those who ask why something does not work.

use super::{
    answer::{Answer, Entry, Wanted},
    failure::Failure,
    fetch::Fetcher,
    identity::Facts,
    options::{Deadlines, RemoteOptions},
    origin::Origin,
    retry::{repeat, within},
    store::Store,
    url::{RemoteUrl, join},
};
use crate::error::{Context, Result};
use futures_util::{FutureExt, StreamExt};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// The most directories in which an object is looked for.
const MOST_LISTED: usize = 50;

/// Asks for small pieces, and not through any cache.
pub struct Probe {
    fetcher: Fetcher,
    store: Store,
    url: RemoteUrl,
}

/// What was found at a URL.
pub struct Seen {
    /// The object, or the largest one in the directories that were looked into.
    pub object: Option<Sample>,
    /// How many entries the directory has, if it is one.
    pub entries: Option<usize>,
}

/// An object to try things on.
pub struct Sample {
    /// Its path in the store.
    pub key: String,
    /// What is known of it.
    pub facts: Facts,
}

impl Probe {
    /// Of a URL. Nothing is sent yet.
    ///
    /// # Errors
    /// Invalid argument: the URL, the configuration in the environment, or the certificates of the
    /// system.
    pub fn new(url: &str, options: &RemoteOptions) -> Result<Self> {
        let url = RemoteUrl::parse(url)?;
        let store = Store::new(&url, options.deadlines)?;
        Ok(Self { fetcher: Fetcher::new(options)?, store, url })
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        self.url.to_string()
    }

    /// Where its credentials come from.
    pub fn origin(&self) -> Origin {
        Origin::of(&self.url)
    }

    /// Find an object.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; `EIO` after the deadline, or if the server lists no directories.
    pub fn look(&self) -> Result<Seen> {
        let key = self.url.path.clone();
        if !self.url.is_directory {
            let stat = self.fetcher.wait(self.asking(|| self.store.stat(&key)));
            match stat {
                Err(e) if e.errno() == Some(libc::ENOENT) => {}
                facts => {
                    let object = Some(Sample { key, facts: facts? });
                    return Ok(Seen { object, entries: None });
                }
            }
        }
        let entries = self.list(&key)?;
        let found = entries.len();
        Ok(Seen { object: self.largest(key, entries), entries: Some(found) })
    }

    /// How many entries the directory has that the URL names or is in.
    ///
    /// # Errors
    /// As [`Probe::look`].
    pub fn lists(&self) -> Result<usize> {
        let dir = self.url.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        self.list(if self.url.is_directory { &self.url.path } else { dir }).map(|list| list.len())
    }

    /// The shortest and the usual time until the first byte of a small range has arrived, of so
    /// many requests.
    ///
    /// # Errors
    /// `EIO` if the server does not answer with the range.
    pub fn first_byte(&self, sample: &Sample, requests: usize) -> Result<(Duration, Duration)> {
        let Sample { key, facts } = sample;
        let mut took = Vec::new();
        for i in 0..requests.max(1) as u64 {
            let at = facts.size.saturating_sub(1) * i / requests.max(1) as u64;
            let begun = Instant::now();
            let one = || self.read(key, facts, at..(at + 1).min(facts.size), Duration::MAX);
            self.fetcher.wait(self.asking(one)).about("ranges")?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        Ok((took[0], took[took.len() / 2]))
    }

    /// How many bytes of one request for up to `most` arrive within a time, and in which.
    ///
    /// # Errors
    /// `EIO` if the server does not answer.
    pub fn rate(&self, sample: &Sample, most: u64, time: Duration) -> Result<(u64, Duration)> {
        let Sample { key, facts } = sample;
        let begun = Instant::now();
        let read = || self.read(key, facts, 0..most.min(facts.size), time);
        let bytes = self.fetcher.wait(self.asking(read))?;
        Ok((bytes, begun.elapsed()))
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>> {
        self.fetcher.wait(self.asking(|| self.store.list(dir)))
    }

    /// The largest object in a directory; in those below it if there is none.
    fn largest(&self, dir: String, entries: Vec<Entry>) -> Option<Sample> {
        let mut todo = VecDeque::from([(dir, Some(entries))]);
        for _ in 0..MOST_LISTED {
            let (dir, entries) = todo.pop_front()?;
            let entries = entries.or_else(|| self.list(&dir).ok()).unwrap_or_default();
            let mut largest: Option<Sample> = None;
            for Entry { name, file } in entries {
                let key = join(&dir, &name);
                match file {
                    Some(facts) if largest.as_ref().is_none_or(|l| l.facts.size < facts.size) => {
                        largest = Some(Sample { key, facts });
                    }
                    Some(_) => {}
                    None => todo.push_back((key, None)),
                }
            }
            // A listing may know less than the object itself.
            if let Some(Sample { key, facts }) = largest {
                let stat = self.fetcher.wait(self.asking(|| self.store.stat(&key)));
                return Some(Sample { facts: stat.unwrap_or(facts), key });
            }
        }
        None
    }

    /// Ask, and repeat that within the deadline.
    async fn asking<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        ask: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        let Deadlines { total, .. } = self.fetcher.deadlines();
        repeat(&self.store, total, Instant::now() + total, ask).await
    }

    /// Read a range for at most a time. Returns how many bytes have arrived.
    async fn read(
        &self,
        key: &str,
        facts: &Facts,
        range: std::ops::Range<u64>,
        time: Duration,
    ) -> Result<u64, Failure> {
        let Deadlines { silence, total, .. } = self.fetcher.deadlines();
        let begun = Instant::now();
        if range.is_empty() {
            return self.store.stat(key).await.map(|_| 0);
        }
        let wanted = Wanted::Range(range);
        let Answer { mut body, .. } = self.store.get(key, &wanted, Some(facts)).await?;
        let mut bytes = 0;
        while begun.elapsed() < time {
            let piece = body.next().map(Option::transpose);
            match within(silence, Instant::now() + total, piece).await? {
                Some(piece) => bytes += piece.len() as u64,
                None => break,
            }
        }
        Ok(bytes)
    }
}
