//! Memory that Python owns: addresses and buffers as slices, and advice on huge pages.

#![allow(unsafe_code)]

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// The size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Memory of somebody else: its address and its length in bytes.
#[derive(Clone, Copy)]
pub struct Region {
    address: usize,
    len: usize,
}

impl Region {
    /// Memory that the caller of the Python function vouches for.
    pub fn new(address: usize, len: usize) -> PyResult<Self> {
        if len > 0 && (address == 0 || address.checked_add(len).is_none_or(|end| end > MOST)) {
            return Err(PyValueError::new_err("not an address of memory"));
        }
        Ok(Self { address, len })
    }
}

/// No object is longer, and none of a program is at a higher address.
const MOST: usize = isize::MAX as usize;

/// The memory of these regions as slices, in their order.
///
/// # Errors
/// `ValueError`, if two regions overlap.
///
/// # Safety
/// As long as the slices live, the memory must be valid for writing, and nothing else may use it.
pub unsafe fn slices<'m>(regions: &[Region]) -> PyResult<Vec<&'m mut [u8]>> {
    let mut sorted: Vec<&Region> = regions.iter().filter(|region| region.len > 0).collect();
    sorted.sort_unstable_by_key(|region| region.address);
    if sorted.windows(2).any(|pair| pair[0].address + pair[0].len > pair[1].address) {
        return Err(PyValueError::new_err("two of the targets overlap"));
    }
    let slice = |region: &Region| -> &'m mut [u8] {
        if region.len == 0 {
            return &mut [];
        }
        let start = std::ptr::with_exposed_provenance_mut(region.address);
        // SAFETY: the caller vouches for the memory, `Region::new` has checked that the address is
        // not null and the length not too large, and no two of the slices overlap.
        unsafe { std::slice::from_raw_parts_mut(start, region.len) }
    };
    Ok(regions.iter().map(slice).collect())
}

/// A buffer that another object lends for writing; it may neither move nor shrink meanwhile.
pub struct Lent<'py> {
    region: Region,
    /// Holds the buffer.
    _export: Option<Bound<'py, PyAny>>,
}

impl<'py> Lent<'py> {
    /// Borrow the memory of `object`. The stable ABI of Python 3.10 has no functions for that, but
    /// ctypes does the same.
    ///
    /// # Errors
    /// `TypeError`, if `object` has no buffer, or one that is read-only or not contiguous.
    pub fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let view = py.import("builtins")?.getattr("memoryview")?.call1((object,))?;
        if view.getattr("readonly")?.extract::<bool>()? {
            return Err(PyTypeError::new_err("the buffer is read-only"));
        }
        if !view.getattr("c_contiguous")?.extract::<bool>()? {
            return Err(PyTypeError::new_err("the buffer is not C-contiguous"));
        }
        let len: usize = view.getattr("nbytes")?.extract()?;
        if len == 0 {
            return Ok(Self { region: Region { address: 0, len: 0 }, _export: None });
        }
        let ctypes = py.import("ctypes")?;
        let export = ctypes.getattr("c_char")?.call_method1("from_buffer", (&view,))?;
        let address = ctypes.call_method1("addressof", (&export,))?.extract()?;
        Ok(Self { region: Region::new(address, len)?, _export: Some(export) })
    }

    /// The buffer.
    pub fn bytes(&mut self) -> &mut [u8] {
        if self.region.len == 0 {
            return &mut [];
        }
        let start = std::ptr::with_exposed_provenance_mut(self.region.address);
        // SAFETY: the export keeps the buffer in place and as long as it is, and it may be written
        // to. As with any `readinto`, whoever uses it at the same time reads arbitrary bytes.
        unsafe { std::slice::from_raw_parts_mut(start, self.region.len) }
    }
}

/// A bytes object of this length, filled by `fill`; unlike [`PyBytes::new_with`], its memory is not
/// touched before.
pub fn bytes<'py>(
    py: Python<'py>,
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> PyResult<()>,
) -> PyResult<Bound<'py, PyBytes>> {
    let size = isize::try_from(len).map_err(|_| PyValueError::new_err("too long"))?;
    // SAFETY: with no string, Python allocates an object of that size, or raises.
    let object = unsafe {
        let object = pyo3::ffi::PyBytes_FromStringAndSize(std::ptr::null(), size);
        Bound::from_owned_ptr_or_err(py, object)?
    };
    let object = object.cast_into::<PyBytes>()?;
    // SAFETY: the object has `len` bytes, and until it is returned, nothing else knows it.
    fill(unsafe {
        let start = pyo3::ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>();
        advise_huge(start.expose_provenance(), len)?;
        std::slice::from_raw_parts_mut(start, len)
    })?;
    Ok(object)
}

/// Ask for huge pages in the part of this memory that is made of whole ones. A kernel without them
/// is no error.
#[pyfunction]
pub fn advise_huge(address: usize, length: usize) -> PyResult<()> {
    let end = address
        .checked_add(length)
        .ok_or_else(|| PyValueError::new_err("not an address of memory"))?;
    let start = address.next_multiple_of(HUGE_PAGE);
    let end = end / HUGE_PAGE * HUGE_PAGE;
    if start >= end {
        return Ok(());
    }
    // SAFETY: this advice changes no content, and the kernel checks the addresses.
    let rc = unsafe {
        libc::madvise(
            std::ptr::with_exposed_provenance_mut(start),
            end - start,
            libc::MADV_HUGEPAGE,
        )
    };
    let e = std::io::Error::last_os_error();
    if rc == 0 || e.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(e.into()) }
}
