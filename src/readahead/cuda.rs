//! Decodes prefetched chunks on an NVIDIA GPU.

use super::{offload::OffloadDecoder, prefetcher::Prefetcher};
use crate::cache::PendingChunk;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::{self, Gpu, Piece, Session};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes to request at a time: several times what is in flight, since all of it must be decoded
/// before the next ones are requested.
const PIECE: u64 = 256 << 20;
/// How long to wait for the driver when a mount starts.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a GPU must be idle until its context is given back, which takes half a gigabyte of its
/// memory.
const CLOSE_AFTER: Duration = Duration::from_secs(30);

/// A GPU that decodes for a cache until CUDA fails. Then the cache's own threads do all the work.
struct CudaDecoder {
    /// Which GPU.
    ordinal: u32,
    /// Bytes of memory to use.
    memory: usize,
    device: Mutex<Device>,
}

enum Device {
    /// To be opened again when there is something to decode.
    Closed,
    /// Without anything to decode, since this time.
    Open(Gpu, Instant),
    /// With memory allocated, while there is something to decode.
    Active(Gpu, Session),
    Failed,
}

/// Decode on the GPU `ordinal`, with `memory` bytes of its memory.
///
/// # Errors
/// Invalid argument or Io, if there is no usable GPU.
pub fn use_gpu(prefetcher: &Prefetcher, ordinal: u32, memory: u64) -> Result<()> {
    let (send, opened) = channel();
    // A driver that hangs must not keep the mount from starting.
    let open = move || drop(send.send(Gpu::open(ordinal)));
    thread::Builder::new().name("bsz-gpu".into()).spawn(open).about("threads")?;
    let gpu = opened.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Io, "the driver does not respond").about("CUDA"))
    })?;
    log::info!("{} decodes layers ahead", gpu.name());
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    let device = Mutex::new(Device::Open(gpu, Instant::now()));
    prefetcher.offload_to(Box::new(CudaDecoder { ordinal, memory, device }))
}

/// The chunks that a GPU decodes.
struct Decodable<'a> {
    chunks: Vec<&'a PendingChunk>,
    pieces: Vec<Piece>,
}

impl<'a> Decodable<'a> {
    fn new(pending: &'a [PendingChunk]) -> Self {
        let (mut chunks, mut pieces) = (Vec::new(), Vec::new());
        for chunk in pending {
            let indexed = chunk.chunk();
            // The cache's threads report malformed models.
            if gpu::supports(indexed.coding)
                && let Ok(model) = chunk.archive().model_of(indexed)
                && model.as_ref().is_none_or(|model| model.delta().is_none())
            {
                let (stored_len, len) = (indexed.stored_len as usize, indexed.len());
                // Whoever receives the bytes compares their checksum.
                let (coding, checksum) = (indexed.coding, None);
                pieces.push(Piece { coding, model, stored_len, len, checksum });
                chunks.push(chunk);
            }
        }
        Self { chunks, pieces }
    }

    fn decoded(&self) -> usize {
        self.pieces.iter().map(|p| p.len).sum()
    }

    fn read(&self, i: usize, out: &mut [u8]) -> Result<()> {
        self.chunks[i].archive().read_stored(self.chunks[i].id(), out)
    }

    /// Decode all of them.
    fn decode(&self, session: &mut Session) -> Result<()> {
        let chunks = &self.chunks;
        let take = |i: usize, decoded: Result<&[u8]>| match decoded {
            Ok(decoded) => chunks[i].supply(decoded),
            Err(e) => log::debug!("the GPU cannot decode chunk {}: {e}", chunks[i].id()),
        };
        session.decode(&self.pieces, &|i, out| self.read(i, out), &take)?;
        // `tests/gpu/run` adds these up.
        log::debug!("the GPU decoded {} bytes", self.decoded());
        Ok(())
    }
}

impl CudaDecoder {
    fn change<T>(&self, change: impl FnOnce(Device) -> (Device, T)) -> T {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, result) = change(std::mem::replace(&mut *device, Device::Failed));
        *device = next;
        result
    }

    /// Open the GPU and allocate memory.
    fn try_prepare(&self, device: Device) -> Result<Device> {
        let gpu = match device {
            Device::Closed => Gpu::open(self.ordinal)?,
            Device::Open(gpu, _) => gpu,
            other => return Ok(other),
        };
        let session = gpu.session(self.memory)?;
        Ok(Device::Active(gpu, session))
    }

    /// Decode chunks. After an error, the GPU is not used again.
    fn try_decode(&self, device: Device, pending: &[PendingChunk]) -> Result<Device> {
        let Device::Active(gpu, mut session) = device else { return Ok(device) };
        Decodable::new(pending).decode(&mut session)?;
        Ok(Device::Active(gpu, session))
    }
}

impl OffloadDecoder for CudaDecoder {
    fn piece(&self) -> u64 {
        self.change(|device| {
            let piece = if matches!(device, Device::Failed) { 0 } else { PIECE };
            (device, piece)
        })
    }

    fn is_ready(&self) -> bool {
        self.change(|device| {
            let is_active = matches!(device, Device::Active(..));
            (device, is_active)
        })
    }

    fn prepare(&self) {
        self.change(|device| match self.try_prepare(device) {
            Ok(device) => (device, ()),
            Err(e) => {
                log::warn!("{e}; layers are decoded by the cores from now on");
                (Device::Failed, ())
            }
        });
    }

    fn decode(&self, chunks: &[PendingChunk]) {
        self.change(|device| match self.try_decode(device, chunks) {
            Ok(device) => (device, ()),
            Err(e) => {
                log::warn!("{e}; layers are decoded by the cores from now on");
                (Device::Failed, ())
            }
        });
    }

    fn release(&self) {
        self.change(|device| match device {
            Device::Active(gpu, _) => (Device::Open(gpu, Instant::now()), ()),
            Device::Open(gpu, since) if since.elapsed() > CLOSE_AFTER => {
                log::debug!("{} is not needed at present", gpu.name());
                (Device::Closed, ())
            }
            other => (other, ()),
        });
    }
}
