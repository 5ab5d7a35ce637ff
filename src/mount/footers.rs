//! The footers of archives: read once for each state of a file.

use super::attr::{Identity, Packed};
use crate::error::{Context, ErrorKind, Result as Outcome};
use crate::format::Footer;
use crate::read;
#[cfg(feature = "remote")]
use crate::remote::Object;
use lru::LruCache;
use rustix::fs::{Stat, fgetxattr, fstat};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
#[cfg(feature = "remote")]
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most footers to cache. Each takes about 150 bytes.
const MAX_FOOTERS: NonZeroUsize = NonZeroUsize::new(1 << 15).expect("not zero");

/// The attribute of a `.bsz` file that was made through a store: it is shown under its own name.
pub(crate) const PLAIN_MARK: &str = "user.bsz.plain";

/// How often to try to read the footer of a file that changes meanwhile.
const PEEK_ATTEMPTS: usize = 3;

/// The footers of `.bsz` files by device and inode, with the state of the file. `None` if it is not
/// a valid archive.
type Known = LruCache<(u64, u64), (Identity, Option<Packed>)>;

/// A cache of footers.
pub(crate) struct Footers(Mutex<Known>);

impl Footers {
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::new(MAX_FOOTERS)))
    }

    /// Forget all of them.
    #[cfg(feature = "remote")]
    pub fn clear(&self) {
        self.known().clear();
    }

    /// What the file `stat` shows if it is an archive, from the cache if the file has not changed.
    /// `open` opens it, and `path` names it in messages. The state in `stat` is updated.
    ///
    /// # Errors
    /// The footer cannot be read at the moment. No name is better than a wrong one.
    pub fn of(
        &self,
        stat: &mut Stat,
        open: impl Fn() -> Result<(File, Stat)>,
        path: &Path,
    ) -> Result<Option<Packed>> {
        if let Some(packed) = self.cached(&Identity::of(stat)) {
            return Ok(packed);
        }
        let mut last = None;
        for _ in 0..PEEK_ATTEMPTS {
            let (file, before) = match open() {
                Ok(opened) => opened,
                // A file that may not be read is shown as it is, until the next lookup.
                Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
                // It is no longer a regular file.
                Err(Errno::STALE) => return Err(Errno::NOENT),
                Err(e) => return Err(e),
            };
            let is_marked = find_mark(&file, PLAIN_MARK)? == Some(true);
            let packed = if is_marked { None } else { read_footer(&file, path)? };
            *stat = fstat(&file)?;
            let identity = Identity::of(stat);
            // The footer belongs to this state only if the file had it before and after the read.
            if Identity::of(&before) != identity {
                // Attributes alone may change, again and again.
                if last.as_ref() == Some(&packed) {
                    return Ok(packed);
                }
                last = Some(packed);
                continue;
            }
            if identity.is_settled() {
                self.known().put((identity.dev, identity.ino), (identity, packed.clone()));
            }
            return Ok(packed);
        }
        // Archives appear complete, so a file that is being written is not one yet.
        Ok(None)
    }

    /// What an object shows, as [`Footers::of`]. Waits for the network. An object does not change.
    #[cfg(feature = "remote")]
    pub fn remote(
        &self,
        stat: &mut Stat,
        open: impl Fn() -> Result<(Arc<Object>, Stat)>,
        path: &Path,
    ) -> Result<Option<Packed>> {
        let identity = Identity::of(stat);
        if let Some(packed) = self.cached(&identity) {
            return Ok(packed);
        }
        let (object, _) = open()?;
        let mut footer = read::peek_object(&object);
        if footer.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corruption) {
            // A cache or a network may have damaged it.
            object.forget(&(0..object.size()));
            footer = read::peek_object(&object);
        }
        let is_known = footer.is_ok();
        let packed = footer_of(footer, path)?;
        if is_known {
            self.known().put((identity.dev, identity.ino), (identity, packed.clone()));
        }
        Ok(packed)
    }

    fn cached(&self, identity: &Identity) -> Option<Option<Packed>> {
        let key = (identity.dev, identity.ino);
        self.known().get(&key).filter(|(of, _)| of == identity).map(|(_, packed)| packed.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a file that is open for reading has a mark; `None` if files have no such attributes.
pub(crate) fn find_mark(file: impl AsFd, mark: &str) -> Result<Option<bool>> {
    match fgetxattr(file, mark, &mut [0u8; 1]) {
        Ok(_) | Err(Errno::RANGE) => Ok(Some(true)),
        Err(Errno::NODATA) => Ok(Some(false)),
        Err(Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Read the footer. `None` if the file is not a valid archive.
fn read_footer(file: &File, path: &Path) -> Result<Option<Packed>> {
    footer_of(read::peek(file), path)
}

fn footer_of(read: Outcome<Option<Footer>>, path: &Path) -> Result<Option<Packed>> {
    match read.about_path(path) {
        Ok(footer) => Ok(footer.map(|f| Packed {
            size: f.original_len,
            mode: f.mode,
            mtime: f.mtime,
            naming: f.naming,
            sha256: f.sha256,
        })),
        Err(e) if e.kind() == ErrorKind::Io => {
            log::warn!("{e}");
            Err(e.errno().map_or(Errno::IO, Errno::from_raw_os_error))
        }
        // Logged once for each state of the file, because the result is cached.
        Err(e) => {
            log::warn!("{e}; the file is shown as it is");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_that_cannot_be_read_is_an_error_until_it_can() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("m.bsz");
        std::fs::copy("tests/data/v1/bf16.bsz", &path).expect("a golden archive");
        let footers = Footers::new();
        let find = |is_readable: bool| {
            let mut stat = rustix::fs::stat(&path)?;
            let open = || {
                let file = File::options().read(is_readable).write(!is_readable).open(&path);
                let file = file.map_err(|e| Errno::from_io_error(&e).expect("an errno"))?;
                let stat = fstat(&file)?;
                Ok((file, stat))
            };
            footers.of(&mut stat, open, &path)
        };
        assert_eq!(find(false).map(drop), Err(Errno::BADF));
        assert!(find(true).expect("can be read").is_some());
    }
}
