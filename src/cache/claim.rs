//! Claims chunks for readahead: registers them as in flight before any reader requests them.

use super::{
    batch::{Batch, adjacent},
    buffer::footprint,
    file::CachedFile,
    store::ChunkStore,
};
use crate::{codec::ChunkDecoder, read::IndexedChunk};
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

/// Decode readahead batches on the cache's threads.
pub(super) fn start(
    store: &Arc<ChunkStore>,
    decoder: &Arc<dyn ChunkDecoder>,
    file: &Arc<CachedFile>,
    batches: Vec<ReadaheadBatch>,
) {
    for (number, chunks) in batches {
        let batch = Batch::new(store, file, &chunks);
        let decoder = Arc::clone(decoder);
        store.workers.readahead(number, move || batch.decode(&*decoder));
    }
}
