//! Containers of weights other than safetensors: their headers, which are untrusted, and the
//! extents that follow from these.
//!
//! A wrong header costs compression but no data: what it does not describe consistently is packed
//! like anything unknown. Of a file, at most 128 MiB are read for its header, which take at most as
//! much memory; nothing in it is executed.
//!
//! | module | its job |
//! |---|---|
//! | `cursor` | reads forwards, within a budget |
//! | `gguf` | GGUF, with the blocks of its quantised types |
//! | `npy` | the header of a NumPy array |
//! | `zip` | the stored entries of a zip archive |
//! | `torch` | which tensors a PyTorch archive holds, by its pickle |
//! | `pickle` | reads a pickle, and executes nothing |
//! | `onnx` | the initializers of an ONNX model, inside it or beside it |

mod cursor;
mod gguf;
mod npy;
mod onnx;
mod pickle;
mod torch;
mod zip;

pub use cursor::ReadAt;

use super::extent::{Extent, cover, order};
use crate::error::Result;
use cursor::{Input, Stop};

/// The most tensors of a file whose extents are taken from its header.
const MAX_TENSORS: usize = 1 << 17;

/// What the header of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Container {
    /// The file is none of these containers.
    Unknown,
    /// It is a container with these extents, some of which are known. They cover the file.
    Known(&'static str, Vec<Extent>),
    /// It has the signature of a container, but an inconsistent header.
    Malformed(&'static str),
    /// It is shorter than its header says: it should have so many bytes.
    Incomplete(&'static str, u64),
}

/// A tensor that the header of a container describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// The type of its elements, as the container or its format spells it.
    pub dtype: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Where it is in the file.
    pub extent: Extent,
}

/// What a reader makes of a file: `None` if it is not of its format.
type Known = cursor::Result<Option<Vec<Named>>>;

/// Reads the header of one format.
type Reader = fn(&Input<'_>) -> Known;

/// Read the header of a file of `len` bytes.
///
/// # Errors
/// Those of `read`.
pub fn container(read: ReadAt<'_>, len: u64) -> Result<Container> {
    Ok(match find(read, len) {
        None => Container::Unknown,
        Some((name, Ok(tensors))) => {
            let extents = tensors.into_iter().map(|tensor| tensor.extent).collect();
            Container::Known(name, cover(extents, len))
        }
        Some((name, Err(Stop::Malformed))) => Container::Malformed(name),
        Some((name, Err(Stop::Cut(to)))) => Container::Incomplete(name, to),
        Some((_, Err(Stop::Io(e)))) => return Err(e),
    })
}

/// The name of the container that a file of `len` bytes is, and its tensors in the order of their
/// data; no two overlap and all end within the file. `None` if it is no container, or one whose
/// header is inconsistent.
///
/// # Errors
/// Those of `read`.
pub fn container_tensors(read: ReadAt<'_>, len: u64) -> Result<Option<(&'static str, Vec<Named>)>> {
    match find(read, len) {
        Some((name, Ok(mut tensors))) => {
            order(&mut tensors, len, |tensor| tensor.extent);
            Ok(Some((name, tensors)))
        }
        Some((_, Err(Stop::Io(e)))) => Err(e),
        None | Some((_, Err(Stop::Malformed | Stop::Cut(_)))) => Ok(None),
    }
}

/// What the first reader makes of a file whose format it is.
fn find(read: ReadAt<'_>, len: u64) -> Option<(&'static str, cursor::Result<Vec<Named>>)> {
    let readers: [(&str, Reader); 4] = [
        ("GGUF", gguf::tensors),
        ("NumPy", npy::tensors),
        ("zip", archive),
        ("ONNX", onnx::inside),
    ];
    readers
        .into_iter()
        .find_map(|(name, tensors)| Some((name, tensors(&Input::new(read, len)).transpose()?)))
}

/// The tensors in the stored entries of a zip archive: those of NumPy, or those of PyTorch.
fn archive(input: &Input<'_>) -> Known {
    let Some(entries) = zip::entries(input)? else { return Ok(None) };
    let mut known = npy::entries(input, &entries)?;
    known.extend(torch::entries(input, &entries)?);
    Ok(Some(known))
}

/// The extents of a file of `len` bytes called `name` that holds data of the ONNX model that
/// `model`, of `model_len` bytes, reads.
///
/// # Errors
/// Those of `model`.
pub fn onnx_data(
    model: ReadAt<'_>,
    model_len: u64,
    name: &str,
    len: u64,
) -> Result<Option<Vec<Extent>>> {
    match onnx::external(&Input::new(model, model_len), name) {
        Ok(known) if known.is_empty() => Ok(None),
        Ok(known) => Ok(Some(cover(known, len))),
        Err(Stop::Malformed | Stop::Cut(_)) => Ok(None),
        Err(Stop::Io(e)) => Err(e),
    }
}
