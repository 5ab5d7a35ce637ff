//! Errors of the library as Python exceptions: `OSError` with its errno for what the system
//! refuses, `ValueError` for wrong arguments, and `BszError` for everything else.

use bszfs::{Error, ErrorKind};
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::ffi::CStr;

static BSZ_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();

const DOC: &CStr = c"An archive is damaged, of an unknown version, or no archive.";

/// The exception `BszError`. Where safetensors is installed, it is a `SafetensorError`, so that
/// code that handles damaged files handles damaged archives.
pub fn bsz_error(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    let class = BSZ_ERROR.get_or_try_init(py, || {
        let theirs = py.import("safetensors").and_then(|module| module.getattr("SafetensorError"));
        let theirs = theirs.and_then(|class| Ok(class.cast_into::<PyType>()?));
        let base = theirs.unwrap_or_else(|_| py.get_type::<PyException>());
        PyErr::new_type(py, c"bszfs.BszError", Some(DOC), Some(&base), None)
    })?;
    Ok(class.bind(py))
}

/// An exception of the class `BszError`.
pub fn damaged(py: Python<'_>, why: String) -> PyErr {
    match bsz_error(py) {
        Ok(class) => PyErr::from_type(class.clone(), why),
        Err(e) => e,
    }
}

/// The exception for an error of the library.
pub fn exception(py: Python<'_>, e: &Error) -> PyErr {
    let Some(errno) = e.errno() else {
        return match e.kind() {
            ErrorKind::Io => PyOSError::new_err(e.to_string()),
            _ => damaged(py, e.to_string()),
        };
    };
    // Python shows the number itself, and chooses the class by it: FileNotFoundError and so on.
    let why = e.detail().replace(&format!(" (os error {errno})"), "");
    match e.path() {
        Some(path) => PyOSError::new_err((errno, why, path.as_os_str().to_owned())),
        None => PyOSError::new_err((errno, why)),
    }
}

/// A result of the library as one of Python.
pub trait OrRaise<T> {
    /// Convert the error.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for bszfs::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|e| exception(py, &e))
    }
}

/// The exception for the use of a closed archive.
pub fn closed() -> PyErr {
    PyValueError::new_err("the archive is closed")
}
