//! Decodes prefetched chunks on an NVIDIA GPU.

use super::{offload::OffloadDecoder, prefetcher::Prefetcher};
use crate::cache::PendingChunk;
use crate::error::Result;
use crate::gpu::{self, Gpu, Piece, Session};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Bytes to request at a time: enough to keep a GPU busy while the next ones are transferred.
const PIECE: u64 = 64 << 20;

/// A GPU that decodes for a cache until CUDA fails. Then the cache's own threads do all the work.
struct CudaDecoder {
    /// Whether the GPU has yet to prove that it is faster than the cores.
    must_compare: AtomicBool,
    /// Bytes of memory to use.
    memory: usize,
    /// Nanoseconds that the cores take to decode a stored byte.
    core_nanos: Box<dyn Fn() -> f64 + Send + Sync>,
    device: Mutex<Device>,
}

enum Device {
    /// To be opened when there is something to decode.
    Unopened,
    Ready(Gpu),
    /// With memory allocated, while there is something to decode.
    Active(Gpu, Session),
    Failed,
}

/// Decode on a GPU, with `memory` bytes of its memory.
///
/// # Errors
/// Invalid argument or Io, if there is no usable GPU.
pub fn use_gpu(prefetcher: &Prefetcher, memory: u64) -> Result<()> {
    let gpu = Gpu::open()?;
    log::info!("{} decodes layers ahead", gpu.name());
    start(prefetcher, memory, Device::Ready(gpu), false)
}

/// The same, if there is a GPU that turns out to be faster than the cores.
///
/// # Errors
/// Io, if its thread cannot be started.
pub fn use_faster_gpu(prefetcher: &Prefetcher, memory: u64) -> Result<()> {
    start(prefetcher, memory, Device::Unopened, true)
}

fn start(prefetcher: &Prefetcher, memory: u64, device: Device, must_compare: bool) -> Result<()> {
    prefetcher.offload_to(Box::new(CudaDecoder {
        must_compare: AtomicBool::new(must_compare),
        memory: usize::try_from(memory).unwrap_or(usize::MAX),
        core_nanos: Box::new(prefetcher.decode_nanos()),
        device: Mutex::new(device),
    }))
}

impl CudaDecoder {
    fn change<T>(&self, change: impl FnOnce(Device) -> (Device, T)) -> T {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, result) = change(std::mem::replace(&mut *device, Device::Failed));
        *device = next;
        result
    }

    /// Decode chunks. After an error, the GPU is not used again.
    fn try_decode(&self, device: Device, pending: &[PendingChunk]) -> Result<Device> {
        let (gpu, mut session) = match device {
            Device::Failed => return Ok(Device::Failed),
            Device::Active(gpu, session) => (gpu, session),
            Device::Ready(gpu) => {
                let session = gpu.session(self.memory)?;
                (gpu, session)
            }
            Device::Unopened => match Gpu::open() {
                Ok(gpu) => {
                    let session = gpu.session(self.memory)?;
                    (gpu, session)
                }
                // The user did not ask for a GPU.
                Err(e) => {
                    log::debug!("{e}");
                    return Ok(Device::Failed);
                }
            },
        };
        let mut chunks = Vec::new();
        let mut pieces = Vec::new();
        for chunk in pending {
            let indexed = chunk.chunk();
            // The cache's threads report malformed models.
            if gpu::supports(indexed.coding)
                && let Ok(model) = chunk.archive().model_of(indexed)
            {
                let (stored_len, len) = (indexed.stored_len as usize, indexed.len());
                pieces.push(Piece { coding: indexed.coding, model, stored_len, len });
                chunks.push(chunk);
            }
        }
        let begun = Instant::now();
        let fill = |i: usize, out: &mut [u8]| chunks[i].archive().read_stored(chunks[i].id(), out);
        let take = |i: usize, decoded: Result<&[u8]>| match decoded {
            Ok(decoded) => chunks[i].supply(decoded),
            Err(e) => log::debug!("the GPU cannot decode chunk {}: {e}", chunks[i].id()),
        };
        session.decode(&pieces, &fill, &take)?;
        // `tests/gpu/run` adds these up.
        log::debug!("the GPU decoded {} bytes", pieces.iter().map(|p| p.len).sum::<usize>());
        if self.must_compare.swap(false, Ordering::Relaxed) {
            let stored: usize = pieces.iter().map(|p| p.stored_len).sum();
            let nanos = begun.elapsed().as_nanos() as f64 / stored.max(1) as f64;
            let cores = (self.core_nanos)();
            if nanos > cores {
                log::debug!(
                    "{} decodes a byte in {nanos:.3} ns, the cores in {cores:.3} ns",
                    gpu.name()
                );
                return Ok(Device::Failed);
            }
            log::info!("{} decodes layers ahead, because it is faster than the cores", gpu.name());
        }
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
            Device::Active(gpu, _) => (Device::Ready(gpu), ()),
            other => (other, ()),
        });
    }
}
