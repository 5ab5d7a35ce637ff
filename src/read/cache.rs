//! The cache of decoded chunks: one for a whole mount, bounded in bytes, each chunk decoded once at a time.

use super::{
    archive::Archive,
    buffer::{Buffer, BufferPool},
};
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, ErrorKind, Result},
};
use lru::LruCache;
use std::{
    cell::RefCell,
    collections::HashMap,
    ops::{Deref, Range},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A chunk of an archive: its [`Archive::id`] and its number.
type Key = (u64, usize);
type Waiter = Box<dyn FnOnce(Result<Arc<Buffer>>) + Send>;
type Done = Box<dyn FnOnce(Result<Vec<Slice>>) + Send>;

/// Buffers kept for reuse.
const SPARES: usize = 16;

thread_local! {
    /// Stored bytes of the chunk that a decode thread is working on.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Figures of a cache since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Chunks that were asked for and present.
    pub hits: u64,
    /// Chunks that had to be decoded.
    pub misses: u64,
    /// Chunks that were asked for while they were being decoded for another reader.
    pub joined: u64,
    /// Chunks dropped to make room.
    pub evictions: u64,
    /// Bytes decoded.
    pub decoded_bytes: u64,
    /// Bytes held now.
    pub held_bytes: u64,
}

/// A chunk that is present.
struct Ready {
    chunk: Arc<Buffer>,
    /// Bytes of it that readers who keep them themselves have taken.
    taken: usize,
}

/// See the module's documentation.
///
/// A reader may say that it keeps what it reads, as the kernel's page cache does: a chunk that has been taken as a
/// whole is then dropped at once, and its memory used again while it is still in the processor's caches.
pub struct ChunkCache {
    state: Mutex<State>,
    capacity: u64,
    threads: rayon::ThreadPool,
    decoder: Arc<dyn ChunkDecoder>,
    buffers: Arc<BufferPool>,
    decoded: AtomicU64,
}

struct State {
    ready: LruCache<Key, Ready>,
    in_flight: HashMap<Key, Awaited>,
    stats: CacheStats,
}

impl ChunkCache {
    /// A cache of `capacity` bytes that decodes on `threads` threads of its own.
    ///
    /// # Errors
    /// Io, where the threads cannot be started.
    pub fn new(capacity: u64, threads: usize, decoder: Arc<dyn ChunkDecoder>) -> Result<Arc<Self>> {
        let threads = threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("bsz-decode-{i}"))
            .panic_handler(|_| log::error!("a decode thread panicked"))
            .build()
            .map_err(|e| Error::new(ErrorKind::Io, e.to_string()).about("decode threads"))?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                ready: LruCache::unbounded(),
                in_flight: HashMap::new(),
                stats: CacheStats::default(),
            }),
            capacity,
            threads: pool,
            decoder,
            buffers: BufferPool::new(SPARES),
            decoded: AtomicU64::new(0),
        }))
    }

    /// Read `len` bytes from `offset` on, clipped to the original's end, and give them to `done`: at once and on
    /// this thread where all is present, else on a decode thread. Never blocks on decoding. `keeps` says that the
    /// reader will not ask for these bytes again soon.
    pub fn read(
        self: &Arc<Self>,
        archive: &Arc<Archive>,
        offset: u64,
        len: usize,
        keeps: bool,
        done: impl FnOnce(Result<Vec<Slice>>) + Send + 'static,
    ) {
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
        let (slices, missing) = self.present(archive, parts, keeps);
        if missing.is_empty() {
            return done(Ok(slices.into_iter().flatten().collect()));
        }
        let request = Arc::new(Request(Mutex::new(Waiting {
            slices,
            missing: missing.len(),
            error: None,
            done: Some(Box::new(done)),
        })));
        for (i, id, range) in missing {
            let request = Arc::clone(&request);
            let taken = if keeps { range.len() } else { 0 };
            let waiter: Waiter = Box::new(move |chunk| request.supply(i, range, chunk));
            self.fetch(archive, id, taken, waiter);
        }
    }

    /// The parts that are cached, and what is left to fetch: place, chunk, range within the chunk.
    #[expect(clippy::type_complexity, reason = "two lists, used once")]
    fn present(
        &self,
        archive: &Archive,
        parts: Vec<(usize, Range<usize>)>,
        keeps: bool,
    ) -> (Vec<Option<Slice>>, Vec<(usize, usize, Range<usize>)>) {
        let mut state = self.lock();
        let mut slices = Vec::with_capacity(parts.len());
        let mut missing = Vec::new();
        for (i, (id, range)) in parts.into_iter().enumerate() {
            let taken = if keeps { range.len() } else { 0 };
            if let Some(chunk) = state.take((archive.id(), id), taken) {
                slices.push(Some(Slice { chunk, range }));
            } else {
                slices.push(None);
                missing.push((i, id, range));
            }
        }
        state.stats.hits += (slices.len() - missing.len()) as u64;
        (slices, missing)
    }

    /// Give chunk `id` to `waiter`, decoding it unless it is present or on its way.
    fn fetch(self: &Arc<Self>, archive: &Arc<Archive>, id: usize, taken: usize, waiter: Waiter) {
        let key = (archive.id(), id);
        let mut state = self.lock();
        if let Some(chunk) = state.take(key, taken) {
            state.stats.hits += 1;
            drop(state);
            return waiter(Ok(chunk));
        }
        if let Some(awaited) = state.in_flight.get_mut(&key) {
            awaited.waiters.push(waiter);
            awaited.taken += taken;
            state.stats.joined += 1;
            return;
        }
        state.in_flight.insert(key, Awaited { waiters: vec![waiter], taken });
        state.stats.misses += 1;
        drop(state);
        let flight = Flight { cache: Arc::clone(self), key, landed: false };
        let archive = Arc::clone(archive);
        self.threads.spawn_fifo(move || {
            let chunk = flight.cache.decode(&archive, id);
            flight.land(chunk);
        });
    }

    fn decode(&self, archive: &Archive, id: usize) -> Result<Arc<Buffer>> {
        let mut chunk = self.buffers.get(archive.index().chunk(id).len())?;
        SCRATCH.with_borrow_mut(|scratch| archive.read_chunk(id, &*self.decoder, scratch, &mut chunk))?;
        self.decoded.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(Arc::new(chunk))
    }

    /// Run other blocking work on the decode threads.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.threads.spawn_fifo(job);
    }

    /// The figures so far.
    pub fn stats(&self) -> CacheStats {
        CacheStats { decoded_bytes: self.decoded.load(Ordering::Relaxed), ..self.lock().stats }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who waits for a chunk, and how many bytes of it they will keep.
#[derive(Default)]
struct Awaited {
    waiters: Vec<Waiter>,
    taken: usize,
}

impl State {
    /// The chunk, if it is present; dropped from here once all of it has been taken.
    fn take(&mut self, key: Key, taken: usize) -> Option<Arc<Buffer>> {
        let ready = self.ready.get_mut(&key)?;
        ready.taken += taken;
        let chunk = Arc::clone(&ready.chunk);
        if ready.taken >= chunk.len() {
            self.ready.pop(&key);
            self.stats.held_bytes -= chunk.footprint() as u64;
        }
        Some(chunk)
    }

    /// Add a chunk and drop the longest unused ones beyond `capacity`; those are returned, to be freed unlocked.
    fn insert(&mut self, key: Key, chunk: &Arc<Buffer>, taken: usize, capacity: u64) -> Vec<Ready> {
        let mut dropped = Vec::new();
        if taken >= chunk.len() {
            return dropped;
        }
        self.stats.held_bytes += chunk.footprint() as u64;
        dropped.extend(self.ready.put(key, Ready { chunk: Arc::clone(chunk), taken }));
        self.stats.held_bytes -= dropped.iter().map(|r| r.chunk.footprint() as u64).sum::<u64>();
        while self.stats.held_bytes > capacity
            && let Some((_, old)) = self.ready.pop_lru()
        {
            self.stats.held_bytes -= old.chunk.footprint() as u64;
            self.stats.evictions += 1;
            dropped.push(old);
        }
        dropped
    }
}

/// A chunk being decoded. However it ends, its waiters are answered.
struct Flight {
    cache: Arc<ChunkCache>,
    key: Key,
    landed: bool,
}

impl Flight {
    fn land(mut self, chunk: Result<Arc<Buffer>>) {
        self.answer(chunk);
        self.landed = true;
    }

    fn answer(&self, chunk: Result<Arc<Buffer>>) {
        let mut state = self.cache.lock();
        let awaited = state.in_flight.remove(&self.key).unwrap_or_default();
        let dropped = chunk.as_ref().map(|c| state.insert(self.key, c, awaited.taken, self.cache.capacity));
        drop(state);
        drop(dropped);
        for waiter in awaited.waiters {
            waiter(chunk.clone());
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            self.answer(Err(Error::new(ErrorKind::Io, "decoding was abandoned")));
        }
    }
}

/// A read that waits for some of its chunks.
struct Request(Mutex<Waiting>);

struct Waiting {
    slices: Vec<Option<Slice>>,
    missing: usize,
    error: Option<Error>,
    done: Option<Done>,
}

impl Request {
    fn supply(&self, place: usize, range: Range<usize>, chunk: Result<Arc<Buffer>>) {
        let mut w = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match chunk {
            Ok(chunk) => w.slices[place] = Some(Slice { chunk, range }),
            Err(e) => w.error = Some(e),
        }
        w.missing -= 1;
        if w.missing > 0 {
            return;
        }
        let answer = match w.error.take() {
            Some(e) => Err(e),
            None => Ok(std::mem::take(&mut w.slices).into_iter().flatten().collect()),
        };
        let done = w.done.take();
        drop(w);
        if let Some(done) = done {
            done(answer);
        }
    }
}

/// A part of a decoded chunk; the chunk lives as long.
pub struct Slice {
    chunk: Arc<Buffer>,
    range: Range<usize>,
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.chunk[self.range.clone()]
    }
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
        self.read(archive, offset, len, false, move |answer| drop(send.send(answer)));
        let slices = receive
            .recv()
            .map_err(|_| Error::new(ErrorKind::Io, "the read was abandoned"))
            .about("cache")??;
        Ok(slices.iter().flat_map(|s| s.iter().copied()).collect())
    }
}
