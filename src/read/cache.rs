//! The cache of decoded chunks: one for a whole mount, bounded in bytes, each chunk decoded once at a time.
//!
//! A reader that goes through a file in order finds the next chunks decoded: see [`ChunkCache::read`].

use super::{
    archive::Archive,
    batch::{Batch, Prefetcher},
    buffer::{Buffer, BufferPool},
    figures::{CacheStats, Figures},
    pages::Shelf,
    request::{Request, Slice},
    state::{Joined, State, Waiter},
    wishes::{Taker, Wish, Wishes},
    workers::Workers,
};
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, ErrorKind, Result},
};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

/// How far ahead of a reader chunks are decoded, at most, in bytes.
const FARTHEST: u64 = 32 << 20;
/// Chunks that nobody waits for yet are read together up to so many bytes.
const AHEAD_BATCH: u64 = 1 << 20;
/// Chunks that somebody waits for are read together up to so many bytes: less, so that several threads share the work.
const URGENT_BATCH: u64 = 512 << 10;
/// And where many wait, so that each has his threads anyway: most of what a request can ask for, read in one piece and
/// copied while it is in the core's caches.
const BUSY_BATCH: u64 = 2 << 20;
/// A request for so many bytes that is not known to be of a stream is taken to be followed by as many bytes as
/// [`FOLLOWING`]: nobody reads so much at random.
const LARGE: usize = 512 << 10;
/// See [`LARGE`].
const FOLLOWING: u64 = 1 << 20;

/// Microseconds without a read after which a reader is taken to be busy otherwise.
const IDLE_MICROS: u64 = 3000;

/// How a [`ChunkCache`] is to work.
pub struct CacheOptions {
    /// Most bytes that it holds.
    pub capacity: u64,
    /// Threads of its own, which read and decode: more than there are cores, for some wait for the disk. As many again help
    /// where many read at once.
    pub threads: usize,
    /// What decodes.
    pub decoder: Arc<dyn ChunkDecoder>,
    /// Whether to decode ahead of readers.
    pub ahead: bool,
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Somebody who may ask for the same bytes again.
    Passing,
    /// Somebody who keeps what is read, as the kernel's page cache does: a chunk that has been taken as a whole is dropped
    /// at once, and its memory used again while it is still in the processor's caches.
    Keeping,
    /// A [`Taker`], who keeps it too, and for whom nobody waits yet.
    Taker,
}

/// See the module's documentation.
pub struct ChunkCache {
    state: Mutex<State>,
    options: CacheOptions,
    workers: Workers,
    buffers: Arc<BufferPool>,
    figures: Figures,
    batches: AtomicU64,
    wishes: Arc<Wishes>,
    prefetcher: OnceLock<Box<dyn Prefetcher>>,
    taker: OnceLock<Arc<dyn Taker>>,
    /// Reads that are not answered.
    waiting: AtomicUsize,
    made: Instant,
    /// When the last read came, in microseconds after `made`.
    last_read: AtomicU64,
    cores: usize,
}

/// A part of a read: a chunk and a range within it.
type Part = (usize, Range<usize>);

