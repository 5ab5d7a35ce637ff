//! bszfs shows compressed model archives as the plain files they were made from.
//!
//! The layers, lowest first; each uses only those before it:
//!
//! | layer | its job |
//! |---|---|
//! | [`escape`] | names made fit to be shown, to people and in JSON |
//! | [`error`] | what went wrong, with what |
//! | [`input`] | a regular file, opened for reading without waiting |
//! | [`output`] | a file that appears whole or not at all |
//! | [`sha256`] | the hash of a file, checkable in parallel |
//! | [`codec`] | one chunk: bytes to symbols to bytes, and nothing about files |
//! | [`format`] | the archive on disk: header, index, footer; the safetensors header |
//! | [`pack`] | files and directories to archives |
//! | [`read`] | archives to bytes: random access, cache, verification |
//! | `gpu` | chunks decoded by a GPU, where there is one; feature `cuda` |
//! | [`mount`] | archives as a file system |
//! | [`cli`] | arguments, output, exit codes; the only layer that prints |
//!
//! `pack` and `read` do not know each other. `docs/FORMAT.md` specifies the bytes,
//! `docs/ARCHITECTURE.md` the design.

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
pub mod mount;
pub mod output;
pub mod pack;
pub mod program;
pub mod read;
pub mod readahead;
pub mod sha256;

pub use error::{Error, ErrorKind, Result};
