//! Files and directories to archives, and back again.
//!
//! An archive is written without a name, synced, handed to a [`Check`] that decodes it, and linked.
//! An original that is to be replaced is removed only after that, and only if nobody could write to
//! it in the meantime. Whenever the run is interrupted, the original or its archive is whole.
//!
//! This room knows no reader of archives: what verifies them is handed in as a [`Check`], what
//! unpacks them as an [`Opener`].

mod bases;
mod coder;
mod content;
mod differences;
mod encode;
mod estimate;
mod file;
mod lease;
mod links;
mod mirror;
mod names;
mod pairs;
mod pins;
mod plan;
mod prepare;
mod regions;
mod repack;
mod replace;
mod select;
mod send;
mod signature;
mod sort;
mod source;
mod tensors;
mod tree;
mod twins;
mod unpack;
mod unpack_tree;
mod windows;
mod writers;

use crate::{
    error::{Error, Result},
    format::{DEFAULT_CHUNK, Footer},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

pub use bases::{BaseFile, Bases, FindBases};
pub use estimate::{Estimate, estimate};
pub use file::{archive_names, file, unnamed};
pub use lease::release_lease;
pub use mirror::refuse_inside;
pub use prepare::{Preparation, PrepareOptions, Prepared, prepare};
pub use repack::repack;
pub use select::{Pattern, Selection};
pub use send::{Destination, Sender};
pub use signature::{START, may_be_model};
pub use tree::tree;
pub use twins::{MIN_TWIN, Twins, fingerprint, sampled_chunks};
pub use unpack::{original_name, unpack_archive, unpack_file, unpacked_at};
pub use unpack_tree::unpack_tree;

/// How to pack.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decoded bytes of a chunk: a multiple of 64 KiB, up to [`crate::format::MAX_CHUNK`].
    pub chunk_size: u32,
    /// Remove each original once its archive is on disk beside it.
    pub in_place: bool,
    /// Replace existing outputs.
    pub force: bool,
    /// Which files of a directory to pack.
    pub selection: Selection,
    /// What to store files as differences from.
    pub bases: Bases,
}

impl Default for Options {
    fn default() -> Self {
        let selection = Selection::default();
        let bases = Bases::default();
        Self { chunk_size: DEFAULT_CHUNK, in_place: false, force: false, selection, bases }
    }
}

/// How to unpack.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnpackOptions {
    /// Replace existing outputs.
    pub force: bool,
    /// Keep setuid, setgid and write permission for others on the files of other owners.
    pub trust: bool,
}

/// What is being done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// It is packed.
    Pack,
    /// It is copied as it is.
    Copy,
    /// It is an archive, and is unpacked.
    Unpack,
}

impl Task {
    /// How often [`Progress::advance`] counts each byte: packing codes it, then verifies it.
    pub fn passes(self) -> u64 {
        if self == Self::Pack { 2 } else { 1 }
    }
}

/// Told about progress, from any thread.
pub trait Progress: Sync {
    /// A file is begun; its original has `bytes` bytes.
    fn begin(&self, path: &Path, task: Task, bytes: u64);
    /// So many bytes more are done; see [`Task::passes`].
    fn advance(&self, bytes: u64);
    /// Whether to end with an error instead of packing the next chunk.
    fn is_cancelled(&self) -> bool {
        false
    }
    /// A file is done.
    fn end(&self, outcome: &FileReport);
    /// Something about a file that the user should know.
    fn warn(&self, _path: &Path, _what: &str) {}
    /// What is left as it is in a directory, for which reasons.
    fn left(&self, _dir: &Path, _what: &str) {}
    /// A file failed; others go on.
    fn fail(&self, _e: &Error) {}
}

/// Verifies a complete archive by decoding all of it.
pub type Check<'a> = &'a (dyn Fn(&File, &dyn Progress) -> Result<()> + Sync);

/// Opens an archive for unpacking.
pub type Opener<'a> = &'a (dyn Fn(File, &Path) -> Result<Box<dyn OpenArchive>> + Sync);

/// An open archive that can be unpacked.
pub trait OpenArchive {
    /// Its footer.
    fn footer(&self) -> &Footer;
    /// Its file, unless it is on another machine.
    fn file(&self) -> Option<&File>;
    /// Write the original to the empty file `out`, which messages name `path`, and check its
    /// SHA-256.
    ///
    /// # Errors
    /// Io and corruption; what `out` holds must not be used then.
    fn unpack(&self, out: &File, path: &Path, p: &dyn Progress) -> Result<()>;
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was packed.
    Packed,
    /// It was packed as differences from the originals of these archives.
    PackedFrom(Vec<PathBuf>),
    /// It was unpacked.
    Unpacked,
    /// It was copied as it is.
    Copied,
    /// A link was recreated.
    Linked,
    /// An earlier run had written the output.
    AlreadyDone,
    /// It was left as it is, for this reason.
    Skipped(String),
}

/// The outcome of one file.
#[derive(Clone, Debug)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// The output.
    pub output: PathBuf,
    /// Bytes of the original.
    pub original: u64,
    /// Bytes of the archive, or of the copy.
    pub stored: u64,
    /// What became of it.
    pub action: Action,
}

/// The outcome of a directory.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every file and link, in path order.
    pub files: Vec<FileReport>,
    /// The number of failures; [`Progress::fail`] was told the reasons.
    pub failed: usize,
}
