//! Opening archives, each once for all who read it.

use super::attr::Identity;
use super::bases::BaseFinder;
use super::failure::open_failed;
#[cfg(feature = "remote")]
use super::remote::RemoteSource;
use super::source::Source;
use crate::cache::{CachedFile, FileTable};
use crate::error::{Error, Result as Outcome};
use crate::format::Base;
use crate::read::{
    Archive, BaseBytes, Candidate, FindBase, PlainBase, Search, SearchDir, check_base,
};
#[cfg(feature = "remote")]
use crate::read::{ObjectBase, ObjectCandidate, not_beside, search_objects};
#[cfg(feature = "remote")]
use crate::remote::Object;
use rustix::fs::{Stat, fstat};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::path::Path;
#[cfg(feature = "remote")]
use std::path::PathBuf;
use std::sync::Arc;

/// Where the archives are.
pub(crate) enum FilesOf {
    /// On this machine.
    Local(Source),
    /// On others.
    #[cfg(feature = "remote")]
    Remote(Arc<RemoteSource>),
}

/// The open archives of a mount.
#[derive(Clone)]
pub(crate) struct Archives(Arc<Shared>);

struct Shared {
    open: FileTable<Identity>,
    /// What their bases are found with.
    bases: Arc<BaseFinder>,
    source: FilesOf,
}

impl Archives {
    /// Those of a `source`. Their bases are found with `bases`.
    pub fn new(bases: &Arc<BaseFinder>, source: FilesOf) -> Self {
        Self(Arc::new(Shared { open: FileTable::default(), bases: Arc::clone(bases), source }))
    }

    /// The archive in `file`, which has the state `stat` and may be open already. May read its
    /// index. `path` is that below the source.
    pub fn open(&self, file: File, stat: &Stat, path: &Path) -> Result<Arc<CachedFile>> {
        self.load(file, stat, Some(path)).map_err(|e| match e.errno() {
            Some(libc::ESTALE) => Errno::STALE,
            _ => open_failed(path, &e),
        })
    }

    /// The same, with an error that nobody has been told of: `ESTALE` if the file changes. Without
    /// a path, it is opened as a base, and must not have any itself.
    pub(super) fn load(
        &self,
        file: File,
        stat: &Stat,
        path: Option<&Path>,
    ) -> Outcome<Arc<CachedFile>> {
        let identity = Identity::of(stat);
        if let Some(open) = self.0.open.get(&identity) {
            return Ok(open);
        }
        let opened = file.try_clone()?;
        let loaded = Archive::from_file_within(file, self.0.bases.memory());
        // The index belongs to this identity only if the file had it before and after reading. An
        // error does not count either if the archive was replaced meanwhile.
        if Identity::of(&fstat(&opened)?) != identity {
            return Err(Error::os(libc::ESTALE, "changes while it is opened"));
        }
        let archive = self.finding_bases(loaded?, stat, path)?;
        archive.read_directly();
        Ok(self.0.open.insert(Some(identity).filter(Identity::is_settled), archive))
    }

    /// The archive, which finds its bases if it has any.
    ///
    /// # Errors
    /// Invalid argument, if it has some and no path.
    fn finding_bases(
        &self,
        archive: Archive,
        stat: &Stat,
        path: Option<&Path>,
    ) -> Outcome<Archive> {
        if archive.index().bases().is_empty() {
            return Ok(archive);
        }
        // Refused before it is in the table, where others would find it without its bases.
        let Some(path) = path else { return check_base(&archive).map(|()| archive) };
        let bases = self.bases_of(stat, path)?;
        Ok(archive.with_bases(bases))
    }

    fn bases_of(&self, stat: &Stat, path: &Path) -> Outcome<Arc<BasesOf>> {
        let dir = path.parent().unwrap_or(Path::new(""));
        let beside = match &self.0.source {
            FilesOf::Local(source) => {
                let shown = source.paths().first().map(|root| root.join(dir)).unwrap_or_default();
                Beside::Local(SearchDir::opened(source.dir_fd(dir)?, &shown))
            }
            #[cfg(feature = "remote")]
            FilesOf::Remote(source) => Beside::Remote(Arc::clone(source), dir.to_owned()),
        };
        let (finder, archives) = (Arc::clone(&self.0.bases), self.clone());
        Ok(Arc::new(BasesOf { finder, archives, beside, stat: *stat }))
    }

