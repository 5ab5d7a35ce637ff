//! Decoding of parts of an original into device memory of the caller.

#![allow(unsafe_code)]

use super::{
    batch::{Batch, Item, MAX_CHUNK, supports},
    device::{Device, DevicePtr},
    memory::DeviceMemory,
    slot::{OVERHEAD, Slot, Target, input_cost},
    stream::StreamHandle,
};
use crate::{
    codec::{ChunkDecoder, Coding, EntropyModel},
    error::{Context, Error, Result},
    format,
    read::{Archive, Scratch},
};
use std::{collections::HashSet, ops::Range, sync::Arc};

/// Batches in flight at the same time: one being filled in, and one being uploaded and decoded.
const SLOTS: usize = 2;
/// The minimum memory of a loader, in bytes: any chunk fits into a slot.
pub const MIN_STAGING: usize = SLOTS * 2 * (MAX_CHUNK + (1 << 20));
/// Chunks in scratch memory start at multiples of this many bytes.
const ALIGN: usize = 256;

/// A part of an original, such as a tensor, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its first byte in the original.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The device address of its first byte.
    pub address: u64,
}

impl Part {
    fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}

/// Decodes parts of originals into device memory that its caller has allocated. It holds staging
/// memory on host and device; drop it when there is nothing to decode.
pub struct Loader {
    lanes: Vec<Lane>,
    /// Bytes of input, and of scratch memory, of a lane.
    room: usize,
}

/// What a batch in flight needs.
struct Lane {
    slot: Slot,
    /// For chunks that do not belong to one part as a whole.
    scratch: DeviceMemory,
    in_flight: Option<(Batch, Vec<Chunk>)>,
}

/// A chunk to decode.
struct Chunk {
    id: usize,
    indexed: format::Chunk,
    model: Option<Arc<EntropyModel>>,
    /// The coding of what is uploaded: the stored bytes, or decoded ones if the kernels do not
    /// support the coding.
    coding: Coding,
    stored_len: usize,
    /// The parts that need it.
    parts: Vec<usize>,
    /// Where it is decoded to.
    address: DevicePtr,
    /// Whether that is scratch memory.
    is_scratch: bool,
    /// Whether its stored bytes could be read.
    read: Result<()>,
}

/// What is being decoded.
struct Job<'a> {
    archive: &'a Archive,
    decoder: &'a dyn ChunkDecoder,
    parts: &'a [Part],
    /// By part.
    outcomes: Vec<Result<()>>,
    /// Chunks with the parts that need them, in order, and how many of these pairs are done.
    wanted: Vec<(usize, usize)>,
    done: usize,
}

/// Waits for the lanes, however decoding ends: nothing may write to the caller's memory afterwards.
struct Working<'a>(&'a mut [Lane]);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        for lane in &mut *self.0 {
            // If that fails, the context is lost, and all work with it.
            let _ = lane.slot.wait();
            lane.in_flight = None;
        }
    }
}

impl Loader {
    /// A loader that takes `staging` bytes of the device and about half as many of the host.
    ///
    /// # Errors
    /// Invalid argument if that is less than [`MIN_STAGING`]; Io if the memory cannot be allocated.
    pub(super) fn new(device: &Arc<Device>, staging: usize) -> Result<Self> {
        if staging < MIN_STAGING {
            let why = format!("at least {} MiB of staging memory are needed", MIN_STAGING >> 20);
            return Err(Error::invalid(why).about("CUDA"));
        }
        let room = staging / (2 * SLOTS) - (1 << 18);
        let lane = |_| {
            Ok(Lane {
                // A status is four bytes; an item takes a few hundred bytes of the input.
                slot: Slot::new(device, room, room / 64, Target::Addresses)?,
                scratch: DeviceMemory::new(device, room)?,
                in_flight: None,
            })
        };
        Ok(Self { lanes: (0..SLOTS).map(lane).collect::<Result<_>>()?, room })
    }

