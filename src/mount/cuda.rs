//! What is wished for, decoded by a GPU.

use crate::error::Result;
use crate::gpu::{self, Gpu, Piece, Session};
use crate::read::{ChunkCache, Owed, Prefetcher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

/// Bytes that are wished for at a time: enough to keep a GPU busy while others are on their way.
const PIECE: u64 = 64 << 20;

/// A GPU beside a cache, until CUDA fails; then the cache's own threads do all.
struct Cuda {
    /// Whether it must show first that it is faster than the cores.
    compare: AtomicBool,
    memory: usize,
    cache: Weak<ChunkCache>,
    state: Mutex<State>,
}

enum State {
    /// To be looked for when there is something to decode.
    Unknown,
    Ready(Gpu),
    /// With memory, while there is something to decode.
    Working(Gpu, Session),
    Gone,
}

/// Let a GPU decode what is wished for, with `memory` bytes of its own.
///
/// # Errors
/// Invalid argument or Io, where there is none that can be used, and why.
pub(super) fn use_gpu(cache: &Arc<ChunkCache>, memory: u64) -> Result<()> {
    let gpu = Gpu::open()?;
    log::info!("{} decodes ahead", gpu.name());
    start(cache, memory, State::Ready(gpu), false)
}

/// The same, if there turns out to be one that is faster than this machine's cores.
///
/// # Errors
/// Io, where a thread for it cannot be started.
pub(super) fn use_faster_gpu(cache: &Arc<ChunkCache>, memory: u64) -> Result<()> {
    start(cache, memory, State::Unknown, true)
}

fn start(cache: &Arc<ChunkCache>, memory: u64, state: State, compare: bool) -> Result<()> {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    let (compare, state) = (AtomicBool::new(compare), Mutex::new(state));
    cache.prefetch_with(Box::new(Cuda { compare, memory, cache: Arc::downgrade(cache), state }))
}

impl Cuda {
    fn change<T>(&self, change: impl FnOnce(State) -> (State, T)) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, result) = change(std::mem::replace(&mut *state, State::Gone));
        *state = next;
        result
    }

    /// Decode with a session; an error is the last word of this GPU.
    fn try_decode(&self, state: State, owed: &[Owed]) -> Result<State> {
        let (gpu, mut session) = match state {
            State::Gone => return Ok(State::Gone),
            State::Working(gpu, session) => (gpu, session),
            State::Ready(gpu) => {
                let session = gpu.session(self.memory)?;
                (gpu, session)
            }
            State::Unknown => match Gpu::open() {
                Ok(gpu) => {
                    let session = gpu.session(self.memory)?;
                    (gpu, session)
                }
                // Nobody asked for one.
                Err(e) => {
                    log::debug!("{e}");
                    return Ok(State::Gone);
                }
            },
        };
        let mut chunks = Vec::new();
        let mut pieces = Vec::new();
        for owed in owed {
            let chunk = owed.chunk();
            // A model that is malformed is for the cache's threads to tell.
            if gpu::supports(chunk.coding)
                && let Ok(model) = owed.archive().model_of(chunk)
            {
                let (stored_len, len) = (chunk.stored_len as usize, chunk.len());
                pieces.push(Piece { coding: chunk.coding, model, stored_len, len });
                chunks.push(owed);
            }
        }
        let begun = Instant::now();
        let fill = |i: usize, out: &mut [u8]| chunks[i].archive().read_stored(chunks[i].id(), out);
        let take = |i: usize, decoded: Result<&[u8]>| match decoded {
            Ok(decoded) => chunks[i].supply(decoded),
            Err(e) => log::debug!("a GPU does not decode chunk {}: {e}", chunks[i].id()),
        };
        session.decode(&pieces, &fill, &take)?;
        if self.compare.swap(false, Ordering::Relaxed) {
            let stored: usize = pieces.iter().map(|p| p.stored_len).sum();
            let nanos = begun.elapsed().as_nanos() as f64 / stored.max(1) as f64;
            let cores = self.cache.upgrade().map_or(0.0, |cache| cache.decoding_nanos());
            if nanos > cores {
                log::debug!(
                    "{} decodes a byte in {nanos:.3} ns, the cores in {cores:.3} ns",
                    gpu.name()
                );
                return Ok(State::Gone);
            }
            log::info!("{} decodes ahead, since it is faster than the cores", gpu.name());
        }
        Ok(State::Working(gpu, session))
    }
}

impl Prefetcher for Cuda {
    fn piece(&self) -> u64 {
        self.change(|state| {
            let piece = if matches!(state, State::Gone) { 0 } else { PIECE };
            (state, piece)
        })
    }

    fn decode(&self, owed: &[Owed]) {
        self.change(|state| match self.try_decode(state, owed) {
            Ok(state) => (state, ()),
            Err(e) => {
                log::warn!("{e}; from now on the cores decode ahead");
                (State::Gone, ())
            }
        });
    }

    fn rest(&self) {
        self.change(|state| match state {
            State::Working(gpu, _) => (State::Ready(gpu), ()),
            other => (other, ()),
        });
    }
}
