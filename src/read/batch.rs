//! Chunks on their way: read together, decoded one by one, each given to whoever waits for it.

use super::{archive::Archive, buffer::Buffer, cache::ChunkCache, storage::Scratch};
use crate::{
    codec::{ChunkDecoder, checksum},
    error::{Error, ErrorKind, Result},
};
use std::{
    cell::RefCell,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

thread_local! {
    /// Stored bytes of the chunks that a thread is working on.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Neighbouring chunks of an archive which the cache expects from whoever holds this. Those not decoded when it is dropped
/// are given up, with an error to all who wait for them.
pub(super) struct Batch {
    archive: Arc<Archive>,
    flights: Vec<Flight>,
}

impl Batch {
    pub(super) fn new(cache: &Arc<ChunkCache>, archive: &Arc<Archive>, ids: &[usize]) -> Self {
        let flight =
            |&id| Flight { cache: Arc::clone(cache), archive: Arc::clone(archive), id, landed: false };
        Self { archive: Arc::clone(archive), flights: ids.iter().map(flight).collect() }
    }

    /// Read and decode all.
    pub(super) fn decode(self, decoder: &dyn ChunkDecoder) {
        SCRATCH.with_borrow_mut(|scratch| self.decode_with(decoder, scratch));
    }

    fn decode_with(self, decoder: &dyn ChunkDecoder, scratch: &mut Scratch) {
        let Self { archive, flights } = self;
        let chunk = |flight: &Flight| archive.index().chunk(flight.id);
        let (Some(first), Some(last)) = (flights.first().map(chunk), flights.last().map(chunk)) else {
            return;
        };
        if let Ok(all) = archive.stored(&first, &last, scratch) {
            for flight in flights {
                let chunk = chunk(&flight);
                let from = (chunk.stored_at - first.stored_at) as usize;
                let stored = &all[from..from + chunk.stored_len as usize];
                flight.fill(stored.len(), |id, out| archive.decode_chunk(id, stored, decoder, out));
            }
        } else {
            // One of them cannot be read: the others may.
            for flight in flights {
                let stored = chunk(&flight).stored_len as usize;
                flight.fill(stored, |id, out| archive.read_chunk(id, decoder, scratch, out));
            }
        }
    }
}

/// Decodes what is wished for elsewhere than on the cache's threads, if it can.
pub trait Prefetcher: Send + Sync {
    /// How many bytes are worth its while at a time.
    fn piece(&self) -> u64;

    /// Decode chunks. Those that are not supplied are decoded by the cache's threads.
    fn decode(&self, owed: &[Owed]);

    /// Nothing is wished for at the moment: give back what is not needed.
    fn rest(&self);
}

/// A chunk that the cache expects from a [`Prefetcher`].
pub struct Owed {
    archive: Arc<Archive>,
    id: usize,
    flight: Mutex<Option<Flight>>,
}

impl Owed {
    /// Of which archive.
    pub fn archive(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// Its number.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Its decoded bytes. Where they do not match their checksum they are as good as not supplied.
    pub fn supply(&self, decoded: &[u8]) {
        let chunk = self.archive.index().chunk(self.id);
        if decoded.len() != chunk.len() || checksum(decoded) != chunk.checksum {
            log::warn!("chunk {} came back wrong, and is decoded again", self.id);
        } else if let Some(flight) = self.take() {
            flight.fill(chunk.stored_len as usize, |_, out| {
                out.copy_from_slice(decoded);
                Ok(())
            });
        }
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
            id: flight.id,
            flight: Mutex::new(Some(flight)),
        };
        self.flights.into_iter().map(owed).collect()
    }

    /// What is still owed.
    pub(super) fn left(owed: &[Owed]) -> impl Iterator<Item = Self> {
        let flights = owed.iter().filter_map(Owed::take);
        flights.map(|flight| Self { archive: Arc::clone(&flight.archive), flights: vec![flight] })
    }
}

/// A chunk being decoded. However it ends, its waiters are answered.
struct Flight {
    cache: Arc<ChunkCache>,
    archive: Arc<Archive>,
    id: usize,
    landed: bool,
}

impl Flight {
    fn fill(mut self, stored: usize, decode: impl FnOnce(usize, &mut [u8]) -> Result<()>) {
        let of = self.archive.index().chunk(self.id);
        let len = of.len();
        let chunk = self.cache.buffers().get(of.original.start, len).and_then(|mut chunk: Buffer| {
            let begun = Instant::now();
            decode(self.id, &mut chunk)?;
            self.cache.figures().decoded(len as u64, stored as u64, begun.elapsed());
            Ok(Arc::new(chunk))
        });
        self.cache.land(&self.archive, self.id, chunk);
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            let error = Error::new(ErrorKind::Io, "decoding was abandoned");
            self.cache.land(&self.archive, self.id, Err(error));
        }
    }
}
