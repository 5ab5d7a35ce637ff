//! Uploads. An object appears whole or not at all, replaces another one only if that is asked for,
//! and is read back before it counts.

use super::{
    answer::{Answer, Wanted},
    body::Body,
    client::{ONLY_CREATES, failure_of},
    cloud::{Cloud, path},
    failure::Failure,
    fetch::Fetcher,
    identity::Facts,
    options::Deadlines,
    retry::{repeat, within},
    unfinished::Unfinished,
    web::unquoted,
};
use crate::error::{Error, Result};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, stream};
use object_store::{PutMode, PutResult, multipart::PartId, path::Path};
use sha2::{Digest, Sha256};
use std::{ops::Range, time::Duration};
use tokio::time::Instant;

/// Larger objects are uploaded in parts.
const AT_ONCE: u64 = 64 << 20;

/// The size of a part, and the most parts of an object.
const PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 10_000;

/// The most bytes that are held at once, unless two parts are more.
const HELD: u64 = 64 << 20;

/// Uploads slower than this, in bytes per second for each part, are given up.
const SLOWEST: u64 = 16 << 10;

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object was made.
    Made,
    /// The object was there already, with the same bytes.
    Same,
}

/// An upload.
pub struct Upload<'a> {
    /// The bucket.
    pub cloud: &'a Cloud,
    /// Runs the requests.
    pub fetcher: &'a Fetcher,
    /// What is uploaded.
    pub body: &'a dyn Body,
    /// Whether an object that is there is replaced.
    pub force: bool,
    /// Told of bytes twice: when they were sent, and when they were read back.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// The bytes of an object by their hashes, in parts of equal size except for the last.
struct Hashes {
    size: u64,
    part: u64,
    hashes: Vec<[u8; 32]>,
}

/// What the store says when it is asked to make an object.
enum Answered {
    /// It has the object, with this entity tag.
    Made(Option<String>),
    /// It has an object of that name already.
    Exists,
}

