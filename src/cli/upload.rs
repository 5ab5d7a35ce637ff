//! Putting files into object storage: `bsz pack -o URL`, and what `bsz cp` shares with it.

use super::{progress::Watch, remote::TimeoutArgs};
use crate::{
    error::{Context, Error, ErrorKind, Result},
    format::Naming,
    pack::{self, Check, Destination, Options, Sender},
    read::Archive,
    remote::{Body, FileBody, Place, Put, Target, is_remote},
};
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

impl TimeoutArgs {
    /// The place that `path` names, if it is a URL, to read from it.
    pub(super) fn place(&self, path: &Path) -> Result<Option<Place>> {
        url(path).map(|url| Place::new(url, &self.options())).transpose()
    }

    /// Uploads to `path`, if it is a URL.
    pub(super) fn uploads<'a>(
        &self,
        path: &Path,
        force: bool,
        watch: &'a Watch,
    ) -> Result<Option<Uploads<'a>>> {
        let Some(url) = url(path) else { return Ok(None) };
        let target = Target::new(url, &self.options()).about("URL")?;
        let place = Place::new(url, &self.options())?;
        Ok(Some(Uploads { target, place, force, watch }))
    }
}

fn url(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| is_remote(text))
}

/// Uploads to one place.
pub(super) struct Uploads<'a> {
    target: Target,
    place: Place,
    force: bool,
    watch: &'a Watch,
}

/// The key of the object `at` below a place.
///
/// # Errors
/// Invalid argument, if it is not UTF-8.
pub(super) fn key(at: &Path) -> Result<&str> {
    let why = "its name is not UTF-8, as the names of objects are";
    at.to_str().ok_or_else(|| Error::invalid(why)).about_path(at)
}

impl Uploads<'_> {
    /// Whether the place is a directory by its URL.
    pub(super) fn is_directory(&self) -> bool {
        self.target.is_directory()
    }

    /// What messages call the object `key`.
    pub(super) fn name(&self, key: &str) -> PathBuf {
        self.target.name(key)
    }

    /// Upload an object. Returns whether it was not there before.
    pub(super) fn send(&self, body: &dyn Body, key: &str) -> Result<bool> {
        let bar = &self.watch.bar;
        bar.start("uploading", &self.target.name(key), body.size(), 2);
        let put = self.target.put(key, body, self.force, &|bytes| bar.advance(bytes))?;
        Ok(put == Put::Made)
    }
}

impl Destination for Uploads<'_> {
    fn name(&self, at: &Path) -> PathBuf {
        self.target.name(&at.to_string_lossy())
    }

    fn has(
        &self,
        at: &Path,
        naming: Naming,
        len: u64,
        hash: &dyn Fn() -> Result<[u8; 32]>,
    ) -> Result<Option<u64>> {
        let object = match self.place.open(key(at)?, None) {
            // Who may write need not be permitted to look.
            Err(e) if matches!(e.errno(), Some(libc::ENOENT | libc::EACCES)) => return Ok(None),
            object => Arc::new(object?),
        };
        let stored = object.size();
        match Archive::from_object(object) {
            Ok(archive) => {
                let footer = archive.footer();
                let same = footer.naming == naming && footer.original_len == len;
                if same && footer.sha256 == hash()? {
                    return Ok(Some(stored));
                }
            }
            Err(e) if e.kind() == ErrorKind::Io => return Err(e),
            Err(_) => {}
        }
        if self.force {
            return Ok(None);
        }
        let why = "exists and is not the archive of this file; remove it or use --force";
        Err(Error::invalid(why).about_path(&Destination::name(self, at)))
    }

    fn is_taken(&self, at: &Path) -> Result<bool> {
        match self.place.open(key(at)?, None) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.errno(), Some(libc::ENOENT | libc::EACCES)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn put(&self, file: &File, at: &Path) -> Result<bool> {
        self.send(&FileBody::new(file).about_path(at)?, key(at)?)
    }
}

/// Pack all sources to a URL, even if some fail.
pub(super) fn pack(
    sources: &[PathBuf],
    to: &Uploads<'_>,
    options: &Options,
    check: Check<'_>,
    watch: &Watch,
) -> Result<()> {
    let scratch = std::env::temp_dir();
    let sender = Sender { to, options, check, progress: watch, scratch: &scratch };
    for (source, at) in sources.iter().zip(places(sources, to)?) {
        let done = at.and_then(|at| match fs::metadata(source).about_path(source)?.is_dir() {
            true => sender.tree(source, &at).map(drop),
            false => sender.file(source, &at).map(drop),
        });
        done.unwrap_or_else(|e| watch.fail(&e));
    }
    Ok(())
}

/// Where each source goes below the URL.
///
/// # Errors
/// Invalid argument if two of them would go to the same place.
fn places(sources: &[PathBuf], to: &Uploads<'_>) -> Result<Vec<Result<PathBuf>>> {
    let many = sources.len() > 1;
    let place = |source: &PathBuf| {
        let is_dir = fs::metadata(source).about_path(source)?.is_dir();
        let name = source.file_name().ok_or_else(|| Error::invalid("has no file name"));
        let url = to.name("");
        match (is_dir, many) {
            (true, false) => Ok(PathBuf::new()),
            (true, true) => Ok(PathBuf::from(name.about_path(source)?)),
            (false, _) if many || to.is_directory() => {
                archive_name(name.about_path(source)?).about_path(source).map(PathBuf::from)
            }
            (false, _) if url.extension() == Some(OsStr::new("bsz")) => Ok(PathBuf::new()),
            (false, _) => {
                let why = "neither ends in .bsz nor in a slash, as a directory does";
                Err(Error::invalid(why).about_path(&url))
            }
        }
    };
    let places: Vec<Result<PathBuf>> = sources.iter().map(place).collect();
    let mut taken = HashMap::new();
    for (source, at) in sources.iter().zip(&places) {
        let Ok(at) = at else { continue };
        if let Some(other) = taken.insert(at.clone(), source) {
            let other = crate::escape::path(other);
            let why = format!("would have the same name there as {other}; nothing was packed");
            return Err(Error::invalid(why).about_path(source));
        }
    }
    Ok(places)
}

/// The name of the archive of a file that stands alone.
fn archive_name(original: &OsStr) -> Result<OsString> {
    let nowhere = Path::new("");
    let given = pack::archive_names(nowhere, &[original.to_owned()])?;
    given.into_iter().flatten().next().ok_or_else(|| Error::invalid("no archive can be called so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_named_as_on_disk() {
        for (original, archive) in [("m.safetensors", "m.bsz"), ("m.gguf", "m.gguf.bsz")] {
            assert_eq!(archive_name(original.as_ref()).expect("a name"), archive);
        }
        assert!(archive_name("b".repeat(252).as_ref()).is_err());
    }
}
