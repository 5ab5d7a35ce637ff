//! In-flight chunks: read in batches, decoded one by one, and delivered to every waiting reader.

use super::{buffer::Buffer, file::CachedFile, store::ChunkStore};
use crate::{
    codec::{ChunkDecoder, Coding, verify_checksum},
    error::{Error, ErrorKind, Result},
    format::Chunk,
    read::{
        Archive, Fetched, IndexedChunk, Priority, Scratch, are_adjacent, scratch_len, stored_range,
    },
};
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Adjacent chunks of a file to decode. Dropping the batch fails those that are not decoded yet:
/// their waiters get an error.
pub(super) struct Batch {
    store: Arc<ChunkStore>,
    file: Arc<CachedFile>,
    flights: Vec<Flight>,
}

impl Batch {
    pub(super) fn new(
        store: &Arc<ChunkStore>,
        file: &Arc<CachedFile>,
        chunks: &[IndexedChunk],
    ) -> Self {
        let flight = |chunk: &IndexedChunk| Flight {
            store: Arc::clone(store),
            file: Arc::clone(file),
            chunk: chunk.clone(),
            is_complete: false,
        };
        let flights = chunks.iter().map(flight).collect();
        Self { store: Arc::clone(store), file: Arc::clone(file), flights }
    }

    /// Read and decode all chunks on the threads of the cache: on demand, or ahead as this number.
    pub(super) fn start(self, decoder: &Arc<dyn ChunkDecoder>, ahead: Option<u64>) {
        let (store, decoder) = (Arc::clone(&self.store), Arc::clone(decoder));
        match self.file.archive().is_remote() {
            true => store.run(None, move || self.fetch(decoder, Fetching::new(ahead))),
            false => store.run(ahead, move || self.decode(&*decoder)),
        }
    }

    /// Fetch the stored bytes, and decode them once they are here. Called by a thread of the cache,
    /// which does not wait for a network.
    pub(super) fn fetch(self, decoder: Arc<dyn ChunkDecoder>, how: Fetching) {
        let Some((first, last)) = self.ends() else { return };
        let (file, store) = (Arc::clone(&self.file), Arc::clone(&self.store));
        // Readers may have joined since the chunks were claimed.
        let how = Fetching { ahead: how.ahead.filter(|_| !self.is_awaited()), ..how };
        let priority = if how.ahead.is_some() { Priority::Ahead } else { Priority::Demand };
        let (here, range) = (thread::current().id(), stored_range(&first, &last));
        let (ids, of, shared) = (self.ids(), Arc::clone(&file), Arc::clone(&store));
        file.archive().fetch(range.clone(), priority, move |fetched| {
            if self.has_differences() {
                // Their base may have to be fetched, too, which must not hold up this thread.
                let archive = Arc::clone(&self.file);
                let decode = move || self.decode_fetched(fetched, decoder, how);
                return archive.archive().spawn(decode).into_iter().for_each(|decode| decode());
            }
            if thread::current().id() == here {
                return self.decode_fetched(fetched, decoder, how);
            }
            let ahead = how.ahead.filter(|_| !self.is_awaited());
            store.run(ahead, move || self.decode_fetched(fetched, decoder, how));
        });
        // Or before it was known to be on its way.
        if how.ahead.is_some() && shared.is_awaited(&of, &ids) {
            of.archive().hurry(&range);
        }
    }

    fn decode_fetched(
        self,
        fetched: Result<Fetched>,
        decoder: Arc<dyn ChunkDecoder>,
        how: Fetching,
    ) {
        let Some((first, _)) = self.ends() else { return };
        let (file, store) = (Arc::clone(&self.file), Arc::clone(&self.store));
        let fetched = match fetched {
            Ok(fetched) => fetched,
            // Somebody has come to wait for it: that read has a deadline of its own.
            Err(_) if how.ahead.is_some() && self.is_awaited() => {
                return self.fetch(decoder, Fetching { ahead: None, ..how });
            }
            Err(e) => return self.flights.into_iter().for_each(|flight| flight.fail(&e)),
        };
        let mut damaged = Vec::new();
        for flight in self.flights {
            let from = (flight.chunk.1.stored_at - first.stored_at) as usize;
            let stored = fetched.bytes(from..from + flight.chunk.1.stored_len as usize);
            let decoded = flight
                .decode(|chunk, out| file.archive().decode_chunk(chunk, &stored, &*decoder, out));
            match decoded {
                Err(e) if e.kind() == ErrorKind::Corruption && !how.again => damaged.push(flight),
                decoded => flight.finish(decoded),
            }
        }
        for flight in damaged {
            // A cache or a network may have damaged it, and not the store.
            let range = stored_range(&flight.chunk.1, &flight.chunk.1);
            file.archive().forget(range);
            let (store, file) = (Arc::clone(&store), Arc::clone(&file));
            let batch = Self { store, file, flights: vec![flight] };
            batch.fetch(Arc::clone(&decoder), Fetching { ahead: None, again: true });
        }
    }

    /// Whether chunks are stored as differences from another file.
    fn has_differences(&self) -> bool {
        self.flights.iter().any(|flight| flight.chunk.1.coding == Coding::Delta)
    }

    /// Whether a reader waits for one of the chunks.
    fn is_awaited(&self) -> bool {
        self.store.is_awaited(&self.file, &self.ids())
    }

    fn ids(&self) -> Vec<usize> {
        self.flights.iter().map(|flight| flight.chunk.0).collect()
    }

    /// Read and decode all chunks.
    fn decode(self, decoder: &dyn ChunkDecoder) {
        let Some((first, last)) = self.ends() else { return };
        let Range { start, end } = stored_range(&first, &last);
        let store = Arc::clone(&self.store);
        store.scratch.with(scratch_len((end - start) as usize), |scratch| {
            self.decode_with(decoder, scratch)
        });
    }

