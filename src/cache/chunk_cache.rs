//! The cache of decoded chunks: looks up the chunks of a read, and decodes those that are missing.

use super::{
    activity::Activity,
    admission::{Admission, Weight},
    batch::{Batch, PendingChunk, adjacent},
    buffer::footprint,
    claim::{ReadaheadBatch, claim, start},
    file::CachedFile,
    lookup::{Demand, Part, join, look_up, split},
    request::{Completion, ReadRequest, Reader, Slice},
    stats::CacheStats,
    store::ChunkStore,
    table::ChunkTable,
};
use crate::{
    codec::ChunkDecoder,
    error::{Context, Error, ErrorKind, Result},
    read::{ArchiveMemory, IndexedChunk},
};
use std::{
    ops::Range,
    sync::{Arc, MutexGuard},
    time::Instant,
};

/// Most bytes of adjacent chunks that are read together on demand. A low limit, so that several
/// threads share the work of one read.
const DEMAND_BATCH: u64 = 512 << 10;
/// The same while many readers keep all threads busy anyway: most of a request is read in one
/// piece, and copied while it is in the processor's caches.
const BUSY_DEMAND_BATCH: u64 = 2 << 20;

/// How a [`ChunkCache`] works.
pub struct CacheOptions {
    /// Most bytes that the cache uses, including the bookkeeping of chunks, and open indexes beyond
    /// a few megabytes.
    pub capacity: u64,
    /// Threads that read and decode. Use more than there are cores, because some wait for the disk.
    /// As many again help while demand reads pile up.
    pub threads: usize,
    /// Decodes the chunks.
    pub decoder: Arc<dyn ChunkDecoder>,
    /// Decides what to decode ahead of readers, if anything.
    pub readahead: Option<Box<dyn ReadaheadPolicy>>,
}

/// Decides which chunks to decode ahead of a reader.
pub trait ReadaheadPolicy: Send + Sync {
    /// The chunks to decode after a read of `len` bytes that ended in chunk `last` of `file`.
    fn after_read(
        &self,
        cache: &ChunkCache,
        file: &CachedFile,
        last: &IndexedChunk,
        len: usize,
    ) -> Vec<usize>;
}

/// A cache of decoded chunks: one for a whole mount, bounded in bytes. Each chunk is decoded by one
/// thread at a time (single flight).
pub struct ChunkCache {
    store: Arc<ChunkStore>,
    options: CacheOptions,
    admission: Admission,
    activity: Activity,
    cores: usize,
}