    /// Decodes `parts` of the original of `archive` to their addresses. Work that the stream
    /// `after` has at the time of the call, if given, is done first; 0 is the default stream. All
    /// bytes are there when this returns, so that any stream may use them.
    ///
    /// The checksums of all chunks are compared on the device. `decoder` decodes the chunks that
    /// the kernels do not support. Chunks are read on threads of the current rayon pool.
    ///
    /// Returns an outcome for each part: an error, which names the chunk, if it is not in the
    /// original or cannot be read or decoded. Its memory may then hold anything.
    ///
    /// # Errors
    /// Io if CUDA fails. Then nothing is decoded, and the loader cannot be used any more.
    ///
    /// # Safety
    /// Each part's address must be that of `len` bytes of memory of this device, which overlap
    /// those of no other part, and which nothing else uses before this returns, except work of the
    /// stream. `after` must be a stream of the device's primary context.
    pub unsafe fn decode(
        &mut self,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        parts: &[Part],
        after: Option<u64>,
    ) -> Result<Vec<Result<()>>> {
        let (mut job, room) = (Job::new(archive, decoder, parts), self.room);
        let lanes = Working(&mut self.lanes);
        if let Some(stream) = after {
            for lane in &mut *lanes.0 {
                // SAFETY: the caller vouches for the stream.
                unsafe { lane.slot.wait_for(stream as StreamHandle) }?;
            }
        }
        let mut turn = 0;
        while job.done < job.wanted.len() || lanes.0.iter().any(|lane| lane.in_flight.is_some()) {
            let lane = &mut lanes.0[turn];
            if let Some((batch, chunks)) = lane.in_flight.take() {
                let (statuses, _) = lane.slot.results(&batch)?;
                for (i, chunk) in chunks.into_iter().enumerate() {
                    let outcome = chunk.read.clone().and_then(|()| batch.outcome(i, &statuses));
                    job.note(&chunk, outcome);
                }
            }
            let chunks = job.gather(room, lane.scratch.ptr());
            if !chunks.is_empty() {
                // SAFETY: the caller vouches for the parts' memory.
                unsafe { lane.start(&job, chunks) }?;
            }
            turn = (turn + 1) % SLOTS;
        }
        Ok(job.outcomes)
    }
}

impl Lane {
    /// Starts a batch of `chunks`.
    ///
    /// # Safety
    /// As [`Loader::decode`], until the slot is waited for.
    unsafe fn start(&mut self, job: &Job<'_>, mut chunks: Vec<Chunk>) -> Result<()> {
        let items: Vec<Item<'_>> = chunks.iter().map(Chunk::item).collect();
        let batch = Batch::new(&items)?;
        let fill = |i: usize, payload: &mut [u8]| chunks[i].fill(job, payload);
        let read = self.slot.fill(&batch, chunks.len(), &fill)?;
        chunks.iter_mut().zip(read).for_each(|(chunk, read)| chunk.read = read);
        self.slot.start(&batch)?;
        for chunk in chunks.iter().filter(|chunk| chunk.is_scratch) {
            for part in chunk.parts.iter().map(|&i| job.parts[i]) {
                let whole = &chunk.indexed.original;
                let common = whole.start.max(part.start)..whole.end.min(part.range().end);
                let from = chunk.address + (common.start - whole.start);
                let to = part.address + (common.start - part.start);
                // SAFETY: the chunk is that long, and so is the part, for whose memory the caller
                // vouches.
                unsafe { self.slot.copy(from, to, (common.end - common.start) as usize) }?;
            }
        }
        self.in_flight = Some((batch, chunks));
        Ok(())
    }
}

impl<'a> Job<'a> {
    fn new(archive: &'a Archive, decoder: &'a dyn ChunkDecoder, parts: &'a [Part]) -> Self {
        let (mut wanted, mut outcomes) = (Vec::new(), Vec::with_capacity(parts.len()));
        for (i, part) in parts.iter().enumerate() {
            let ids = chunks_of(archive, part);
            outcomes.push(ids.map(|ids| wanted.extend(ids.map(|id| (id, i)))));
        }
        wanted.sort_unstable();
        Self { archive, decoder, parts, outcomes, wanted, done: 0 }
    }

