//! Splits a read into chunks, and finds them in the table or joins them in flight.

use super::{
    file::CachedFile,
    request::{Completion, PendingRead, ReadRequest, Slice},
    table::{ChunkTable, Joined, Waiter},
};
use crate::{
    error::Result,
    read::{IndexedChunk, stored_range},
};
use std::{ops::Range, sync::Arc};

/// A read of more chunks than this bypasses the cache and is decoded by one thread. The bookkeeping
/// of so many tiny chunks would cost more than decoding them.
const MAX_PARTS: usize = 512;

/// A part of a read: a chunk, and a range of it.
pub(super) struct Part {
    pub(super) chunk: IndexedChunk,
    pub(super) range: Range<usize>,
}

/// The parts of a read after looking them up in the table.
pub(super) struct LookedUp {
    /// In the order of the read; `None` for each missing part.
    pub(super) slices: Vec<Option<Slice>>,
    /// The missing parts, with their places in `slices`.
    pub(super) missing: Vec<(usize, Part)>,
}

/// What a read has to start after it has joined its missing chunks.
#[derive(Default)]
pub(super) struct Demand {
    /// Chunks to decode.
    pub(super) chunks: Vec<IndexedChunk>,
    /// Readahead batches that the read waits for, and the stored bytes of its chunk in each.
    pub(super) promoted: Vec<(u64, Range<u64>)>,
}

/// The parts of a read, clipped to the end of the original; `None` if there are more than
/// [`MAX_PARTS`].
pub(super) fn split(request: &ReadRequest) -> Result<Option<Vec<Part>>> {
    let archive = request.file.archive();
    let index = archive.index();
    let end = request.offset.saturating_add(request.len as u64);
    let end = end.min(archive.footer().original_len);
    let mut parts = Vec::new();
    let mut at = request.offset;
    for id in index.find(request.offset)?..index.len() {
        if at >= end {
            break;
        }
        if parts.len() == MAX_PARTS {
            return Ok(None);
        }
        let chunk = index.chunk(id)?;
        let (start, stop) = (chunk.original.start, end.min(chunk.original.end));
        let range = (at - start) as usize..(stop - start) as usize;
        parts.push(Part { chunk: (id, chunk), range });
        at = stop;
    }
    Ok(Some(parts))
}

/// Look up the parts of a read, and count the hits.
pub(super) fn look_up(
    table: &mut ChunkTable,
    file: &CachedFile,
    parts: Vec<Part>,
    page_cached: bool,
) -> LookedUp {
    let mut found = LookedUp { slices: Vec::with_capacity(parts.len()), missing: Vec::new() };
    for (place, part) in parts.into_iter().enumerate() {
        match table.get(file, part.chunk.0, part.range.len(), page_cached) {
            Some(chunk) => found.slices.push(Some(Slice { chunk, range: part.range })),
            None => {
                found.slices.push(None);
                found.missing.push((place, part));
            }
        }
    }
    table.stats.hits += (found.slices.len() - found.missing.len()) as u64;
    found
}

/// Wait for the missing parts of a read. `done` is called when the last one completes.
pub(super) fn join(
    table: &mut ChunkTable,
    file: &CachedFile,
    found: LookedUp,
    page_cached: bool,
    done: Completion,
) -> Demand {
    let pending = Arc::new(PendingRead::new(found.slices, found.missing.len(), done));
    let mut demand = Demand::default();
    for (place, Part { chunk, range }) in found.missing {
        let (pending, len) = (Arc::clone(&pending), range.len());
        let waiter: Waiter = Box::new(move |result| pending.supply(place, range, result));
        match table.join(file, &chunk, len, page_cached, waiter) {
            Joined::Missing => demand.chunks.push(chunk),
            Joined::Promoted(batch) => {
                demand.promoted.push((batch, stored_range(&chunk.1, &chunk.1)));
            }
            Joined::InFlight => {}
        }
    }
    demand
}
