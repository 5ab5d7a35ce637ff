//! A device: its context, in which it is used, and its kernels.

#![allow(unsafe_code)]

use super::batch::{CHECK, CLASSES};
use crate::error::{Error, ErrorKind, Result};
use cudarc::driver::{
    result::{self, DriverError},
    sys,
};
use std::{
    ffi::{CStr, CString},
    marker::PhantomData,
    sync::Arc,
};

/// `kernel.cu`, compiled by NVRTC: `make ptx`.
const PTX: &str = include_str!("kernel.ptx");
/// The kernels by their numbers, which are those of `Launch`.
const KERNELS: [(u8, &CStr); 10] = [
    (0, c"bszfs_copy"),
    (1, c"bszfs_decode_1"),
    (2, c"bszfs_decode_2"),
    (4, c"bszfs_decode_4"),
    (8, c"bszfs_decode_8"),
    (1 + CLASSES, c"bszfs_decode_1_classes"),
    (2 + CLASSES, c"bszfs_decode_2_classes"),
    (4 + CLASSES, c"bszfs_decode_4_classes"),
    (8 + CLASSES, c"bszfs_decode_8_classes"),
    (CHECK, c"bszfs_check"),
];

/// An address in device memory.
pub(super) type DevicePtr = sys::CUdeviceptr;

/// Converts an error of the driver.
pub(super) fn failed(what: &'static str) -> impl Fn(DriverError) -> Error {
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
    ordinal: u32,
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
    /// Opens the device with this number, as the driver counts them.
    pub(super) fn open(ordinal: u32) -> Result<Arc<Self>> {
        // SAFETY: this only loads a library. Without the library, any other call would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::invalid("no NVIDIA driver is installed").about("CUDA"));
        }
        result::init().map_err(failed("cannot initialise the driver"))?;
        let count = result::device::get_count().map_err(failed("cannot count the devices"))?;
        if count == 0 {
            return Err(Error::invalid("the driver reports no device").about("CUDA"));
        }
        let known = i32::try_from(ordinal).ok().filter(|&number| number < count);
        let number = known.ok_or_else(|| {
            let last = count - 1;
            Error::invalid(format!("there is no GPU {ordinal}; the last one is {last}"))
                .about("CUDA")
        })?;
        let device = result::device::get(number).map_err(failed("cannot open the device"))?;
        let name = result::device::get_name(device).map_err(failed("cannot name the device"))?;
        // SAFETY: the driver returned the device.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(failed("cannot create a context"))?;
        let (module, kernels) = (std::ptr::null_mut(), Vec::new());
        let mut opened = Self { ordinal, device, context, module, kernels, name };
        opened.load()?;
        Ok(Arc::new(opened))
    }

    fn load(&mut self) -> Result<()> {
        let _entered = self.enter()?;
        let text = CString::new(PTX)
            .map_err(|_| Error::invalid("the kernels' PTX contains a zero byte").about("CUDA"))?;
        // SAFETY: the text ends in a zero byte, and the driver copies what it needs.
        self.module = unsafe { result::module::load_data(text.as_ptr().cast()) }
            .map_err(failed("cannot load the kernels"))?;
        for (number, name) in KERNELS {
            // SAFETY: the module was just loaded.
            let kernel = unsafe { result::module::get_function(self.module, name.into()) }
                .map_err(failed("a kernel is missing"))?;
            self.kernels.push((number, kernel));
        }
        Ok(())
    }

    /// The name for users.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The number with which it was opened.
    pub(super) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The kernel with this number.
    pub(super) fn kernel(&self, number: u8) -> Result<sys::CUfunction> {
        let known = self.kernels.iter().find(|(of, _)| *of == number);
        known
            .map(|(_, kernel)| *kernel)
            .ok_or_else(|| Error::invalid("no kernel for such elements").about("CUDA"))
    }

    /// Free bytes of device memory.
    pub(super) fn free_memory(&self) -> Result<usize> {
        let _entered = self.enter()?;
        Ok(result::mem_get_info().map_err(failed("cannot query the device's memory"))?.0)
    }

    /// Makes the context current in this thread until the result is dropped. What the thread used
    /// before, such as a context of its caller, is current again afterwards.
    pub(super) fn enter(&self) -> Result<Entered> {
        // SAFETY: the context lives as long as `self`.
        unsafe { sys::cuCtxPushCurrent_v2(self.context) }
            .result()
            .map_err(failed("cannot enter the context"))?;
        Ok(Entered(PhantomData))
    }
}

/// While it exists, the context of a [`Device`] is current in this thread.
#[must_use]
pub(super) struct Entered(PhantomData<*const ()>);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: this thread has pushed the context. The only error is that there is none.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut context) };
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(_entered) = self.enter()
            && !self.module.is_null()
        {
            // SAFETY: all users of the kernels hold an `Arc` of `self`, so there are none left.
            let _ = unsafe { result::module::unload(self.module) };
        }
        // SAFETY: it was retained once, in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