impl ChunkCache {
    /// A cache with threads of its own.
    ///
    /// # Errors
    /// Io, where the threads cannot be started.
    pub fn new(options: CacheOptions) -> Result<Arc<Self>> {
        let cache = Arc::new(Self {
            state: Mutex::new(State::new(options.capacity)),
            workers: Workers::start(options.threads, options.threads)?,
            options,
            buffers: Arc::default(),
            figures: Figures::default(),
            batches: AtomicU64::new(0),
            wishes: Arc::default(),
            prefetcher: OnceLock::new(),
            taker: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            made: Instant::now(),
            last_read: AtomicU64::new(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        });
        Arc::clone(&cache.wishes).fulfil(Arc::downgrade(&cache))?;
        Ok(cache)
    }

    /// Read `len` bytes from `offset` on, clipped to the original's end, and give them to `done`: at once and on
    /// this thread where all is present, else on a decode thread. Never blocks on decoding.
    ///
    /// Where many of the chunks before were read whole, as many behind are decoded ahead: up to 32 MiB and a quarter of
    /// the capacity, and less where such guesses have been wrong; and a little behind a large request.
    pub fn read(
        self: &Arc<Self>,
        archive: &Arc<Archive>,
        offset: u64,
        len: usize,
        reader: Reader,
        done: impl FnOnce(Result<Vec<Slice>>) + Send + 'static,
    ) {
        let begun = Instant::now();
        let cache = Arc::clone(self);
        let (keeps, counts) = (reader != Reader::Passing, reader != Reader::Taker);
        if counts {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            self.last_read.store(begun.duration_since(self.made).as_micros() as u64, Ordering::Relaxed);
        }
        let done = move |answer: Result<Vec<Slice>>| {
            let bytes = answer.as_ref().ok().map(|slices| slices.iter().map(|s| s.len() as u64).sum());
            done(answer);
            if counts {
                cache.waiting.fetch_sub(1, Ordering::Relaxed);
                cache.figures.answered(bytes, begun.elapsed());
            } else {
                cache.figures.given(bytes.unwrap_or(0));
            }
        };
        let parts = parts(archive, offset, len);
        let last = parts.last().map(|(id, _)| *id).filter(|_| counts);
        let mut slices = Vec::with_capacity(parts.len());
        let mut missing = Vec::new();
        let mut state = self.lock();
        for (place, (id, range)) in parts.into_iter().enumerate() {
            let chunk = state.take(archive, id, range.len(), keeps);
            if chunk.is_none() {
                missing.push((place, id, range.clone()));
            }
            slices.push(chunk.map(|chunk| Slice { chunk, range }));
        }
        state.stats.hits += (slices.len() - missing.len()) as u64;
        if missing.is_empty() {
            let ahead = self.plan_ahead(&mut state, archive, last, len);
            drop(state);
            done(Ok(slices.into_iter().flatten().collect()));
            return self.decode_ahead(archive, ahead);
        }
        let request = Arc::new(Request::new(slices, missing.len(), Box::new(done)));
        let mut wanted = Vec::new();
        let mut hurried = Vec::new();
        for (place, id, range) in missing {
            let (request, len) = (Arc::clone(&request), range.len());
            let waiter: Waiter = Box::new(move |chunk| request.supply(place, range, chunk));
            match state.join(archive, id, len, keeps, waiter) {
                Joined::Wanted => wanted.push(id),
                Joined::Hurried(batch) => hurried.push(batch),
                Joined::Expected => {}
            }
        }
        let ahead = self.plan_ahead(&mut state, archive, last, len);
        drop(state);
        hurried.dedup();
        hurried.into_iter().for_each(|batch| self.workers.hurry(batch));
        let together = if self.is_busy() { BUSY_BATCH } else { URGENT_BATCH };
        for ids in neighbours(archive, &wanted, together) {
            let batch = Batch::new(self, archive, ids);
            let decoder = Arc::clone(&self.options.decoder);
            self.workers.urgent(move || batch.decode(&*decoder));
        }
        self.decode_ahead(archive, ahead);
    }

    /// What to decode ahead of a reader who is at chunk `last`: chunks and the numbers of their batches.
    fn plan_ahead(
        &self,
        state: &mut State,
        archive: &Archive,
        last: Option<usize>,
        len: usize,
    ) -> Vec<(u64, Vec<usize>)> {
        // Readers that are many keep disk and cores busy themselves, and decode what is still in the core's caches when it is
        // copied.
        let few = self.options.ahead && !self.is_busy();
        let Some(last) = last.filter(|_| few) else { return Vec::new() };
        let index = archive.index();
        let chunk = index.chunk(last).original;
        let behind = match archive.passed().behind(last) {
            Some(chunks) => chunks as u64 * (chunk.end - chunk.start),
            None if len >= LARGE => FOLLOWING,
            None => return Vec::new(),
        };
        let farthest = archive.passed().reach().min(FARTHEST).min(self.options.capacity / 4);
        let end = chunk.end + behind.min(farthest);
        let stop = index.find(end.min(archive.footer().original_len.saturating_sub(1)));
        // A little at a time would be many small reads; what is near cannot wait.
        let middle = (last + 1 + stop) / 2;
        let tail = stop.saturating_sub(2)..(stop + 1).min(index.len());
        if state.unclaimed(archive, tail).len() < 3 && state.unclaimed(archive, middle..middle + 1).is_empty()
        {
            return Vec::new();
        }
        let ids = state.unclaimed(archive, last + 1..(stop + 1).min(index.len()));
        self.claim(state, archive, &ids)
    }

    /// Take on chunks that are neither here nor on their way, as far as there is room for chunks nobody has asked for.
    fn claim(&self, state: &mut State, archive: &Archive, ids: &[usize]) -> Vec<(u64, Vec<usize>)> {
        let mut room = (self.options.capacity / 2).saturating_sub(state.ahead_bytes);
        let fits = |&&id: &&usize| {
            let len = archive.index().chunk(id).len() as u64;
            let fits = len <= room;
            room = room.saturating_sub(len);
            fits
        };
        let ids: Vec<usize> = ids.iter().take_while(fits).copied().collect();
        let batches = neighbours(archive, &ids, AHEAD_BATCH);
        let numbered = batches.map(|ids| (self.batches.fetch_add(1, Ordering::Relaxed), ids.to_vec()));
        let batches: Vec<_> = numbered.collect();
        for (number, ids) in &batches {
            ids.iter().for_each(|&id| state.expect(archive, id, *number));
        }
        batches
    }

    /// Whether there are more readers than it takes to keep disk and cores busy.
    fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 2 * self.cores
    }

