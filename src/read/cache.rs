//! The cache of decoded chunks: one for a whole mount, bounded in bytes, each chunk decoded once at a time.
//!
//! A reader that goes through a file in order finds the next chunks decoded: see [`ChunkCache::read`].

use super::{
    account::Account,
    admission::{Admission, Ask, Weight},
    archive::{Archive, Numbered, follows},
    batch::{Batch, Owed, Prefetcher},
    buffer::{Buffer, BufferPool, cost},
    elsewhere::Elsewhere,
    figures::{CacheStats, Figures},
    pages::Shelf,
    request::{Done, Request, Slice},
    scratch::Scratches,
    state::{Joined, State, Waiter},
    wishes::{Taker, Wish, Wishes},
    workers::Workers,
};
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, ErrorKind, Result},
    format::IndexMemory,
};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Chunks that somebody waits for are read together up to so many bytes: less, so that several threads share the work.
const URGENT_BATCH: u64 = 512 << 10;
/// And where many wait, so that each has his threads anyway: most of what a request can ask for, read in one piece and
/// copied while it is in the core's caches.
const BUSY_BATCH: u64 = 2 << 20;
/// A read of more chunks than this is decoded as a whole, by one thread, and nothing of it is kept: what is kept for each of
/// so many tiny chunks, and done for it, would be more than the chunks.
const MOST_PARTS: usize = 512;

/// Microseconds without a read after which a reader is taken to be busy otherwise.
const IDLE_MICROS: u64 = 3000;

/// How a [`ChunkCache`] is to work.
pub struct CacheOptions {
    /// Most bytes that it holds, with what is kept for each chunk, and with open indexes beyond a few megabytes.
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
    pub(super) options: CacheOptions,
    pub(super) workers: Workers,
    account: Arc<Account>,
    buffers: Arc<BufferPool>,
    scratches: Scratches,
    admission: Admission,
    figures: Figures,
    pub(super) batches: AtomicU64,
    wishes: Arc<Wishes>,
    elsewhere: OnceLock<Elsewhere>,
    taker: OnceLock<Arc<dyn Taker>>,
    /// Reads that are not answered.
    waiting: AtomicUsize,
    made: Instant,
    /// When the last read came, in microseconds after `made`.
    last_read: AtomicU64,
    cores: usize,
}

/// A part of a read: a chunk and a range within it.
type Part = (Numbered, Range<usize>);

