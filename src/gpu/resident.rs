//! A whole original in device memory: stored bytes are uploaded and decoded there.

#![allow(unsafe_code)]

use super::{
    device::{Device, DevicePtr},
    loader::{Loader, Part},
    memory::DeviceMemory,
};
use crate::{
    codec::{ChunkDecoder, verify_checksum},
    error::{Context, Error, Result},
    format::{Header, Tensor},
    read::{Archive, header},
};
use std::sync::Arc;

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

impl Resident {
    /// Decodes all of `archive` into device memory, with `staging` bytes more in the meantime. The
    /// header, and chunks that the kernels do not support, are decoded by `decoder`. The checksums
    /// of all chunks are compared on the device.
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
        let mut loader = Loader::new(device, staging)?;
        let whole = Part { start: 0, len: len as u64, address: resident.address() };
        // SAFETY: the memory was allocated above, and nothing else uses it.
        let outcomes = unsafe { loader.decode(archive, decoder, &[whole], None) }?;
        outcomes.into_iter().collect::<Result<()>>()?;
        Ok(resident)
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
    /// from. Loading has compared them on the device; this also covers what happened since.
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
