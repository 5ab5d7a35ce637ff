//! An open remote object. It stays the same one: once it is replaced, reads fail with `ESTALE`.

use super::{
    answer::{Answer, Wanted},
    blocks::{PartKey, Source},
    demand::{Done, Stored},
    failure::Failure,
    fetch::Fetcher,
    identity::{Facts, Identity},
    parts::{Pattern, Priority, Streams},
    retry::{repeat, within},
    store::Store,
};
use crate::error::{Error, Result};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError, mpsc},
};
use tokio::time::Instant;

/// What is fetched of the end of an object first. It holds the footer of an archive, and the index
/// of all but the largest ones.
pub const TAIL: u64 = 1 << 20;

/// An open object.
pub struct Object {
    fetcher: Arc<Fetcher>,
    source: Arc<Source>,
    streams: Mutex<Streams>,
}

impl Object {
    /// Open the object `key` of a store, which messages call `name`. If its facts are not known
    /// from a listing, they are asked for, together with its last `end` bytes if that takes no
    /// other request.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; `EIO` after the deadline.
    pub fn open(
        fetcher: &Arc<Fetcher>,
        store: &Arc<Store>,
        (key, name): (&str, &str),
        known: Option<&Facts>,
        end: u64,
    ) -> Result<Self> {
        let (facts, tail) = match known.filter(|facts| facts.is_strong()) {
            Some(facts) => (facts.clone(), None),
            None => fetcher.wait(first_request(fetcher, store, key, end))?,
        };
        let identity = Identity { url: name.into(), facts };
        let id = identity.key(&store.scope());
        let (store, key) = (Arc::clone(store), key.to_owned());
        let source = Arc::new(Source { store, key, identity, id });
        let object = Self { fetcher: Arc::clone(fetcher), source, streams: Mutex::default() };
        fetcher.opened(&object.source);
        if let Some(bytes) = tail.filter(|bytes| !bytes.is_empty()) {
            let part = object.end(bytes.len() as u64);
            object.fetcher.keep(&object.source, part, bytes.into());
        }
        if !object.identity().facts.is_strong() {
            log::info!("{name}: has no strong ETag: nothing of it is kept on disk");
        }
        Ok(object)
    }

    /// Which object it is.
    pub fn identity(&self) -> &Identity {
        &self.source.identity
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.source.identity.facts.size
    }

