//! The CUDA driver, as far as it is needed here: one device, its memory, and streams of work. What is got is released
//! when dropped, and every call's failure is an error.

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

/// What NVRTC makes of `kernel.cu`: `make ptx`.
const PTX: &str = include_str!("kernel.ptx");
/// The kernels, with the width of elements that each is for.
const KERNELS: [(u8, &CStr); 5] = [
    (0, c"bszfs_copy"),
    (1, c"bszfs_decode_1"),
    (2, c"bszfs_decode_2"),
    (4, c"bszfs_decode_4"),
    (8, c"bszfs_decode_8"),
];

/// A place in the device's memory.
pub(super) type Place = sys::CUdeviceptr;

/// A driver's error as one of ours.
fn failed(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| {
        let why = match e.error_string() {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => format!("error {}", e.0 as u32),
        };
        Error::new(ErrorKind::Io, format!("{what}: {why}")).about("CUDA")
    }
}

/// A device that is ready, with the kernels.
pub(super) struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    kernels: Vec<(u8, sys::CUfunction)>,
    name: String,
}

// SAFETY: the driver's handles may be used by any thread, and by several at once, once the context is current there,
// which every function here sees to.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// The first device.
    pub(super) fn open() -> Result<Arc<Self>> {
        // SAFETY: it loads a library and looks at nothing in it. Without the library any other call would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::invalid("there is no NVIDIA driver here").about("CUDA"));
        }
        result::init().map_err(failed("the driver does not start"))?;
        if result::device::get_count().map_err(failed("no devices"))? == 0 {
            return Err(Error::invalid("the driver has no device").about("CUDA"));
        }
        let device = result::device::get(0).map_err(failed("the first device"))?;
        let name = result::device::get_name(device).map_err(failed("the first device"))?;
        // SAFETY: the device is one that the driver named.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(failed("no context"))?;
        let mut opened =
            Self { device, context, module: std::ptr::null_mut(), kernels: Vec::new(), name };
        opened.load()?;
        Ok(Arc::new(opened))
    }

    fn load(&mut self) -> Result<()> {
        self.enter()?;
        let text = CString::new(PTX)
            .map_err(|_| Error::invalid("the kernels' PTX has a zero").about("CUDA"))?;
        // SAFETY: the text ends in a zero, and the driver copies what it needs.
        self.module = unsafe { result::module::load_data(text.as_ptr().cast()) }
            .map_err(failed("the kernels do not load"))?;
        for (width, name) in KERNELS {
            // SAFETY: the module was loaded just now.
            let kernel = unsafe { result::module::get_function(self.module, name.into()) }
                .map_err(failed("a kernel is missing"))?;
            self.kernels.push((width, kernel));
        }
        Ok(())
    }

    /// For people.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Free bytes of its memory.
    pub(super) fn free_memory(&self) -> Result<usize> {
        self.enter()?;
        Ok(result::mem_get_info().map_err(failed("the device's memory"))?.0)
    }

    /// Make the context that of the current thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("no context"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.enter().is_ok() && !self.module.is_null() {
            // SAFETY: whatever uses the module's kernels holds an `Arc` of `self`, so that nothing does.
            let _ = unsafe { result::module::unload(self.module) };
        }
        // SAFETY: retained once, in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory of the device.
pub(super) struct DeviceMemory {
    place: Place,
    len: usize,
    device: Arc<Device>,
}

impl DeviceMemory {
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        device.enter()?;
        // SAFETY: any size may be asked for; what is got is never read before it was written.
        let place =
            unsafe { result::malloc_sync(len.max(1)) }.map_err(failed("memory of the device"))?;
        Ok(Self { place, len, device: Arc::clone(device) })
    }

    /// Where it begins: at a multiple of 256 bytes.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Read from byte `at` on, when no work that writes there is under way.
    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        assert!(
            at.checked_add(out.len()).is_some_and(|end| end <= self.len),
            "behind the device's memory"
        );
        self.device.enter()?;
        // SAFETY: the range was checked, and the call returns when the bytes are there.
        unsafe { result::memcpy_dtoh_sync(out, self.place + at as Place) }
            .map_err(failed("a download"))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: allocated in `new`; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.place) };
        }
    }
}

