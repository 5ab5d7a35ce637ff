//! The file being packed: read by position, watched for changes, and classified by content.

use super::lease::{Lease, same_state};
use crate::{
    error::{Context, Error, Result},
    format::{Extent, HEADER_LEN, Header, MAX_HEADER, Naming, claimed_len, header, header_len},
    input,
    output::{Attributes, Dir, FileId, file_id, mtime},
};
use rustix::fs::{Stat, fstat};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// An open regular file, and its attributes when it was opened.
pub(super) struct Source {
    file: File,
    dir: Arc<Dir>,
    name: OsString,
    /// The path that messages name it by.
    path: PathBuf,
    stat: Stat,
    lease: Option<Lease>,
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

/// What has happened to a file since it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Since {
    Same,
    /// It no longer has its name.
    Gone,
    Changed,
}

impl Source {
    /// Open the file `name` of `dir`; a link is refused.
    pub(super) fn open(dir: &Arc<Dir>, name: &OsStr) -> Result<Self> {
        let (file, path) = (dir.open_file(name)?, dir.path(name));
        let stat = fstat(&file).about_path(&path)?;
        Ok(Self { file, dir: Arc::clone(dir), name: name.to_owned(), path, stat, lease: None })
    }

    /// Open the file at `path`; links are followed.
    pub(super) fn follow(path: &Path) -> Result<Self> {
        let file = input::open(path)?;
        let (dir, name) =
            fs::canonicalize(path).about_path(path).and_then(|real| Dir::of(&real))?;
        let stat = fstat(&file).about_path(path)?;
        if !dir.has(&name, file_id(&stat))? {
            return Err(Error::invalid("was removed meanwhile").about_path(path));
        }
        Ok(Self { file, dir, name, path: path.to_owned(), stat, lease: None })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The path that messages name it by.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    pub(super) fn id(&self) -> FileId {
        file_id(&self.stat)
    }

    pub(super) fn attributes(&self) -> Result<Attributes> {
        Attributes::of(&self.file).about_path(&self.path)
    }

    pub(super) fn len(&self) -> u64 {
        self.stat.st_size as u64
    }

    /// Make sure that until this is dropped, nobody can write to the file, or that
    /// [`Source::since`] detects it.
    ///
    /// # Errors
    /// Invalid argument if somebody may be writing to it.
    pub(super) fn keep_writers_out(&mut self) -> Result<()> {
        self.lease = Some(Lease::take(&self.file, &self.path)?);
        self.stat = fstat(&self.file).about_path(&self.path)?;
        Ok(())
    }

    /// Whether the file starts like an archive.
    pub(super) fn is_archive(&self) -> bool {
        let mut start = [0; HEADER_LEN as usize];
        self.file.read_exact_at(&mut start, 0).is_ok() && start[..8] == header()[..8]
    }

    /// What the file is, by its content and its name.
    pub(super) fn kind(&self) -> Result<Kind> {
        if self.is_archive() {
            return Ok(Kind::Archive);
        }
        let header = self.header()?;
        if header.as_ref().is_some_and(|h| !h.tensors.is_empty() && h.covers(self.len())) {
            return Ok(Kind::Model);
        }
        if Naming::of(&self.name) != Naming::Safetensors {
            return Ok(Kind::Other);
        }
        if let Some(why) = self.incomplete()? {
            return Ok(Kind::Unfit(why));
        }
        if header.is_some() {
            return Ok(Kind::Model);
        }
        let mut start = [0; 64];
        let n = self.file.read_at(&mut start, 0).about_path(&self.path)?;
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
        if self.len() < 9 {
            return Ok(None);
        }
        self.read_at(0, &mut prefix)?;
        let [first @ .., brace] = prefix;
        let n = u64::from_le_bytes(first);
        let header_cut = brace == b'{' && (2..=MAX_HEADER).contains(&n) && n + 8 > self.len();
        let claimed = match self.header_json()? {
            Some(json) => claimed_len(&json),
            None => header_cut.then(|| n + 8),
        };
        let claimed = claimed.filter(|&claimed| claimed > self.len());
        let have = self.len();
        Ok(claimed.map(|of| {
            format!("is incomplete: it has {have} of the {of} bytes that its header declares")
        }))
    }

    /// Read `len` bytes at `start`; `out` is resized to hold them.
    pub(super) fn read(&self, start: u64, out: &mut Vec<u8>, len: usize) -> Result<()> {
        if let Some(lease) = &self.lease {
            lease.check_quickly()?;
        }
        out.resize(len, 0);
        self.read_at(start, out)
    }

    fn read_at(&self, start: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, start).about_path(&self.path)
    }

    fn header_json(&self) -> Result<Option<Vec<u8>>> {
        let mut prefix = [0; 8];
        if self.len() < 8 {
            return Ok(None);
        }
        self.read_at(0, &mut prefix)?;
        let Some(n) = header_len(prefix, self.len()) else { return Ok(None) };
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
        Ok(self.header_json()?.and_then(|json| Header::parse(&json, self.len())))
    }

    /// The extents of the file: those of its header, or one for everything.
    pub(super) fn extents(&self) -> Result<Vec<Extent>> {
        Ok(self.header()?.unwrap_or_default().extents(self.len()))
    }

    /// What has happened to the file and its name.
    pub(super) fn since(&self) -> Result<Since> {
        let Some(named) = self.dir.stat(&self.name)? else { return Ok(Since::Gone) };
        let now = fstat(&self.file).about_path(&self.path)?;
        let same = same_state(&now, &self.stat) && same_state(&named, &self.stat);
        Ok(match same {
            true => Since::Same,
            // Losing its name between the two looks changes a file, too.
            false if self.dir.stat(&self.name)?.is_none() => Since::Gone,
            false => Since::Changed,
        })
    }

    /// Check that the file is unchanged; returns whether it still has its name.
    ///
    /// # Errors
    /// Invalid argument if it has changed, or if somebody can write to it.
    pub(super) fn unchanged(&self) -> Result<bool> {
        // First: a writer that is gone by now is detected below.
        self.lease.as_ref().map_or(Ok(()), Lease::check)?;
        match self.since()? {
            Since::Gone => return Ok(false),
            Since::Same => {}
            Since::Changed => {
                let why = "changed while it was being packed; nothing was replaced";
                return Err(Error::invalid(why).about_path(&self.path));
            }
        }
        Ok(true)
    }

    /// The same as [`Source::unchanged`] for a file that is being renamed or unlinked, which
    /// changes its ctime.
    ///
    /// # Errors
    /// Invalid argument if its bytes have changed, or if somebody can write to it.
    pub(super) fn keeps_its_bytes(&self) -> Result<()> {
        self.lease.as_ref().map_or(Ok(()), Lease::check)?;
        let now = fstat(&self.file).about_path(&self.path)?;
        if (now.st_size, mtime(&now)) != (self.stat.st_size, mtime(&self.stat)) {
            let why = "changed while it was being packed";
            return Err(Error::invalid(why).about_path(&self.path));
        }
        Ok(())
    }
}
