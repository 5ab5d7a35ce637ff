//! Decoding of chunks by an NVIDIA GPU. `docs/GPU.md` explains how it works.
//!
//! [`Gpu::open`] looks for the driver's library, and nothing else of CUDA is needed: the program
//! contains the kernels as PTX, which the driver compiles. Any failure of CUDA is an error, after
//! which callers continue without a GPU for good.

pub mod batch;

mod driver;
mod measure;
mod model;
mod resident;
mod session;
mod slot;
mod status;

pub use batch::supports;
pub use measure::{Placed, Transfer};
pub use resident::Resident;
pub use session::{Deliver, Fill, MIN_MEMORY, Piece, Session};

use crate::{codec::ChunkDecoder, error::Result, read::Archive};
use std::sync::Arc;

/// Default device memory of a session, in bytes.
pub const DEFAULT_MEMORY: usize = 256 << 20;

/// A GPU that is ready for use. It holds no memory except the driver's own.
pub struct Gpu {
    device: Arc<driver::Device>,
}

impl Gpu {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// Invalid argument if there is no driver or no GPU; Io if the driver cannot use it.
    pub fn open() -> Result<Self> {
        Ok(Self { device: driver::Device::open()? })
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

    /// Decodes all of `archive` into device memory. `decoder` decodes the chunks that the kernels
    /// do not support.
    ///
    /// # Errors
    /// Io if CUDA fails, usually for lack of memory; corruption if the archive is damaged.
    pub fn load(&self, archive: &Archive, decoder: &dyn ChunkDecoder) -> Result<Resident> {
        Resident::load(&self.device, archive, decoder, DEFAULT_MEMORY)
    }
}
