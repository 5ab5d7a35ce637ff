//! The resources of one batch in flight: its stream, and its memory on host and device.

#![allow(unsafe_code)]

use super::{
    batch::{Batch, CHECK, Item, RECORD},
    device::{Device, DevicePtr},
    memory::{DeviceMemory, PinnedMemory},
    stream::{Buffers, Stream, StreamHandle},
};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

/// Parts of a buffer start at multiples of this many bytes.
const ALIGN: usize = 256;

/// A slot for one batch at a time. Fields are dropped in this order: the stream waits for work in
/// flight before its memory is freed.
pub(super) struct Slot {
    stream: Stream,
    input: PinnedMemory,
    output: PinnedMemory,
    device_input: DeviceMemory,
    device_output: DeviceMemory,
    target: Target,
    /// Whether work of the stream may be in flight.
    busy: bool,
}

/// Where decoded bytes go.
pub(super) enum Target {
    /// To the slot's output, which is downloaded.
    Host,
    /// To this memory, from the given position.
    Memory(Arc<DeviceMemory>, usize),
    /// To the positions of the items, which are addresses.
    Addresses,
}

/// Where the parts of a batch are in the input.
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

/// Where in the output the decoded bytes start.
fn decoded_at(batch: &Batch) -> usize {
    statuses_len(batch).next_multiple_of(ALIGN)
}

/// Bytes of the input that an item takes at most. The first item of a model pays for the model.
pub(super) fn input_cost(item: &Item<'_>, first_of_model: bool) -> usize {
    let model = if first_of_model { item.model.map_or(0, super::model::len) } else { 0 };
    // The item may be alone in its block, with three records of padding.
    item.stored_len + super::batch::SLACK + 64 + 4 * RECORD + model
}

/// Bytes of the output that an item takes at most.
pub(super) fn output_cost(item: &Item<'_>) -> usize {
    item.len.next_multiple_of(ALIGN) + 4 * size_of::<u32>()
}

/// Bytes of the input, and of the output, that a batch takes besides its items.
pub(super) const OVERHEAD: usize = 4 * ALIGN;

impl Slot {
    /// A slot for batches that take up to `input` and `output` bytes. Unless the target is the
    /// host, the output only holds statuses.
    pub(super) fn new(
        device: &Arc<Device>,
        input: usize,
        output: usize,
        target: Target,
    ) -> Result<Self> {
        let mut slot = Self {
            stream: Stream::new(device)?,
            input: PinnedMemory::new(device, input)?,
            output: PinnedMemory::new(device, output)?,
            device_input: DeviceMemory::new(device, input)?,
            device_output: DeviceMemory::new(device, output)?,
            target,
            busy: true,
        };
        let (at, len) = (slot.device_output.ptr(), slot.device_output.len());
        // The gaps between decoded chunks are downloaded, too. They would be what another program
        // has left in this memory.
        // SAFETY: the memory has this length, and is not freed before the stream is waited for.
        unsafe { slot.stream.clear(at, len) }?;
        slot.wait()?;
        Ok(slot)
    }

