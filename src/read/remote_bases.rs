//! Bases of remote archives: objects beside them. Whoever reads them waits for the network.

use super::{
    archive::Archive,
    base_search::archive_names,
    bases::{BaseBytes, FindBase, missing},
    local_bases::{ArchiveBase, LocalBases, check_base},
    storage::peek_object,
};
use crate::{
    codec::ChunkDecoder,
    error::{Error, Result},
    escape,
    format::Base,
    remote::{Object, Place, join},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// An object that may be a base.
pub(crate) struct ObjectCandidate {
    pub(crate) object: Arc<Object>,
    pub(crate) name: String,
    /// Whether it is an archive whose footer says that it is the base. Else it has the right name
    /// and length.
    pub(crate) is_archive: bool,
}

/// Look for a base by the names that it may have. `open` opens an object, if there is one, and
/// `accept` makes something of it.
///
/// # Errors
/// Why no object is the base.
pub(crate) fn search_objects<T>(
    base: &Base,
    with_plain: bool,
    open: &dyn Fn(&str) -> Result<Option<Arc<Object>>>,
    accept: &dyn Fn(ObjectCandidate) -> Result<T>,
) -> Result<T, Option<String>> {
    let mut refused = None;
    let mut note = |name: &str, why: &str| {
        refused.get_or_insert_with(|| format!("{}: {why}", escape::text(name)));
    };
    let names = archive_names(base);
    let archives = names.iter().filter_map(|name| Some((name.to_str()?, true)));
    for (name, is_archive) in archives.chain(with_plain.then_some((&*base.name, false))) {
        let object = match open(name) {
            Ok(Some(object)) => object,
            Ok(None) => continue,
            Err(e) => {
                note(name, &e.detail());
                continue;
            }
        };
        let is_base = match is_archive {
            true => peek_object(&object).map(|footer| {
                footer.is_some_and(|f| (f.sha256, f.original_len) == (base.sha256, base.len))
            }),
            false => Ok(object.size() == base.len),
        };
        let name = name.to_owned();
        match is_base {
            Ok(false) => note(&name, "is another file"),
            Ok(true) => match accept(ObjectCandidate { object, name: name.clone(), is_archive }) {
                Ok(found) => return Ok(found),
                Err(e) => note(&name, &e.detail()),
            },
            Err(e) => note(&name, &e.detail()),
        }
    }
    Err(refused)
}

/// Finds bases beside an archive of a place, and in the directories that the user names.
pub struct PlaceBases {
    place: Arc<Place>,
    dir: String,
    named: LocalBases,
}

impl PlaceBases {
    /// Beside the archive at `path` of `place`.
    pub fn beside(place: &Arc<Place>, path: &str) -> Self {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
        Self { place: Arc::clone(place), dir, named: LocalBases::named() }
    }

    fn accept(&self, found: ObjectCandidate) -> Result<Arc<dyn BaseBytes>> {
        let ObjectCandidate { object, name, is_archive } = found;
        let path = self.place.name(&join(&self.dir, &name));
        if !is_archive {
            return Ok(Arc::new(ObjectBase::new(object, path)));
        }
        let archive = Archive::from_object(object)?;
        check_base(&archive)?;
        Ok(Arc::new(ArchiveBase::new(archive, path)))
    }
}

impl FindBase for PlaceBases {
    fn find(&self, base: &Base, with_plain: bool) -> Result<Arc<dyn BaseBytes>> {
        let open = |name: &str| match self.place.open(&join(&self.dir, name), None) {
            Ok(object) => Ok(Some(Arc::new(object))),
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        };
        search_objects(base, with_plain, &open, &|found| self.accept(found)).or_else(|refused| {
            let at = self.place.name(&self.dir);
            self.named.find(base, with_plain).map_err(|e| not_beside(base, &at, refused, &e))
        })
    }
}

/// The error of a base that is neither at a place nor in a directory of this machine, for these
/// reasons.
pub(crate) fn not_beside(base: &Base, at: &Path, refused: Option<String>, e: &Error) -> Error {
    let refused = refused.map(|why| format!(" ({why})")).unwrap_or_default();
    let why = format!("is not at {}{refused}; {}", escape::path(at), e.reason());
    missing(base, why)
}

/// A base that is an object as it was.
pub(crate) struct ObjectBase {
    object: Arc<Object>,
    path: PathBuf,
}

impl ObjectBase {
    pub(crate) fn new(object: Arc<Object>, path: PathBuf) -> Self {
        Self { object, path }
    }
}

impl BaseBytes for ObjectBase {
    fn read(&self, offset: u64, out: &mut [u8], _: &dyn ChunkDecoder) -> Result<()> {
        self.object.read(offset, out)
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn is_plain(&self) -> bool {
        true
    }
}
