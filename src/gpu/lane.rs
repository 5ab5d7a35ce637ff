//! One of several batches that are under way at once: its stream, and its memory on both sides.

#![allow(unsafe_code)]

use super::{
    batch::{Batch, Item, RECORD},
    driver::{Device, DeviceMemory, PinnedMemory, Place, Places, Stream},
};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

/// Parts of memory begin at multiples of this many bytes.
const ALIGN: usize = 256;

/// A lane. Work that is under way is waited for before its memory goes: fields are dropped in this order.
pub(super) struct Lane {
    stream: Stream,
    input: PinnedMemory,
    output: PinnedMemory,
    device_input: DeviceMemory,
    device_output: DeviceMemory,
    /// Where decoded bytes go, and from what byte on, if they stay on the device.
    target: Option<(Arc<DeviceMemory>, usize)>,
    /// Whether the stream has something that was not waited for.
    busy: bool,
}

/// Where the parts of a batch are in a lane's input.
struct Parts {
    records: Range<usize>,
    models: Range<usize>,
    stored: Range<usize>,
}

impl Parts {
    fn new(batch: &Batch) -> Self {
        let part = |after: usize, len: usize| {
            after.next_multiple_of(ALIGN)..after.next_multiple_of(ALIGN) + len
        };
        let records = part(0, batch.record_count() * RECORD);
        let models = part(records.end, batch.models_len());
        let stored = part(models.end, batch.stored_len());
        Self { records, models, stored }
    }
}

fn statuses_len(batch: &Batch) -> usize {
    batch.record_count() * size_of::<u32>()
}

/// Where in the output decoded bytes begin.
fn decoded_at(batch: &Batch) -> usize {
    statuses_len(batch).next_multiple_of(ALIGN)
}

/// Bytes of the input that an item takes at most, with its model if it is the first one of that.
pub(super) fn input_cost(item: &Item<'_>, first_of_model: bool) -> usize {
    let model = if first_of_model { item.model.map_or(0, super::model::len) } else { 0 };
    // It may be alone in its block, with three records that say nothing.
    item.stored_len + super::batch::SLACK + 64 + 4 * RECORD + model
}

/// Bytes of the output that an item takes at most.
pub(super) fn output_cost(item: &Item<'_>) -> usize {
    item.len.next_multiple_of(ALIGN) + 4 * size_of::<u32>()
}

/// Bytes that a lane needs besides its items'.
pub(super) const OVERHEAD: usize = 4 * ALIGN;

impl Lane {
    /// A lane for batches of so many bytes of input and of output. The latter are statuses only where decoded bytes go to
    /// `target`, from some byte on.
    pub(super) fn new(
        device: &Arc<Device>,
        input: usize,
        output: usize,
        target: Option<(Arc<DeviceMemory>, usize)>,
    ) -> Result<Self> {
        Ok(Self {
            stream: Stream::new(device)?,
            input: PinnedMemory::new(device, input)?,
            output: PinnedMemory::new(device, output)?,
            device_input: DeviceMemory::new(device, input)?,
            device_output: DeviceMemory::new(device, output)?,
            target,
            busy: false,
        })
    }

