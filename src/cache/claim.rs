//! Claims chunks for readahead: registers them as in flight before any reader requests them.

use super::{
    batch::{Batch, Fetching, adjacent},
    buffer::footprint,
    file::CachedFile,
    store::ChunkStore,
};
use crate::{
    codec::ChunkDecoder,
    read::{IndexedChunk, are_adjacent, stored_range},
};
use std::sync::Arc;

/// Most bytes of adjacent chunks that are read together as readahead.
const READAHEAD_BATCH: u64 = 1 << 20;

/// A readahead batch: its number, and its chunks, which are registered as in flight.
pub(super) type ReadaheadBatch = (u64, Vec<IndexedChunk>);

/// Register those of the chunks that are absent as in flight, as far as the share of readahead
/// in the capacity allows it. Returns them in batches, and whether all of them fit.
pub(super) fn claim(
    store: &ChunkStore,
    file: &CachedFile,
    ids: &[usize],
) -> (Vec<ReadaheadBatch>, bool) {
    // Without the lock, because the index may have to be read.
    let index = file.archive().index();
    let chunk = |id: &usize| Some((*id, index.chunk(*id).ok()?));
    let chunks: Vec<IndexedChunk> = ids.iter().map_while(chunk).collect();
    let mut table = store.lock();
    let mut room = (store.capacity() / 2).saturating_sub(table.readahead_bytes);
    let fits = |(_, chunk): &&IndexedChunk| {
        let bytes = footprint(chunk.len());
        let fits = bytes <= room && !table.is_congested();
        room = room.saturating_sub(bytes);
        fits
    };
    let fitting = chunks.iter().take_while(fits).count();
    let all_fit = fitting == ids.len();
    // A reader may have requested some of them meanwhile.
    let absent = |(id, _): &IndexedChunk| table.is_absent(file, *id);
    let chunks: Vec<_> = chunks.into_iter().take(fitting).filter(absent).collect();
    let numbered = |chunks: &[IndexedChunk]| (store.next_batch(), chunks.to_vec());
    let claimed: Vec<_> = adjacent(&chunks, READAHEAD_BATCH).map(numbered).collect();
    for (batch, chunks) in &claimed {
        chunks.iter().for_each(|chunk| table.start_readahead(file, chunk, *batch));
    }
    (claimed, all_fit)
}

/// Decode readahead batches on the cache's threads, once they are here if that takes a network.
pub(super) fn start(
    store: &Arc<ChunkStore>,
    decoder: &Arc<dyn ChunkDecoder>,
    file: &Arc<CachedFile>,
    batches: Vec<ReadaheadBatch>,
) {
    let batch = |(number, chunks): &ReadaheadBatch| (*number, Batch::new(store, file, chunks));
    let made: Vec<_> = batches.iter().map(batch).collect();
    if !file.archive().is_remote() {
        return made.into_iter().for_each(|(number, batch)| batch.start(decoder, Some(number)));
    }
    let (decoder, file) = (Arc::clone(decoder), Arc::clone(file));
    store.run(None, move || {
        announce(&file, &batches);
        for (number, batch) in made {
            batch.fetch(Arc::clone(&decoder), Fetching::new(Some(number)));
        }
    });
}

/// Tell the storage what will be read: over a network, few long requests are better than many short
/// ones.
fn announce(file: &CachedFile, batches: &[ReadaheadBatch]) {
    let chunks: Vec<&IndexedChunk> = batches.iter().flat_map(|(_, chunks)| chunks).collect();
    for run in chunks.chunk_by(|(_, a), (_, b)| are_adjacent(a, b)) {
        if let (Some((_, first)), Some((_, last))) = (run.first(), run.last()) {
            file.archive().will_read(stored_range(first, last));
        }
    }
}
