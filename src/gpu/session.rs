//! Decoding of chunks to host memory: while one batch is decoded, others are read, uploaded and
//! downloaded.

use super::{
    batch::{Batch, Item, MAX_CHUNK},
    device::Device,
    slot::{OVERHEAD, Slot, Target, input_cost, output_cost},
};
use crate::{
    codec::{Coding, EntropyModel},
    error::{Error, Result},
};
use rayon::prelude::*;
use std::{collections::HashSet, ops::Range, sync::Arc};

/// Batches in flight at the same time: one being filled in or delivered, one being uploaded, one
/// being decoded, and one being downloaded.
const SLOTS: usize = 4;
/// The minimum memory of a session, in bytes: any chunk fits into a slot, as input and as output.
pub const MIN_MEMORY: usize = SLOTS * 2 * (MAX_CHUNK + (1 << 20));

/// A chunk to decode.
#[derive(Clone)]
pub struct Piece {
    /// Raw or planes: see [`super::supports`].
    pub coding: Coding,
    /// The model of a chunk of planes. Chunks of a tensor should share it.
    pub model: Option<Arc<EntropyModel>>,
    /// Stored bytes.
    pub stored_len: usize,
    /// Decoded bytes.
    pub len: usize,
    /// What the GPU compares the checksum of the decoded bytes with, if anything.
    pub checksum: Option<u64>,
}

impl Piece {
    /// The piece at position `out` of an output.
    pub(super) fn item(&self, out: usize) -> Item<'_> {
        let (coding, model) = (self.coding, self.model.as_deref());
        Item {
            coding,
            model,
            stored_len: self.stored_len,
            len: self.len,
            out,
            checksum: self.checksum,
        }
    }
}

/// Writes the stored bytes of the piece with this number to all of the slice.
pub type Fill<'a> = dyn Fn(usize, &mut [u8]) -> Result<()> + Sync + 'a;
/// Receives the decoded bytes of the piece with this number, or an error. Verifying the checksum is
/// left to the receiver.
pub type Deliver<'a> = dyn Fn(usize, Result<&[u8]>) + Sync + 'a;

/// Decodes to host memory. A session holds device memory and as much page-locked host memory: drop
/// it when there is nothing to decode.
pub struct Session {
    slots: Vec<Slot>,
    /// Bytes of input, and of output, of a slot.
    room: usize,
}

/// A batch in flight.
struct InFlight {
    batch: Batch,
    pieces: Range<usize>,
    /// By item: where it is in the output.
    outs: Vec<Range<usize>>,
    /// By item: whether it could be filled in.
    filled: Vec<Result<()>>,
}

impl Session {
    /// A session that takes `memory` bytes of the device and as many of the host.
    ///
    /// # Errors
    /// Invalid argument if that is less than [`MIN_MEMORY`]; Io if the memory cannot be allocated.
    pub(super) fn new(device: &Arc<Device>, memory: usize) -> Result<Self> {
        if memory < MIN_MEMORY {
            let why = format!("at least {} MiB of memory are needed", MIN_MEMORY >> 20);
            return Err(Error::invalid(why).about("CUDA"));
        }
        let room = memory / (2 * SLOTS);
        let slots = (0..SLOTS)
            .map(|_| Slot::new(device, room, room, Target::Host))
            .collect::<Result<_>>()?;
        Ok(Self { slots, room })
    }

    /// Decodes `pieces`. `fill` and `take` are called for each of them, on threads of the current
    /// rayon pool, approximately in the order of the pieces.
    ///
    /// # Errors
    /// Io if CUDA fails: then `take` was not called for all pieces, and the session cannot be used
    /// any more. Invalid argument if the GPU cannot decode a piece.
    pub fn decode(&mut self, pieces: &[Piece], fill: &Fill<'_>, take: &Deliver<'_>) -> Result<()> {
        let mut in_flight: Vec<Option<InFlight>> = self.slots.iter().map(|_| None).collect();
        let (mut next, mut turn) = (0, 0);
        while next < pieces.len() || in_flight.iter().any(Option::is_some) {
            let slot = &mut self.slots[turn];
            if let Some(done) = in_flight[turn].take() {
                deliver(slot, &done, take)?;
            }
            if next < pieces.len() {
                let count = fitting(&pieces[next..], self.room);
                in_flight[turn] = Some(start(slot, pieces, next..next + count, fill)?);
                next += count;
            }
            turn = (turn + 1) % SLOTS;
        }
        Ok(())
    }
}

/// How many of the first `pieces` fit into `room` bytes of input and of output, but at least one.
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

/// Fills in a batch of the pieces in `range`, and starts it.
fn start(
    slot: &mut Slot,
    pieces: &[Piece],
    range: Range<usize>,
    fill: &Fill<'_>,
) -> Result<InFlight> {
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
    let filled = slot.fill(&batch, items.len(), &|i, place| fill(range.start + i, place))?;
    slot.start(&batch)?;
    let outs = items.iter().map(|i| i.out..i.out + i.len).collect();
    Ok(InFlight { batch, pieces: range, outs, filled })
}

/// Waits for a batch and delivers its pieces.
fn deliver(slot: &mut Slot, done: &InFlight, take: &Deliver<'_>) -> Result<()> {
    let (statuses, decoded) = slot.results(&done.batch)?;
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
    fn batches_stay_within_their_room() {
        let piece =
            |len| Piece { coding: Coding::Raw, model: None, stored_len: len, len, checksum: None };
        let pieces = vec![piece(1 << 18); 100];
        let count = fitting(&pieces, 4 << 20);
        assert!((14..=15).contains(&count), "{count}");
        let small = vec![piece(1); 100_000];
        let count = fitting(&small, 1 << 20);
        let mut items: Vec<Item<'_>> = small[..count].iter().map(|p| p.item(0)).collect();
        items.iter_mut().enumerate().for_each(|(i, item)| item.out = i * 256);
        let batch = Batch::new(&items).expect("raw");
        let used = batch.record_count() * crate::gpu::batch::RECORD + batch.stored_len() + OVERHEAD;
        assert!(used <= 1 << 20, "{used} bytes for {count}");
        assert_eq!(fitting(&[piece(MAX_CHUNK)], 1), 1, "at least one");
    }
}
