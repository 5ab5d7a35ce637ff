//! What a file holds: a model, an archive, or neither.

use crate::{
    error::{Context, Result},
    format::{Extent, HEADER_LEN, Header, MAX_HEADER, Naming, claimed_len, header, header_len},
};
use std::{ffi::OsStr, fs::File, os::unix::fs::FileExt, path::Path};

/// The bytes of an open file.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) file: &'a File,
    /// The path that messages name it by.
    pub(super) path: &'a Path,
    /// Its length in bytes.
    pub(super) len: u64,
}

/// What a file is, as far as packing is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A complete safetensors file.
    Model,
    /// An archive.
    Archive,
    /// Not to be packed despite its name, for this reason.
    Unfit(String),
    /// Anything else.
    Other,
}

impl Content<'_> {
    /// Whether the file starts like an archive.
    pub(super) fn is_archive(&self) -> bool {
        let mut start = [0; HEADER_LEN as usize];
        self.file.read_exact_at(&mut start, 0).is_ok() && start[..8] == header()[..8]
    }

    /// What a file called `name` is that holds this.
    pub(super) fn kind(&self, name: &OsStr) -> Result<Kind> {
        if self.is_archive() {
            return Ok(Kind::Archive);
        }
        let header = self.header()?;
        if header.as_ref().is_some_and(|h| !h.tensors.is_empty() && h.covers(self.len)) {
            return Ok(Kind::Model);
        }
        if Naming::of(name) != Naming::Safetensors {
            return Ok(Kind::Other);
        }
        if let Some(why) = self.incomplete()? {
            return Ok(Kind::Unfit(why));
        }
        if header.is_some() {
            return Ok(Kind::Model);
        }
        let mut start = [0; 64];
        let n = self.file.read_at(&mut start, 0).about_path(self.path)?;
        let start = start[..n].trim_ascii_start();
        let why = match start {
            [] => "is empty",
            _ if start.starts_with(b"version https://git-lfs") => {
                "is a Git LFS pointer, not the model"
            }
            [b'<', ..] => "is an HTML or XML page, not a model",
            _ => "has no safetensors header",
        };
        Ok(Kind::Unfit(why.to_owned()))
    }

    /// A message that the file is shorter than its header says, if it is.
    pub(super) fn incomplete(&self) -> Result<Option<String>> {
        let mut prefix = [0; 9];
        if self.len < 9 {
            return Ok(None);
        }
        self.read_at(0, &mut prefix)?;
        let [first @ .., brace] = prefix;
        let n = u64::from_le_bytes(first);
        let header_cut = brace == b'{' && (2..=MAX_HEADER).contains(&n) && n + 8 > self.len;
        let claimed = match self.header_json()? {
            Some(json) => claimed_len(&json),
            None => header_cut.then(|| n + 8),
        };
        let claimed = claimed.filter(|&claimed| claimed > self.len);
        let have = self.len;
        Ok(claimed.map(|of| {
            format!("is incomplete: it has {have} of the {of} bytes that its header declares")
        }))
    }

    /// Read `len` bytes at `start`; `out` is resized to hold them.
    pub(super) fn read(&self, start: u64, out: &mut Vec<u8>, len: usize) -> Result<()> {
        out.resize(len, 0);
        self.read_at(start, out)
    }

    fn read_at(&self, start: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, start).about_path(self.path)
    }

    fn header_json(&self) -> Result<Option<Vec<u8>>> {
        let mut prefix = [0; 8];
        if self.len < 8 {
            return Ok(None);
        }
        self.read_at(0, &mut prefix)?;
        let Some(n) = header_len(prefix, self.len) else { return Ok(None) };
        debug_assert!(n <= MAX_HEADER);
        // Checked first: in other files, the first bytes can amount to any length.
        let mut brace = [0];
        self.read_at(8, &mut brace)?;
        if !matches!(brace, [b'{'] | [b' '] | [b'\t'] | [b'\n'] | [b'\r']) {
            return Ok(None);
        }
        let mut json = vec![0; n as usize];
        self.read_at(8, &mut json)?;
        Ok(Some(json))
    }

    /// The safetensors header, if there is a valid one.
    pub(super) fn header(&self) -> Result<Option<Header>> {
        Ok(self.header_json()?.and_then(|json| Header::parse(&json, self.len)))
    }

    /// The extents of the file: those of its header, or one for everything.
    pub(super) fn extents(&self) -> Result<Vec<Extent>> {
        Ok(self.header()?.unwrap_or_default().extents(self.len))
    }
}
