//! Names: which source entry a name of the view stands for, and what a directory of the view lists.
//!
//! `X.bsz` appears as the file that it was made from, everything else as it is. What is there plainly wins over
//! an archive which would show the same name, and the archive is hidden. A `.bsz` file that is no valid archive,
//! or whose original name could not be a name, is shown as the plain file which it is. A symlink to an archive is
//! shown as the archive is: under the original's name, and leading to it.

use super::attr::{Identity, Packed, number};
use super::links;
use super::source::{DirHandle, Entry, Source};
use crate::error::{Context, ErrorKind};
use crate::format::Naming;
use crate::read;
use lru::LruCache;
use rustix::fs::{FileType, Stat, fstat};
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

/// How many `.bsz` files' footers are remembered. An entry takes about 150 B.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 15).expect("not zero");

/// How often the footer is read of a file that changes meanwhile.
const PEEKS: usize = 3;

/// The source entry behind a name of the view.
pub(super) struct Found {
    pub source_name: OsString,
    pub stat: Stat,
    /// Of an archive that shows its original.
    pub packed: Option<Packed>,
    /// How the original's name follows from this one, of an archive and of a symlink to one.
    naming: Option<Naming>,
}

impl Found {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// The name in the view.
    fn shown_name(&self) -> OsString {
        self.naming
            .and_then(|naming| original_name(naming, &self.source_name))
            .unwrap_or_else(|| self.source_name.clone())
    }
}

/// A line of a directory listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub name: OsString,
    pub kind: FileType,
    pub ino: u64,
}

type Verdicts = LruCache<(u64, u64), (Identity, Option<Packed>)>;

pub(super) struct View {
    source: Source,
    /// The device of the source directory.
    root_dev: u64,
    /// The view of one archive: nothing else in its directory is shown.
    only: Option<OsString>,
    verdicts: Mutex<Verdicts>,
}

