//! A whole original in the memory of the device: stored bytes go up, and are decoded there.

use super::{
    Gpu,
    batch::{Batch, Item},
    driver::{DeviceMemory, Place},
    lane::{Lane, OVERHEAD, input_cost},
    takes,
};
use crate::{
    codec::{ChunkDecoder, Coding, EntropyModel, checksum},
    error::{Context, Error, Result},
    format::{Header, Tensor},
    read::{Archive, Scratch, header},
};
use std::{collections::HashSet, sync::Arc};

/// Batches that are under way at once.
const LANES: usize = 2;
/// Where tensors' data begin is a multiple of this many bytes, in the device's memory.
const ALIGN: usize = 256;

/// An original in the memory of the device, for as long as this lives.
pub struct Resident {
    memory: Arc<DeviceMemory>,
    /// Bytes before the original.
    before: usize,
    header: Header,
    len: usize,
}

/// A chunk of the archive on its way up.
struct Chunk {
    id: usize,
    model: Option<Arc<EntropyModel>>,
    /// What goes up: stored bytes, or decoded ones, where the kernel does not know the coding.
    coding: Coding,
    stored_len: usize,
    len: usize,
    at: usize,
}

impl Resident {
    /// Decode all of `archive` into the device's memory, with `staging` bytes more meanwhile. What the kernel does not
    /// know is decoded by `decoder`, and the header is.
    ///
    /// The checks of the coding are made; the checksums of decoded bytes are not, which takes [`Resident::verify`].
    ///
    /// # Errors
    /// Io, where CUDA fails or a read does; corruption, naming a chunk that is damaged.
    pub(super) fn load(
        gpu: &Gpu,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        staging: usize,
    ) -> Result<Self> {
        let len = usize::try_from(archive.footer().original_len)
            .map_err(|_| Error::invalid("the original is too long for this machine"))?;
        let header = header(archive, decoder)?;
        let before =
            (header.data_start as usize).next_multiple_of(ALIGN) - header.data_start as usize;
        let memory = Arc::new(DeviceMemory::new(&gpu.device, before + len)?);
        let resident = Self { memory, before, header, len };
        resident.fill(gpu, archive, decoder, staging / LANES)?;
        Ok(resident)
    }

    fn fill(
        &self,
        gpu: &Gpu,
        archive: &Archive,
        decoder: &dyn ChunkDecoder,
        room: usize,
    ) -> Result<()> {
        let target = || Some((Arc::clone(&self.memory), self.before));
        // A status is four bytes; an item takes some hundred of the input.
        let statuses = room / 16;
        let mut lanes = (0..LANES)
            .map(|_| Lane::new(&gpu.device, room, statuses, target()))
            .collect::<Result<Vec<_>>>()?;
        let mut under_way: Vec<Option<(Batch, Vec<Chunk>)>> = lanes.iter().map(|_| None).collect();
        let (mut next, mut turn) = (0, 0);
        while next < archive.index().len() || under_way.iter().any(Option::is_some) {
            let lane = &mut lanes[turn];
            if let Some((batch, chunks)) = under_way[turn].take() {
                let (statuses, _) = lane.results(&batch)?;
                for (i, chunk) in chunks.iter().enumerate() {
                    batch.outcome(i, &statuses).about(format_args!("chunk {}", chunk.id))?;
                }
            }
            let chunks = gather(archive, &mut next, room)?;
            if !chunks.is_empty() {
                let items: Vec<Item<'_>> = chunks.iter().map(Chunk::item).collect();
                let batch = Batch::new(&items)?;
                let fill = |i: usize, place: &mut [u8]| chunks[i].fill(archive, decoder, place);
                lane.fill(&batch, chunks.len(), &fill)?.into_iter().collect::<Result<()>>()?;
                lane.start(&batch)?;
                under_way[turn] = Some((batch, chunks));
            }
            turn = (turn + 1) % LANES;
        }
        Ok(())
    }

    /// The address of the original's first byte on the device.
    pub fn address(&self) -> u64 {
        self.memory.place() + self.before as Place
    }

    /// Bytes of the original.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the original is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensors, in the order of their data. One begins at [`Resident::address`] plus its `start`.
    pub fn tensors(&self) -> &[Tensor] {
        &self.header.tensors
    }

    /// Download the original's bytes from `at` on to all of `out`.
    ///
    /// # Errors
    /// Io, where CUDA fails; invalid argument, where there are fewer bytes.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        if at.checked_add(out.len()).is_none_or(|end| end > self.len) {
            return Err(Error::invalid("bytes behind the original's end"));
        }
        self.memory.read(self.before + at, out)
    }

    /// Download everything, and hold it to the checksums of `archive`, from which it was loaded.
    ///
    /// # Errors
    /// As [`Resident::read`]; corruption, naming the chunk that does not match.
    pub fn verify(&self, archive: &Archive) -> Result<()> {
        let mut bytes = Vec::new();
        for id in 0..archive.index().len() {
            let chunk = archive.index().chunk(id)?;
            bytes.resize(chunk.len(), 0);
            self.read(chunk.original.start as usize, &mut bytes)?;
            if checksum(&bytes) != chunk.checksum {
                return Err(Error::corrupt("the decoded bytes do not match their checksum"))
                    .about(format_args!("chunk {id}"));
            }
        }
        Ok(())
    }
}

impl Chunk {
    fn new(archive: &Archive, id: usize) -> Result<Self> {
        let c = archive.index().chunk(id)?;
        let (coding, stored_len) = if takes(c.coding) {
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

    fn fill(&self, archive: &Archive, decoder: &dyn ChunkDecoder, place: &mut [u8]) -> Result<()> {
        if takes(archive.index().chunk(self.id)?.coding) {
            archive.read_stored(self.id, place)
        } else {
            archive.read_chunk(self.id, decoder, &mut Scratch::default(), place)
        }
    }
}

/// The chunks from `next` on that fit into `room` bytes, one at least; moves `next` behind them.
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
