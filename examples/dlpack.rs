//! A C interface to the tensors of an archive in GPU memory, in the terms of DLPack
//! (<https://dmlc.github.io/dlpack/latest/>). `torch_dlpack.py` loads this library.
//!
//! All tensors share one allocation, which each of them keeps alive. No panic crosses this
//! interface: a function that would panic returns null, or 0.

#![allow(unsafe_code)]

use bszfs::{
    codec,
    error::{Context, Error, Result},
    format::Tensor,
    gpu::{Gpu, Resident},
    read::Archive,
};
use safetensors::Dtype;
use std::{
    ffi::{CStr, CString, OsStr, c_char, c_void},
    os::unix::ffi::OsStrExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    ptr::{null, null_mut},
    sync::Arc,
};

/// An archive in device memory.
pub struct Loaded {
    resident: Arc<Resident>,
    names: Vec<CString>,
    gpu: u32,
}

/// `DLDevice`.
#[repr(C)]
struct Device {
    kind: i32,
    id: i32,
}

/// `DLDataType`.
#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLManagedTensor`.
#[repr(C)]
pub struct Managed {
    data: *mut c_void,
    device: Device,
    dimensions: i32,
    data_type: DataType,
    shape: *mut i64,
    /// Null: the rows are contiguous.
    strides: *mut i64,
    offset: u64,
    owner: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// What a [`Managed`] owns.
struct Owner {
    shape: Vec<i64>,
    #[expect(dead_code, reason = "keeps the memory")]
    resident: Arc<Resident>,
}

/// `kDLCUDA`.
const CUDA: i32 = 2;

fn load(path: &Path, gpu: u32) -> Result<Loaded> {
    let archive = Archive::open(path)?;
    let gpu = Gpu::open(gpu)?;
    let resident = gpu.load(&archive, &*codec::fastest()).about_path(path)?;
    let name = |t: &Tensor| {
        CString::new(t.name.as_str()).map_err(|_| Error::invalid("a name with a zero"))
    };
    let names = resident.tensors().iter().map(name).collect::<Result<_>>()?;
    Ok(Loaded { resident: Arc::new(resident), names, gpu: gpu.ordinal() })
}

/// What `f` returns, or `otherwise` if it panics.
fn guarded<T>(otherwise: T, f: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(otherwise)
}

/// Decode the archive at `path` into the memory of the GPU with the number `gpu`. On failure,
/// returns null and writes the reason into the `len` bytes at `why`.
///
/// # Safety
/// `path` must be a string that ends in a zero, and `len` bytes must be writable at `why`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_load(
    path: *const c_char,
    gpu: u32,
    why: *mut c_char,
    len: usize,
) -> *mut Loaded {
    // SAFETY: the caller vouches for it.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let panicked = Err(Error::invalid("a panic, which is a bug"));
    match guarded(panicked, || load(path, gpu)) {
        Ok(loaded) => Box::into_raw(Box::new(loaded)),
        Err(e) => {
            let text = e.to_string();
            let n = text.len().min(len.saturating_sub(1));
            if len > 0 {
                // SAFETY: `n` bytes and a zero are at most `len`, for which the caller vouches.
                unsafe {
                    why.cast::<u8>().copy_from(text.as_ptr(), n);
                    why.add(n).write(0);
                }
            }
            null_mut()
        }
    }
}

/// The number of tensors.
///
/// # Safety
/// `loaded` must come from [`bsz_load`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_count(loaded: *const Loaded) -> usize {
    // SAFETY: the caller vouches for it.
    unsafe { &*loaded }.names.len()
}

/// The name of a tensor, valid until `loaded` is freed; null if there is none with this number.
///
/// # Safety
/// `loaded` must come from [`bsz_load`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_name(loaded: *const Loaded, i: usize) -> *const c_char {
    // SAFETY: the caller vouches for it.
    unsafe { &*loaded }.names.get(i).map_or(null(), |name| name.as_ptr())
}

/// A tensor, to be freed with its deleter, or as many bytes if `as_bytes` is not 0. Null if there
/// is none with this number, or DLPack has no type for its elements.
///
/// # Safety
/// `loaded` must come from [`bsz_load`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_tensor(loaded: *const Loaded, i: usize, as_bytes: u8) -> *mut Managed {
    // SAFETY: the caller vouches for it.
    let loaded = unsafe { &*loaded };
    guarded(null_mut(), || tensor(loaded, i, as_bytes != 0).unwrap_or(null_mut()))
}

fn tensor(loaded: &Loaded, i: usize, as_bytes: bool) -> Option<*mut Managed> {
    let tensor = loaded.resident.tensors().get(i)?;
    let (data_type, shape) = if as_bytes {
        (DataType { code: UINT, bits: 8, lanes: 1 }, vec![(tensor.end - tensor.start) as i64])
    } else {
        (data_type(tensor.dtype)?, tensor.shape.iter().map(|&n| n as i64).collect())
    };
    let mut owner = Box::new(Owner { shape, resident: Arc::clone(&loaded.resident) });
    Some(Box::into_raw(Box::new(Managed {
        data: (loaded.resident.address() + tensor.start) as *mut c_void,
        device: Device { kind: CUDA, id: loaded.gpu as i32 },
        dimensions: owner.shape.len() as i32,
        data_type,
        shape: owner.shape.as_mut_ptr(),
        strides: null_mut(),
        offset: 0,
        owner: Box::into_raw(owner).cast(),
        deleter: Some(delete),
    })))
}

/// Free what [`bsz_load`] returned. Tensors keep the memory that they need.
///
/// # Safety
/// `loaded` must come from [`bsz_load`], and must not be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_free(loaded: *mut Loaded) {
    // SAFETY: the caller vouches for it.
    guarded((), || drop(unsafe { Box::from_raw(loaded) }));
}

/// The deleter of a tensor.
unsafe extern "C" fn delete(tensor: *mut Managed) {
    // SAFETY: the caller of a deleter vouches for a tensor that is not used again; both boxes are
    // from `bsz_tensor`.
    guarded((), || unsafe {
        let tensor = Box::from_raw(tensor);
        drop(Box::from_raw(tensor.owner.cast::<Owner>()));
    });
}

/// `kDLUInt`.
const UINT: u8 = 1;

/// The element type in terms of DLPack 1.1. Elements of less than a byte have none: DLPack and
/// safetensors pack them differently.
fn data_type(dtype: Dtype) -> Option<DataType> {
    let code = match dtype {
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => 0,
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => UINT,
        Dtype::F16 | Dtype::F32 | Dtype::F64 => 2,
        Dtype::BF16 => 4,
        Dtype::C64 => 5,
        Dtype::BOOL => 6,
        Dtype::F8_E4M3 => 10,
        Dtype::F8_E4M3FNUZ => 11,
        Dtype::F8_E5M2 => 12,
        Dtype::F8_E5M2FNUZ => 13,
        Dtype::F8_E8M0 => 14,
        _ => return None,
    };
    Some(DataType { code, bits: dtype.bitsize() as u8, lanes: 1 })
}
