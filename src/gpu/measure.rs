//! What `bsz bench --cuda` times: copies between host and device, and decoding of chunks that are on the device already.

#![allow(unsafe_code)]

use super::{
    Gpu,
    batch::{Batch, Item},
    driver::{DeviceMemory, PinnedMemory, Stream},
    lane::{Lane, OVERHEAD, input_cost, output_cost},
    session::{Fill, Piece},
};
use crate::error::Result;
use std::{collections::HashSet, sync::Arc};

/// Memory on both sides that is copied to and fro.
pub struct Transfer {
    stream: Stream,
    pinned: PinnedMemory,
    memory: DeviceMemory,
}

impl Transfer {
    /// Upload everything so many times.
    ///
    /// # Errors
    /// Io, where CUDA fails.
    pub fn up(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            // SAFETY: both are of one length, and stay as they are until the end of this function, or of `self`, whose
            // stream is dropped first.
            unsafe { self.stream.upload(self.pinned.bytes(), self.memory.place()) }?;
        }
        self.stream.wait()
    }

    /// Download everything so many times.
    ///
    /// # Errors
    /// Io, where CUDA fails.
    pub fn down(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            // SAFETY: as above.
            unsafe { self.stream.download(self.memory.place(), self.pinned.bytes_mut()) }?;
        }
        self.stream.wait()
    }
}

/// Chunks on the device, with room for what they decode to.
pub struct Placed {
    lane: Lane,
    out: Arc<DeviceMemory>,
    batch: Batch,
    /// By piece: where it is in `out`, and its length.
    outs: Vec<(usize, usize)>,
}

impl Placed {
    /// Upload and decode all so many times.
    ///
    /// # Errors
    /// Io, where CUDA fails.
    pub fn upload_and_decode(&mut self, times: usize) -> Result<()> {
        (0..times).try_for_each(|_| self.lane.start(&self.batch))?;
        self.lane.wait()
    }

    /// Decode all so many times.
    ///
    /// # Errors
    /// Io, where CUDA fails.
    pub fn decode(&mut self, times: usize) -> Result<()> {
        self.lane.repeat(&self.batch, times)
    }

    /// Give every piece, by its number, to `take`, as it was decoded last.
    ///
    /// # Errors
    /// Io, where CUDA fails; corruption, where a piece is damaged; and what `take` returns.
    pub fn results(&mut self, take: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let (statuses, _) = self.lane.results(&self.batch)?;
        let mut bytes = Vec::new();
        for (i, &(at, len)) in self.outs.iter().enumerate() {
            self.batch.outcome(i, &statuses)?;
            bytes.resize(len, 0);
            self.out.read(at, &mut bytes)?;
            take(i, &bytes)?;
        }
        Ok(())
    }
}

impl Gpu {
    /// Memory of `len` bytes to copy to and fro.
    ///
    /// # Errors
    /// Io, where it is not to be had.
    pub fn transfer(&self, len: usize) -> Result<Transfer> {
        Ok(Transfer {
            stream: Stream::new(&self.device)?,
            pinned: PinnedMemory::new(&self.device, len)?,
            memory: DeviceMemory::new(&self.device, len)?,
        })
    }

    /// Free bytes of the device's memory.
    ///
    /// # Errors
    /// Io, where CUDA fails.
    pub fn free_memory(&self) -> Result<usize> {
        self.device.free_memory()
    }

    /// Upload `pieces`, which `fill` writes.
    ///
    /// # Errors
    /// As [`super::Session::decode`], and what `fill` returns.
    pub fn place(&self, pieces: &[Piece], fill: &Fill<'_>) -> Result<Placed> {
        let (mut input, mut output, mut end) = (OVERHEAD, OVERHEAD, 0);
        let mut models = HashSet::new();
        let mut outs = Vec::with_capacity(pieces.len());
        let items: Vec<Item<'_>> = pieces
            .iter()
            .map(|p| {
                let item = p.item(end);
                let first = p.model.as_ref().is_some_and(|m| models.insert(Arc::as_ptr(m)));
                input += input_cost(&item, first);
                output += output_cost(&item) - p.len.next_multiple_of(256);
                outs.push((end, p.len));
                end = (end + p.len).next_multiple_of(256);
                item
            })
            .collect();
        let batch = Batch::new(&items)?;
        let out = Arc::new(DeviceMemory::new(&self.device, end)?);
        let mut lane = Lane::new(&self.device, input, output, Some((Arc::clone(&out), 0)))?;
        lane.fill(&batch, items.len(), fill)?.into_iter().collect::<Result<()>>()?;
        lane.start(&batch)?;
        lane.wait()?;
        Ok(Placed { lane, out, batch, outs })
    }
}
