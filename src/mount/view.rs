//! Names: which source entry a name of the view stands for, and what a directory of the view lists.
//!
//! `X.bsz` appears as the file that it was made from, everything else as it is. What is there plainly wins over
//! an archive which would show the same name, and the archive is hidden. A `.bsz` file that is no valid archive,
//! or whose original name could not be a name, is shown as the plain file which it is.

use super::attr::{Identity, Packed};
use super::source::{DirHandle, Source};
use crate::error::{Context, ErrorKind};
use crate::format::Naming;
use crate::read;
use lru::LruCache;
use rustix::fs::{FileType, Stat};
use rustix::io::{Errno, Result};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const ARCHIVE_SUFFIX: &[u8] = b".bsz";
const SAFETENSORS_SUFFIX: &[u8] = b".safetensors";

/// Longest name that a directory entry may have, in bytes.
const NAME_MAX: usize = 255;

/// How many `.bsz` files' footers are remembered. An entry takes about 100 B.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 15).expect("not zero");

/// The source entry behind a name of the view.
pub(super) struct Found {
    pub source_name: OsString,
    pub stat: Stat,
    /// Of an archive that shows its original.
    pub packed: Option<Packed>,
}

impl Found {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// The name in the view.
    fn shown_name(&self) -> OsString {
        self.packed
            .as_ref()
            .and_then(|p| original_name(p.naming, &self.source_name))
            .unwrap_or_else(|| self.source_name.clone())
    }
}

/// A line of a directory listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub name: OsString,
    pub kind: FileType,
}

type Verdicts = LruCache<(u64, u64), (Identity, Option<Packed>)>;

pub(super) struct View {
    source: Source,
    /// The view of one archive: nothing else in its directory is shown.
    only: Option<OsString>,
    verdicts: Mutex<Verdicts>,
}

