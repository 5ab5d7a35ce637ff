//! The class `Cuda`: a GPU that decodes parts of archives into memory that its caller allocated.

#![allow(unsafe_code)]

use crate::archive::Archive;
use crate::work::{self, Stop};
use bszfs::gpu::{Gpu, Loader, Part};
use bszfs::{Error, codec, read};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

/// Staging memory in bytes: two batches of up to 32 MiB are in flight.
const STAGING: usize = 128 << 20;
/// How many bytes, or one part, are decoded between two looks at the signals.
const AT_A_TIME: u64 = 256 << 20;

/// A GPU. It may be used by several threads, in turn.
#[pyclass(frozen, module = "bszfs._native")]
pub struct Cuda {
    gpu: ManuallyDrop<Gpu>,
    /// Locked only without the GIL.
    staging: ManuallyDrop<Mutex<Staging>>,
    process: u32,
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A child that was forked must not use what its parent has opened.
        if self.process == std::process::id() {
            // SAFETY: neither is used again.
            unsafe {
                ManuallyDrop::drop(&mut self.staging);
                ManuallyDrop::drop(&mut self.gpu);
            }
        }
    }
}

/// The staging memory on a GPU and on the host.
enum Staging {
    /// Allocated when something is decoded.
    Free,
    Held(Loader),
    /// CUDA has failed, and is not used any more.
    Failed,
}

#[pymethods]
impl Cuda {
    #[new]
    fn new(py: Python<'_>, ordinal: u32) -> PyResult<Self> {
        let opened = py.detach(|| Gpu::open(ordinal));
        let gpu = opened.map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
        Ok(Self {
            gpu: ManuallyDrop::new(gpu),
            staging: ManuallyDrop::new(Mutex::new(Staging::Free)),
            process: std::process::id(),
        })
    }

    #[getter]
    fn name(&self) -> &str {
        self.gpu.name()
    }

    /// Free the staging memory until something is decoded again.
    fn release(&self, py: Python<'_>) {
        if self.process != std::process::id() {
            return;
        }
        py.detach(|| {
            let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(*staging, Staging::Held(_)) {
                *staging = Staging::Free;
            }
        });
    }

    #[pyo3(signature = (archive, parts, stream = None))]
    fn decode(
        &self,
        py: Python<'_>,
        archive: &Archive,
        parts: Vec<(u64, u64, u64)>,
        stream: Option<u64>,
    ) -> PyResult<()> {
        if self.process != std::process::id() {
            return Err(PyRuntimeError::new_err("CUDA cannot be used after a fork"));
        }
        let part = |(start, len, address)| Part { start, len, address };
        let parts: Vec<Part> = parts.into_iter().map(part).collect();
        let shared = archive.shared()?;
        let decoded = work::run(py, None, |stop| {
            let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
            let mut loader = match std::mem::replace(&mut *staging, Staging::Failed) {
                Staging::Free => self.gpu.loader(STAGING)?,
                Staging::Held(loader) => loader,
                Staging::Failed => return Err(Error::invalid("CUDA has failed before")),
            };
            // SAFETY: the caller vouches for the memory and the stream while this runs.
            let decoded = unsafe { decode(&mut loader, &shared, &parts, stream, stop) }?;
            *staging = Staging::Held(loader);
            Ok(decoded)
        });
        match decoded? {
            Ok(outcome) => outcome.map_err(|e| archive.raise(e)),
            Err(e) => Err(PyRuntimeError::new_err(e.to_string())),
        }
    }
}

/// Decode all parts, or up to one that fails.
///
/// # Errors
/// Those of CUDA.
///
/// # Safety
/// As [`Loader::decode`].
unsafe fn decode(
    loader: &mut Loader,
    archive: &read::Archive,
    parts: &[Part],
    stream: Option<u64>,
    stop: &Stop,
) -> bszfs::Result<bszfs::Result<()>> {
    let decoder = stop.interrupts(codec::fastest());
    let mut rest = parts;
    while !rest.is_empty() && !stop.is_set() {
        let mut bytes = 0;
        let fits = |part: &&Part| {
            bytes += part.len;
            bytes <= AT_A_TIME
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        // SAFETY: the caller vouches for all of it.
        let outcomes = unsafe { loader.decode(archive, &decoder, now, stream) }?;
        if let Some(e) = outcomes.into_iter().find_map(Result::err) {
            return Ok(Err(e));
        }
        rest = later;
    }
    Ok(Ok(()))
}
