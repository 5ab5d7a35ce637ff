//! Chunks that are decoded together: where each is in the memory of the device, in the order that the kernels want, and
//! what these say of them.

use super::model;
use crate::{
    codec::{Coding, EntropyModel, LANES},
    error::{Error, Result},
};
use std::collections::HashMap;

/// Bytes behind a payload that the kernel may read.
pub const SLACK: usize = 272;
/// Longer chunks are not for the kernel; the format has none.
pub const LONGEST: usize = 4 << 20;
/// Threads of a block.
pub const THREADS: u32 = 128;
/// Chunks of a block.
const WARPS: usize = 4;
/// The coding of records that only fill up a block.
const NOTHING: u32 = 3;
/// Payloads, and the model of the first record of a block, begin at multiples of this many bytes or one behind them.
const ALIGN: usize = 16;

/// A chunk as it is stored, and where its decoded bytes are wanted.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// Raw or planes.
    pub coding: Coding,
    /// The model of planes. Chunks of a tensor should name the same one, not an equal one.
    pub model: Option<&'a EntropyModel>,
    /// Stored bytes.
    pub stored_len: usize,
    /// Decoded bytes.
    pub len: usize,
    /// Where these begin in the output.
    pub out: usize,
}

/// `struct Chunk` of `kernel.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Record {
    payload: u64,
    out: u64,
    model: u64,
    payload_len: u32,
    out_len: u32,
    coding: u32,
    reserved: u32,
}

/// Bytes of a record.
pub const RECORD: usize = size_of::<Record>();

impl Record {
    const NOTHING: Self = Self {
        payload: 0,
        out: 0,
        model: 0,
        payload_len: 0,
        out_len: 0,
        coding: NOTHING,
        reserved: 0,
    };

    fn write_to(&self, out: &mut Vec<u8>) {
        [self.payload, self.out, self.model]
            .iter()
            .for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        let halves = [self.payload_len, self.out_len, self.coding, self.reserved];
        halves.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    }
}

/// Neighbouring records that one kernel decodes.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Bytes of an element, which say what kernel it is; 0 for raw chunks.
    pub width: u8,
    /// The first record.
    pub first: usize,
    /// Blocks of [`THREADS`] threads.
    pub blocks: usize,
    /// Bytes of shared memory that a block needs.
    pub shared_len: usize,
}

/// A batch, laid out.
pub struct Batch {
    records: Vec<Record>,
    launches: Vec<Launch>,
    models: Vec<u32>,
    /// By item: its record.
    places: Vec<usize>,
    stored_len: usize,
    out_len: usize,
}

