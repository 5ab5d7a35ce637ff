//! Where the files of a view come from: a directory of this machine, or a place on others.

#[cfg(feature = "remote")]
use super::attr::Identity;
use super::attr::Packed;
use super::footers::Footers;
#[cfg(feature = "remote")]
use super::remote::{RemoteDir, RemoteSource};
use super::source::{DirHandle, Source};
#[cfg(feature = "remote")]
use rustix::fs::StatVfsMountFlags;
use rustix::fs::{FileType, Stat, StatVfs, fstat};
#[cfg(feature = "remote")]
use rustix::io::Errno;
use rustix::io::Result;
use std::ffi::{OsStr, OsString};
use std::path::Path;
#[cfg(feature = "remote")]
use std::sync::Arc;

/// See the module's documentation. An enum: there are two kinds, and the local one must cost
/// nothing more.
pub(crate) enum Files {
    Local(Source),
    #[cfg(feature = "remote")]
    Remote(Arc<RemoteSource>),
}

/// A directory, for lookups in it.
pub(crate) enum Directory<'a> {
    Local(DirHandle<'a>),
    #[cfg(feature = "remote")]
    Remote(RemoteDir<'a>),
}

/// The entries of a directory.
pub(crate) struct Entries<'a> {
    pub dir: Directory<'a>,
    /// The device of the directory.
    pub dev: u64,
    /// Names, types, and inode numbers if the listing has them.
    pub entries: Vec<(OsString, FileType, Option<u64>)>,
}

impl Files {
    /// The source, if it is a directory of this machine.
    pub fn local(&self) -> Option<&Source> {
        match self {
            Self::Local(source) => Some(source),
            #[cfg(feature = "remote")]
            Self::Remote(_) => None,
        }
    }

    /// The source as a directory of this machine.
    pub fn into_local(self) -> Option<Source> {
        match self {
            Self::Local(source) => Some(source),
            #[cfg(feature = "remote")]
            Self::Remote(_) => None,
        }
    }

    /// The source, if it is on other machines.
    #[cfg(feature = "remote")]
    pub fn remote(&self) -> Option<&Arc<RemoteSource>> {
        match self {
            Self::Local(_) => None,
            Self::Remote(source) => Some(source),
        }
    }

    pub fn stat_root(&self) -> Result<Stat> {
        match self {
            Self::Local(source) => source.stat_root(),
            #[cfg(feature = "remote")]
            Self::Remote(source) => Ok(source.dir_stat("")),
        }
    }

    /// The directory at `path`, relative to the source.
    pub fn dir(&self, path: &Path) -> Result<Directory<'_>> {
        match self {
            Self::Local(source) => source.dir(path).map(Directory::Local),
            #[cfg(feature = "remote")]
            Self::Remote(source) => source.dir(path).map(Directory::Remote),
        }
    }

    /// The attributes of the directory at `path`.
    pub fn stat_dir(&self, path: &Path) -> Result<Stat> {
        match self {
            Self::Local(source) => fstat(source.dir(path)?),
            #[cfg(feature = "remote")]
            Self::Remote(source) => path.to_str().map(|p| source.dir_stat(p)).ok_or(Errno::NOENT),
        }
    }

    /// The entries of the directory at `path`.
    pub fn list(&self, path: &Path) -> Result<Entries<'_>> {
        match self {
            Self::Local(source) => {
                let listing = source.list(path)?;
                let (dev, entries) = (listing.dev, listing.entries);
                Ok(Entries { dir: Directory::Local(listing.dir), dev, entries })
            }
            #[cfg(feature = "remote")]
            Self::Remote(source) => {
                let dir = source.dir(path)?;
                let (dev, entries) = (Identity::of(&source.dir_stat("")).dev, dir.entries()?);
                Ok(Entries { dir: Directory::Remote(dir), dev, entries })
            }
        }
    }

    /// A name is missing in the directory at `path`: whether it may be there by now, although what
    /// is known of the directory is to be used for longer.
    pub fn renew(&self, _path: &Path) -> bool {
        match self {
            Self::Local(_) => false,
            #[cfg(feature = "remote")]
            Self::Remote(source) => source.renew(_path),
        }
    }

    pub fn statfs(&self) -> Result<StatVfs> {
        match self {
            Self::Local(source) => source.statfs(),
            // As much as there is, of which nothing is free.
            #[cfg(feature = "remote")]
            Self::Remote(_) => Ok(StatVfs {
                f_bsize: 4096,
                f_frsize: 4096,
                f_blocks: 0,
                f_bfree: 0,
                f_bavail: 0,
                f_files: 0,
                f_ffree: 0,
                f_favail: 0,
                f_fsid: 0,
                f_flag: StatVfsMountFlags::RDONLY,
                f_namemax: 255,
            }),
        }
    }
}

impl Directory<'_> {
    /// The attributes of an entry; of a symlink, not of its target.
    pub fn stat(&self, name: &OsStr) -> Result<Stat> {
        match self {
            Self::Local(dir) => dir.stat(name),
            #[cfg(feature = "remote")]
            Self::Remote(dir) => dir.stat(name),
        }
    }

    pub fn read_link(&self, name: &OsStr) -> Result<OsString> {
        match self {
            Self::Local(dir) => dir.read_link(name),
            #[cfg(feature = "remote")]
            Self::Remote(_) => Err(Errno::INVAL),
        }
    }

    /// What the file `name`, which has the attributes `stat`, shows if it is an archive. `path`
    /// names it in messages.
    ///
    /// # Errors
    /// As [`Footers::of`].
    pub fn packed(
        &self,
        footers: &Footers,
        name: &OsStr,
        stat: &mut Stat,
        path: &Path,
    ) -> Result<Option<Packed>> {
        match self {
            Self::Local(dir) => footers.of(stat, || dir.open_file(name), path),
            #[cfg(feature = "remote")]
            Self::Remote(dir) => {
                let footers = &dir.source().footers;
                dir.noted(footers.remote(stat, || dir.open_end(name), path))
            }
        }
    }

    /// Find out about these archives at once, so that they are not asked for one by one.
    ///
    /// # Errors
    /// One cannot be asked for. No listing is better than one with wrong names.
    pub fn look_ahead(
        &self,
        _names: &[&OsStr],
        _look: impl Fn(&Self, &OsStr) -> Result<()> + Sync,
    ) -> Result<()> {
        match self {
            Self::Local(_) => Ok(()),
            #[cfg(feature = "remote")]
            Self::Remote(_) => super::remote::at_once(_names, |name| _look(self, name)),
        }
    }
}
