//! A batch of chunks that are decoded together: where each is in device memory, in the order that
//! the kernels expect.

use super::{loops::Loop, model, status};
use crate::{
    codec::{Coding, EntropyModel, LANES},
    error::{Error, Result},
};
use std::collections::HashMap;

/// Bytes after a payload that the kernel may read.
pub const SLACK: usize = 272;
/// The longest chunk that the kernel decodes, in bytes. The format allows none longer.
pub const MAX_CHUNK: usize = 4 << 20;
/// Threads of a CUDA block.
pub const THREADS: u32 = 128;
/// Warps of a CUDA block, each of which decodes one chunk.
const WARPS: usize = 4;
/// The kernel that compares checksums.
pub const CHECK: u8 = 255;
/// Added to the number of a kernel for models with classes of columns.
pub const CLASSES: u8 = 16;
/// The coding of records that only pad a block: `NOTHING` in `parse.cuh`.
const PADDING: u32 = 3;
/// Payloads start at a multiple of this many bytes, or one byte after it. Models start at one.
const ALIGN: usize = 16;

/// Whether the kernels decode this coding. Differences need the bytes of another file, and are left
/// to the CPU.
pub fn supports(coding: Coding) -> bool {
    matches!(coding, Coding::Raw | Coding::Planes)
}

/// A stored chunk, and where in the output its decoded bytes go.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// Raw or planes: see [`supports`].
    pub coding: Coding,
    /// The model of a chunk of planes. Chunks of a tensor should share one object, not equal ones.
    pub model: Option<&'a EntropyModel>,
    /// Stored bytes.
    pub stored_len: usize,
    /// Decoded bytes.
    pub len: usize,
    /// The position of the decoded bytes in the output.
    pub out: usize,
    /// What the kernels compare the decoded bytes with, if anything.
    pub checksum: Option<u64>,
}

/// `struct Chunk` of `kernel.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Record {
    payload: u64,
    out: u64,
    model: u64,
    checksum: u64,
    payload_len: u32,
    out_len: u32,
    coding: u32,
    is_checked: u32,
}

/// Bytes of a record.
pub const RECORD: usize = size_of::<Record>();

impl Record {
    const PADDING: Self = Self {
        payload: 0,
        out: 0,
        model: 0,
        checksum: 0,
        payload_len: 0,
        out_len: 0,
        coding: PADDING,
        is_checked: 0,
    };

    fn write_to(&self, out: &mut Vec<u8>) {
        [self.payload, self.out, self.model, self.checksum]
            .iter()
            .for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        let halves = [self.payload_len, self.out_len, self.coding, self.is_checked];
        halves.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    }
}

/// Consecutive records that one kernel decodes.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// The kernel: the bytes of an element, and [`CLASSES`] more if columns have classes; 0 for raw
    /// chunks; [`CHECK`] to compare the checksums of all chunks.
    pub kernel: u8,
    /// The first record.
    pub first: usize,
    /// CUDA blocks of [`THREADS`] threads.
    pub blocks: usize,
    /// Bytes of shared memory that a CUDA block needs.
    pub shared_len: usize,
}

/// A batch, laid out.
pub struct Batch {
    records: Vec<Record>,
    launches: Vec<Launch>,
    models: Vec<u32>,
    /// By item: the number of its record.
    record_of: Vec<usize>,
    stored_len: usize,
    out_len: usize,
}

