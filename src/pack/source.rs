//! The file being packed: read by position, and watched for change.

use crate::{
    error::{Context, Error, Result},
    format::{Extent, HEADER_LEN, Header, MAX_HEADER, header, header_len},
};
use std::{
    fs::{File, Metadata, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A regular file, open, with what it looked like at the start.
pub(super) struct Source {
    file: File,
    path: PathBuf,
    meta: Metadata,
}

impl Source {
    /// Open `path`; a symbolic link is followed only if `follow`.
    pub(super) fn open(path: &Path, follow: bool) -> Result<Self> {
        // Not blocking: a named pipe would wait for a writer.
        let flags = libc::O_NONBLOCK | if follow { 0 } else { libc::O_NOFOLLOW };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).about_path(path)?;
        let meta = file.metadata().about_path(path)?;
        if !meta.is_file() {
            return Err(Error::invalid("not a regular file").about(path.display()));
        }
        Ok(Self { file, path: path.to_owned(), meta })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn meta(&self) -> &Metadata {
        &self.meta
    }

    pub(super) fn len(&self) -> u64 {
        self.meta.len()
    }

    /// Whether the file starts as an archive does.
    pub(super) fn is_archive(&self) -> bool {
        let mut start = [0; HEADER_LEN as usize];
        self.file.read_exact_at(&mut start, 0).is_ok() && start[..8] == header()[..8]
    }

    /// `len` bytes from `start` on, into all of `out`.
    pub(super) fn read(&self, start: u64, out: &mut Vec<u8>, len: usize) -> Result<()> {
        out.resize(len, 0);
        self.file.read_exact_at(out, start).about_path(&self.path)
    }

    /// The safetensors header, if there is one that can be read.
    pub(super) fn header(&self) -> Result<Option<Header>> {
        let mut prefix = [0; 8];
        if self.len() < 8 {
            return Ok(None);
        }
        self.file.read_exact_at(&mut prefix, 0).about_path(&self.path)?;
        let Some(n) = header_len(prefix, self.len()) else { return Ok(None) };
        debug_assert!(n <= MAX_HEADER);
        let mut json = Vec::new();
        self.read(8, &mut json, n as usize)?;
        Ok(Header::parse(&json, self.len()))
    }

    /// The extents of the file: those of its header, or a single one.
    pub(super) fn extents(&self) -> Result<Vec<Extent>> {
        Ok(self.header()?.unwrap_or_default().extents(self.len()))
    }

    /// Fail if the file is no longer what it was when it was opened, or is no longer at its path.
    pub(super) fn unchanged(&self) -> Result<()> {
        let same = |now: &Metadata| {
            let (a, b) = (now, &self.meta);
            (a.dev(), a.ino(), a.len()) == (b.dev(), b.ino(), b.len())
                && (a.mtime(), a.mtime_nsec()) == (b.mtime(), b.mtime_nsec())
        };
        let at_path = self.path.metadata().about_path(&self.path)?;
        if same(&self.file.metadata().about_path(&self.path)?) && same(&at_path) {
            return Ok(());
        }
        Err(Error::invalid("the file changed while it was being packed; nothing was replaced")
            .about(self.path.display()))
    }
}