impl Batch {
    /// Lay out `items`.
    ///
    /// # Errors
    /// Invalid argument, where one is not for the kernel.
    pub fn new(items: &[Item<'_>]) -> Result<Self> {
        // Those of one model are next to each other, in the order in which models come first.
        let mut groups: Vec<(Option<&EntropyModel>, Vec<usize>)> = Vec::new();
        let mut of_model = HashMap::new();
        for (i, item) in items.iter().enumerate() {
            let known = matches!(
                (item.coding, item.model),
                (Coding::Raw, None) | (Coding::Planes, Some(_))
            );
            if !known || item.len == 0 || item.len.max(item.stored_len) > LONGEST {
                return Err(Error::invalid("a chunk that is not for the GPU"));
            }
            let group = *of_model.entry(item.model.map(std::ptr::from_ref)).or_insert(groups.len());
            if group == groups.len() {
                groups.push((item.model, Vec::new()));
            }
            groups[group].1.push(i);
        }
        let width = |model: Option<&EntropyModel>| model.map_or(0, |m| m.layout().width());
        groups.sort_by_key(|(model, _)| width(*model));
        let mut batch = Self {
            records: Vec::with_capacity(items.len() + WARPS),
            launches: Vec::new(),
            models: Vec::new(),
            places: vec![0; items.len()],
            stored_len: 0,
            out_len: items.iter().map(|i| i.out + i.len).max().unwrap_or(0),
        };
        for (model, members) in groups {
            let (first, at) = (batch.records.len(), 4 * batch.models.len() as u64);
            let shared_len = model.map_or(0, |m| model::write_to(m, &mut batch.models));
            for i in members {
                batch.places[i] = batch.records.len();
                let record = batch.record(&items[i], at);
                batch.records.push(record);
            }
            let whole = batch.records.len().next_multiple_of(WARPS);
            batch.records.resize(whole, Record::NOTHING);
            let (width, blocks) = (width(model), (whole - first) / WARPS);
            match batch.launches.last_mut().filter(|l| l.width == width) {
                Some(launch) => {
                    launch.blocks += blocks;
                    launch.shared_len = launch.shared_len.max(shared_len);
                }
                None => batch.launches.push(Launch { width, first, blocks, shared_len }),
            }
        }
        Ok(batch)
    }

    /// The record of an item, whose stored bytes get a place behind all others.
    fn record(&mut self, item: &Item<'_>, model: u64) -> Record {
        // Where the kernel reads 16 bits at a time they must be aligned.
        let payload = self.stored_len + item.model.map_or(0, |m| words_at(m, item.len) % 2);
        self.stored_len = (payload + item.stored_len + SLACK).next_multiple_of(ALIGN);
        Record {
            payload: payload as u64,
            out: item.out as u64,
            model,
            payload_len: item.stored_len as u32,
            out_len: item.len as u32,
            coding: item.coding as u32,
            reserved: 0,
        }
    }

    /// What is to be launched.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// How many records there are, and so statuses.
    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Append the records as the kernel reads them.
    pub fn write_records(&self, out: &mut Vec<u8>) {
        self.records.iter().for_each(|r| r.write_to(out));
    }

    /// Append the models as the kernel reads them.
    pub fn write_models(&self, out: &mut Vec<u8>) {
        self.models.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    /// Bytes of [`Batch::write_models`].
    pub fn models_len(&self) -> usize {
        4 * self.models.len()
    }

    /// Bytes of all that is stored.
    pub fn stored_len(&self) -> usize {
        self.stored_len
    }

    /// Bytes up to the end of the last one in the output.
    pub fn out_len(&self) -> usize {
        self.out_len
    }

    /// Where the stored bytes of item `i` go.
    pub fn payload(&self, i: usize) -> std::ops::Range<usize> {
        let record = &self.records[self.places[i]];
        record.payload as usize..record.payload as usize + record.payload_len as usize
    }

    /// What became of item `i`, by the kernel's statuses of all records.
    ///
    /// # Errors
    /// Corruption and compatibility, as [`crate::codec::ChunkDecoder::decode`] has them; Io, where the kernel did not
    /// look at it.
    pub fn outcome(&self, i: usize, statuses: &[u32]) -> Result<()> {
        Err(match statuses.get(self.places[i]).copied().unwrap_or(0) {
            1 => return Ok(()),
            2 => Error::corrupt("a chunk ends too early"),
            3 => Error::corrupt("a chunk's reserved byte is not zero"),
            4 => Error::unsupported("a storage mode is unknown; a newer bsz is needed"),
            5 => Error::corrupt("a block chooses a table that is not there"),
            6 => Error::corrupt("a state is lower than states are"),
            7 => Error::corrupt("an escaped value has more bits than symbols have"),
            8 => Error::corrupt("symbols or a plane have a mode or a value that they cannot have"),
            9 => Error::corrupt("a sparse plane has more blocks than the chunk"),
            10 => Error::corrupt("a chunk has trailing bytes"),
            11 => Error::corrupt("an entropy-coded stream does not end where it should"),
            12 => Error::corrupt("a chunk has escapes left"),
            13 => Error::corrupt("a chunk is not as long as what it holds"),
            status => Error::new(
                crate::ErrorKind::Io,
                format!("the GPU did not decode a chunk (status {status})"),
            ),
        })
    }
}

/// Where the words of a chunk's coded symbols begin in its payload.
fn words_at(model: &EntropyModel, len: usize) -> usize {
    let count = len / usize::from(model.layout().width());
    let blocks = if model.choices() > 1 { count.div_ceil(model.block()) } else { 0 };
    4 + 2 * model.layout().planes().len() + 8 + blocks.div_ceil(4) + 4 * LANES
}