impl ChunkCache {
    /// A cache with threads of its own.
    ///
    /// # Errors
    /// Io, where the threads cannot be started.
    pub fn new(options: CacheOptions) -> Result<Arc<Self>> {
        let account = Account::new(options.capacity);
        let cache = Arc::new(Self {
            state: Mutex::new(State::new(options.capacity)),
            workers: Workers::start(options.threads, options.threads)?,
            buffers: BufferPool::new(&account),
            scratches: Scratches::new(options.capacity, &account),
            admission: Admission::new(options.capacity),
            options,
            account,
            figures: Figures::default(),
            batches: AtomicU64::new(0),
            wishes: Arc::default(),
            elsewhere: OnceLock::new(),
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
    /// this thread where all is present, and the archive's index, too; else on a decode thread. Never blocks on decoding,
    /// nor on the disk.
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
        let counts = reader != Reader::Taker;
        if counts {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            self.last_read
                .store(begun.duration_since(self.made).as_micros() as u64, Ordering::Relaxed);
        }
        let done = move |answer: Result<Vec<Slice>>| {
            let bytes =
                answer.as_ref().ok().map(|slices| slices.iter().map(|s| s.len() as u64).sum());
            done(answer);
            if counts {
                cache.waiting.fetch_sub(1, Ordering::Relaxed);
                cache.figures.answered(bytes, begun.elapsed());
            } else {
                cache.figures.given(bytes.unwrap_or(0));
            }
        };
        let ask = Ask { archive: Arc::clone(archive), offset, len, reader, done: Box::new(done) };
        if archive.index().is_in_parts() {
            let cache = Arc::clone(self);
            return self.workers.urgent(move || cache.serve(ask, None));
        }
        self.serve(ask, None);
    }

    /// Answer, or have it done; `admitted` is what was admitted of it already.
    fn serve(self: &Arc<Self>, ask: Ask, admitted: Option<Weight>) {
        let parts = match parts(&ask.archive, ask.offset, ask.len) {
            Ok(Some(parts)) => parts,
            Ok(None) => return self.serve_as_a_whole(ask, admitted),
            Err(e) => return self.leaving(ask, admitted)(Err(e)),
        };
        let (archive, len, reader) = (Arc::clone(&ask.archive), ask.len, ask.reader);
        let keeps = reader != Reader::Passing;
        let last = parts.last().map(|(chunk, _)| chunk.clone()).filter(|_| reader != Reader::Taker);
        let mut state = self.lock();
        let present = parts.iter().all(|((id, _), _)| state.has(&archive, *id));
        let (ask, admitted) = if present || admitted.is_some() {
            (ask, admitted)
        } else {
            let bytes = parts.iter().map(|((_, chunk), _)| cost(chunk.len())).sum();
            let weight = Weight { bytes, chunks: parts.len() };
            let Some(ask) = self.admission.enter(weight, ask) else { return };
            (ask, Some(weight))
        };
        let mut slices = Vec::with_capacity(parts.len());
        let mut missing = Vec::new();
        for (place, (numbered, range)) in parts.into_iter().enumerate() {
            let chunk = state.take(&archive, numbered.0, range.len(), keeps);
            if chunk.is_none() {
                missing.push((place, numbered, range.clone()));
            }
            slices.push(chunk.map(|chunk| Slice { chunk, range }));
        }
        state.stats.hits += (slices.len() - missing.len()) as u64;
        let done = self.leaving(ask, admitted);
        if missing.is_empty() {
            drop(state);
            let ahead = self.plan_ahead(&archive, last, len);
            done(Ok(slices.into_iter().flatten().collect()));
            return self.decode_ahead(&archive, ahead);
        }
        let request = Arc::new(Request::new(slices, missing.len(), done));
        let mut wanted = Vec::new();
        let mut hurried = Vec::new();
        for (place, numbered, range) in missing {
            let (request, len) = (Arc::clone(&request), range.len());
            let waiter: Waiter = Box::new(move |chunk| request.supply(place, range, chunk));
            match state.join(&archive, &numbered, len, keeps, waiter) {
                Joined::Wanted => wanted.push(numbered),
                Joined::Hurried(batch) => hurried.push(batch),
                Joined::Expected => {}
            }
        }
        drop(state);
        let ahead = self.plan_ahead(&archive, last, len);
        hurried.dedup();
        hurried.into_iter().for_each(|batch| self.workers.hurry(batch));
        let together = if self.is_busy() { BUSY_BATCH } else { URGENT_BATCH };
        for chunks in neighbours(&wanted, together) {
            let batch = Batch::new(self, &archive, chunks);
            let decoder = Arc::clone(&self.options.decoder);
            self.workers.urgent(move || batch.decode(&*decoder));
        }
        self.decode_ahead(&archive, ahead);
    }

    /// Answer a read of very many chunks.
    fn serve_as_a_whole(self: &Arc<Self>, ask: Ask, admitted: Option<Weight>) {
        let weight = Weight { bytes: cost(ask.len), chunks: 1 };
        let ask = if admitted.is_none() { self.admission.enter(weight, ask) } else { Some(ask) };
        let Some(ask) = ask else { return };
        let cache = Arc::clone(self);
        self.workers.urgent(move || {
            let Ask { archive, offset, len, .. } = &ask;
            let mut answer = cache.buffer(*offset, *len).and_then(|mut buffer| {
                let decoder = &*cache.options.decoder;
                let read = cache.scratches.with(archive.scratch_len(), |scratch| {
                    archive.read_with(*offset, &mut buffer, decoder, scratch)
                });
                let slice = |len| vec![Slice { chunk: Arc::new(buffer), range: 0..len }];
                read.map(slice)
            });
            if let Ok(slices) = &mut answer {
                slices.retain(|slice| !slice.is_empty());
            }
            cache.leaving(ask, admitted.or(Some(weight)))(answer);
        });
    }

    /// How a read is answered: with what is waiting behind it begun.
    fn leaving(self: &Arc<Self>, ask: Ask, admitted: Option<Weight>) -> Done {
        let (cache, done) = (Arc::clone(self), ask.done);
        let Some(weight) = admitted else { return done };
        Box::new(move |answer| {
            done(answer);
            for (weight, ask) in cache.admission.leave(weight) {
                let again = Arc::clone(&cache);
                cache.workers.urgent(move || again.serve(ask, Some(weight)));
            }
        })
    }

    /// Whether there are more readers than it takes to keep disk and cores busy.
    pub(super) fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 2 * self.cores
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

    /// Have `taker` take what is wished for, from now on.
    pub fn give_to(&self, taker: Arc<dyn Taker>) {
        // The first one stays.
        let _ = self.taker.set(taker);
    }

    pub(super) fn taker(&self) -> Option<&dyn Taker> {
        self.taker.get().map(|taker| &**taker)
    }

    /// Have `prefetcher` decode what is wished for, from now on, as long as it answers in time.
    ///
    /// # Errors
    /// Io, where a thread for it cannot be started.
    pub fn prefetch_with(&self, prefetcher: Box<dyn Prefetcher>) -> Result<()> {
        // The first one stays.
        let _ = self.elsewhere.set(Elsewhere::start(prefetcher)?);
        Ok(())
    }

    pub(super) fn elsewhere(&self) -> Option<&Elsewhere> {
        self.elsewhere.get()
    }

    /// Nanoseconds that all cores together take to decode a stored byte; 0 where none was decoded.
    pub fn decoding_nanos(&self) -> f64 {
        self.figures.decoding_nanos() / self.cores as f64
    }

    /// A buffer for a chunk, for which others are dropped if need be.
    pub(super) fn buffer(&self, offset: u64, len: usize) -> Result<Buffer> {
        self.buffers.get(offset, len, || {
            let dropped = self.lock().drop_one();
            dropped.is_some()
        })
    }

    /// A chunk has come, or not.
    pub(super) fn land(&self, archive: &Arc<Archive>, of: &Numbered, chunk: Result<Arc<Buffer>>) {
        let mut state = self.lock();
        let waiters = state.land(archive, of, chunk.as_ref().ok());
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
        let grows = |shelf: &Shelf| self.buffers.lent() + shelf.grows_by() <= self.options.capacity;
        if let Some(shelf) = chunk.shelf().filter(|shelf| grows(shelf) && shelf.runs_low()) {
            let (pool, shelf) = (Arc::clone(&self.buffers), Arc::clone(shelf));
            self.workers
                .ahead(self.batches.fetch_add(1, Ordering::Relaxed), move || pool.stock(&shelf));
        }
    }

    /// Whether somebody waits for one of these.
    pub(super) fn is_awaited(&self, owed: &[Owed]) -> bool {
        let state = self.lock();
        owed.iter().any(|owed| state.is_awaited(owed.archive(), owed.id()))
    }

    /// Give back to the system what is unused at the moment.
    pub(super) fn rest(&self) {
        self.buffers.clear();
        self.scratches.clear();
    }

    /// The memory that indexes of archives are to share which are read through this cache.
    pub fn indexes(&self) -> &Arc<IndexMemory> {
        self.account.indexes()
    }

    /// Work with memory for `len` bytes of any content, on one of the decode threads: of as much as is there for all.
    pub fn with_room<T>(&self, len: usize, work: impl FnOnce(Result<&mut [u8]>) -> T) -> T {
        self.scratches.with(len, |scratch| work(scratch.room(len)))
    }

    pub(super) fn scratches(&self) -> &Scratches {
        &self.scratches
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
        self.rest();
    }

    /// The figures so far.
    pub fn stats(&self) -> CacheStats {
        let locked = self.lock().stats;
        self.figures.add_to(CacheStats { held_bytes: self.buffers.held(), ..locked })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a read, clipped to the original's end; `None` where they are more than [`MOST_PARTS`].
fn parts(archive: &Archive, offset: u64, len: usize) -> Result<Option<Vec<Part>>> {
    let index = archive.index();
    let end = offset.saturating_add(len as u64).min(archive.footer().original_len);
    let mut parts = Vec::new();
    let mut at = offset;
    for id in index.find(offset)?..index.len() {
        if at >= end {
            break;
        }
        if parts.len() == MOST_PARTS {
            return Ok(None);
        }
        let chunk = index.chunk(id)?;
        let (start, stop) = (chunk.original.start, end.min(chunk.original.end));
        parts.push(((id, chunk), (at - start) as usize..(stop - start) as usize));
        at = stop;
    }
    Ok(Some(parts))
}

/// Chunks in groups whose stored bytes follow each other, of one chunk at least and `most` decoded bytes otherwise.
pub(super) fn neighbours(chunks: &[Numbered], most: u64) -> impl Iterator<Item = &[Numbered]> {
    let mut bytes = 0;
    chunks.chunk_by(move |(_, a), (_, b)| {
        bytes += a.len() as u64;
        let together = follows(a, b) && bytes + b.len() as u64 <= most;
        if !together {
            bytes = 0;
        }
        together
    })
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
