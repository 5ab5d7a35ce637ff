//! Chunks decoded by an NVIDIA GPU, where there is one. `docs/GPU.md` says how.
//!
//! The driver's library is looked for when [`Gpu::open`] is called, and nothing else of CUDA is needed: the kernels are
//! in the program, as PTX, which the driver compiles. Any failure of CUDA is an error, after which whoever called goes
//! on without a GPU, for good.

pub mod batch;

mod driver;
mod lane;
mod measure;
mod model;
mod resident;
mod session;

pub use measure::{Placed, Transfer};
pub use resident::Resident;
pub use session::{Fill, LEAST_MEMORY, Piece, Session, Take};

use crate::{
    codec::{ChunkDecoder, Coding},
    error::Result,
    read::Archive,
};
use std::sync::Arc;

/// Memory of the device that a session takes unless told otherwise.
pub const DEFAULT_MEMORY: usize = 256 << 20;

/// Whether the kernels know a coding.
pub fn takes(coding: Coding) -> bool {
    matches!(coding, Coding::Raw | Coding::Planes)
}

/// A GPU that is ready. It holds no memory but what the driver needs for itself.
pub struct Gpu {
    device: Arc<driver::Device>,
}

impl Gpu {
    /// The first GPU.
    ///
    /// # Errors
    /// Invalid argument, where there is no driver or no GPU; Io, where the driver says why it cannot be used.
    pub fn open() -> Result<Self> {
        Ok(Self { device: driver::Device::open()? })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Something that decodes to the host's memory, with `memory` bytes of the device's and as many of the host's.
    ///
    /// # Errors
    /// Invalid argument, where that is too little; Io, where it is not to be had.
    pub fn session(&self, memory: usize) -> Result<Session> {
        Session::new(self, memory)
    }

    /// All of `archive`, decoded into the device's memory.
    ///
    /// # Errors
    /// Io, where CUDA fails, for lack of memory above all; corruption, where the archive is damaged.
    pub fn load(&self, archive: &Archive, decoder: &dyn ChunkDecoder) -> Result<Resident> {
        Resident::load(self, archive, decoder, DEFAULT_MEMORY)
    }
}