    /// The archive in `object`, as [`Archives::open`]. Waits for the network.
    #[cfg(feature = "remote")]
    pub fn open_remote(
        &self,
        object: Arc<Object>,
        stat: &Stat,
        path: &Path,
    ) -> Result<Arc<CachedFile>> {
        self.load_remote(object, stat, Some(path)).map_err(|e| open_failed(path, &e))
    }

    /// The same, as [`Archives::load`].
    #[cfg(feature = "remote")]
    pub(super) fn load_remote(
        &self,
        object: Arc<Object>,
        stat: &Stat,
        path: Option<&Path>,
    ) -> Outcome<Arc<CachedFile>> {
        let identity = Identity::of(stat);
        if let Some(open) = self.0.open.get(&identity) {
            return Ok(open);
        }
        let archive = Archive::from_object_within(object, self.0.bases.memory())?;
        let archive = self.finding_bases(archive, stat, path)?;
        // A listing without entity tags does not tell what has just changed.
        Ok(self.0.open.insert(Some(identity).filter(Identity::is_settled), archive))
    }
}

/// Finds the bases of one archive.
struct BasesOf {
    finder: Arc<BaseFinder>,
    archives: Archives,
    /// The directory of the archive.
    beside: Beside,
    /// The attributes of the archive.
    stat: Stat,
}

/// Where an archive is.
enum Beside {
    /// In a directory of this machine.
    Local(SearchDir),
    /// In the directory with this path of the source.
    #[cfg(feature = "remote")]
    Remote(Arc<RemoteSource>, PathBuf),
}

impl BasesOf {
    /// The bytes of `base`, which is looked for in directories of this machine.
    fn in_directories(&self, base: &Base, with_plain: bool) -> Outcome<Arc<dyn BaseBytes>> {
        let beside = match &self.beside {
            Beside::Local(dir) => Some(dir),
            #[cfg(feature = "remote")]
            Beside::Remote(..) => None,
        };
        let dirs: Vec<_> = beside.into_iter().chain(self.finder.named()).cloned().collect();
        Search::new(base, with_plain, &|found| self.open(found)).run(&dirs)
    }

    /// The same, looked for in a directory of a source on other machines first.
    #[cfg(feature = "remote")]
    fn in_source(
        &self,
        (source, dir): (&RemoteSource, &Path),
        base: &Base,
        with_plain: bool,
    ) -> Outcome<Arc<dyn BaseBytes>> {
        let failed = |e: Errno| Error::os(e.raw_os_error(), e.to_string());
        let listed = source.dir(dir).map_err(failed)?;
        let open = |name: &str| match listed.open(name.as_ref()) {
            Ok((object, _)) => Ok(Some(object)),
            Err(Errno::NOENT | Errno::ISDIR) => Ok(None),
            Err(e) => Err(failed(e)),
        };
        let accept = |found: ObjectCandidate| -> Outcome<Arc<dyn BaseBytes>> {
            let ObjectCandidate { object, name, is_archive } = found;
            let path = source.name(&dir.join(&name));
            if !is_archive {
                return Ok(Arc::new(ObjectBase::new(object, path)));
            }
            let (object, stat) = listed.open(name.as_ref()).map_err(failed)?;
            let opened = self.archives.load_remote(object, &stat, None)?;
            check_base(opened.archive())?;
            Ok(self.finder.bytes(opened, path))
        };
        search_objects(base, with_plain, &open, &accept).or_else(|refused| {
            let elsewhere = self.in_directories(base, with_plain);
            elsewhere.map_err(|e| not_beside(base, &source.name(dir), refused, &e))
        })
    }

    /// What is made of a file that may be the base.
    fn open(&self, found: Candidate) -> Outcome<Arc<dyn BaseBytes>> {
        let Candidate { file, stat, path, is_archive } = found;
        if !self.finder.permits(&stat, &self.stat) {
            let why = "belongs to somebody else, and not everybody may read it";
            return Err(Error::invalid(why));
        }
        if !is_archive {
            return Ok(Arc::new(PlainBase::new(file, path)));
        }
        let opened = self.archives.load(file, &stat, None)?;
        check_base(opened.archive())?;
        Ok(self.finder.bytes(opened, path))
    }
}

impl FindBase for BasesOf {
    fn find(&self, base: &Base, with_plain: bool) -> Outcome<Arc<dyn BaseBytes>> {
        let found = match &self.beside {
            Beside::Local(_) => self.in_directories(base, with_plain),
            #[cfg(feature = "remote")]
            Beside::Remote(source, dir) => self.in_source((source, dir), base, with_plain),
        };
        if with_plain {
            self.finder.note(base, &found);
        }
        found
    }
}