impl View {
    /// A view of `source`.
    ///
    /// # Errors
    /// The source is gone.
    pub fn new(source: Source, only: Option<OsString>) -> Result<Self> {
        let root_dev = Identity::of(&source.stat_root()?).dev;
        Ok(Self { source, root_dev, only, verdicts: Mutex::new(LruCache::new(REMEMBERED)) })
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The inode number in the view of a file of the source, or of what it decodes to.
    pub fn number(&self, stat: &Stat, decoded: bool) -> u64 {
        let Identity { dev, ino, .. } = Identity::of(stat);
        number(self.root_dev, dev, ino, decoded)
    }

    /// The inode number of the directory at `path`, which is not the root.
    pub fn dir_number(&self, path: &Path) -> Result<u64> {
        Ok(self.number(&fstat(self.source.dir(path)?)?, false))
    }

    /// What `name` in the directory at `dir` stands for; `ENOENT` where nothing shows that name.
    pub fn find(&self, dir: &Path, name: &OsStr) -> Result<Found> {
        let handle = self.source.dir(dir)?;
        if let Some(only) = &self.only {
            let found = self.entry(&handle, dir, only)?;
            return if found.shown_name() == name { Ok(found) } else { Err(Errno::NOENT) };
        }
        match self.entry(&handle, dir, name) {
            Ok(found) if found.naming.is_none() => return Ok(found),
            // The name may be too long for the source, where the archive's is not; and the other way round.
            Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
            Err(e) => return Err(e),
        }
        for archive in archives_that_may_show(name) {
            match self.entry(&handle, dir, &archive) {
                Ok(found) if found.naming.is_some() && found.shown_name() == name => {
                    return Ok(found);
                }
                Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::NOENT)
    }

    /// The view's listing of the directory at `dir`, sorted by name.
    pub fn list(&self, dir: &Path) -> Result<Vec<Listed>> {
        let line = |found: &Found| Listed {
            name: found.shown_name(),
            kind: found.kind(),
            ino: self.number(&found.stat, found.packed.is_some()),
        };
        if let Some(only) = &self.only {
            return Ok(vec![line(&self.entry(&self.source.dir(dir)?, dir, only)?)]);
        }
        let listing = self.source.list(dir)?;
        let (mut listed, mut archives) = (Vec::new(), Vec::new());
        let as_listed = |name, kind, ino| Listed {
            name,
            kind,
            ino: number(self.root_dev, listing.dev, ino, false),
        };
        for (name, kind, ino) in listing.entries {
            // What another name may show, or what the listing leaves open.
            let Some(ino) =
                ino.filter(|_| kind != FileType::Unknown && !may_be_shown_otherwise(&name, kind))
            else {
                match self.entry(&listing.dir, dir, &name) {
                    Ok(found) if found.naming.is_some() => archives.push(found),
                    Ok(found) => listed.push(line(&found)),
                    // Gone since it was listed.
                    Err(Errno::NOENT) => {}
                    Err(e) if may_pass(e) => return Err(e),
                    // Who looks it up hears why it cannot be had.
                    Err(_) => listed.push(as_listed(name, kind, ino.unwrap_or(0))),
                }
                continue;
            };
            listed.push(as_listed(name, kind, ino));
        }
        // Of two archives that show one name, `find` takes that of `archives_that_may_show` which comes first.
        archives.sort_by_key(|found| found.naming == Some(Naming::Appended));
        let mut taken: HashSet<OsString> = listed.iter().map(|l| l.name.clone()).collect();
        // Unless something shows that name already.
        listed.extend(archives.iter().map(line).filter(|line| taken.insert(line.name.clone())));
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// The text in the view of the symlink `found` in the directory at `dir`: one that leads where the source's leads.
    pub fn read_link(&self, dir: &Path, found: &Found) -> Result<OsString> {
        let text = self.source.dir(dir)?.read_link(&found.source_name)?;
        let text = links::within(&self.source, dir, &text).unwrap_or(text);
        Ok(self.named_as_shown(dir, &text).unwrap_or(text))
    }

    /// The text of a symlink with its last component as the view shows that, if it shows it under another name.
    fn named_as_shown(&self, dir: &Path, text: &OsStr) -> Option<OsString> {
        // Nothing else is shown under another name, and nothing is looked at for nothing.
        text.as_bytes().ends_with(ARCHIVE_SUFFIX).then_some(())?;
        let target = links::resolve(&self.source, dir, text, false)?;
        let found =
            self.entry(&self.source.dir(&target.dir).ok()?, &target.dir, &target.name?).ok()?;
        (found.naming.is_some() && self.shows(&target.dir, &found)).then_some(())?;
        links::with_last(text, &found.shown_name())
    }

    /// Whether an entry of the source is shown, and not hidden by another one of that name.
    fn shows(&self, dir: &Path, found: &Found) -> bool {
        self.find(dir, &found.shown_name()).is_ok_and(|it| it.source_name == found.source_name)
    }

    /// The entry itself, not opened; `ESTALE` if it is another file than the one found.
    pub fn open_entry(&self, dir: &Path, found: &Found) -> Result<Entry> {
        let entry = self.source.dir(dir)?.entry(&found.source_name)?;
        let (now, then) = (Identity::of(&entry.stat()?), Identity::of(&found.stat));
        if (now.dev, now.ino) == (then.dev, then.ino) { Ok(entry) } else { Err(Errno::STALE) }
    }

    /// The source entry `name`, and what it shows if it is an archive, or a symlink to one.
    fn entry(&self, handle: &DirHandle<'_>, dir: &Path, name: &OsStr) -> Result<Found> {
        let stat = handle.stat(name)?;
        let mut found = Found { source_name: name.to_owned(), stat, packed: None, naming: None };
        if may_be_shown_otherwise(name, found.kind()) {
            let naming = match found.kind() {
                FileType::Symlink => self.naming_of_target(handle, dir, name),
                _ => {
                    self.peek(handle, dir, &mut found)?;
                    found.packed.as_ref().map(|p| p.naming)
                }
            };
            found.naming = naming.filter(|&naming| original_name(naming, name).is_some());
            found.packed = found.packed.filter(|_| found.naming.is_some());
        }
        Ok(found)
    }

    /// How the original of the archive is named that a symlink leads to, inside the source.
    fn naming_of_target(&self, handle: &DirHandle<'_>, dir: &Path, name: &OsStr) -> Option<Naming> {
        let text = handle.read_link(name).ok()?;
        let target = links::resolve(&self.source, dir, &text, true)?;
        let archive = target.name.filter(|name| name.as_bytes().ends_with(ARCHIVE_SUFFIX))?;
        let found = self.entry(&self.source.dir(&target.dir).ok()?, &target.dir, &archive).ok()?;
        found.packed.as_ref().map(|p| p.naming).filter(|_| self.shows(&target.dir, &found))
    }

    /// Fill in what the footer says, from memory if the file has not changed since its footer was read.
    ///
    /// # Errors
    /// That could not be learned now, but may be later: better no name than a wrong one.
    fn peek(&self, handle: &DirHandle<'_>, dir: &Path, found: &mut Found) -> Result<()> {
        let identity = Identity::of(&found.stat);
        let key = (identity.dev, identity.ino);
        let known =
            self.verdicts().get(&key).filter(|(of, _)| *of == identity).map(|(_, p)| p.clone());
        if let Some(packed) = known {
            found.packed = packed;
            return Ok(());
        }
        for _ in 0..PEEKS {
            let (file, before) = match handle.open_file(&found.source_name) {
                Ok(opened) => opened,
                // What may not be read is shown as it is, and asked again next time.
                Err(Errno::ACCESS | Errno::PERM) => return Ok(()),
                // It has become something else, which nobody opens.
                Err(Errno::STALE) => return Err(Errno::NOENT),
                Err(e) => return Err(e),
            };
            let packed = read_footer(&file, &dir.join(&found.source_name));
            found.stat = fstat(&file)?;
            let identity = Identity::of(&found.stat);
            // What was read is of this state of the file only if it was in it before and after.
            if Identity::of(&before) != identity {
                continue;
            }
            let Some(packed) = packed else { return Ok(()) };
            if identity.is_settled() {
                self.verdicts().put((identity.dev, identity.ino), (identity, packed.clone()));
            }
            found.packed = packed;
            return Ok(());
        }
        // An archive appears whole: what is being written is none, for now.
        Ok(())
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
            sha256: f.sha256,
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

/// Whether an error is of this moment: it says nothing of the file.
fn may_pass(e: Errno) -> bool {
    matches!(e, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR)
}

/// Whether an entry may be an archive, or a symlink to one.
fn may_be_shown_otherwise(name: &OsStr, kind: FileType) -> bool {
    matches!(kind, FileType::RegularFile | FileType::Symlink)
        && name.as_bytes().ends_with(ARCHIVE_SUFFIX)
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
        let view = View::new(Source::open(dir.path()).expect("source"), None).expect("view");
        let names: Vec<_> =
            view.list(Path::new("")).expect("list").into_iter().map(|l| l.name).collect();
        assert_eq!(names, [".bsz", "dir.bsz", "junk.bsz", "plain"]);
        for name in names {
            let found = view.find(Path::new(""), &name).unwrap_or_else(|e| panic!("{name:?}: {e}"));
            assert!(found.packed.is_none());
        }
        assert_eq!(view.find(Path::new(""), OsStr::new("junk")).err(), Some(Errno::NOENT));
    }
}