/// Memory of the host that the device reads and writes at full speed. Not write-combined: we read it.
pub(super) struct PinnedMemory {
    at: *mut u8,
    len: usize,
    device: Arc<Device>,
}

// SAFETY: it is memory that only its owner uses.
unsafe impl Send for PinnedMemory {}
// SAFETY: through a shared reference it is only read.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        device.enter()?;
        // SAFETY: any size may be asked for.
        let at: *mut u8 =
            unsafe { result::malloc_host(len.max(1), 0) }.map_err(failed("pinned memory"))?.cast();
        // SAFETY: allocated just now; from here on it is initialised.
        unsafe { at.write_bytes(0, len) };
        Ok(Self { at, len, device: Arc::clone(device) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised in `new`, for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has a reference.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: allocated in `new`.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}

/// Work that the device does in order. Waits for all of it when dropped.
pub(super) struct Stream {
    stream: sys::CUstream,
    device: Arc<Device>,
}

// SAFETY: see `Device`.
unsafe impl Send for Stream {}

/// Where the kernels find things.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) records: Place,
    pub(super) stored: Place,
    pub(super) models: Place,
    pub(super) out: Place,
    pub(super) statuses: Place,
}

impl Stream {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self> {
        device.enter()?;
        let stream = result::stream::create(StreamKind::NonBlocking).map_err(failed("a stream"))?;
        Ok(Self { stream, device: Arc::clone(device) })
    }

    /// Upload `from`.
    ///
    /// # Safety
    /// As many bytes must be at `to`; both must stay, and `from` as it is, until the stream was waited for.
    pub(super) unsafe fn upload(&self, from: &[u8], to: Place) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(failed("an upload"))
    }

    /// Download to all of `to`.
    ///
    /// # Safety
    /// As many bytes must be at `from`; both must stay, and nothing look at `to`, until the stream was waited for.
    pub(super) unsafe fn download(&self, from: Place, to: &mut [u8]) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }.map_err(failed("a download"))
    }

    /// Fill with zeros.
    ///
    /// # Safety
    /// `len` bytes must be at `at`, and stay until the stream was waited for.
    pub(super) unsafe fn clear(&self, at: Place, len: usize) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the caller vouches for the place.
        unsafe { result::memset_d8_async(at, 0, len, self.stream) }
            .map_err(failed("clearing memory"))
    }

    /// Launch a kernel.
    ///
    /// # Safety
    /// The places must hold what the launch's batch has laid out, and stay until the stream was waited for.
    pub(super) unsafe fn launch(&self, launch: &Launch, places: Places) -> Result<()> {
        self.device.enter()?;
        let known = self.device.kernels.iter().find(|(width, _)| *width == launch.width);
        let (_, kernel) =
            known.ok_or_else(|| Error::invalid("no kernel for such elements").about("CUDA"))?;
        let mut arguments = [
            places.records + (launch.first * super::batch::RECORD) as Place,
            places.stored,
            places.models,
            places.out,
            places.statuses + (launch.first * size_of::<u32>()) as Place,
        ];
        let mut pointers = arguments.each_mut().map(|a| std::ptr::from_mut(a).cast::<c_void>());
        debug_assert_eq!(size_of_val(&arguments[0]), 8);
        let grid = (launch.blocks as u32, 1, 1);
        let shared = launch.shared_len as u32;
        // SAFETY: the kernel belongs to the device; it has five parameters of eight bytes, which the driver copies; the
        // caller vouches for what they point to.
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
        .map_err(failed("a launch"))
    }

    /// Wait until all is done.
    pub(super) fn wait(&self) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("the device"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Where waiting fails, the context is lost and all work with it.
        if self.wait().is_ok() || self.device.enter().is_ok() {
            // SAFETY: created in `new`.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