impl Batch {
    /// Lays out `items`.
    ///
    /// # Errors
    /// Invalid argument if the kernels cannot decode one of them.
    pub fn new(items: &[Item<'_>]) -> Result<Self> {
        // Items of the same model are consecutive. Models are in the order of their first item.
        let mut groups: Vec<(Option<&EntropyModel>, Vec<usize>)> = Vec::new();
        let mut of_model = HashMap::new();
        for (i, item) in items.iter().enumerate() {
            let known = matches!(
                (item.coding, item.model),
                (Coding::Raw, None) | (Coding::Planes, Some(_))
            ) && item.model.is_none_or(|model| model.delta().is_none());
            if !known || item.len == 0 || item.len.max(item.stored_len) > MAX_CHUNK {
                return Err(Error::invalid("the GPU cannot decode such a chunk"));
            }
            let group = *of_model.entry(item.model.map(std::ptr::from_ref)).or_insert(groups.len());
            if group == groups.len() {
                groups.push((item.model, Vec::new()));
            }
            groups[group].1.push(i);
        }
        groups.sort_by_key(|(model, _)| kernel_for(*model));
        let mut batch = Self {
            records: Vec::with_capacity(items.len() + WARPS),
            launches: Vec::new(),
            models: Vec::new(),
            record_of: vec![0; items.len()],
            stored_len: 0,
            out_len: items.iter().map(|i| i.out + i.len).max().unwrap_or(0),
        };
        for (model, members) in groups {
            let (first, at) = (batch.records.len(), 4 * batch.models.len() as u64);
            let shared_len = model.map_or(0, |m| model::write_to(m, WARPS, &mut batch.models));
            for i in members {
                batch.record_of[i] = batch.records.len();
                let record = batch.record(&items[i], at);
                batch.records.push(record);
            }
            let whole = batch.records.len().next_multiple_of(WARPS);
            batch.records.resize(whole, Record::PADDING);
            let (kernel, blocks) = (kernel_for(model), (whole - first) / WARPS);
            match batch.launches.last_mut().filter(|l| l.kernel == kernel) {
                Some(launch) => {
                    launch.blocks += blocks;
                    launch.shared_len = launch.shared_len.max(shared_len);
                }
                None => batch.launches.push(Launch { kernel, first, blocks, shared_len }),
            }
        }
        if items.iter().any(|item| item.checksum.is_some()) {
            let blocks = batch.records.len() / WARPS;
            batch.launches.push(Launch { kernel: CHECK, first: 0, blocks, shared_len: 0 });
        }
        Ok(batch)
    }

    /// The record of an item. Its stored bytes go after all others.
    fn record(&mut self, item: &Item<'_>, model: u64) -> Record {
        // The kernel reads words of 16 bits, which must be aligned.
        let payload = self.stored_len + item.model.map_or(0, |m| words_at(m, item.len) % 2);
        self.stored_len = (payload + item.stored_len + SLACK).next_multiple_of(ALIGN);
        Record {
            payload: payload as u64,
            out: item.out as u64,
            model,
            checksum: item.checksum.unwrap_or(0),
            payload_len: item.stored_len as u32,
            out_len: item.len as u32,
            coding: item.coding as u32,
            is_checked: item.checksum.is_some().into(),
        }
    }

    /// The kernel launches, in their order.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// The number of records, which is also that of statuses.
    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Appends the records in the form that the kernel reads.
    pub fn write_records(&self, out: &mut Vec<u8>) {
        self.records.iter().for_each(|r| r.write_to(out));
    }

    /// Appends the models in the form that the kernel reads.
    pub fn write_models(&self, out: &mut Vec<u8>) {
        self.models.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    /// Bytes of [`Batch::write_models`].
    pub fn models_len(&self) -> usize {
        4 * self.models.len()
    }

    /// Bytes of all payloads, with alignment and [`SLACK`].
    pub fn stored_len(&self) -> usize {
        self.stored_len
    }

    /// Bytes of the output, up to the end of the last item.
    pub fn out_len(&self) -> usize {
        self.out_len
    }

    /// Where the stored bytes of item `i` go, among those of the batch.
    pub fn payload(&self, i: usize) -> std::ops::Range<usize> {
        let record = &self.records[self.record_of[i]];
        record.payload as usize..record.payload as usize + record.payload_len as usize
    }

    /// The outcome of item `i`, given the statuses of all records.
    ///
    /// # Errors
    /// A [`ChunkError`](crate::codec::ChunkError), as for any other decoder; Io if the kernel did
    /// not look at the item.
    pub fn outcome(&self, i: usize, statuses: &[u32]) -> Result<()> {
        status::outcome(self.status(i, statuses))
    }

    /// The loop of its own in which the kernels have decoded a part of item `i`, if any.
    pub fn own_loop(&self, i: usize, statuses: &[u32]) -> Option<Loop> {
        status::own_loop(self.status(i, statuses))
    }

    fn status(&self, i: usize, statuses: &[u32]) -> u32 {
        statuses.get(self.record_of[i]).copied().unwrap_or(0)
    }
}

/// The kernel for chunks of this model, or for raw ones.
fn kernel_for(model: Option<&EntropyModel>) -> u8 {
    let classes = |m: &EntropyModel| if m.classes() > 1 { CLASSES } else { 0 };
    model.map_or(0, |m| m.layout().width() + classes(m))
}

/// Where in its payload the words of a chunk with coded symbols start.
fn words_at(model: &EntropyModel, len: usize) -> usize {
    let count = len / usize::from(model.layout().width());
    let blocks = if model.choices() > 1 { count.div_ceil(model.block()) } else { 0 };
    4 + 2 * model.layout().planes().len() + 8 + blocks.div_ceil(4) + 4 * LANES
}
