//! The class `Archive`: an open archive, whose bytes are those of the original file.

use crate::commands;
use crate::errors::{OrRaise, closed, damaged, exception};
use crate::memory::{self, Lent, Region};
use crate::work::{self, Raised};
use bszfs::codec;
use bszfs::format::MAX_HEADER;
use bszfs::read::{self, Part};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use safetensors::tensor::Metadata;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A tensor for Python: name, dtype, shape, and where its bytes start and end in the original.
type Tensor = (String, String, Vec<usize>, u64, u64);

/// An open archive, and the process that opened it.
#[derive(Clone)]
struct Opened {
    archive: Arc<read::Archive>,
    process: u32,
}

impl Opened {
    fn new(archive: read::Archive) -> Self {
        Self { archive: Arc::new(archive), process: std::process::id() }
    }

    /// The JSON of the safetensors header.
    fn header(&self) -> bszfs::Result<Vec<u8>> {
        let json = read::header_json(&self.archive, work::decoder(), MAX_HEADER)?;
        json.ok_or_else(|| bszfs::Error::invalid("its original is not a safetensors file"))
    }
}

/// An open archive. It may be used by several threads at a time.
#[pyclass(frozen, module = "bszfs._native")]
pub struct Archive {
    path: OsString,
    /// `None` once it is closed. Locked only while the GIL is held, and so not when a thread forks.
    opened: Mutex<Option<Opened>>,
}

impl Archive {
    /// The open archive. After a fork, it is opened anew: its locks may have been held by threads
    /// that the child does not have.
    fn opened(&self) -> PyResult<Opened> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let current = opened.as_mut().ok_or_else(closed)?;
        if current.process != std::process::id() {
            let again = current.archive.local_file().try_clone().map_err(bszfs::Error::from);
            let again = again.and_then(read::Archive::from_file);
            let again = again.map(|archive| archive.beside(Path::new(&self.path)));
            // The locks that the old one owns must not even be dropped.
            let old = std::mem::replace(current, Opened::new(again.map_err(|e| self.raise(e))?));
            std::mem::forget(old);
        }
        Ok(current.clone())
    }

    /// The archive, for work without the GIL.
    pub fn shared(&self) -> PyResult<Arc<read::Archive>> {
        Ok(self.opened()?.archive)
    }

    /// The exception for an error of this archive.
    pub fn raise(&self, e: bszfs::Error) -> PyErr {
        let e = e.about_path(Path::new(&self.path));
        Python::attach(|py| exception(py, &e))
    }

    /// The JSON of the safetensors header, decoded without the GIL.
    fn json(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        let opened = self.opened()?;
        py.detach(move || opened.header()).map_err(|e| self.raise(e))
    }

    /// Read parts of the original without the GIL.
    fn fill(&self, py: Python<'_>, parts: Vec<Part<'_>>) -> PyResult<()> {
        let opened = self.opened()?;
        let mut raised = Raised::default();
        let read = py.detach(|| {
            let go_on = &mut || raised.look();
            read::read_many(&opened.archive, parts, work::decoder(), work::threads(), go_on)
        });
        raised.or(read)?.map_err(|e| self.raise(e))
    }

    /// Read up to the end of the original. Returns how many bytes were read.
    fn fill_from(&self, py: Python<'_>, offset: u64, out: &mut [u8]) -> PyResult<usize> {
        let left = self.size()?.saturating_sub(offset);
        let len = left.min(out.len() as u64) as usize;
        if len > 0 {
            self.fill(py, vec![Part { offset, target: &mut out[..len] }])?;
        }
        Ok(len)
    }
}

#[pymethods]
impl Archive {
    #[new]
    fn new(py: Python<'_>, path: &Bound<'_, PyAny>) -> PyResult<Self> {
        let path = commands::path(path)?;
        let opened = py.detach(|| read::Archive::open(Path::new(&path))).or_raise(py)?;
        Ok(Self { path, opened: Mutex::new(Some(Opened::new(opened))) })
    }

    #[getter]
    fn path(&self) -> &OsString {
        &self.path
    }

    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.opened()?.archive.footer().original_len)
    }

    #[getter]
    fn stored_size(&self) -> PyResult<u64> {
        Ok(self.opened()?.archive.stored_len())
    }

    #[getter]
    fn sha256(&self) -> PyResult<String> {
        let opened = self.opened()?;
        Ok(opened.archive.footer().sha256.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    #[getter]
    fn data_offset(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(8 + self.json(py)?.len() as u64)
    }

    fn header<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.json(py)?))
    }

    /// The tensors in the order of their data, after the checks that safetensors makes.
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let size = self.size()?;
        let json = self.json(py)?;
        let parsed = py.detach(|| tensors(&json, size));
        let why = |why| damaged(py, format!("Error while deserializing header: {why}"));
        let tuple = |(name, dtype, shape, start, end): Tensor| {
            (name, dtype, PyTuple::new(py, shape)?, start, end).into_pyobject(py)
        };
        parsed.map_err(why)?.into_iter().map(tuple).collect()
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let length = length.min(self.size()?.saturating_sub(offset)) as usize;
        memory::bytes(py, length, |out| self.fill_from(py, offset, out).map(drop))
    }

    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, offset: u64) -> PyResult<usize> {
        self.fill_from(py, offset, Lent::new(buffer)?.bytes())
    }

    #[allow(unsafe_code)]
    fn read_many(&self, py: Python<'_>, parts: Vec<(u64, usize, usize)>) -> PyResult<()> {
        let region = |&(_, length, address): &(u64, usize, usize)| Region::new(address, length);
        let regions: Vec<Region> = parts.iter().map(region).collect::<PyResult<_>>()?;
        // SAFETY: the caller vouches for the memory at these addresses while this runs.
        let targets = unsafe { memory::slices(&regions)? };
        let parts = parts.iter().zip(targets);
        self.fill(py, parts.map(|(&(offset, ..), target)| Part { offset, target }).collect())
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let opened = self.opened()?;
        let verified = work::run(py, None, |stop| {
            let decoder = stop.interrupts(codec::fastest());
            read::verify(&opened.archive, &decoder, &|_| ())
        });
        verified?.map_err(|e| self.raise(e))
    }

    fn close(&self) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The tensors of a header; an error in the words of safetensors.
fn tensors(json: &[u8], size: u64) -> Result<Vec<Tensor>, String> {
    let start = 8 + json.len() as u64;
    let text = std::str::from_utf8(json).map_err(|e| format!("invalid UTF-8 in header: {e}"))?;
    let metadata: Metadata =
        serde_json::from_str(text).map_err(|e| format!("invalid JSON in header: {e}"))?;
    if start + metadata.data_len() as u64 != size {
        return Err("incomplete metadata, file not fully covered".into());
    }
    let mut tensors: Vec<Tensor> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let (from, to) = (start + from as u64, start + to as u64);
            (name, info.dtype.to_string(), info.shape.clone(), from, to)
        })
        .collect();
    tensors.sort_by(|a, b| (a.3, a.4, &a.0).cmp(&(b.3, b.4, &b.0)));
    Ok(tensors)
}
