//! Decodes prefetched chunks on an NVIDIA GPU.

use super::{offload::OffloadDecoder, prefetcher::Prefetcher};
use crate::cache::PendingChunk;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::{self, Gpu, Piece, Session};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes to request at a time: several times what is in flight, since all of it must be decoded
/// before the next ones are requested.
const PIECE: u64 = 256 << 20;
/// The same until the GPU is compared with the cores, whose stored bytes are in memory meanwhile.
const FIRST_PIECE: u64 = 64 << 20;
/// Decoded bytes that are enough to compare. With fewer, latency decides.
const COMPARABLE: usize = 16 << 20;
/// How long to wait for the driver when a mount starts.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a GPU must be idle until its context is given back, which takes half a gigabyte of its
/// memory.
const CLOSE_AFTER: Duration = Duration::from_secs(30);

/// A GPU that decodes for a cache until CUDA fails. Then the cache's own threads do all the work.
struct CudaDecoder {
    /// Which GPU.
    ordinal: u32,
    /// Whether the GPU has yet to prove that it is faster than the cores.
    must_compare: AtomicBool,
    /// Bytes of memory to use.
    memory: usize,
    /// Nanoseconds that the cores take to decode a stored byte that is in memory.
    core_nanos: Box<dyn Fn() -> f64 + Send + Sync>,
    device: Mutex<Device>,
}

enum Device {
    /// To be opened when there is something to decode.
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
    start(prefetcher, ordinal, memory, Device::Open(gpu, Instant::now()), false)
}

/// The same, if there is a GPU that turns out to be faster than the cores.
///
/// # Errors
/// Io, if its thread cannot be started.
pub fn use_faster_gpu(prefetcher: &Prefetcher, ordinal: u32, memory: u64) -> Result<()> {
    start(prefetcher, ordinal, memory, Device::Closed, true)
}

fn start(
    prefetcher: &Prefetcher,
    ordinal: u32,
    memory: u64,
    device: Device,
    must_compare: bool,
) -> Result<()> {
    prefetcher.offload_to(Box::new(CudaDecoder {
        ordinal,
        must_compare: AtomicBool::new(must_compare),
        memory: usize::try_from(memory).unwrap_or(usize::MAX),
        core_nanos: Box::new(prefetcher.decode_nanos()),
        device: Mutex::new(device),
    }))
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

    fn stored(&self) -> usize {
        self.pieces.iter().map(|p| p.stored_len).sum()
    }

    fn decoded(&self) -> usize {
        self.pieces.iter().map(|p| p.len).sum()
    }

    fn read(&self, i: usize, out: &mut [u8]) -> Result<()> {
        self.chunks[i].archive().read_stored(self.chunks[i].id(), out)
    }

    /// Decode all of them; `fill` provides their stored bytes.
    fn decode(&self, session: &mut Session, fill: &gpu::Fill<'_>) -> Result<()> {
        let chunks = &self.chunks;
        let take = |i: usize, decoded: Result<&[u8]>| match decoded {
            Ok(decoded) => chunks[i].supply(decoded),
            Err(e) => log::debug!("the GPU cannot decode chunk {}: {e}", chunks[i].id()),
        };
        session.decode(&self.pieces, fill, &take)?;
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
        let decodable = Decodable::new(pending);
        let cores = (self.core_nanos)();
        let comparable = cores > 0.0 && decodable.decoded() >= COMPARABLE;
        if !comparable || !self.must_compare.load(Ordering::Relaxed) {
            decodable.decode(&mut session, &|i, out| decodable.read(i, out))?;
            return Ok(Device::Active(gpu, session));
        }
        let nanos = nanos(&decodable, &mut session)?;
        if nanos > cores {
            let name = gpu.name();
            log::debug!("{name} decodes a byte in {nanos:.3} ns, the cores in {cores:.3} ns");
            return Ok(Device::Failed);
        }
        log::info!("{} decodes layers ahead, because it is faster than the cores", gpu.name());
        self.must_compare.store(false, Ordering::Relaxed);
        Ok(Device::Active(gpu, session))
    }
}

/// Decode, and measure the nanoseconds for a stored byte from memory to memory: the time of the
/// cores does not include reading from the disk either.
fn nanos(decodable: &Decodable<'_>, session: &mut Session) -> Result<f64> {
    let stored: Vec<Result<Vec<u8>>> = decodable
        .pieces
        .iter()
        .enumerate()
        .map(|(i, piece)| {
            let mut bytes = vec![0; piece.stored_len];
            decodable.read(i, &mut bytes).map(|()| bytes)
        })
        .collect();
    let begun = Instant::now();
    decodable.decode(session, &|i, out| {
        stored[i].as_ref().map(|bytes| out.copy_from_slice(bytes)).map_err(Clone::clone)
    })?;
    Ok(begun.elapsed().as_nanos() as f64 / decodable.stored().max(1) as f64)
}

impl OffloadDecoder for CudaDecoder {
    fn piece(&self) -> u64 {
        let must_compare = self.must_compare.load(Ordering::Relaxed);
        self.change(|device| {
            let piece = match device {
                Device::Failed => 0,
                _ if must_compare => FIRST_PIECE,
                _ => PIECE,
            };
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
                // Without `--prefetch cuda`, the user did not ask for a GPU.
                let asked = !self.must_compare.load(Ordering::Relaxed);
                let level = if asked { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "{e}; layers are decoded by the cores from now on");
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
