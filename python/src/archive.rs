//! The class `Archive`: an open archive, whose bytes are those of the original file.

use crate::errors::{OrRaise, closed, damaged};
use crate::memory::{self, Lent, Region};
use bszfs::codec::{self, ChunkDecoder};
use bszfs::format::MAX_HEADER;
use bszfs::read;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use safetensors::tensor::Metadata;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A tensor for Python: name, dtype, shape, and where its bytes start and end in the original.
type Tensor = (String, String, Vec<usize>, u64, u64);

/// An open archive, and how it is read.
#[derive(Clone)]
struct Opened {
    archive: Arc<read::Archive>,
    decoder: Arc<dyn ChunkDecoder>,
    /// The process that opened it.
    process: u32,
}

impl Opened {
    fn new(archive: read::Archive) -> Self {
        let decoder = codec::fastest();
        Self { archive: Arc::new(archive), decoder, process: std::process::id() }
    }

    /// The JSON of the safetensors header.
    fn header(&self) -> bszfs::Result<Vec<u8>> {
        let json = read::header_json(&self.archive, &*self.decoder, MAX_HEADER)?;
        json.ok_or_else(|| bszfs::Error::invalid("its original is not a safetensors file"))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> bszfs::Result<usize> {
        self.archive.read_at(offset, out, &*self.decoder)
    }
}

/// An open archive. It may be used by several threads at a time.
#[pyclass(frozen, module = "bszfs._native")]
pub struct Archive {
    path: OsString,
    /// `None` once it is closed. Locked only while the GIL is held, and so never during a fork.
    opened: Mutex<Option<Opened>>,
}

impl Archive {
    /// The open archive. After a fork, it is opened anew: its locks may have been held by threads
    /// that the child does not have.
    fn opened(&self) -> PyResult<Opened> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let current = opened.as_mut().ok_or_else(closed)?;
        if current.process != std::process::id() {
            let again = current.archive.file().try_clone().map_err(bszfs::Error::from);
            let again = again.and_then(read::Archive::from_file);
            // The locks that the old one owns must not even be dropped.
            let old = std::mem::replace(current, Opened::new(again.map_err(|e| self.raise(e))?));
            std::mem::forget(old);
        }
        Ok(current.clone())
    }

    /// The exception for an error of this archive.
    fn raise(&self, e: bszfs::Error) -> PyErr {
        let e = e.about_path(Path::new(&self.path));
        Python::attach(|py| crate::errors::exception(py, &e))
    }

    /// Do something with the archive without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Opened) -> bszfs::Result<T> + Send,
    ) -> PyResult<T> {
        let opened = self.opened()?;
        py.detach(move || work(&opened)).map_err(|e| self.raise(e))
    }
}

#[pymethods]
impl Archive {
    #[new]
    fn new(py: Python<'_>, path: &Bound<'_, PyAny>) -> PyResult<Self> {
        let path: OsString = py.import("os")?.call_method1("fsdecode", (path,))?.extract()?;
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
        Ok(8 + self.with(py, Opened::header)?.len() as u64)
    }

    fn header<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.with(py, Opened::header)?))
    }

    /// The tensors in the order of their data, after the checks that safetensors makes.
    fn tensors(&self, py: Python<'_>) -> PyResult<Vec<Tensor>> {
        let size = self.size()?;
        let parsed = self.with(py, |opened| Ok(tensors(&opened.header()?, size)))?;
        parsed.map_err(|why| damaged(py, format!("Error while deserializing header: {why}")))
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let left = self.size()?.saturating_sub(offset);
        let length = length.min(left) as usize;
        PyBytes::new_with(py, length, |out| {
            self.with(py, |opened| opened.read(offset, out)).map(drop)
        })
    }

    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, offset: u64) -> PyResult<usize> {
        let mut lent = Lent::new(buffer)?;
        let out = lent.bytes();
        self.with(py, |opened| opened.read(offset, out))
    }

    #[allow(unsafe_code)]
    fn read_many(&self, py: Python<'_>, parts: Vec<(u64, usize, usize)>) -> PyResult<()> {
        let size = self.size()?;
        let mut regions = Vec::with_capacity(parts.len());
        for (offset, length, address) in &parts {
            if offset.checked_add(*length as u64).is_none_or(|end| end > size) {
                return Err(PyValueError::new_err("a part is beyond the end of the original"));
            }
            regions.push(Region::new(*address, *length)?);
        }
        // SAFETY: the caller vouches for the memory at these addresses while this runs.
        let targets = unsafe { memory::slices(&regions)? };
        self.with(py, |opened| {
            for ((offset, ..), target) in parts.iter().zip(targets) {
                opened.read(*offset, target)?;
            }
            Ok(())
        })
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |opened| read::verify(&opened.archive, &*opened.decoder, &|_| ()))
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
