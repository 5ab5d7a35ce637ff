//! Chunks decoded to the host's memory: batches that are read, uploaded, decoded and downloaded while others are, too.

use super::{
    Gpu,
    batch::{Batch, Item, LONGEST},
    lane::{Lane, OVERHEAD, input_cost, output_cost},
};
use crate::{
    codec::{Coding, EntropyModel},
    error::{Error, Result},
};
use rayon::prelude::*;
use std::{collections::HashSet, ops::Range, sync::Arc};

/// Batches that are under way at once: one that is filled in or handed out, one on its way to the device, one that is
/// decoded, one on its way back.
const LANES: usize = 4;
/// The least memory of a session: any chunk fits into a lane, on either side.
pub const LEAST_MEMORY: usize = LANES * 2 * (LONGEST + (1 << 20));

/// A chunk to decode.
#[derive(Clone)]
pub struct Piece {
    /// Raw or planes: see [`super::takes`].
    pub coding: Coding,
    /// The model of planes. Chunks of a tensor should share it.
    pub model: Option<Arc<EntropyModel>>,
    /// Stored bytes.
    pub stored_len: usize,
    /// Decoded bytes.
    pub len: usize,
}

impl Piece {
    /// The piece, with its place in an output.
    pub(super) fn item(&self, out: usize) -> Item<'_> {
        let (coding, model) = (self.coding, self.model.as_deref());
        Item { coding, model, stored_len: self.stored_len, len: self.len, out }
    }
}

/// Writes the stored bytes of a piece, by its number, to all of the slice.
pub type Fill<'a> = dyn Fn(usize, &mut [u8]) -> Result<()> + Sync + 'a;
/// Gets the decoded bytes of a piece, by its number, or why there are none. Checksums are the receiver's to verify.
pub type Take<'a> = dyn Fn(usize, Result<&[u8]>) + Sync + 'a;

/// Decodes to the host's memory. It holds memory of the device, and as much of the host's that is pinned: drop it when
/// there is nothing to do.
pub struct Session {
    lanes: Vec<Lane>,
    /// Bytes of a lane on either side.
    room: usize,
}

/// A batch that is under way.
struct UnderWay {
    batch: Batch,
    pieces: Range<usize>,
    /// By item: where it is in the output, and whether it could be filled in.
    outs: Vec<Range<usize>>,
    filled: Vec<Result<()>>,
}

impl Session {
    /// A session that takes `memory` bytes of the device, and as many of the host.
    ///
    /// # Errors
    /// Invalid argument, where that is less than [`LEAST_MEMORY`]; Io, where it is not to be had.
    pub(super) fn new(gpu: &Gpu, memory: usize) -> Result<Self> {
        if memory < LEAST_MEMORY {
            let why = format!("less than the {} MiB of memory that are needed", LEAST_MEMORY >> 20);
            return Err(Error::invalid(why).about("CUDA"));
        }
        let room = memory / (2 * LANES);
        let lanes =
            (0..LANES).map(|_| Lane::new(&gpu.device, room, room, None)).collect::<Result<_>>()?;
        Ok(Self { lanes, room })
    }

    /// Decode `pieces`. `fill` and `take` are called for each of them, on threads of the current rayon pool, in about the
    /// order of the pieces.
    ///
    /// # Errors
    /// Io, where CUDA fails: then `take` was not called for all, and the session is of no more use. Invalid argument,
    /// where a piece is not for a GPU.
    pub fn decode(&mut self, pieces: &[Piece], fill: &Fill<'_>, take: &Take<'_>) -> Result<()> {
        let mut under_way: Vec<Option<UnderWay>> = self.lanes.iter().map(|_| None).collect();
        let (mut next, mut turn) = (0, 0);
        while next < pieces.len() || under_way.iter().any(Option::is_some) {
            let lane = &mut self.lanes[turn];
            if let Some(done) = under_way[turn].take() {
                deliver(lane, &done, take)?;
            }
            if next < pieces.len() {
                let count = fitting(&pieces[next..], self.room);
                under_way[turn] = Some(start(lane, pieces, next..next + count, fill)?);
                next += count;
            }
            turn = (turn + 1) % LANES;
        }
        Ok(())
    }
}

/// How many of the first `pieces` fit into `room` bytes on either side, one at least.
fn fitting(pieces: &[Piece], room: usize) -> usize {
    let (mut input, mut output) = (OVERHEAD, OVERHEAD);
    let mut models = HashSet::new();
    let fits = |p: &Piece| {
        let item = p.item(0);
        let first = item.model.is_some_and(|m| models.insert(std::ptr::from_ref(m)));
        input += input_cost(&item, first);
        output += output_cost(&item);
        input.max(output) <= room
    };
    pieces.iter().map(fits).take_while(|fits| *fits).count().max(1)
}

/// Fill in a batch of some of the pieces, and start it.
fn start(
    lane: &mut Lane,
    pieces: &[Piece],
    range: Range<usize>,
    fill: &Fill<'_>,
) -> Result<UnderWay> {
    let mut end = 0;
    let items: Vec<Item<'_>> = pieces[range.clone()]
        .iter()
        .map(|p| {
            let at = end;
            end = (at + p.len).next_multiple_of(256);
            p.item(at)
        })
        .collect();
    let batch = Batch::new(&items)?;
    let filled = lane.fill(&batch, items.len(), &|i, place| fill(range.start + i, place))?;
    lane.start(&batch)?;
    let outs = items.iter().map(|i| i.out..i.out + i.len).collect();
    Ok(UnderWay { batch, pieces: range, outs, filled })
}

/// Hand out what was decoded.
fn deliver(lane: &mut Lane, done: &UnderWay, take: &Take<'_>) -> Result<()> {
    let (statuses, decoded) = lane.results(&done.batch)?;
    (0..done.outs.len()).into_par_iter().for_each(|i| {
        let outcome = done.filled[i].clone().and_then(|()| done.batch.outcome(i, &statuses));
        take(done.pieces.start + i, outcome.map(|()| &decoded[done.outs[i].clone()]));
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_within_their_room() {
        let piece = |len| Piece { coding: Coding::Raw, model: None, stored_len: len, len };
        let pieces = vec![piece(1 << 18); 100];
        let count = fitting(&pieces, 4 << 20);
        assert!((14..=15).contains(&count), "{count}");
        let small = vec![piece(1); 100_000];
        let count = fitting(&small, 1 << 20);
        let mut items: Vec<Item<'_>> = small[..count].iter().map(|p| p.item(0)).collect();
        items.iter_mut().enumerate().for_each(|(i, item)| item.out = i * 256);
        let batch = Batch::new(&items).expect("raw");
        let used =
            batch.record_count() * super::super::batch::RECORD + batch.stored_len() + OVERHEAD;
        assert!(used <= 1 << 20, "{used} bytes for {count}");
        assert_eq!(fitting(&[piece(LONGEST)], 1), 1, "at least one");
    }
}