    fn decode_ahead(self: &Arc<Self>, archive: &Arc<Archive>, batches: Vec<(u64, Vec<usize>)>) {
        for (number, ids) in batches {
            let batch = Batch::new(self, archive, &ids);
            let decoder = Arc::clone(&self.options.decoder);
            self.workers.ahead(number, move || batch.decode(&*decoder));
        }
    }

    /// Decode this when nobody reads, up to half of the capacity and as far as there is room; and no longer what was wished
    /// for before.
    pub fn wish(&self, wishes: impl IntoIterator<Item = Wish>) {
        self.wishes.set(wishes, self.options.capacity / 2);
    }

    /// Decode no longer what was wished for of this archive.
    pub fn forget_wishes(&self, archive: &Archive) {
        self.wishes.forget(archive.id());
    }

    /// Whether nobody has read for a while, and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let since = self.made.elapsed().as_micros() as u64 - self.last_read.load(Ordering::Relaxed);
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting == 0 && since > IDLE_MICROS && !self.workers.has_ahead()
    }

    /// Decode what a piece needs, ahead of any reader, and have it taken; `false` if there was no room for all of it.
    pub(super) fn warm(self: &Arc<Self>, piece: &Wish) -> bool {
        let Wish { archive, range, .. } = piece;
        let index = archive.index();
        let ids = index.find(range.start)..(index.find(range.end - 1) + 1).min(index.len());
        let mut state = self.lock();
        let ids = state.unclaimed(archive, ids);
        let batches = self.claim(&mut state, archive, &ids);
        drop(state);
        if batches.is_empty() {
            return ids.is_empty();
        }
        let claimed: usize = batches.iter().map(|(_, ids)| ids.len()).sum();
        match self.prefetcher() {
            None => self.decode_ahead(archive, batches),
            Some(elsewhere) => {
                let owed = batches.iter().flat_map(|(_, ids)| Batch::new(self, archive, ids).owed());
                let owed: Vec<_> = owed.collect();
                elsewhere.decode(&owed);
                for batch in Batch::left(&owed) {
                    let decoder = Arc::clone(&self.options.decoder);
                    self.workers.urgent(move || batch.decode(&*decoder));
                }
            }
        }
        if let (Some(taker), Some(shown)) = (self.taker(), &piece.shown) {
            taker.take(piece, shown);
        }
        claimed == ids.len()
    }

    /// Have `taker` take what is wished for, from now on.
    pub fn give_to(&self, taker: Arc<dyn Taker>) {
        // The first one stays.
        let _ = self.taker.set(taker);
    }

    pub(super) fn taker(&self) -> Option<&dyn Taker> {
        self.taker.get().map(|taker| &**taker)
    }

    /// Have `elsewhere` decode what is wished for, from now on.
    pub fn prefetch_with(&self, elsewhere: Box<dyn Prefetcher>) {
        // The first one stays.
        let _ = self.prefetcher.set(elsewhere);
    }

    pub(super) fn prefetcher(&self) -> Option<&dyn Prefetcher> {
        self.prefetcher.get().map(|p| &**p)
    }

    /// Nanoseconds that all cores together take to decode a stored byte; 0 where none was decoded.
    pub fn decoding_nanos(&self) -> f64 {
        self.figures.decoding_nanos() / self.cores as f64
    }

    /// A chunk has come, or not.
    pub(super) fn land(&self, archive: &Arc<Archive>, id: usize, chunk: Result<Arc<Buffer>>) {
        let mut state = self.lock();
        let waiters = state.land(archive, id, chunk.as_ref().ok());
        let dropped = state.make_room(self.buffers.lent().saturating_sub(self.options.capacity));
        drop(state);
        drop(dropped);
        for waiter in waiters {
            waiter(chunk.clone());
        }
        if let Ok(chunk) = chunk {
            self.stock(&chunk);
        }
    }

    /// Have memory for more chunks like this one brought when nobody waits: that takes longer than decoding.
    fn stock(&self, chunk: &Buffer) {
        // Where the cache is full nearly, slots come from what is dropped.
        let grows = self.buffers.lent() + Shelf::GROWS_BY <= self.options.capacity;
        if let Some(shelf) = chunk.shelf().filter(|shelf| grows && shelf.runs_low()) {
            let (pool, shelf) = (Arc::clone(&self.buffers), Arc::clone(shelf));
            self.workers.ahead(self.batches.fetch_add(1, Ordering::Relaxed), move || pool.stock(&shelf));
        }
    }

    pub(super) fn buffers(&self) -> &Arc<BufferPool> {
        &self.buffers
    }

    /// What decodes.
    pub fn decoder(&self) -> &dyn ChunkDecoder {
        &*self.options.decoder
    }

    pub(super) fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Run other blocking work on the decode threads.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.workers.urgent(job);
    }

    /// Drop all that is held.
    pub fn clear(&self) {
        let mut state = self.lock();
        let dropped = state.make_room(u64::MAX);
        drop(state);
        drop(dropped);
        self.buffers.clear();
    }

    /// The figures so far.
    pub fn stats(&self) -> CacheStats {
        self.figures.add_to(self.lock().stats)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a read, clipped to the original's end.
fn parts(archive: &Archive, offset: u64, len: usize) -> Vec<Part> {
    let index = archive.index();
    let end = offset.saturating_add(len as u64).min(archive.footer().original_len);
    let mut parts = Vec::new();
    let mut at = offset;
    for id in index.find(offset)..index.len() {
        if at >= end {
            break;
        }
        let chunk = index.chunk(id).original;
        let stop = end.min(chunk.end);
        parts.push((id, (at - chunk.start) as usize..(stop - chunk.start) as usize));
        at = stop;
    }
    parts
}

/// `ids` in groups whose stored bytes follow each other, of one chunk at least and `most` decoded bytes otherwise.
fn neighbours<'a>(archive: &Archive, ids: &'a [usize], most: u64) -> impl Iterator<Item = &'a [usize]> {
    let mut bytes = 0;
    ids.chunk_by(move |&a, &b| {
        let (a, b) = (archive.index().chunk(a), archive.index().chunk(b));
        bytes += a.len() as u64;
        let together = a.original.end == b.original.start
            && a.stored_at + u64::from(a.stored_len) == b.stored_at
            && bytes + b.len() as u64 <= most;
        if !together {
            bytes = 0;
        }
        together
    })
    .collect::<Vec<_>>()
    .into_iter()
}

/// Read through the cache and wait: for callers that have nothing else to do.
impl ChunkCache {
    /// Like [`ChunkCache::read`], into a new vector. Must not be called on a decode thread.
    ///
    /// # Errors
    /// As [`Archive::read_chunk`].
    pub fn read_blocking(
        self: &Arc<Self>,
        archive: &Arc<Archive>,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        self.read(archive, offset, len, Reader::Passing, move |answer| drop(send.send(answer)));
        let slices = receive
            .recv()
            .map_err(|_| Error::new(ErrorKind::Io, "the read was abandoned"))
            .about("cache")??;
        Ok(slices.iter().flat_map(|s| s.iter().copied()).collect())
    }
}