    /// The next chunks that fit into `room` bytes, but at least one, if there are any.
    fn gather(&mut self, room: usize, scratch: DevicePtr) -> Vec<Chunk> {
        let (mut chunks, mut input, mut used) = (Vec::new(), OVERHEAD, 0);
        let mut models = HashSet::new();
        while let Some(&(id, _)) = self.wanted.get(self.done) {
            let same = self.wanted[self.done..].iter().take_while(|(other, _)| *other == id);
            let parts: Vec<usize> = same.map(|(_, part)| *part).collect();
            let count = parts.len();
            match Chunk::new(self, id, parts.clone(), scratch + used as DevicePtr) {
                Err(e) => parts.iter().for_each(|&part| self.fail(part, id, &e)),
                Ok(chunk) => {
                    let first = chunk.model.as_ref().is_some_and(|m| models.insert(Arc::as_ptr(m)));
                    input += input_cost(&chunk.item(), first);
                    if chunk.is_scratch {
                        used += chunk.indexed.len().next_multiple_of(ALIGN);
                    }
                    if input.max(used) > room && !chunks.is_empty() {
                        break;
                    }
                    chunks.push(chunk);
                }
            }
            self.done += count;
        }
        chunks
    }

    fn note(&mut self, chunk: &Chunk, outcome: Result<()>) {
        if let Err(e) = outcome {
            chunk.parts.iter().for_each(|&part| self.fail(part, chunk.id, &e));
        }
    }

    /// Notes an error of a part; its first one stays.
    fn fail(&mut self, part: usize, id: usize, error: &Error) {
        if self.outcomes[part].is_ok() {
            self.outcomes[part] = Err(error.clone()).about(format_args!("chunk {id}"));
        }
    }
}

/// The chunks that a part needs.
fn chunks_of(archive: &Archive, part: &Part) -> Result<Range<usize>> {
    let end = part.start.checked_add(part.len);
    let Some(end) = end.filter(|&end| end <= archive.footer().original_len) else {
        return Err(Error::invalid("the range ends after the original"));
    };
    if part.len == 0 {
        return Ok(0..0);
    }
    let index = archive.index();
    Ok(index.find(part.start)?..index.find(end - 1)? + 1)
}

impl Chunk {
    fn new(job: &Job<'_>, id: usize, parts: Vec<usize>, scratch: DevicePtr) -> Result<Self> {
        let indexed = job.archive.index().chunk(id)?;
        let (coding, model, stored_len) = if supports(indexed.coding) {
            let model = job.archive.model_of(&indexed)?;
            (indexed.coding, model, indexed.stored_len as usize)
        } else {
            (Coding::Raw, None, indexed.len())
        };
        let whole = &indexed.original;
        let only = if let [only] = parts[..] { Some(job.parts[only]) } else { None };
        let direct = only
            .filter(|part| part.start <= whole.start && whole.end <= part.range().end)
            .map(|part| part.address + (whole.start - part.start));
        let (address, is_scratch) = (direct.unwrap_or(scratch), direct.is_none());
        Ok(Self {
            id,
            indexed,
            model,
            coding,
            stored_len,
            parts,
            address,
            is_scratch,
            read: Ok(()),
        })
    }

    fn item(&self) -> Item<'_> {
        Item {
            coding: self.coding,
            model: self.model.as_deref(),
            stored_len: self.stored_len,
            len: self.indexed.len(),
            out: self.address as usize,
            checksum: Some(self.indexed.checksum),
        }
    }

    fn fill(&self, job: &Job<'_>, payload: &mut [u8]) -> Result<()> {
        if supports(self.indexed.coding) {
            job.archive.read_stored(self.id, payload)
        } else {
            job.archive.read_chunk(self.id, job.decoder, &mut Scratch::default(), payload)
        }
    }
}
