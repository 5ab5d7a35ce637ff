//! The archives that a command is given: files, directories, and URLs.

#[cfg(feature = "remote")]
pub(super) use super::remote::RemoteArgs;
#[cfg(feature = "remote")]
use crate::read::PlaceBases;
#[cfg(feature = "remote")]
use crate::remote::{Entry, Facts, Found, Object, Place, join};
use crate::{
    error::{Context, Error, Result},
    read::{self, Archive},
};
#[cfg(feature = "remote")]
use std::sync::Arc;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The options of a build that reads no URLs: none.
#[cfg(not(feature = "remote"))]
#[derive(clap::Args)]
pub(super) struct RemoteArgs {}

/// An archive that is to be opened.
pub(super) struct Item {
    /// What messages call it.
    pub(super) path: PathBuf,
    /// Its path below the directory that was given.
    pub(super) relative: PathBuf,
    place: At,
}

enum At {
    File,
    #[cfg(feature = "remote")]
    Entry(Arc<Place>, String, Facts),
    #[cfg(feature = "remote")]
    Object(Arc<Object>),
}

impl Item {
    /// Open it.
    ///
    /// # Errors
    /// As [`Archive::open`] and `Archive::from_object`.
    pub(super) fn open(&self) -> Result<Archive> {
        match &self.place {
            At::File => Archive::open(&self.path),
            #[cfg(feature = "remote")]
            At::Entry(place, path, facts) => {
                let object = Arc::new(place.open(path, Some(facts))?);
                let archive = Archive::from_object(object).about_path(&self.path)?;
                Ok(archive.with_bases(Arc::new(PlaceBases::beside(place, path))))
            }
            #[cfg(feature = "remote")]
            At::Object(object) => Archive::from_object(Arc::clone(object)).about_path(&self.path),
        }
    }

    /// Its size in bytes.
    pub(super) fn stored(&self) -> u64 {
        match &self.place {
            At::File => fs::symlink_metadata(&self.path).map_or(0, |meta| meta.len()),
            #[cfg(feature = "remote")]
            At::Entry(_, _, facts) => facts.size,
            #[cfg(feature = "remote")]
            At::Object(object) => object.size(),
        }
    }
}

/// What was found at a source.
pub(super) enum Items {
    /// It is one archive.
    One(Item),
    /// It is a directory with these.
    Directory(Vec<Item>),
}

/// The archives at `source`. `fail` is told of directories that cannot be read.
///
/// # Errors
/// That of the source itself.
pub(super) fn archives(
    source: &Path,
    _remote: &RemoteArgs,
    fail: &mut dyn FnMut(Error),
) -> Result<Items> {
    #[cfg(feature = "remote")]
    if let Some(place) = _remote.place(source)? {
        return remote_archives(Arc::new(place), fail);
    }
    let item = |path: PathBuf| {
        let relative = path.strip_prefix(source).unwrap_or(&path).to_owned();
        Item { path, relative, place: At::File }
    };
    if !fs::metadata(source).about_path(source)?.is_dir() {
        return Ok(Items::One(item(source.to_owned())));
    }
    Ok(Items::Directory(read::archives(source, fail)?.into_iter().map(item).collect()))
}

#[cfg(feature = "remote")]
fn remote_archives(place: Arc<Place>, fail: &mut dyn FnMut(Error)) -> Result<Items> {
    let entries = match place.find()? {
        Found::Object(object) => {
            let (path, relative) = (place.name(""), PathBuf::new());
            return Ok(Items::One(Item { path, relative, place: At::Object(object) }));
        }
        Found::Directory(entries) => entries,
    };
    let mut files = Vec::new();
    walk(&place, "", entries, &mut |path, facts| files.push((path, facts)), fail);
    let is_archive = |(path, _): &(String, Facts)| path.ends_with(".bsz");
    let items = files.into_iter().filter(is_archive).map(|(path, facts)| Item {
        path: place.name(&path),
        relative: path.clone().into(),
        place: At::Entry(Arc::clone(&place), path, facts),
    });
    Ok(Items::Directory(items.collect()))
}

/// Call `file` with each file below a directory, by its path, in the order of the names.
#[cfg(feature = "remote")]
pub(super) fn walk(
    place: &Place,
    dir: &str,
    entries: Vec<Entry>,
    file: &mut dyn FnMut(String, Facts),
    fail: &mut dyn FnMut(Error),
) {
    for Entry { name, file: facts } in entries {
        let path = join(dir, &name);
        match facts {
            Some(facts) => file(path, facts),
            None => match place.list(&path) {
                Ok(entries) => walk(place, &path, entries, file, fail),
                Err(e) => fail(e),
            },
        }
    }
}
