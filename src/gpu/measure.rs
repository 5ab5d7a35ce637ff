//! What `bsz bench --cuda` measures: copies between host and device and within the device, and the
//! decoding of chunks that are already on the device.

#![allow(unsafe_code)]

use super::{
    Gpu,
    batch::{Batch, Item},
    device::DevicePtr,
    loops::Loop,
    memory::{DeviceMemory, PinnedMemory},
    session::{Fill, Piece},
    slot::{OVERHEAD, Slot, Target, input_cost, output_cost},
    stream::Stream,
};
use crate::error::Result;
use std::{collections::HashSet, sync::Arc};

/// Memory on host and device that is copied back and forth, and within the device.
pub struct Transfer {
    stream: Stream,
    pinned: PinnedMemory,
    memory: DeviceMemory,
    other: DeviceMemory,
}

impl Transfer {
    /// Bytes that [`Transfer::across`] copies.
    pub fn on_device(&self) -> usize {
        self.memory.len()
    }

    /// Uploads all of the host's memory `times` times.
    ///
    /// # Errors
    /// Io if CUDA fails.
    pub fn up(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            // SAFETY: the device's memory is not shorter, and both stay as they are until the
            // stream is waited for, at the end of this function or when `self`, whose stream is
            // dropped first, is dropped.
            unsafe { self.stream.upload(self.pinned.bytes(), self.memory.ptr()) }?;
        }
        self.stream.wait()
    }

    /// Downloads as many bytes `times` times.
    ///
    /// # Errors
    /// Io if CUDA fails.
    pub fn down(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            // SAFETY: as above.
            unsafe { self.stream.download(self.memory.ptr(), self.pinned.bytes_mut()) }?;
        }
        self.stream.wait()
    }

    /// Copies all of the device's memory to other device memory `times` times.
    ///
    /// # Errors
    /// Io if CUDA fails.
    pub fn across(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            let (from, to) = (self.memory.ptr(), self.other.ptr());
            // SAFETY: both have this length, and stay allocated as above.
            unsafe { self.stream.copy(from, to, self.memory.len()) }?;
        }
        self.stream.wait()
    }
}

/// Receives the number of a piece, its decoded bytes or what is wrong with it, and the loop of its
/// own that has decoded it, if any.
pub type Take<'a> = dyn FnMut(usize, Result<&[u8]>, Option<Loop>) -> Result<()> + 'a;

/// Chunks on the device, with memory for their decoded bytes.
pub struct Placed {
    slot: Slot,
    out: Arc<DeviceMemory>,
    batch: Batch,
    /// By piece: its position in `out`, and its length.
    outs: Vec<(usize, usize)>,
}

impl Placed {
    /// Uploads and decodes all pieces `times` times.
    ///
    /// # Errors
    /// Io if CUDA fails.
    pub fn upload_and_decode(&mut self, times: usize) -> Result<()> {
        (0..times).try_for_each(|_| self.slot.start(&self.batch))?;
        self.slot.wait()
    }

    /// Decodes all pieces `times` times, and compares their checksums if `checked`.
    ///
    /// # Errors
    /// Io if CUDA fails.
    pub fn decode(&mut self, times: usize, checked: bool) -> Result<()> {
        self.slot.repeat(&self.batch, times, checked)
    }

    /// Passes every piece to `take`.
    ///
    /// # Errors
    /// Io if CUDA fails; any error of `take`.
    pub fn results(&mut self, take: &mut Take<'_>) -> Result<()> {
        let (statuses, _) = self.slot.results(&self.batch)?;
        let mut bytes = Vec::new();
        for (i, &(at, len)) in self.outs.iter().enumerate() {
            bytes.resize(len, 0);
            let outcome = self.batch.outcome(i, &statuses);
            if outcome.is_ok() {
                self.out.read(at, &mut bytes)?;
            }
            let own_loop = self.batch.own_loop(i, &statuses);
            take(i, outcome.map(|()| &bytes[..]), own_loop)?;
        }
        Ok(())
    }
}

impl Gpu {
    /// `len` bytes to copy back and forth, which `fill` writes, and `on_device` bytes to copy
    /// within the device, which are as many copies of the former as fit.
    ///
    /// # Errors
    /// Io if the memory cannot be allocated.
    pub fn transfer(
        &self,
        len: usize,
        on_device: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Transfer> {
        let on_device = on_device / len.max(1) * len;
        let mut transfer = Transfer {
            stream: Stream::new(&self.device)?,
            pinned: PinnedMemory::new(&self.device, len)?,
            memory: DeviceMemory::new(&self.device, on_device.max(len))?,
            other: DeviceMemory::new(&self.device, on_device.max(len))?,
        };
        fill(transfer.pinned.bytes_mut());
        for at in (0..transfer.memory.len()).step_by(len.max(1)) {
            let to = transfer.memory.ptr() + at as DevicePtr;
            // SAFETY: the device's memory is a multiple of `len` bytes long. Both stay as they are
            // as above.
            unsafe { transfer.stream.upload(transfer.pinned.bytes(), to) }?;
        }
        transfer.stream.wait()?;
        Ok(transfer)
    }

    /// Free bytes of device memory.
    ///
    /// # Errors
    /// Io if CUDA fails.
    pub fn free_memory(&self) -> Result<usize> {
        self.device.free_memory()
    }

    /// Uploads and decodes `pieces`, whose stored bytes `fill` writes. Each is decoded to `skew`
    /// bytes past a multiple of 256.
    ///
    /// # Errors
    /// As [`super::Session::decode`], and any error of `fill`.
    pub fn place(&self, pieces: &[Piece], skew: usize, fill: &Fill<'_>) -> Result<Placed> {
        let (mut input, mut output, mut end) = (OVERHEAD, OVERHEAD, 0);
        let mut models = HashSet::new();
        let mut outs = Vec::with_capacity(pieces.len());
        let items: Vec<Item<'_>> = pieces
            .iter()
            .map(|p| {
                let at = end + skew;
                let item = p.item(at);
                let first = p.model.as_ref().is_some_and(|m| models.insert(Arc::as_ptr(m)));
                input += input_cost(&item, first);
                output += output_cost(&item) - p.len.next_multiple_of(256);
                outs.push((at, p.len));
                end = (at + p.len).next_multiple_of(256);
                item
            })
            .collect();
        let batch = Batch::new(&items)?;
        let out = Arc::new(DeviceMemory::new(&self.device, end)?);
        let target = Target::Memory(Arc::clone(&out), 0);
        let mut slot = Slot::new(&self.device, input, output, target)?;
        slot.fill(&batch, items.len(), fill)?.into_iter().collect::<Result<()>>()?;
        slot.start(&batch)?;
        slot.wait()?;
        Ok(Placed { slot, out, batch, outs })
    }
}
