//! What a cache decodes before it is asked for: behind its readers, and what is wished for.

use super::{
    archive::{Archive, Numbered},
    batch::{Batch, Owed},
    buffer::cost,
    cache::{ChunkCache, neighbours},
    wishes::Wish,
};
use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

/// How far ahead of a reader chunks are decoded, at most, in bytes.
const FARTHEST: u64 = 32 << 20;
/// Chunks that nobody waits for yet are read together up to so many bytes.
const AHEAD_BATCH: u64 = 1 << 20;
/// A request for so many bytes that is not known to be of a stream is taken to be followed by as many bytes as
/// [`FOLLOWING`]: nobody reads so much at random.
const LARGE: usize = 512 << 10;
/// See [`LARGE`].
const FOLLOWING: u64 = 1 << 20;
/// No more chunks than this are decoded ahead of one read, or wished for at once: others are tiny.
const MOST_CHUNKS: usize = 1 << 12;

/// Chunks that are decoded together, and the number by which they can be hurried.
type Claimed = (u64, Vec<Numbered>);

impl ChunkCache {
    /// What to decode ahead of a reader who is at chunk `last`.
    pub(super) fn plan_ahead(
        &self,
        archive: &Archive,
        last: Option<Numbered>,
        len: usize,
    ) -> Vec<Claimed> {
        // Readers that are many keep disk and cores busy themselves, and decode what is still in the core's caches when it
        // is copied.
        let few = self.options.ahead && !self.is_busy();
        let Some((last, chunk)) = last.filter(|_| few) else { return Vec::new() };
        let index = archive.index();
        let behind = match archive.passed().behind(last) {
            Some(chunks) => chunks as u64 * chunk.len() as u64,
            None if len >= LARGE => FOLLOWING,
            None => return Vec::new(),
        };
        let farthest = archive.passed().reach().min(FARTHEST).min(self.options.capacity / 4);
        let end = chunk.original.end + behind.min(farthest);
        let end = end.min(archive.footer().original_len.saturating_sub(1));
        // A reader would be told of what is wrong with the index.
        let Ok(stop) = index.find(end) else { return Vec::new() };
        let stop = stop.min(last + MOST_CHUNKS);
        // A little at a time would be many small reads; what is near cannot wait.
        let middle = (last + 1 + stop) / 2;
        let tail = stop.saturating_sub(2)..(stop + 1).min(index.len());
        let state = self.lock();
        if state.unclaimed(archive, tail).len() < 3
            && state.unclaimed(archive, middle..middle + 1).is_empty()
        {
            return Vec::new();
        }
        let ids = state.unclaimed(archive, last + 1..(stop + 1).min(index.len()));
        drop(state);
        self.claim(archive, &ids).0
    }

    /// Take on chunks that are neither here nor on their way, as far as there is room for chunks nobody has asked for; and
    /// whether there was room for all.
    fn claim(&self, archive: &Archive, ids: &[usize]) -> (Vec<Claimed>, bool) {
        // Unlocked, for an index in parts is read.
        let chunks: Vec<Numbered> =
            ids.iter().map_while(|&id| Some((id, archive.index().chunk(id).ok()?))).collect();
        let mut state = self.lock();
        let mut room = (self.options.capacity / 2).saturating_sub(state.ahead_bytes);
        let fits = |(_, chunk): &&Numbered| {
            let cost = cost(chunk.len());
            let fits = cost <= room && !state.is_crowded();
            room = room.saturating_sub(cost);
            fits
        };
        let fitting = chunks.iter().take_while(fits).count();
        let all = fitting == ids.len();
        // Meanwhile somebody may have asked for them.
        let chunks: Vec<Numbered> = chunks
            .into_iter()
            .take(fitting)
            .filter(|(id, _)| state.is_unclaimed(archive, *id))
            .collect();
        let numbered =
            |chunks: &[Numbered]| (self.batches.fetch_add(1, Ordering::Relaxed), chunks.to_vec());
        let batches: Vec<Claimed> = neighbours(&chunks, AHEAD_BATCH).map(numbered).collect();
        for (number, chunks) in &batches {
            chunks.iter().for_each(|chunk| state.expect(archive, chunk, *number));
        }
        (batches, all)
    }

    pub(super) fn decode_ahead(self: &Arc<Self>, archive: &Arc<Archive>, batches: Vec<Claimed>) {
        for (number, chunks) in batches {
            let batch = Batch::new(self, archive, &chunks);
            let decoder = Arc::clone(&self.options.decoder);
            self.workers.ahead(number, move || batch.decode(&*decoder));
        }
    }

    /// Decode at once what is still owed.
    pub(super) fn take_back(&self, owed: &[Owed]) {
        for batch in Batch::left(owed) {
            let decoder = Arc::clone(&self.options.decoder);
            self.workers.urgent(move || batch.decode(&*decoder));
        }
    }

    /// The chunks of a piece; none where they are too many.
    fn chunks_of(piece: &Wish) -> Range<usize> {
        let Wish { archive, range, .. } = piece;
        let index = archive.index();
        match (index.find(range.start), index.find(range.end - 1)) {
            (Ok(first), Ok(last)) if last - first < MOST_CHUNKS => {
                first..(last + 1).min(index.len())
            }
            _ => 0..0,
        }
    }

    /// Decode what a piece needs, ahead of any reader, and have it taken; `false` if there was no room for all of it.
    pub(super) fn warm(self: &Arc<Self>, piece: &Wish) -> bool {
        let archive = &piece.archive;
        let ids = Self::chunks_of(piece);
        let ids = self.lock().unclaimed(archive, ids);
        let (batches, all) = self.claim(archive, &ids);
        if batches.is_empty() {
            return all;
        }
        match self.elsewhere().filter(|elsewhere| elsewhere.answers()) {
            None => self.decode_ahead(archive, batches),
            Some(elsewhere) => {
                let owed =
                    batches.iter().flat_map(|(_, chunks)| Batch::new(self, archive, chunks).owed());
                elsewhere.decode(self, owed.collect());
            }
        }
        if let (Some(taker), Some(shown)) = (self.taker(), &piece.shown) {
            taker.take(piece, shown);
        }
        all
    }
}
