//! Chunks on their way: read together, decoded one by one, each given to whoever waits for it.

use super::{
    archive::{Archive, Numbered, stored_room},
    buffer::Buffer,
    cache::ChunkCache,
    scratch::Scratch,
};
use crate::{
    codec::{ChunkDecoder, checksum},
    error::{Error, ErrorKind, Result},
    format::Chunk,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Neighbouring chunks of an archive which the cache expects from whoever holds this. Those not decoded when it is dropped
/// are given up, with an error to all who wait for them.
pub(super) struct Batch {
    cache: Arc<ChunkCache>,
    archive: Arc<Archive>,
    flights: Vec<Flight>,
}

impl Batch {
    pub(super) fn new(
        cache: &Arc<ChunkCache>,
        archive: &Arc<Archive>,
        chunks: &[Numbered],
    ) -> Self {
        let flight = |chunk: &Numbered| Flight {
            cache: Arc::clone(cache),
            archive: Arc::clone(archive),
            chunk: chunk.clone(),
            landed: false,
        };
        let flights = chunks.iter().map(flight).collect();
        Self { cache: Arc::clone(cache), archive: Arc::clone(archive), flights }
    }

    /// Read and decode all.
    pub(super) fn decode(self, decoder: &dyn ChunkDecoder) {
        let Some((first, last)) = self.ends() else { return };
        let len = last.stored_at + u64::from(last.stored_len) - first.stored_at;
        let cache = Arc::clone(&self.cache);
        cache
            .scratches()
            .with(stored_room(len as usize), |scratch| self.decode_with(decoder, scratch));
    }

    /// The first and the last chunk.
    fn ends(&self) -> Option<(Chunk, Chunk)> {
        let chunk = |flight: &Flight| flight.chunk.1.clone();
        Some((chunk(self.flights.first()?), chunk(self.flights.last()?)))
    }

    fn decode_with(self, decoder: &dyn ChunkDecoder, scratch: &mut Scratch) {
        let Some((first, last)) = self.ends() else { return };
        let Self { archive, flights, .. } = self;
        if let Ok(all) = archive.stored(&first, &last, scratch) {
            for flight in flights {
                let from = (flight.chunk.1.stored_at - first.stored_at) as usize;
                let stored = &all[from..from + flight.chunk.1.stored_len as usize];
                flight.fill(|chunk, out| archive.decode_chunk(chunk, stored, decoder, out));
            }
        } else {
            // One of them cannot be read: the others may.
            for flight in flights {
                flight.fill(|chunk, out| archive.read_numbered(chunk, decoder, scratch, out));
            }
        }
    }
}

/// Decodes what is wished for elsewhere than on the cache's threads, if it can.
pub trait Prefetcher: Send + Sync {
    /// How many bytes are worth its while at a time; 0 once it will decode no more.
    fn piece(&self) -> u64;

    /// Decode chunks, on a thread of its own. Those that are not supplied, or not in time, are decoded by the cache's
    /// threads.
    fn decode(&self, owed: &[Owed]);

    /// Nothing is wished for at the moment: give back what is not needed.
    fn rest(&self);
}

/// A chunk that the cache expects from a [`Prefetcher`].
pub struct Owed {
    archive: Arc<Archive>,
    chunk: Numbered,
    flight: Mutex<Option<Flight>>,
}

impl Owed {
    /// Of which archive.
    pub fn archive(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// Its number.
    pub fn id(&self) -> usize {
        self.chunk.0
    }

    /// What the index says of it.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk.1
    }

    /// Its decoded bytes. Where they do not match their checksum they are as good as not supplied; where they come too
    /// late, since the chunk was taken back, they are dropped.
    pub fn supply(&self, decoded: &[u8]) {
        let chunk = self.chunk();
        if decoded.len() != chunk.len() || checksum(decoded) != chunk.checksum {
            log::warn!("chunk {} came back wrong, and is decoded again", self.id());
        } else if let Some(flight) = self.take() {
            flight.fill(|_, out| {
                out.copy_from_slice(decoded);
                Ok(())
            });
        }
    }

    /// Whether it is still owed.
    pub(super) fn is_open(&self) -> bool {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn take(&self) -> Option<Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Batch {
    /// The chunks one by one.
    pub(super) fn owed(self) -> Vec<Owed> {
        let owed = |flight: Flight| Owed {
            archive: Arc::clone(&flight.archive),
            chunk: flight.chunk.clone(),
            flight: Mutex::new(Some(flight)),
        };
        self.flights.into_iter().map(owed).collect()
    }

    /// What is still owed.
    pub(super) fn left(owed: &[Owed]) -> impl Iterator<Item = Self> {
        let flights = owed.iter().filter_map(Owed::take);
        flights.map(|flight| Self {
            cache: Arc::clone(&flight.cache),
            archive: Arc::clone(&flight.archive),
            flights: vec![flight],
        })
    }
}

/// A chunk being decoded. However it ends, its waiters are answered.
struct Flight {
    cache: Arc<ChunkCache>,
    archive: Arc<Archive>,
    chunk: Numbered,
    landed: bool,
}

impl Flight {
    fn fill(mut self, decode: impl FnOnce(&Numbered, &mut [u8]) -> Result<()>) {
        let of = &self.chunk.1;
        let (len, stored) = (of.len(), u64::from(of.stored_len));
        let chunk = self.cache.buffer(of.original.start, len).and_then(|mut chunk: Buffer| {
            let begun = Instant::now();
            decode(&self.chunk, &mut chunk)?;
            self.cache.figures().decoded(len as u64, stored, begun.elapsed());
            Ok(Arc::new(chunk))
        });
        self.cache.land(&self.archive, &self.chunk, chunk);
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            let error = Error::new(ErrorKind::Io, "decoding was abandoned");
            self.cache.land(&self.archive, &self.chunk, Err(error));
        }
    }
}
