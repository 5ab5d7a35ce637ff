//! The files that others are packed against.

use crate::{
    error::{Error, Result},
    format::Base,
};
use std::{fmt, fs::File, path::Path, sync::Arc};

/// An open archive from whose original others may differ.
pub trait BaseFile: Send + Sync {
    /// How an archive that needs it names it.
    fn base(&self) -> &Base;

    /// The archive.
    fn file(&self) -> &File;

    /// The path that messages name it by.
    fn path(&self) -> &Path;

    /// Read bytes of the original at `at`.
    ///
    /// # Errors
    /// Io, corruption.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()>;
}

/// Finds archives that the file at a path, of so many bytes, may differ little from.
pub type FindBases = dyn Fn(&Path, u64) -> Result<Vec<Arc<dyn BaseFile>>> + Send + Sync;

/// What to pack files against: by default, nothing.
#[derive(Clone, Default)]
pub struct Bases {
    /// These archives, which stand alone.
    pub given: Vec<Arc<dyn BaseFile>>,
    /// Those that this finds for each file.
    pub find: Option<Arc<FindBases>>,
    /// Whether to make an archive even if its bases cannot be pinned.
    pub unpinned: bool,
}

impl fmt::Debug for Bases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.given.iter().map(|base| base.path())).finish()
    }
}

impl Bases {
    /// Whether files are to stand alone.
    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty() && self.find.is_none()
    }

    /// Those for the file at `path`, of `len` bytes.
    ///
    /// # Errors
    /// Those of [`Bases::find`].
    pub(super) fn of(&self, path: &Path, len: u64) -> Result<Vec<Arc<dyn BaseFile>>> {
        let mut bases = self.given.clone();
        if let Some(find) = &self.find {
            bases.extend(find(path, len)?);
        }
        Ok(bases)
    }
}

/// Read bytes of a base, and say which base it is if that fails.
pub(super) fn read(base: &dyn BaseFile, at: u64, out: &mut [u8]) -> Result<()> {
    let end = at.checked_add(out.len() as u64).filter(|&end| end <= base.base().len);
    end.ok_or_else(|| Error::invalid("a tensor ends beyond the end of its base"))?;
    base.read(at, out)
}