impl Upload<'_> {
    /// Upload to the object `key`.
    ///
    /// # Errors
    /// `EEXIST` if there is another object, unless it is to be replaced; `EACCES`; `EIO` after the
    /// deadline, or if other bytes are read back; those of the body.
    pub fn run(&self, key: &str) -> Result<Put> {
        self.fetcher.wait(async { Ok(self.upload(key).await) })?
    }

    async fn upload(&self, key: &str) -> Result<Put> {
        let key = path(key)?;
        if !self.force
            && let Some(facts) = self.look(&key).await?
        {
            if facts.size != self.body.size() {
                return Err(differs());
            }
            let hashes = self.hashes_of_body()?;
            return self.is_there(&key, &hashes).await;
        }
        let (hashes, answered) = match self.body.size() <= AT_ONCE {
            true => self.at_once(&key).await?,
            false => self.in_parts(&key).await?,
        };
        match answered {
            Answered::Made(tag) => self.verify(&key, &hashes, tag).await.map(|()| Put::Made),
            // Maybe by an earlier attempt of this very upload whose answer was lost.
            Answered::Exists => self.is_there(&key, &hashes).await,
        }
    }

    fn deadlines(&self) -> Deadlines {
        self.fetcher.deadlines()
    }

    /// What is there already. Who may write but not look is not told.
    async fn look(&self, key: &Path) -> Result<Option<Facts>> {
        match self.stat(key).await {
            Ok(facts) => Ok(Some(facts)),
            Err(Failure::Missing) => Ok(None),
            Err(Failure::Denied(_)) if self.cloud.completes_conditionally() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn stat(&self, key: &Path) -> Result<Facts, Failure> {
        let Deadlines { silence, total, .. } = self.deadlines();
        let ask = || self.cloud.stat(key.as_ref());
        repeat(self.cloud, silence, Instant::now() + total, ask).await
    }

    /// Repeat a request that sends `len` bytes.
    async fn send<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        len: u64,
        ask: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        let Deadlines { silence, total, .. } = self.deadlines();
        let sending = Duration::from_secs(len / SLOWEST);
        repeat(self.cloud, silence + sending, Instant::now() + total + sending, ask).await
    }

    async fn at_once(&self, key: &Path) -> Result<(Hashes, Answered)> {
        let size = self.body.size();
        let bytes = self.bytes(0..size)?;
        self.body.check()?;
        let part = size.max(1);
        let hashes = if size > 0 { vec![Sha256::digest(&bytes).into()] } else { Vec::new() };
        let mode = if self.force { PutMode::Overwrite } else { PutMode::Create };
        let ask = || {
            let put = (self.cloud.store(), bytes.clone(), mode.clone());
            async move { self.answered(put.0.put_opts(key, put.1.into(), put.2.into()).await) }
        };
        let answered = self.send(size, ask).await.map_err(no_bucket)?;
        (self.progress)(size);
        Ok((Hashes { size, part, hashes }, answered))
    }

    async fn in_parts(&self, key: &Path) -> Result<(Hashes, Answered)> {
        let store = self.cloud.parts();
        let begin = || Unfinished::begin(&store, key).map_err(|e| of_upload(&e));
        let upload = self.send(0, begin).await?;
        let done = self.parts(&upload).await;
        if !matches!(done, Ok((_, Answered::Made(_)))) {
            // By the credentials that were read last.
            Unfinished { store: self.cloud.parts(), ..upload.clone() }.abort().await;
        }
        upload.ends();
        done
    }

    /// Upload all parts, and complete the upload.
    async fn parts(&self, upload: &Unfinished) -> Result<(Hashes, Answered)> {
        let size = self.body.size();
        let part = part_size(size);
        let sent = stream::iter(ranges(size, part).enumerate());
        let sent = sent.map(|(i, range)| self.part(upload, i, range)).buffered(at_a_time(part));
        let (ids, hashes): (Vec<PartId>, Vec<_>) =
            sent.try_collect::<Vec<_>>().await?.into_iter().unzip();
        let hashes = Hashes { size, part, hashes };
        self.body.check()?;
        // Not every store that is asked for it completes conditionally.
        if !self.force && self.look(&upload.path).await?.is_some() {
            return Ok((hashes, Answered::Exists));
        }
        let only = !self.force && self.cloud.completes_conditionally();
        let mut attempts = 0;
        let complete = || {
            upload.continues();
            attempts += 1;
            let (store, ids) = (self.cloud.parts(), ids.clone());
            let complete =
                async move { store.complete_multipart(&upload.path, &upload.id, ids).await };
            ONLY_CREATES.scope(only, complete).map(|completed| self.answered(completed))
        };
        match self.send(0, complete).await {
            // There is no such upload any more, since an earlier attempt has completed it.
            Err(Failure::Missing) if attempts > 1 => Ok((hashes, Answered::Made(None))),
            answered => Ok((hashes, answered.map_err(no_bucket)?)),
        }
    }

    /// Upload one part.
    async fn part(
        &self,
        upload: &Unfinished,
        i: usize,
        range: Range<u64>,
    ) -> Result<(PartId, [u8; 32])> {
        let len = range.end - range.start;
        let bytes = self.bytes(range)?;
        let hash = Sha256::digest(&bytes).into();
        let ask = || {
            upload.continues();
            let (store, bytes) = (self.cloud.parts(), bytes.clone());
            async move {
                let put = store.put_part(&upload.path, &upload.id, i, bytes.into());
                put.await.map_err(|e| of_upload(&e))
            }
        };
        let id = self.send(len, ask).await?;
        (self.progress)(len);
        Ok((id, hash))
    }

    fn bytes(&self, range: Range<u64>) -> Result<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.body.read(range.start, &mut bytes)?;
        Ok(bytes.into())
    }

    fn hashes_of_body(&self) -> Result<Hashes> {
        let size = self.body.size();
        let hash = |range| self.bytes(range).map(|bytes| Sha256::digest(&bytes).into());
        let hashes = ranges(size, PART).map(hash).collect::<Result<_>>()?;
        self.body.check()?;
        Ok(Hashes { size, part: PART, hashes })
    }

    fn answered(&self, result: object_store::Result<PutResult>) -> Result<Answered, Failure> {
        use object_store::Error as E;
        match result {
            Ok(put) => Ok(Answered::Made(put.e_tag.map(|tag| unquoted(&tag)))),
            Err(E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. })
                if !self.force =>
            {
                Ok(Answered::Exists)
            }
            Err(e) => Err(failure_of_put(&e)),
        }
    }

    /// Whether the object that is there has these bytes.
    async fn is_there(&self, key: &Path, hashes: &Hashes) -> Result<Put> {
        let facts = self.stat(key).await?;
        if facts.size == hashes.size && self.reads_back(key, &facts, hashes).await? {
            return Ok(Put::Same);
        }
        Err(differs())
    }

    /// Check that the store has what was sent.
    async fn verify(&self, key: &Path, hashes: &Hashes, tag: Option<String>) -> Result<()> {
        let facts = self.stat(key).await.map_err(|e| unverified(&e))?;
        if facts.size != hashes.size || tag.is_some() && facts.etag.is_some() && tag != facts.etag {
            return Err(replaced());
        }
        if self.reads_back(key, &facts, hashes).await.map_err(|e| unverified(&e))? {
            return Ok(());
        }
        let what = match tag.as_ref().filter(|tag| facts.etag.as_ref() == Some(*tag)) {
            Some(tag) => match self.cloud.remove(key, tag).await {
                Ok(()) => "the object was removed",
                Err(Failure::Replaced(_)) => return Err(replaced()),
                Err(_) => "remove the object",
            },
            None => "remove the object",
        };
        let why = format!("the store gives back other bytes than were sent; {what}");
        Err(Error::corrupt(why))
    }

    /// Whether reading the object gives these bytes.
    async fn reads_back(
        &self,
        key: &Path,
        facts: &Facts,
        hashes: &Hashes,
    ) -> Result<bool, Failure> {
        let wanted = ranges(hashes.size, hashes.part).zip(&hashes.hashes);
        let read = stream::iter(wanted).map(|(range, hash)| async move {
            let len = range.end - range.start;
            let read = self.send(len, || self.hash_of(key, facts, range.clone())).await?;
            (self.progress)(len);
            Ok::<_, Failure>(read == *hash)
        });
        let read = read.buffered(at_a_time(hashes.part));
        read.try_fold(true, |all, one| async move { Ok(all && one) }).await
    }

    async fn hash_of(
        &self,
        key: &Path,
        facts: &Facts,
        range: Range<u64>,
    ) -> Result<[u8; 32], Failure> {
        let Deadlines { silence, total, .. } = self.deadlines();
        let wanted = Wanted::Range(range.clone());
        let answer = self.cloud.get(key.as_ref(), &wanted, Some(facts)).await?;
        facts.check(&answer.facts)?;
        answer.check(&wanted)?;
        let (Answer { mut body, .. }, mut hash, mut left) =
            (answer, Sha256::new(), range.end - range.start);
        loop {
            let piece = body.next().map(Option::transpose);
            match within(silence, Instant::now() + total, piece).await? {
                Some(piece) => {
                    let more = || Failure::Fatal("the server sends more than was asked for".into());
                    left = left.checked_sub(piece.len() as u64).ok_or_else(more)?;
                    hash.update(&piece);
                }
                None if left > 0 => return Err(Failure::transient("the answer ended early")),
                None => return Ok(hash.finalize().into()),
            }
        }
    }
}