impl ChunkCache {
    /// Create a cache and start its threads.
    ///
    /// # Errors
    /// Io, if the threads cannot be started.
    pub fn new(options: CacheOptions) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            store: ChunkStore::new(options.capacity, options.threads)?,
            admission: Admission::new(options.capacity),
            options,
            activity: Activity::new(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }))
    }

    /// Read `len` bytes at `offset`, clipped to the end of the original, and pass them to `done`.
    ///
    /// `done` runs on this thread if all chunks and the index are in memory, else on a decode
    /// thread. This function never blocks on the disk or on decoding.
    pub fn read(
        self: &Arc<Self>,
        file: &Arc<CachedFile>,
        offset: u64,
        len: usize,
        reader: Reader,
        done: impl FnOnce(Result<Vec<Slice>>) + Send + 'static,
    ) {
        let done = self.measured(reader, done);
        let request = ReadRequest { file: Arc::clone(file), offset, len, reader, done };
        if file.archive().index().is_in_parts() {
            let cache = Arc::clone(self);
            return self.spawn_for(file, move || cache.serve(request, None));
        }
        self.serve(request, None);
    }

    /// Wrap a completion so that it updates the counters. The warmer's reads are not counted as
    /// activity, because no program waits for them.
    fn measured(
        self: &Arc<Self>,
        reader: Reader,
        done: impl FnOnce(Result<Vec<Slice>>) + Send + 'static,
    ) -> Completion {
        let begun = Instant::now();
        let cache = Arc::clone(self);
        let is_program = reader != Reader::Warmer;
        if is_program {
            self.activity.start(begun);
        }
        Box::new(move |result: Result<Vec<Slice>>| {
            let total = |slices: &Vec<Slice>| slices.iter().map(|slice| slice.len() as u64).sum();
            let bytes = result.as_ref().ok().map(total);
            done(result);
            if is_program {
                cache.activity.finish();
                cache.store.counters.completed(bytes, begun.elapsed());
            } else {
                cache.store.counters.served(bytes.unwrap_or(0));
            }
        })
    }

    /// Serve a read whose index is in memory, or on a decode thread. `admitted` is its weight if it
    /// has passed admission already.
    fn serve(self: &Arc<Self>, request: ReadRequest, admitted: Option<Weight>) {
        let parts = match split(&request) {
            Ok(Some(parts)) => parts,
            Ok(None) => return self.bypass(request, admitted),
            Err(e) => return self.leave_after(request, admitted)(Err(e)),
        };
        let (file, len, reader) = (Arc::clone(&request.file), request.len, request.reader);
        let last = parts.last().map(|part| part.chunk.clone());
        let last = last.filter(|_| reader != Reader::Warmer);
        let page_cached = reader != Reader::Direct;
        let mut table = self.store.lock();
        let Some((request, admitted)) = self.admit(&table, request, admitted, &parts) else {
            return;
        };
        let found = look_up(&mut table, &file, parts, page_cached);
        let done = self.leave_after(request, admitted);
        if found.missing.is_empty() {
            drop(table);
            let readahead = self.plan_readahead(&file, last, len);
            done(Ok(found.slices.into_iter().flatten().collect()));
            return start(&self.store, &self.options.decoder, &file, readahead);
        }
        let demand = join(&mut table, &file, found, page_cached, done);
        drop(table);
        let readahead = self.plan_readahead(&file, last, len);
        self.start_demand(&file, demand);
        start(&self.store, &self.options.decoder, &file, readahead);
    }

    /// Admit a read, unless it has been admitted or needs no waiting. `None`: it was queued.
    fn admit(
        &self,
        table: &ChunkTable,
        request: ReadRequest,
        admitted: Option<Weight>,
        parts: &[Part],
    ) -> Option<(ReadRequest, Option<Weight>)> {
        let is_present = |part: &Part| table.contains(&request.file, part.chunk.0);
        if admitted.is_some() || parts.iter().all(is_present) {
            return Some((request, admitted));
        }
        let bytes = parts.iter().map(|part| footprint(part.chunk.1.len())).sum();
        let weight = Weight { bytes, chunks: parts.len() };
        Some((self.admission.enter(weight, request)?, Some(weight)))
    }

    /// Decode a read of very many chunks without caching them.
    fn bypass(self: &Arc<Self>, request: ReadRequest, admitted: Option<Weight>) {
        let weight = Weight { bytes: footprint(request.len), chunks: 1 };
        let request = match admitted {
            None => self.admission.enter(weight, request),
            Some(_) => Some(request),
        };
        let Some(request) = request else { return };
        let (cache, file) = (Arc::clone(self), Arc::clone(&request.file));
        self.spawn_for(&file, move || {
            let result = cache.read_uncached(&request);
            cache.leave_after(request, admitted.or(Some(weight)))(result);
        });
    }

    fn read_uncached(&self, request: &ReadRequest) -> Result<Vec<Slice>> {
        let archive = request.file.archive();
        let mut buffer = self.store.allocate(request.offset, request.len)?;
        let len = self.store.scratch.with(archive.scratch_len(), |scratch| {
            archive.read_with(request.offset, &mut buffer, &*self.options.decoder, scratch)
        })?;
        let slice = Slice { chunk: Arc::new(buffer), range: 0..len };
        Ok(if len == 0 { Vec::new() } else { vec![slice] })
    }

    /// The completion of a read, which starts the reads that are admitted when it leaves.
    fn leave_after(self: &Arc<Self>, request: ReadRequest, admitted: Option<Weight>) -> Completion {
        let (cache, done) = (Arc::clone(self), request.done);
        let Some(weight) = admitted else { return done };
        Box::new(move |result| {
            done(result);
            for (weight, request) in cache.admission.leave(weight) {
                let (serving, file) = (Arc::clone(&cache), Arc::clone(&request.file));
                cache.spawn_for(&file, move || serving.serve(request, Some(weight)));
            }
        })
    }

    fn start_demand(&self, file: &Arc<CachedFile>, demand: Demand) {
        for (batch, range) in &demand.promoted {
            self.store.workers.promote(*batch);
            file.archive().hurry(range);
        }
        let limit = if self.is_busy() { BUSY_DEMAND_BATCH } else { DEMAND_BATCH };
        for chunks in adjacent(&demand.chunks, limit) {
            self.decode_on_demand(Batch::new(&self.store, file, chunks));
        }
    }

    fn decode_on_demand(&self, batch: Batch) {
        batch.start(&self.options.decoder, None);
    }

    /// Run work that may read the index of a file, or its chunks: on a decode thread, unless it may
    /// wait for a network.
    fn spawn_for(&self, file: &CachedFile, job: impl FnOnce() + Send + 'static) {
        if let Some(job) = file.archive().spawn(job) {
            self.store.workers.demand(job);
        }
    }

    /// Register what the policy wants to decode after a read.
    fn plan_readahead(
        &self,
        file: &CachedFile,
        last: Option<IndexedChunk>,
        len: usize,
    ) -> Vec<ReadaheadBatch> {
        let (Some(policy), Some(last)) = (&self.options.readahead, last) else {
            return Vec::new();
        };
        // Many readers keep the disk and the processor busy by themselves, and copy what they
        // decode while it is in the processor's caches.
        if self.is_busy() {
            return Vec::new();
        }
        let ids = policy.after_read(self, file, &last, len);
        claim(&self.store, file, &ids).0
    }

    /// Whether there are more readers than it takes to keep the disk and the processor busy.
    fn is_busy(&self) -> bool {
        self.activity.in_progress() > 2 * self.cores
    }

    /// Like [`ChunkCache::read`], but waits for the bytes. Must not be called on a decode thread.
    ///
    /// # Errors
    /// As [`Archive::read_chunk`](crate::read::Archive::read_chunk).
    pub fn read_blocking(
        self: &Arc<Self>,
        file: &Arc<CachedFile>,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        self.read(file, offset, len, Reader::Direct, move |result| drop(send.send(result)));
        let slices = receive
            .recv()
            .map_err(|_| Error::new(ErrorKind::Io, "the read was abandoned"))
            .about("cache")??;
        Ok(slices.iter().flat_map(|slice| slice.iter().copied()).collect())
    }

    /// Run other blocking work on the decode threads.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.store.workers.demand(job);
    }

    /// Call `work` on a decode thread with `len` bytes of arbitrary content from the scratch pool.
    pub fn with_scratch<T>(&self, len: usize, work: impl FnOnce(Result<&mut [u8]>) -> T) -> T {
        self.store.scratch.with(len, |scratch| work(scratch.bytes(len)))
    }

    /// The memory that the archives of this cache share.
    pub fn archive_memory(&self) -> &Arc<ArchiveMemory> {
        self.store.budget.archives()
    }

    /// What the parts of the cache share.
    pub(super) fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// The decoder of this cache.
    pub fn decoder(&self) -> &dyn ChunkDecoder {
        &*self.options.decoder
    }

    /// Evict all chunks, and return their memory to the system.
    pub fn clear(&self) {
        self.store.clear();
    }

    /// The statistics so far.
    pub fn stats(&self) -> CacheStats {
        self.store.stats()
    }
}