impl View {
    pub fn new(source: Source, only: Option<OsString>) -> Self {
        Self { source, only, verdicts: Mutex::new(LruCache::new(REMEMBERED)) }
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What `name` in the directory at `dir` stands for; `ENOENT` where nothing shows that name.
    pub fn find(&self, dir: &Path, name: &OsStr) -> Result<Found> {
        let handle = self.source.dir(dir)?;
        if let Some(only) = &self.only {
            let found = self.entry(&handle, dir, only)?;
            return if found.shown_name() == name { Ok(found) } else { Err(Errno::NOENT) };
        }
        match self.entry(&handle, dir, name) {
            Ok(found) if found.packed.is_none() => return Ok(found),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        for archive in archives_that_may_show(name) {
            match self.entry(&handle, dir, &archive) {
                Ok(found) if found.packed.is_some() && found.shown_name() == name => return Ok(found),
                // The archive's name may be too long where the name that was asked for is not.
                Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::NOENT)
    }

    /// The view's listing of the directory at `dir`, sorted by name.
    pub fn list(&self, dir: &Path) -> Result<Vec<Listed>> {
        let handle = self.source.dir(dir)?;
        if let Some(only) = &self.only {
            let found = self.entry(&handle, dir, only)?;
            return Ok(vec![Listed { name: found.shown_name(), kind: found.kind() }]);
        }
        let (mut listed, mut archives) = (Vec::new(), Vec::new());
        for (name, mut kind) in self.source.list(dir)? {
            if kind == FileType::Unknown || may_be_archive(&name, kind) {
                match self.entry(&handle, dir, &name) {
                    Ok(found) if found.packed.is_some() => {
                        archives.push(found);
                        continue;
                    }
                    Ok(found) => kind = found.kind(),
                    // Gone since it was listed.
                    Err(_) => continue,
                }
            }
            listed.push(Listed { name, kind });
        }
        self.add_archives(&mut listed, archives);
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// Add the archives' original names, unless something shows that name already.
    fn add_archives(&self, listed: &mut Vec<Listed>, mut archives: Vec<Found>) {
        let mut taken: HashSet<OsString> = listed.iter().map(|l| l.name.clone()).collect();
        // Of two archives that show one name, `find` takes that of `archives_that_may_show` which comes first.
        archives.sort_by_key(|found| found.packed.as_ref().is_some_and(|p| p.naming == Naming::Appended));
        for found in archives {
            let name = found.shown_name();
            if taken.insert(name.clone()) {
                listed.push(Listed { name, kind: found.kind() });
            }
        }
    }

    /// The source entry `name`, and what it shows if it is an archive.
    fn entry(&self, handle: &DirHandle<'_>, dir: &Path, name: &OsStr) -> Result<Found> {
        let stat = handle.stat(name)?;
        let mut found = Found { source_name: name.to_owned(), stat, packed: None };
        if may_be_archive(name, found.kind()) {
            self.peek(handle, dir, &mut found);
        }
        Ok(found)
    }

    /// Fill in what the footer says, from memory if the file has not changed since its footer was read.
    fn peek(&self, handle: &DirHandle<'_>, dir: &Path, found: &mut Found) {
        let identity = Identity::of(&found.stat);
        let key = (identity.dev, identity.ino);
        let known = self.verdicts().get(&key).filter(|(of, _)| *of == identity).map(|(_, p)| p.clone());
        let packed = known.or_else(|| {
            // What cannot be opened is shown as it is, and asked again next time.
            let (file, stat) = handle.open_file(&found.source_name).ok()?;
            let packed = read_footer(&file, &dir.join(&found.source_name))?;
            let identity = Identity::of(&stat);
            found.stat = stat;
            self.verdicts().put((identity.dev, identity.ino), (identity, packed.clone()));
            Some(packed)
        });
        found.packed = packed.flatten().filter(|p| original_name(p.naming, &found.source_name).is_some());
    }

    fn verdicts(&self) -> std::sync::MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the footer says: `Some(None)` of a file that is no valid archive, `None` if that could not be learned.
fn read_footer(file: &File, path: &Path) -> Option<Option<Packed>> {
    match read::peek(file).about_path(path) {
        Ok(footer) => Some(footer.map(|f| Packed {
            size: f.original_len,
            mode: f.mode,
            mtime: f.mtime,
            naming: f.naming,
        })),
        Err(e) if e.kind() == ErrorKind::Io => {
            log::warn!("{e}");
            None
        }
        // Said once for each state of the file, since the verdict is remembered.
        Err(e) => {
            log::warn!("{e}; shown as it is");
            Some(None)
        }
    }
}

fn may_be_archive(name: &OsStr, kind: FileType) -> bool {
    kind == FileType::RegularFile && name.as_bytes().ends_with(ARCHIVE_SUFFIX)
}

/// The name that the archive shows, if that can be a name.
fn original_name(naming: Naming, archive: &OsStr) -> Option<OsString> {
    naming.original_name(archive).filter(|name| is_name(name))
}

/// Whether `name` can name a directory entry.
pub(super) fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..")
        && bytes.len() <= NAME_MAX
        && !bytes.iter().any(|&b| b == b'/' || b == 0)
}

/// Names of archives which may show `name`, in order of precedence.
fn archives_that_may_show(name: &OsStr) -> impl Iterator<Item = OsString> {
    let with_suffix = |stem: &[u8]| OsString::from_vec([stem, ARCHIVE_SUFFIX].concat());
    let stem = name.as_bytes().strip_suffix(SAFETENSORS_SUFFIX);
    stem.map(with_suffix).into_iter().chain([with_suffix(name.as_bytes())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_each_archive_that_can_show_it() {
        let names = |n: &str| archives_that_may_show(OsStr::new(n)).collect::<Vec<_>>();
        assert_eq!(names("m.safetensors"), ["m.bsz", "m.safetensors.bsz"]);
        assert_eq!(names("0a1b"), ["0a1b.bsz"]);
    }

    #[test]
    fn what_cannot_be_a_name_is_not_shown() {
        for bad in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
            assert!(!is_name(OsStr::new(bad)), "{bad:?}");
        }
        for good in ["a", "...", ".hidden", "with space", &"x".repeat(255)] {
            assert!(is_name(OsStr::new(good)), "{good:?}");
        }
    }

    #[test]
    fn a_file_that_only_has_the_suffix_is_shown_as_it_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["junk.bsz", ".bsz", "plain"] {
            std::fs::write(dir.path().join(name), vec![7; 4096]).expect("write");
        }
        std::fs::create_dir(dir.path().join("dir.bsz")).expect("mkdir");
        let view = View::new(Source::open(dir.path()).expect("source"), None);
        let names: Vec<_> = view.list(Path::new("")).expect("list").into_iter().map(|l| l.name).collect();
        assert_eq!(names, [".bsz", "dir.bsz", "junk.bsz", "plain"]);
        for name in names {
            let found = view.find(Path::new(""), &name).unwrap_or_else(|e| panic!("{name:?}: {e}"));
            assert!(found.packed.is_none());
        }
        assert_eq!(view.find(Path::new(""), OsStr::new("junk")).err(), Some(Errno::NOENT));
    }
}