fn replaced() -> Error {
    Error::os(libc::ESTALE, "was uploaded, but another upload has replaced it since")
}

fn differs() -> Error {
    Error::os(libc::EEXIST, "exists and differs; remove it or use --force")
}

/// The size of the parts of an object of `size` bytes: whole MiB.
fn part_size(size: u64) -> u64 {
    PART.max(size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

/// How many parts are on their way at once.
fn at_a_time(part: u64) -> usize {
    (HELD / part).clamp(2, HELD / PART) as usize
}

/// The parts of so many bytes.
fn ranges(size: u64, part: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(part)).map(move |i| i * part..((i + 1) * part).min(size))
}

/// An error of a request of which only the bucket can be missing, or the upload.
fn of_upload(e: &object_store::Error) -> Failure {
    no_bucket(failure_of_put(e))
}

fn no_bucket(failure: Failure) -> Failure {
    match failure {
        Failure::Missing => {
            Failure::Fatal("there is no such bucket, or the upload was aborted".into())
        }
        other => other,
    }
}

fn failure_of_put(e: &object_store::Error) -> Failure {
    let text = e.to_string();
    // S3 begins to answer before a completion has succeeded, and says so later.
    if ["InternalError", "SlowDown"].iter().any(|later| text.contains(later)) {
        return Failure::transient("the server could not complete the upload");
    }
    if text.contains("status code: 501") {
        let why = "the store does not support uploads that only create; --force replaces";
        return Failure::Fatal(why.into());
    }
    failure_of(e)
}

/// The error of an upload that has succeeded, but could not be checked.
fn unverified(failure: &Failure) -> Error {
    let why = format!("was uploaded, but could not be read back to verify it: {}", failure.why());
    Error::os(failure.errno(), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_and_few_enough_and_bounded_in_memory() {
        for size in [AT_ONCE + 1, 100 << 30, 5 << 40] {
            let part = part_size(size);
            assert!(part >= PART && part.is_multiple_of(1 << 20));
            assert!(size.div_ceil(part) <= MOST_PARTS, "{size}");
        }
        assert_eq!((part_size(AT_ONCE + 1), at_a_time(PART)), (PART, 8));
        assert_eq!(at_a_time(part_size(5 << 40)), 2);
        let all: Vec<_> = ranges(20, 8).collect();
        assert_eq!(all, [0..8, 8..16, 16..20]);
        assert_eq!(ranges(0, 8).count(), 0);
    }
}