/// For the readahead, which decodes what readers have not requested yet.
impl ChunkCache {
    /// Most bytes that the cache uses.
    pub(crate) fn capacity(&self) -> u64 {
        self.store.capacity()
    }

    /// The table as it is now, to select chunks for readahead.
    pub(crate) fn candidates(&self) -> Candidates<'_> {
        Candidates(self.store.lock())
    }

    /// Decode chunks on the cache's threads.
    pub(crate) fn prefetch(&self, file: &Arc<CachedFile>, ids: &[usize]) -> Claimed {
        let (batches, all) = claim(&self.store, file, ids);
        let any = !batches.is_empty();
        start(&self.store, &self.options.decoder, file, batches);
        Claimed { any, all }
    }

    /// Register chunks that another decoder is going to supply.
    pub(crate) fn prefetch_pending(
        &self,
        file: &Arc<CachedFile>,
        ids: &[usize],
    ) -> (Vec<PendingChunk>, Claimed) {
        let (batches, all) = claim(&self.store, file, ids);
        let pending =
            |(_, chunks): &ReadaheadBatch| Batch::new(&self.store, file, chunks).into_pending();
        let claimed = Claimed { any: !batches.is_empty(), all };
        (batches.iter().flat_map(pending).collect(), claimed)
    }

    /// Decode the chunks that another decoder has not supplied.
    pub(crate) fn reclaim(&self, pending: &[PendingChunk]) {
        Batch::reclaim(pending).for_each(|batch| self.decode_on_demand(batch));
    }

    /// Whether a reader waits for one of these chunks.
    pub(crate) fn has_waiters(&self, pending: &[PendingChunk]) -> bool {
        let table = self.store.lock();
        pending.iter().any(|chunk| table.has_waiters(chunk.file(), chunk.id()))
    }

    /// Whether the readers pause, and no readahead is queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.activity.is_paused() && !self.store.workers.has_readahead()
    }

    /// Wait until the cache is idle.
    pub(crate) fn wait_until_idle(&self) {
        while !self.is_idle() {
            self.store.workers.wait_for_readahead();
            self.activity.wait_for_pause();
        }
    }

    /// Return unused memory to the system.
    pub(crate) fn trim(&self) {
        self.store.trim();
    }
}

/// How many of the requested chunks were started.
pub(crate) struct Claimed {
    /// Whether any was: none if they are all present or in flight, or there is no room.
    pub(crate) any: bool,
    /// Whether there was room for all of them.
    pub(crate) all: bool,
}

/// Selects chunks for readahead. The table is locked meanwhile.
pub(crate) struct Candidates<'c>(MutexGuard<'c, ChunkTable>);

impl Candidates<'_> {
    /// The chunks of `ids` that are absent, and were not read completely before.
    pub(crate) fn among(&self, file: &CachedFile, ids: Range<usize>) -> Vec<usize> {
        self.0.readahead_candidates(file, ids)
    }
}
