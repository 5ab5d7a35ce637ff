//! What commands on archives share: their arguments, and how an archive is verified.

use crate::codec::{self, ChunkDecoder};
use crate::error::{Error, Result};
use crate::format::Footer;
use crate::pack::{OpenArchive, Progress};
use crate::read::{self, Archive};
use clap::Args;
use std::fs::File;
use std::path::Path;

/// The arguments that commands on archives share.
#[derive(Args)]
pub(super) struct Common {
    /// Use N threads [default: all cores]
    #[arg(
        short = 'j',
        long = "jobs",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=4096)
    )]
    jobs: Option<u16>,
    /// Print the outcome as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Common {
    /// Build the global thread pool. This can be done once per process.
    pub(super) fn start_threads(&self) -> Result<()> {
        let threads = self.jobs.map_or(0, usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("bsz-{i}"));
        pool.build_global().map_err(|e| Error::invalid(e.to_string()).about("threads"))
    }
}

/// Verifies an archive with a decoder; the function is told of decoded bytes.
pub(super) type Verify = fn(&Archive, &dyn ChunkDecoder, &(dyn Fn(u64) + Sync)) -> Result<()>;

/// Quick verification checks the checksum of every chunk, but not the SHA-256 of the original.
pub(super) fn verify_with(quick: bool) -> Verify {
    if quick { read::verify_chunks } else { read::verify }
}

/// The [`Check`](crate::pack::Check) of a packer. Quick verification suffices while the original is
/// kept: the checksums were computed from its own bytes.
pub(super) fn check(file: &File, quick: bool, p: &dyn Progress) -> Result<()> {
    let archive = Archive::from_file(file.try_clone()?)?;
    verify_with(quick)(&archive, &*codec::verifying(), &|bytes| p.advance(bytes))
}

/// An archive as the packer unpacks it.
pub(super) struct Opened(pub(super) Archive);

impl OpenArchive for Opened {
    fn footer(&self) -> &Footer {
        self.0.footer()
    }

    fn file(&self) -> Option<&File> {
        self.0.file()
    }

    fn unpack(&self, out: &File, path: &Path, p: &dyn Progress) -> Result<()> {
        read::unpack(&self.0, out, path, &*codec::fastest(), &|bytes| p.advance(bytes))
    }
}
