//! Decoding of chunks by an NVIDIA GPU. `docs/GPU.md` explains how it works.
//!
//! [`Gpu::open`] looks for the driver's library, and nothing else of CUDA is needed: the program
//! contains the kernels as PTX, which the driver compiles. Any failure of CUDA is an error, after
//! which callers continue without a GPU for good.

pub mod batch;

mod device;
mod loader;
mod loops;
mod measure;
mod memory;
mod model;
mod resident;
mod session;
mod slot;
mod status;
mod stream;

pub use batch::supports;
pub use loader::{Loader, MIN_STAGING, Part};
pub use loops::{Cut, Loop};
pub use measure::{Placed, Take, Transfer};
pub use resident::Resident;
pub use session::{Deliver, Fill, MIN_MEMORY, Piece, Session};

use crate::{codec::ChunkDecoder, error::Result, read::Archive};
use std::sync::Arc;

/// Default device memory of a session, in bytes.
pub const DEFAULT_MEMORY: usize = 256 << 20;

/// A GPU that is ready for use. It holds no memory except the driver's own.
pub struct Gpu {
    device: Arc<device::Device>,
}

impl Gpu {
    /// Opens the GPU with this number, as the driver counts those that `CUDA_VISIBLE_DEVICES`
    /// leaves; the first one is 0.
    ///
    /// # Errors
    /// Invalid argument if there is no driver or no such GPU; Io if the driver cannot use it.
    pub fn open(ordinal: u32) -> Result<Self> {
        Ok(Self { device: device::Device::open(ordinal)? })
    }

    /// The number with which it was opened.
    pub fn ordinal(&self) -> u32 {
        self.device.ordinal()
    }

    /// The GPU's name, for users.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// A session that decodes to host memory. It takes `memory` bytes of the device and as many of
    /// the host.
    ///
    /// # Errors
    /// Invalid argument if that is less than [`MIN_MEMORY`]; Io if the memory cannot be allocated.
    pub fn session(&self, memory: usize) -> Result<Session> {
        Session::new(&self.device, memory)
    }

    /// A loader, which decodes into device memory of its caller. It takes `staging` bytes of the
    /// device and about half as many of the host.
    ///
    /// # Errors
    /// Invalid argument if that is less than [`MIN_STAGING`]; Io if the memory cannot be allocated.
    pub fn loader(&self, staging: usize) -> Result<Loader> {
        Loader::new(&self.device, staging)
    }

    /// Decodes all of `archive` into device memory. `decoder` decodes the chunks that the kernels
    /// do not support.
    ///
    /// # Errors
    /// Io if CUDA fails, usually for lack of memory; corruption if the archive is damaged.
    pub fn load(&self, archive: &Archive, decoder: &dyn ChunkDecoder) -> Result<Resident> {
        Resident::load(&self.device, archive, decoder, DEFAULT_MEMORY)
    }
}
