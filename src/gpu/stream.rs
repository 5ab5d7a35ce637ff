//! Streams: work that a device does in order.

#![allow(unsafe_code)]

use super::{
    batch::{Launch, RECORD, THREADS},
    device::{Device, DevicePtr, failed},
};
use crate::error::Result;
use cudarc::driver::{
    result::{self, stream::StreamKind},
    sys,
};
use std::{ffi::c_void, mem::size_of_val, sync::Arc};

/// The driver's handle of any stream.
pub(super) type StreamHandle = sys::CUstream;

/// Work that the device does in order. Dropping it waits for all work.
pub(super) struct Stream {
    stream: sys::CUstream,
    device: Arc<Device>,
}

// SAFETY: see `Device`.
unsafe impl Send for Stream {}

/// The buffers that the kernels work on.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    pub(super) records: DevicePtr,
    pub(super) stored: DevicePtr,
    pub(super) models: DevicePtr,
    pub(super) out: DevicePtr,
    pub(super) statuses: DevicePtr,
}

impl Stream {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self> {
        let _entered = device.enter()?;
        let stream = result::stream::create(StreamKind::NonBlocking)
            .map_err(failed("cannot create a stream"))?;
        Ok(Self { stream, device: Arc::clone(device) })
    }

    /// Uploads `from`.
    ///
    /// # Safety
    /// There must be as many bytes at `to`. Until the stream is waited for, both must stay
    /// allocated and `from` unchanged.
    pub(super) unsafe fn upload(&self, from: &[u8], to: DevicePtr) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(failed("cannot upload"))
    }

    /// Downloads to all of `to`.
    ///
    /// # Safety
    /// There must be as many bytes at `from`. Until the stream is waited for, both must stay
    /// allocated and nothing may access `to`.
    pub(super) unsafe fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }
            .map_err(failed("cannot download"))
    }

    /// Copies `len` bytes within device memory.
    ///
    /// # Safety
    /// There must be as many bytes at `from` and at `to`, which must not overlap. Both must stay
    /// allocated until the stream is waited for.
    pub(super) unsafe fn copy(&self, from: DevicePtr, to: DevicePtr, len: usize) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { result::memcpy_dtod_async(to, from, len, self.stream) }
            .map_err(failed("cannot copy on the device"))
    }

    /// Fills with zeros.
    ///
    /// # Safety
    /// There must be `len` bytes at `at`, which must stay allocated until the stream is waited for.
    pub(super) unsafe fn clear(&self, at: DevicePtr, len: usize) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the caller vouches for the bytes.
        unsafe { result::memset_d8_async(at, 0, len, self.stream) }
            .map_err(failed("cannot clear memory"))
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// The buffers must hold what the batch of the launch has laid out, and must stay allocated
    /// until the stream is waited for.
    pub(super) unsafe fn launch(&self, launch: &Launch, buffers: Buffers) -> Result<()> {
        let _entered = self.device.enter()?;
        let kernel = self.device.kernel(launch.kernel)?;
        let mut arguments = [
            buffers.records + (launch.first * RECORD) as DevicePtr,
            buffers.stored,
            buffers.models,
            buffers.out,
            buffers.statuses + (launch.first * size_of::<u32>()) as DevicePtr,
        ];
        let mut pointers = arguments.each_mut().map(|a| std::ptr::from_mut(a).cast::<c_void>());
        debug_assert_eq!(size_of_val(&arguments[0]), 8);
        let grid = (launch.blocks as u32, 1, 1);
        let shared = launch.shared_len as u32;
        // SAFETY: the kernel belongs to the device and has five parameters of eight bytes, which
        // the driver copies. The caller vouches for what they point to.
        unsafe {
            result::launch_kernel(kernel, grid, (THREADS, 1, 1), shared, self.stream, &mut pointers)
        }
        .map_err(failed("cannot launch a kernel"))
    }

    /// Lets all work that follows wait for what `other`, a stream of the same device, has to do at
    /// present.
    ///
    /// # Safety
    /// `other` must be a stream of this device's primary context, or null for its default stream.
    pub(super) unsafe fn wait_for(&self, other: StreamHandle) -> Result<()> {
        let _entered = self.device.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(failed("cannot create an event"))?;
        // SAFETY: the event was just created, and the caller vouches for the stream.
        let waits = unsafe {
            result::event::record(event, other).and_then(|()| {
                let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
                result::stream::wait_event(self.stream, event, flags)
            })
        };
        // SAFETY: the driver keeps a destroyed event until nothing waits for it.
        let destroyed = unsafe { result::event::destroy(event) };
        waits.and(destroyed).map_err(failed("cannot wait for the caller's stream"))
    }

    /// Waits until all work is done.
    pub(super) fn wait(&self) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("the device failed"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // If waiting fails, the context is lost, and all work with it.
        let _ = self.wait();
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: it was created in `new`.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
