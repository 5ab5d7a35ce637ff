//! Memory of a device, and host memory that it can copy from and to at full speed.

#![allow(unsafe_code)]

use super::device::{Device, DevicePtr, failed};
use crate::error::Result;
use cudarc::driver::result;
use std::sync::Arc;

/// Device memory.
pub(super) struct DeviceMemory {
    ptr: DevicePtr,
    len: usize,
    device: Arc<Device>,
}

impl DeviceMemory {
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        let _entered = device.enter()?;
        // SAFETY: any size may be requested, and nothing is read before it is written.
        let ptr = unsafe { result::malloc_sync(len.max(1)) }
            .map_err(failed("cannot allocate device memory"))?;
        Ok(Self { ptr, len, device: Arc::clone(device) })
    }

    /// Its address, a multiple of 256 bytes.
    pub(super) fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Reads all of `out` from byte `at`. No work that writes there may be in flight.
    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        assert!(
            at.checked_add(out.len()).is_some_and(|end| end <= self.len),
            "beyond the end of the device memory"
        );
        let _entered = self.device.enter()?;
        // SAFETY: the range was checked, and the call returns once the bytes have arrived.
        unsafe { result::memcpy_dtoh_sync(out, self.ptr + at as DevicePtr) }
            .map_err(failed("cannot download"))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: it was allocated in `new`, and the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.ptr) };
        }
    }
}

/// Page-locked host memory, which the device reads and writes at full speed. It is not
/// write-combined, because the host reads it, too.
pub(super) struct PinnedMemory {
    at: *mut u8,
    len: usize,
    device: Arc<Device>,
}

// SAFETY: only its owner uses the memory.
unsafe impl Send for PinnedMemory {}
// SAFETY: shared references only allow reading.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        let _entered = device.enter()?;
        // SAFETY: any size may be requested.
        let at: *mut u8 = unsafe { result::malloc_host(len.max(1), 0) }
            .map_err(failed("cannot allocate page-locked memory"))?
            .cast();
        // SAFETY: it was just allocated. This initialises it.
        unsafe { at.write_bytes(0, len) };
        Ok(Self { at, len, device: Arc::clone(device) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: it was allocated and initialised in `new`, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: it was allocated in `new`.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}
