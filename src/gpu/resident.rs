//! A whole original in device memory: stored bytes are uploaded and decoded there.

use super::{
    batch::{Batch, Item, supports},
    driver::{Device, DeviceMemory, DevicePtr},
    slot::{OVERHEAD, Slot, input_cost},
};
use crate::{
    codec::{ChunkDecoder, Coding, EntropyModel, verify_checksum},
    error::{Context, Error, Result},
    format::{Header, Tensor},
    read::{Archive, Scratch, header},
};
use std::{collections::HashSet, sync::Arc};

/// Batches in flight at the same time.
const SLOTS: usize = 2;
/// The alignment of the tensors' data in device memory, in bytes.
const ALIGN: usize = 256;

/// An original in device memory, which is freed when this is dropped.
pub struct Resident {
    memory: Arc<DeviceMemory>,
    /// Bytes before the original.
    before: usize,
    header: Header,
    len: usize,
}

/// A chunk of the archive to upload.
struct Chunk {
    id: usize,
    model: Option<Arc<EntropyModel>>,
    /// The coding of what is uploaded: the stored bytes, or decoded ones if the kernels do not
    /// support the coding.
    coding: Coding,
    stored_len: usize,
    len: usize,
    at: usize,
}

impl Resident {
    /// Decodes all of `archive` into device memory, with `staging` bytes more in the meantime. The
    /// header, and chunks that the kernels do not support, are decoded by `decoder`.
    ///
    /// The kernels check the structure of chunks, but not the checksums of decoded bytes; see
    /// [`Resident::verify`].
    ///
    /// # Errors
    /// Io if CUDA or a read fails; corruption, naming the chunk, if one is damaged.
    pub(super) fn load(
        device: &Arc<Device>,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        staging: usize,
    ) -> Result<Self> {
        let len = usize::try_from(archive.footer().original_len)
            .map_err(|_| Error::invalid("the original is too long for this machine"))?;
        let header = header(archive, decoder)?;
        let before =
            (header.data_start as usize).next_multiple_of(ALIGN) - header.data_start as usize;
        let memory = Arc::new(DeviceMemory::new(device, before + len)?);
        let resident = Self { memory, before, header, len };
        resident.fill(device, archive, decoder, staging / SLOTS)?;
        Ok(resident)
    }

    fn fill(
        &self,
        device: &Arc<Device>,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        room: usize,
    ) -> Result<()> {
        let target = || Some((Arc::clone(&self.memory), self.before));
        // A status is four bytes; an item takes a few hundred bytes of the input.
        let statuses = room / 16;
        let mut slots = (0..SLOTS)
            .map(|_| Slot::new(device, room, statuses, target()))
            .collect::<Result<Vec<_>>>()?;
        let mut in_flight: Vec<Option<(Batch, Vec<Chunk>)>> = slots.iter().map(|_| None).collect();
        let (mut next, mut turn) = (0, 0);
        while next < archive.index().len() || in_flight.iter().any(Option::is_some) {
            let slot = &mut slots[turn];
            if let Some((batch, chunks)) = in_flight[turn].take() {
                let (statuses, _) = slot.results(&batch)?;
                for (i, chunk) in chunks.iter().enumerate() {
                    batch.outcome(i, &statuses).about(format_args!("chunk {}", chunk.id))?;
                }
            }
            let chunks = gather(archive, &mut next, room)?;
            if !chunks.is_empty() {
                let items: Vec<Item<'_>> = chunks.iter().map(Chunk::item).collect();
                let batch = Batch::new(&items)?;
                let fill = |i: usize, payload: &mut [u8]| chunks[i].fill(archive, decoder, payload);
                slot.fill(&batch, chunks.len(), &fill)?.into_iter().collect::<Result<()>>()?;
                slot.start(&batch)?;
                in_flight[turn] = Some((batch, chunks));
            }
            turn = (turn + 1) % SLOTS;
        }
        Ok(())
    }

    /// The device address of the original's first byte.
    pub fn address(&self) -> u64 {
        self.memory.ptr() + self.before as DevicePtr
    }

    /// Bytes of the original.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the original is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensors, in the order of their data. Each starts at [`Resident::address`] plus its
    /// `start`.
    pub fn tensors(&self) -> &[Tensor] {
        &self.header.tensors
    }

    /// Downloads the original's bytes from `at` to all of `out`.
    ///
    /// # Errors
    /// Io if CUDA fails; invalid argument if the original has fewer bytes.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        if at.checked_add(out.len()).is_none_or(|end| end > self.len) {
            return Err(Error::invalid("the range ends after the original"));
        }
        self.memory.read(self.before + at, out)
    }

    /// Downloads everything and compares it with the checksums of `archive`, which it was loaded
    /// from.
    ///
    /// # Errors
    /// As [`Resident::read`]; corruption, naming the chunk, if one does not match.
    pub fn verify(&self, archive: &Archive) -> Result<()> {
        let mut bytes = Vec::new();
        for id in 0..archive.index().len() {
            let chunk = archive.index().chunk(id)?;
            bytes.resize(chunk.len(), 0);
            self.read(chunk.original.start as usize, &mut bytes)?;
            verify_checksum(&bytes, chunk.checksum).about(format_args!("chunk {id}"))?;
        }
        Ok(())
    }
}

impl Chunk {
    fn new(archive: &Archive, id: usize) -> Result<Self> {
        let c = archive.index().chunk(id)?;
        let (coding, stored_len) = if supports(c.coding) {
            (c.coding, c.stored_len as usize)
        } else {
            (Coding::Raw, c.len())
        };
        let model = archive.model_of(&c)?;
        Ok(Self { id, model, coding, stored_len, len: c.len(), at: c.original.start as usize })
    }

    fn item(&self) -> Item<'_> {
        Item {
            coding: self.coding,
            model: self.model.as_deref(),
            stored_len: self.stored_len,
            len: self.len,
            out: self.at,
        }
    }

    fn fill(
        &self,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        payload: &mut [u8],
    ) -> Result<()> {
        if supports(archive.index().chunk(self.id)?.coding) {
            archive.read_stored(self.id, payload)
        } else {
            archive.read_chunk(self.id, decoder, &mut Scratch::default(), payload)
        }
    }
}

/// The chunks from `next` that fit into `room` bytes, but at least one. Moves `next` past them.
fn gather(archive: &Archive, next: &mut usize, room: usize) -> Result<Vec<Chunk>> {
    let (mut chunks, mut cost) = (Vec::new(), OVERHEAD);
    let mut models = HashSet::new();
    while *next < archive.index().len() {
        let chunk = Chunk::new(archive, *next)?;
        let first = chunk.model.as_ref().is_some_and(|m| models.insert(Arc::as_ptr(m)));
        cost += input_cost(&chunk.item(), first);
        if cost > room && !chunks.is_empty() {
            break;
        }
        chunks.push(chunk);
        *next += 1;
    }
    Ok(chunks)
}