    /// The first and the last chunk.
    fn ends(&self) -> Option<(Chunk, Chunk)> {
        let chunk = |flight: &Flight| flight.chunk.1.clone();
        Some((chunk(self.flights.first()?), chunk(self.flights.last()?)))
    }

    fn decode_with(self, decoder: &dyn ChunkDecoder, scratch: &mut Scratch) {
        let Some((first, last)) = self.ends() else { return };
        let Self { file, flights, .. } = self;
        let archive = file.archive();
        if let Ok(all) = archive.stored(&first, &last, scratch) {
            for flight in flights {
                let from = (flight.chunk.1.stored_at - first.stored_at) as usize;
                let stored = &all[from..from + flight.chunk.1.stored_len as usize];
                flight.complete(|chunk, out| archive.decode_chunk(chunk, stored, decoder, out));
            }
        } else {
            // Some of them cannot be read. Read them one by one to find out which.
            for flight in flights {
                flight.complete(|chunk, out| archive.read_indexed(chunk, decoder, scratch, out));
            }
        }
    }

    /// The chunks one by one, for a decoder other than the cache's threads.
    pub(super) fn into_pending(self) -> Vec<PendingChunk> {
        let pending = |flight: Flight| PendingChunk {
            file: Arc::clone(&flight.file),
            chunk: flight.chunk.clone(),
            flight: Mutex::new(Some(flight)),
        };
        self.flights.into_iter().map(pending).collect()
    }

    /// Take back the chunks that have not been supplied.
    pub(super) fn reclaim(pending: &[PendingChunk]) -> impl Iterator<Item = Self> {
        let flights = pending.iter().filter_map(PendingChunk::take);
        flights.map(|flight| Self {
            store: Arc::clone(&flight.store),
            file: Arc::clone(&flight.file),
            flights: vec![flight],
        })
    }
}

/// How a batch is fetched over a network.
#[derive(Clone, Copy)]
pub(super) struct Fetching {
    /// Its number, if it is fetched ahead of readers.
    ahead: Option<u64>,
    /// Whether what was fetched before was damaged.
    again: bool,
}

impl Fetching {
    /// On demand, or ahead as this number.
    pub(super) fn new(ahead: Option<u64>) -> Self {
        Self { ahead, again: false }
    }
}

/// A chunk in flight that a decoder other than the cache's threads is to supply.
pub struct PendingChunk {
    file: Arc<CachedFile>,
    chunk: IndexedChunk,
    flight: Mutex<Option<Flight>>,
}

impl PendingChunk {
    /// The archive of the chunk.
    pub fn archive(&self) -> &Archive {
        self.file.archive()
    }

    /// The number of the chunk.
    pub fn id(&self) -> usize {
        self.chunk.0
    }

    /// The chunk's entry in the index.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk.1
    }

    /// Supply the decoded bytes. If they do not match the checksum, the chunk stays pending. If the
    /// chunk was reclaimed meanwhile, they are ignored.
    pub fn supply(&self, decoded: &[u8]) {
        let chunk = self.chunk();
        if decoded.len() != chunk.len() || verify_checksum(decoded, chunk.checksum).is_err() {
            log::warn!("chunk {} was decoded incorrectly and is decoded again", self.id());
        } else if let Some(flight) = self.take() {
            flight.complete(|_, out| {
                out.copy_from_slice(decoded);
                Ok(())
            });
        }
    }

    /// Whether the chunk has not been supplied.
    pub(crate) fn is_pending(&self) -> bool {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn file(&self) -> &CachedFile {
        &self.file
    }

    fn take(&self) -> Option<Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A chunk being decoded. However the flight ends, its waiters get a result.
struct Flight {
    store: Arc<ChunkStore>,
    file: Arc<CachedFile>,
    chunk: IndexedChunk,
    is_complete: bool,
}

impl Flight {
    fn complete(self, decode: impl FnOnce(&IndexedChunk, &mut [u8]) -> Result<()>) {
        let decoded = self.decode(decode);
        self.finish(decoded);
    }

    fn decode(
        &self,
        decode: impl FnOnce(&IndexedChunk, &mut [u8]) -> Result<()>,
    ) -> Result<Arc<Buffer>> {
        let indexed = &self.chunk.1;
        let (len, stored) = (indexed.len(), u64::from(indexed.stored_len));
        let mut chunk = self.store.allocate(indexed.original.start, len)?;
        decode(&self.chunk, &mut chunk)?;
        self.store.counters.decoded(len as u64, stored);
        Ok(Arc::new(chunk))
    }

    fn fail(self, e: &Error) {
        self.finish(Err(e.clone()));
    }

    fn finish(mut self, chunk: Result<Arc<Buffer>>) {
        self.store.complete(&self.file, &self.chunk, chunk);
        self.is_complete = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.is_complete {
            let error = Error::new(ErrorKind::Io, "decoding was abandoned");
            self.store.complete(&self.file, &self.chunk, Err(error));
        }
    }
}

/// Group chunks whose stored bytes are adjacent, up to `limit` decoded bytes for each group.
pub(super) fn adjacent(
    chunks: &[IndexedChunk],
    limit: u64,
) -> impl Iterator<Item = &[IndexedChunk]> {
    let mut bytes = 0;
    chunks.chunk_by(move |(_, a), (_, b)| {
        bytes += a.len() as u64;
        let together = are_adjacent(a, b) && bytes + b.len() as u64 <= limit;
        if !together {
            bytes = 0;
        }
        together
    })
}