    /// Starts nothing until `other` has done what it has to do at present.
    ///
    /// # Safety
    /// As [`Stream::wait_for`].
    pub(super) unsafe fn wait_for(&mut self, other: StreamHandle) -> Result<()> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.stream.wait_for(other) }
    }

    /// Fills in the payloads of a batch: `fill` gets the number and the buffer of each item.
    /// Returns the results of `fill`, by item.
    pub(super) fn fill<T: Send>(
        &mut self,
        batch: &Batch,
        count: usize,
        fill: &(dyn Fn(usize, &mut [u8]) -> T + Sync),
    ) -> Result<Vec<T>> {
        self.wait()?;
        let parts = Parts::new(batch);
        if parts.stored.end > self.input.bytes().len() {
            return Err(Error::invalid("the batch is too large for its buffers").about("CUDA"));
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
        let mut payloads: Vec<(usize, &mut [u8])> = Vec::with_capacity(count);
        for i in order {
            let range = batch.payload(i);
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(range.start - at);
            let (payload, after) = tail.split_at_mut(range.len());
            payloads.push((i, payload));
            (rest, at) = (after, range.end);
        }
        let mut results: Vec<(usize, T)> =
            payloads.into_par_iter().map(|(i, payload)| (i, fill(i, payload))).collect();
        results.sort_unstable_by_key(|(i, _)| *i);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// Starts the batch that was filled in last: uploads it, decodes it, and downloads the statuses
    /// and, unless they stay on the device, the decoded bytes.
    ///
    /// If its items have addresses, the caller vouches for as many bytes there as they decode to,
    /// until the slot is waited for.
    pub(super) fn start(&mut self, batch: &Batch) -> Result<()> {
        self.wait()?;
        let (buffers, returned) = self.buffers(batch)?;
        let parts = Parts::new(batch);
        self.busy = true;
        // SAFETY: `buffers` has checked all lengths. The memory is neither used nor freed before
        // the stream is waited for: every function here does that first, and so does dropping the
        // stream.
        unsafe {
            self.stream.upload(&self.input.bytes()[..parts.stored.end], self.device_input.ptr())?;
            self.stream.clear(buffers.statuses, statuses_len(batch))?;
            for launch in batch.launches() {
                self.stream.launch(launch, buffers)?;
            }
            self.stream.download(buffers.statuses, &mut self.output.bytes_mut()[..returned])
        }
    }

    /// Copies `len` bytes within device memory after what was started.
    ///
    /// # Safety
    /// As [`Stream::copy`].
    pub(super) unsafe fn copy(&mut self, from: DevicePtr, to: DevicePtr, len: usize) -> Result<()> {
        self.busy = true;
        // SAFETY: the caller vouches for both.
        unsafe { self.stream.copy(from, to, len) }
    }

    /// Decodes the batch that was started last again, `times` times, and waits. Checksums are
    /// compared only if `checked`.
    pub(super) fn repeat(&mut self, batch: &Batch, times: usize, checked: bool) -> Result<()> {
        self.wait()?;
        let (buffers, _) = self.buffers(batch)?;
        self.busy = true;
        // SAFETY: as in `start`, which has uploaded the batch.
        unsafe {
            self.stream.clear(buffers.statuses, statuses_len(batch))?;
            for launch in (0..times).flat_map(|_| batch.launches()) {
                if checked || launch.kernel != CHECK {
                    self.stream.launch(launch, buffers)?;
                }
            }
            self.stream
                .download(buffers.statuses, &mut self.output.bytes_mut()[..statuses_len(batch)])?;
        }
        self.wait()
    }

    /// The buffers on the device, and how many bytes are downloaded. An error if the batch is too
    /// large.
    fn buffers(&self, batch: &Batch) -> Result<(Buffers, usize)> {
        let parts = Parts::new(batch);
        let (input, statuses) = (self.device_input.ptr(), self.device_output.ptr());
        let (out, room, returned) = match &self.target {
            Target::Memory(memory, from) => (
                memory.ptr() + *from as DevicePtr,
                memory.len().saturating_sub(*from),
                statuses_len(batch),
            ),
            Target::Addresses => (0, usize::MAX, statuses_len(batch)),
            Target::Host => {
                let at = decoded_at(batch);
                let room = self.device_output.len().saturating_sub(at);
                (statuses + at as DevicePtr, room, at + batch.out_len())
            }
        };
        let fits = parts.stored.end <= self.device_input.len()
            && batch.out_len() <= room
            && returned <= self.device_output.len();
        if !fits {
            return Err(Error::invalid("the batch is too large for its buffers").about("CUDA"));
        }
        let buffers = Buffers {
            records: input + parts.records.start as DevicePtr,
            models: input + parts.models.start as DevicePtr,
            stored: input + parts.stored.start as DevicePtr,
            out,
            statuses,
        };
        Ok((buffers, returned))
    }

    /// Waits for work in flight.
    pub(super) fn wait(&mut self) -> Result<()> {
        if std::mem::take(&mut self.busy) { self.stream.wait() } else { Ok(()) }
    }

    /// Waits for the batch. Returns the statuses of its records and the decoded bytes.
    pub(super) fn results(&mut self, batch: &Batch) -> Result<(Vec<u32>, &[u8])> {
        self.wait()?;
        let (statuses, _) = self.output.bytes().split_at(statuses_len(batch));
        let statuses = statuses.as_chunks().0.iter().map(|&s| u32::from_le_bytes(s)).collect();
        Ok((statuses, &self.output.bytes()[decoded_at(batch).min(self.output.bytes().len())..]))
    }
}
