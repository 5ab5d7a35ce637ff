//! A C interface to the tensors of an archive in GPU memory, in the terms of DLPack
//! (<https://dmlc.github.io/dlpack/latest/>). `torch_dlpack.py` loads this library.
//!
//! All tensors share one allocation, which each of them keeps alive.

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
    path::Path,
    ptr::null_mut,
    sync::Arc,
};

/// An archive in device memory.
pub struct Loaded {
    resident: Arc<Resident>,
    names: Vec<CString>,
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

fn load(path: &Path) -> Result<Loaded> {
    let archive = Archive::open(path)?;
    let resident = Gpu::open()?.load(&archive, &*codec::fastest()).about_path(path)?;
    let name = |t: &Tensor| {
        CString::new(t.name.as_str()).map_err(|_| Error::invalid("a name with a zero"))
    };
    let names = resident.tensors().iter().map(name).collect::<Result<_>>()?;
    Ok(Loaded { resident: Arc::new(resident), names })
}

/// Decode the archive at `path` into the memory of the first GPU. On failure, returns null and
/// writes the reason into the `len` bytes at `why`.
///
/// # Safety
/// `path` must be a string that ends in a zero, and `len` bytes must be writable at `why`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_load(
    path: *const c_char,
    why: *mut c_char,
    len: usize,
) -> *mut Loaded {
    // SAFETY: the caller vouches for it.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    match load(path) {
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

/// The name of a tensor, valid until `loaded` is freed.
///
/// # Safety
/// `loaded` must come from [`bsz_load`], and `i` must be below [`bsz_count`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_name(loaded: *const Loaded, i: usize) -> *const c_char {
    // SAFETY: the caller vouches for it.
    unsafe { &*loaded }.names[i].as_ptr()
}

/// A tensor, to be freed with its deleter. Null if DLPack has no type for its elements.
///
/// # Safety
/// `loaded` must come from [`bsz_load`], and `i` must be below [`bsz_count`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_tensor(loaded: *const Loaded, i: usize) -> *mut Managed {
    // SAFETY: the caller vouches for it.
    let loaded = unsafe { &*loaded };
    let tensor = &loaded.resident.tensors()[i];
    let Some(data_type) = data_type(tensor.dtype) else { return null_mut() };
    let shape = tensor.shape.iter().map(|&n| n as i64).collect();
    let mut owner = Box::new(Owner { shape, resident: Arc::clone(&loaded.resident) });
    Box::into_raw(Box::new(Managed {
        data: (loaded.resident.address() + tensor.start) as *mut c_void,
        device: Device { kind: CUDA, id: 0 },
        dimensions: owner.shape.len() as i32,
        data_type,
        shape: owner.shape.as_mut_ptr(),
        strides: null_mut(),
        offset: 0,
        owner: Box::into_raw(owner).cast(),
        deleter: Some(delete),
    }))
}

/// Free what [`bsz_load`] returned. Tensors keep the memory that they need.
///
/// # Safety
/// `loaded` must come from [`bsz_load`], and must not be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsz_free(loaded: *mut Loaded) {
    // SAFETY: the caller vouches for it.
    drop(unsafe { Box::from_raw(loaded) });
}

/// The deleter of a tensor.
unsafe extern "C" fn delete(tensor: *mut Managed) {
    // SAFETY: the caller of a deleter vouches for a tensor that is not used again; both boxes are
    // from `bsz_tensor`.
    unsafe {
        let tensor = Box::from_raw(tensor);
        drop(Box::from_raw(tensor.owner.cast::<Owner>()));
    }
}

/// The element type in terms of DLPack. Eight-bit types that DLPack added late are passed as bytes,
/// which a framework can view as the right type.
fn data_type(dtype: Dtype) -> Option<DataType> {
    const INT: u8 = 0;
    const UINT: u8 = 1;
    const FLOAT: u8 = 2;
    const BFLOAT: u8 = 4;
    const COMPLEX: u8 = 5;
    const BOOL: u8 = 6;
    let code = match dtype {
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => INT,
        Dtype::F16 | Dtype::F32 | Dtype::F64 => FLOAT,
        Dtype::BF16 => BFLOAT,
        Dtype::C64 => COMPLEX,
        Dtype::BOOL => BOOL,
        _ if dtype.bitsize().is_multiple_of(8) => UINT,
        _ => return None,
    };
    Some(DataType { code, bits: dtype.bitsize() as u8, lanes: 1 })
}
