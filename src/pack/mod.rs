//! Files and directories to archives.
//!
//! An archive is written without a name, synced, handed to a [`Check`] that decodes it, and linked; an original that
//! is to be replaced is removed only after that, and only if nobody could write to it all the while. Interrupted at
//! any moment, either is whole.

mod encode;
mod file;
mod lease;
mod links;
mod names;
mod plan;
mod source;
mod tree;
mod writers;

use crate::{
    error::{Error, Result},
    format::DEFAULT_CHUNK,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

pub use file::{archive_names, file, unnamed};
pub use links::{Leads, leads};
pub use tree::tree;

/// How to pack.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decoded bytes of a chunk, a multiple of 64 KiB up to [`crate::format::MAX_CHUNK`].
    pub chunk_size: u32,
    /// Remove each original once its archive stands beside it.
    pub in_place: bool,
    /// Replace existing outputs.
    pub force: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { chunk_size: DEFAULT_CHUNK, in_place: false, force: false }
    }
}

/// Told how packing goes, from any thread.
pub trait Progress: Sync {
    /// A file is begun: `bytes` will be advanced over, each of its bytes twice where it is packed (once coded, once
    /// verified).
    fn begin(&self, path: &Path, bytes: u64);
    /// Some bytes are done.
    fn advance(&self, bytes: u64);
    /// A file is done.
    fn end(&self, outcome: &FileReport);
    /// Something the user should know of a file.
    fn warn(&self, _path: &Path, _what: &str) {}
    /// A file failed, and others go on.
    fn fail(&self, _e: &Error) {}
}

/// Verifies a finished archive that is open, by decoding all of it.
pub type Check<'a> = &'a (dyn Fn(&File, &dyn Progress) -> Result<()> + Sync);

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was packed.
    Packed,
    /// It was copied as it is.
    Copied,
    /// A link, made again.
    Linked,
    /// Its archive or copy was there from an earlier run.
    AlreadyDone,
    /// Nothing was done, for this reason.
    Skipped(String),
}

/// What became of one file, in figures.
#[derive(Clone, Debug)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// What was written.
    pub output: PathBuf,
    /// Its bytes.
    pub original: u64,
    /// Bytes of the output.
    pub stored: u64,
    /// What was done.
    pub action: Action,
}

/// What became of a directory.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every file and link, in the order of their paths.
    pub files: Vec<FileReport>,
    /// How many more failed; [`Progress::fail`] was told why.
    pub failed: usize,
}
