//! Readahead for sequential readers: the chunks after the one that was just read.

use crate::{
    cache::{CachedFile, ChunkCache, ReadaheadPolicy},
    read::IndexedChunk,
};

/// The largest window in bytes, however well readahead has worked so far.
const MAX_WINDOW: u64 = 32 << 20;
/// A request of so many bytes counts as sequential, because nobody reads so much at random.
const LARGE_REQUEST: usize = 512 << 10;
/// How many bytes to decode after a large request that is not known to be sequential.
const AFTER_LARGE_REQUEST: u64 = 1 << 20;
/// Most chunks to decode ahead of one read. Only tiny chunks reach this limit.
const MAX_CHUNKS: usize = 1 << 12;

/// Decodes as many chunks after a sequential read as were read before it, within the window of the
/// file, 32 MiB and a quarter of the cache.
pub struct SequentialReadahead;

impl ReadaheadPolicy for SequentialReadahead {
    fn after_read(
        &self,
        cache: &ChunkCache,
        file: &CachedFile,
        last: &IndexedChunk,
        len: usize,
    ) -> Vec<usize> {
        let (last, chunk) = last;
        let (archive, index) = (file.archive(), file.archive().index());
        let wanted = match file.sequential_run(*last) {
            Some(chunks) => chunks as u64 * chunk.len() as u64,
            None if len >= LARGE_REQUEST => AFTER_LARGE_REQUEST,
            None => return Vec::new(),
        };
        let window = file.readahead_window().min(MAX_WINDOW).min(cache.capacity() / 4);
        let end = chunk.original.end + wanted.min(window);
        let end = end.min(archive.footer().original_len.saturating_sub(1));
        // A damaged index is reported to readers, not here.
        let Ok(stop) = index.find(end) else { return Vec::new() };
        let stop = stop.min(last + MAX_CHUNKS);
        // Extending the window chunk by chunk would mean many small reads. Wait for three chunks,
        // unless a near one is missing.
        let middle = (last + 1 + stop) / 2;
        let tail = stop.saturating_sub(2)..(stop + 1).min(index.len());
        let candidates = cache.candidates();
        if candidates.among(file, tail).len() < 3
            && candidates.among(file, middle..middle + 1).is_empty()
        {
            return Vec::new();
        }
        candidates.among(file, last + 1..(stop + 1).min(index.len()))
    }
}