    /// Fill `out` with the bytes at `at`; waits for them. Reads in order are fetched ahead of.
    ///
    /// # Errors
    /// `ESTALE`, if the object was replaced; `EACCES`; `EIO` after the deadline; truncated, if the
    /// object ends before.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let range = self.range(at, out.len())?;
        let stored = wait(|done| match self.in_tail(&range) {
            Some(tail) => self.fetch_of(tail, &range, Priority::Demand, done),
            None => self.fetch_in_order(range, done),
        })?;
        stored.copy_to(out);
        Ok(())
    }

    /// Read `range`, and call `done` with its bytes, or with the errors of [`Object::read`]. The
    /// calling thread reads from the disk cache at most; it never waits for the network.
    pub fn fetch(&self, range: Range<u64>, pattern: Pattern, done: Done) {
        self.fetch_with(range, (pattern, Priority::Demand), done);
    }

    /// Read `range` ahead, after all that somebody waits for, as [`Object::fetch`]. Somebody may
    /// come to wait for it: then [`Object::hurry`].
    pub fn fetch_ahead(&self, range: Range<u64>, done: Done) {
        // Long requests have been made before, by `ahead_in_order`.
        self.fetch_with(range, (Pattern::Random, Priority::Ahead), done);
    }

    fn fetch_with(&self, range: Range<u64>, how: (Pattern, Priority), done: Done) {
        if range.start > range.end || range.end > self.size() {
            return done(Err(too_short()));
        }
        match self.in_tail(&range) {
            Some(tail) => self.fetch_of(tail, &range, how.1, done),
            None => self.fetcher.fetch(&self.source, range, how, done),
        }
    }

    /// Somebody waits for `range`, which was to be read ahead.
    pub fn hurry(&self, range: &Range<u64>) {
        self.fetcher.hurry(&self.source, range);
    }

    /// Read exactly `range`, which is short, whatever else it is a part of. Waits for it.
    ///
    /// # Errors
    /// As [`Object::read`].
    pub fn read_exactly(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let range = self.range(at, out.len())?;
        let how = (Pattern::Random, Priority::Demand);
        wait(|done| self.fetcher.fetch(&self.source, range, how, done))?.copy_to(out);
        Ok(())
    }

    /// Run `job` on a thread that may wait for the network. If none can be started, it is dropped.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(e) = self.fetcher.spawn(job) {
            log::error!("{e}");
        }
    }

    /// Like [`Object::fetch`], and notice reads in order to fetch ahead of them.
    pub fn fetch_in_order(&self, range: Range<u64>, done: Done) {
        let (pattern, ahead) = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            streams.read(&range, self.fetcher.window(), self.size())
        };
        // First, so that the read joins a long request instead of making a short one.
        self.ahead(ahead);
        self.fetch(range, pattern, done);
    }

    /// Fetch `range` before it is read, after all that somebody waits for. Failures are silent.
    pub fn ahead(&self, range: Range<u64>) {
        let range = range.start..range.end.min(self.size());
        if !range.is_empty() {
            self.fetcher.ahead(&self.source, range);
        }
    }

    /// As [`Object::ahead`]; if `range` continues reads in order, fetch ahead of it as well.
    pub fn ahead_in_order(&self, range: Range<u64>) {
        let ahead = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            streams.will_read(range, self.fetcher.window(), self.size())
        };
        self.ahead(ahead);
    }

    /// Forget what is cached of `range`, because it was found to be damaged: it is fetched again.
    pub fn forget(&self, range: &Range<u64>) {
        self.fetcher.forget(&self.source, range);
    }

    fn range(&self, at: u64, len: usize) -> Result<Range<u64>> {
        let end = at.checked_add(len as u64).filter(|end| *end <= self.size());
        end.map(|end| at..end).ok_or_else(too_short)
    }

    /// The part at the end.
    fn tail(&self) -> Option<PartKey> {
        let len = self.size().min(TAIL);
        (len > 0).then(|| self.end(len))
    }

    /// The last `len` bytes, which are not more than there are.
    fn end(&self, len: u64) -> PartKey {
        PartKey { object: self.source.id, start: self.size() - len, len: len as u32 }
    }

    fn in_tail(&self, range: &Range<u64>) -> Option<PartKey> {
        self.tail().filter(|tail| tail.start <= range.start && !range.is_empty())
    }

    /// Read `range`, which is within the part `tail`, and have all of that fetched for it.
    fn fetch_of(&self, tail: PartKey, range: &Range<u64>, priority: Priority, done: Done) {
        let wanted = (range.start - tail.start) as usize..(range.end - tail.start) as usize;
        self.fetcher.fetch_part(&self.source, (tail, wanted), priority, done);
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.fetcher.closed(&self.source);
    }
}

/// Wait for a read that calls back.
fn wait(read: impl FnOnce(Done)) -> Result<Stored> {
    let (send, receive) = mpsc::sync_channel(1);
    read(Box::new(move |stored| drop(send.send(stored))));
    let gone = |_| Error::os(libc::EIO, "the read was abandoned");
    receive.recv().map_err(gone)?
}

fn too_short() -> Error {
    Error::truncated("the archive is shorter than it was or should be")
}

/// Learn the facts of an object, and fetch its end by the same request if nothing of it can be on
/// disk.
async fn first_request(
    fetcher: &Fetcher,
    store: &Store,
    key: &str,
    end: u64,
) -> Result<(Facts, Option<Bytes>), Failure> {
    let deadlines = fetcher.deadlines();
    let deadline = Instant::now() + deadlines.total;
    fetcher.asking();
    if store.has_suffixes() && !fetcher.has_disk() {
        let wanted = Wanted::Suffix(end);
        let ask = async {
            let ask = store.get(key, &wanted, None);
            let Answer { facts, range, mut body } =
                within(deadlines.silence, deadline, ask).await?;
            let mut bytes = Vec::new();
            while let Some(piece) =
                within(deadlines.silence, deadline, body.next().map(Option::transpose)).await?
            {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > range.end - range.start {
                    return Err(Failure::Fatal("the server sends more than it says".into()));
                }
            }
            match bytes.len() as u64 == range.end - range.start {
                true => Ok((facts, Some(bytes.into()))),
                false => Err(Failure::transient("the answer ended early")),
            }
        };
        // Once: empty objects have no ranges, some servers no suffixes, or none that are longer
        // than the object.
        match ask.await {
            Err(Failure::Missing) => return Err(Failure::Missing),
            Err(_) => {}
            found => return found,
        }
    }
    let facts = repeat(store, deadlines.silence, deadline, || store.stat(key)).await?;
    Ok((facts, None))
}