    /// Fill in the batch: `fill` gets each item's place for its stored bytes. Returns what it says.
    pub(super) fn fill<T: Send>(
        &mut self,
        batch: &Batch,
        count: usize,
        fill: &(dyn Fn(usize, &mut [u8]) -> T + Sync),
    ) -> Result<Vec<T>> {
        self.wait()?;
        let parts = Parts::new(batch);
        if parts.stored.end > self.input.bytes().len() {
            return Err(Error::invalid("a batch that is too large for its lane").about("CUDA"));
        }
        let mut head = Vec::with_capacity(parts.models.end);
        batch.write_records(&mut head);
        head.resize(parts.models.start, 0);
        batch.write_models(&mut head);
        let input = self.input.bytes_mut();
        input[..head.len()].copy_from_slice(&head);
        let mut rest = &mut input[parts.stored];
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|&i| batch.payload(i).start);
        let mut at = 0;
        let mut places: Vec<(usize, &mut [u8])> = Vec::with_capacity(count);
        for i in order {
            let payload = batch.payload(i);
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(payload.start - at);
            let (place, behind) = tail.split_at_mut(payload.len());
            places.push((i, place));
            (rest, at) = (behind, payload.end);
        }
        let mut results: Vec<(usize, T)> =
            places.into_par_iter().map(|(i, place)| (i, fill(i, place))).collect();
        results.sort_unstable_by_key(|(i, _)| *i);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// Upload the batch that was filled in last, decode it, and download statuses, and what was decoded unless that is to
    /// stay on the device.
    pub(super) fn start(&mut self, batch: &Batch) -> Result<()> {
        self.wait()?;
        let (places, returned) = self.places(batch)?;
        let parts = Parts::new(batch);
        self.busy = true;
        // SAFETY: `places` has held all to the lengths of the memory, which is neither used nor freed before the stream was
        // waited for: every function here does so first, and so does dropping the stream.
        unsafe {
            self.stream
                .upload(&self.input.bytes()[..parts.stored.end], self.device_input.place())?;
            self.stream.clear(places.statuses, statuses_len(batch))?;
            for launch in batch.launches() {
                self.stream.launch(launch, places)?;
            }
            self.stream.download(places.statuses, &mut self.output.bytes_mut()[..returned])
        }
    }

    /// Decode the batch that was started last again, so many times, and wait.
    pub(super) fn repeat(&mut self, batch: &Batch, times: usize) -> Result<()> {
        self.wait()?;
        let (places, _) = self.places(batch)?;
        self.busy = true;
        // SAFETY: as in `start`; what was uploaded there is still in its place.
        unsafe {
            self.stream.clear(places.statuses, statuses_len(batch))?;
            for launch in (0..times).flat_map(|_| batch.launches()) {
                self.stream.launch(launch, places)?;
            }
            self.stream
                .download(places.statuses, &mut self.output.bytes_mut()[..statuses_len(batch)])?;
        }
        self.wait()
    }

    /// Where everything is on the device, and how many bytes come back. An error, if there is no room for it.
    fn places(&self, batch: &Batch) -> Result<(Places, usize)> {
        let parts = Parts::new(batch);
        let (input, statuses) = (self.device_input.place(), self.device_output.place());
        let (out, room, returned) = match &self.target {
            Some((memory, from)) => (
                memory.place() + *from as Place,
                memory.len().saturating_sub(*from),
                statuses_len(batch),
            ),
            None => {
                let at = decoded_at(batch);
                let room = self.device_output.len().saturating_sub(at);
                (statuses + at as Place, room, at + batch.out_len())
            }
        };
        let fits = parts.stored.end <= self.device_input.len()
            && batch.out_len() <= room
            && returned <= self.device_output.len();
        if !fits {
            return Err(Error::invalid("a batch that is too large for its lane").about("CUDA"));
        }
        let places = Places {
            records: input + parts.records.start as Place,
            models: input + parts.models.start as Place,
            stored: input + parts.stored.start as Place,
            out,
            statuses,
        };
        Ok((places, returned))
    }

    /// Wait for what was started.
    pub(super) fn wait(&mut self) -> Result<()> {
        if std::mem::take(&mut self.busy) { self.stream.wait() } else { Ok(()) }
    }

    /// When the batch is done: the statuses of its records, and what was decoded.
    pub(super) fn results(&mut self, batch: &Batch) -> Result<(Vec<u32>, &[u8])> {
        self.wait()?;
        let (statuses, _) = self.output.bytes().split_at(statuses_len(batch));
        let statuses = statuses.as_chunks().0.iter().map(|&s| u32::from_le_bytes(s)).collect();
        Ok((statuses, &self.output.bytes()[decoded_at(batch).min(self.output.bytes().len())..]))
    }
}
