//! The part of the CUDA driver that is needed here: one device, its memory, and streams of work.
//! Resources are released when dropped, and every failed call is an error.

#![allow(unsafe_code)]

use super::batch::{Launch, THREADS};
use crate::error::{Error, ErrorKind, Result};
use cudarc::driver::{
    result::{self, DriverError, stream::StreamKind},
    sys,
};
use std::{
    ffi::{CStr, CString, c_void},
    mem::size_of_val,
    sync::Arc,
};

/// `kernel.cu`, compiled by NVRTC: `make ptx`.
const PTX: &str = include_str!("kernel.ptx");
/// The kernels by the width of their elements, in bytes; 0 stands for raw chunks.
const KERNELS: [(u8, &CStr); 5] = [
    (0, c"bszfs_copy"),
    (1, c"bszfs_decode_1"),
    (2, c"bszfs_decode_2"),
    (4, c"bszfs_decode_4"),
    (8, c"bszfs_decode_8"),
];

/// An address in device memory.
pub(super) type DevicePtr = sys::CUdeviceptr;

/// Converts an error of the driver.
fn failed(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| {
        let why = match e.error_string() {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => format!("error {}", e.0 as u32),
        };
        Error::new(ErrorKind::Io, format!("{what}: {why}")).about("CUDA")
    }
}

/// A device with the kernels loaded.
pub(super) struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    kernels: Vec<(u8, sys::CUfunction)>,
    name: String,
}

// SAFETY: any thread may use the driver's handles, even several at once, if the context is current
// in it. Every function here makes it current.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the first device.
    pub(super) fn open() -> Result<Arc<Self>> {
        // SAFETY: this only loads a library. Without the library, any other call would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::invalid("no NVIDIA driver is installed").about("CUDA"));
        }
        result::init().map_err(failed("cannot initialise the driver"))?;
        if result::device::get_count().map_err(failed("cannot count the devices"))? == 0 {
            return Err(Error::invalid("the driver reports no device").about("CUDA"));
        }
        let device = result::device::get(0).map_err(failed("cannot open the first device"))?;
        let name =
            result::device::get_name(device).map_err(failed("cannot name the first device"))?;
        // SAFETY: the driver returned the device.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(failed("cannot create a context"))?;
        let mut opened =
            Self { device, context, module: std::ptr::null_mut(), kernels: Vec::new(), name };
        opened.load()?;
        Ok(Arc::new(opened))
    }

    fn load(&mut self) -> Result<()> {
        self.enter()?;
        let text = CString::new(PTX)
            .map_err(|_| Error::invalid("the kernels' PTX contains a zero byte").about("CUDA"))?;
        // SAFETY: the text ends in a zero byte, and the driver copies what it needs.
        self.module = unsafe { result::module::load_data(text.as_ptr().cast()) }
            .map_err(failed("cannot load the kernels"))?;
        for (width, name) in KERNELS {
            // SAFETY: the module was just loaded.
            let kernel = unsafe { result::module::get_function(self.module, name.into()) }
                .map_err(failed("a kernel is missing"))?;
            self.kernels.push((width, kernel));
        }
        Ok(())
    }

    /// The name for users.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Free bytes of device memory.
    pub(super) fn free_memory(&self) -> Result<usize> {
        self.enter()?;
        Ok(result::mem_get_info().map_err(failed("cannot query the device's memory"))?.0)
    }

    /// Makes the context current in this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(failed("cannot enter the context"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.enter().is_ok() && !self.module.is_null() {
            // SAFETY: all users of the kernels hold an `Arc` of `self`, so there are none left.
            let _ = unsafe { result::module::unload(self.module) };
        }
        // SAFETY: it was retained once, in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Device memory.
pub(super) struct DeviceMemory {
    ptr: DevicePtr,
    len: usize,
    device: Arc<Device>,
}

impl DeviceMemory {
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        device.enter()?;
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
        self.device.enter()?;
        // SAFETY: the range was checked, and the call returns once the bytes have arrived.
        unsafe { result::memcpy_dtoh_sync(out, self.ptr + at as DevicePtr) }
            .map_err(failed("cannot download"))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
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
        device.enter()?;
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
        if self.device.enter().is_ok() {
            // SAFETY: it was allocated in `new`.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}

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
        device.enter()?;
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
        self.device.enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(failed("cannot upload"))
    }

    /// Downloads to all of `to`.
    ///
    /// # Safety
    /// There must be as many bytes at `from`. Until the stream is waited for, both must stay
    /// allocated and nothing may access `to`.
    pub(super) unsafe fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.device.enter()?;
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
        self.device.enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { result::memcpy_dtod_async(to, from, len, self.stream) }
            .map_err(failed("cannot copy on the device"))
    }

    /// Fills with zeros.
    ///
    /// # Safety
    /// There must be `len` bytes at `at`, which must stay allocated until the stream is waited for.
    pub(super) unsafe fn clear(&self, at: DevicePtr, len: usize) -> Result<()> {
        self.device.enter()?;
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
        self.device.enter()?;
        let known = self.device.kernels.iter().find(|(width, _)| *width == launch.width);
        let (_, kernel) =
            known.ok_or_else(|| Error::invalid("no kernel for such elements").about("CUDA"))?;
        let mut arguments = [
            buffers.records + (launch.first * super::batch::RECORD) as DevicePtr,
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
            result::launch_kernel(
                *kernel,
                grid,
                (THREADS, 1, 1),
                shared,
                self.stream,
                &mut pointers,
            )
        }
        .map_err(failed("cannot launch a kernel"))
    }

    /// Waits until all work is done.
    pub(super) fn wait(&self) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("the device failed"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // If waiting fails, the context is lost, and all work with it.
        if self.wait().is_ok() || self.device.enter().is_ok() {
            // SAFETY: it was created in `new`.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
