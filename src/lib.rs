//! bszfs shows compressed model archives as the plain files they were made from.
//!
//! This library is what the program `bsz` is made of. To read a tensor from an archive:
//!
//! ```
//! use bszfs::codec;
//! use bszfs::read::{self, Archive};
//!
//! # fn main() -> bszfs::Result<()> {
//! let archive = Archive::open("tests/data/v1/bf16.bsz".as_ref())?;
//! let decoder = codec::fastest();
//! let header = read::header(&archive, &*decoder)?;
//! let tensor = &header.tensors[0];
//!
//! // Offsets are bytes of the original file. Each chunk is verified after decoding.
//! let mut bytes = vec![0; (tensor.end - tensor.start) as usize];
//! archive.read_at(tensor.start, &mut bytes, &*decoder)?;
//! println!("{}: {} {:?}, {} bytes", tensor.name, tensor.dtype, tensor.shape, bytes.len());
//! # assert!(bytes.iter().any(|&byte| byte != 0));
//! # Ok(())
//! # }
//! ```
//!
//! The rooms, lowest first; each one uses only those before it:
//!
//! | room | its job |
//! |---|---|
//! | [`escape`] | makes names safe to show, to people and in JSON |
//! | [`error`] | one error type: kind, context, path, source |
//! | [`log_once`] | log messages that are written once |
//! | [`program`] | runs this program again as a child process |
//! | [`input`] | opens regular files without blocking |
//! | [`output`] | files that appear complete or not at all |
//! | [`sha256`] | the hash of a file, verifiable in parallel |
//! | [`codec`] | one chunk: bytes to planes to an entropy-coded stream, and back |
//! | [`format`](mod@format) | the archive on disk: header, index, footer; the headers of models |
//! | [`pack`] | files and directories to archives |
//! | `remote` | objects in object storage, on web servers and hubs (feature `remote`) |
//! | [`read`] | an immutable archive: random access, verification, whole files back |
//! | [`cache`] | decoded chunks: each decoded once at a time, bounded in bytes |
//! | `gpu` | decodes chunks on an NVIDIA GPU (feature `cuda`) |
//! | [`readahead`] | decodes what programs will read next |
//! | `mount` | archives as a file system (feature `mount`) |
//! | `store` | a directory that compresses itself while it is used (feature `mount`) |
//! | [`cli`] | arguments, output and exit codes; the only room that prints |
//!
//! `pack` and `read` do not know each other. `docs/FORMAT.md` specifies the bytes of an archive,
//! and `docs/ARCHITECTURE.md` explains the design.

pub mod cache;
pub mod cli;
pub mod codec;
pub mod error;
pub mod escape;
pub mod format;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod input;
pub mod log_once;
#[cfg(feature = "mount")]
pub mod mount;
pub mod output;
pub mod pack;
pub mod program;
pub mod read;
pub mod readahead;
#[cfg(feature = "remote")]
pub mod remote;
pub mod sha256;
#[cfg(feature = "mount")]
pub mod store;

pub use error::{Error, ErrorKind, Result};
