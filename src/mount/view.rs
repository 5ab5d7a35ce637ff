//! The names of the view: which source entry a name stands for, and what a directory lists.
//!
//! - An archive `X.bsz` is shown as its original, the file that it was made from. Everything else
//!   is shown as it is.
//! - If an archive and another file would have the same name, the archive is hidden.
//! - A `.bsz` file is shown as it is if it is not a valid archive, or if the name of its original
//!   is not a valid file name.
//! - The pins of bases, which keep what other archives need, are not shown.
//! - A symlink to an archive is shown under the name of the original, and leads to the original.

use super::attr::{Identity, Packed, inode_number};
use super::files::{Directory, Files};
use super::footers::Footers;
use super::links;
use super::source::{Entry, Source, is_name};
use crate::format::{Naming, is_pin};
use rustix::fs::{FileType, Stat};
use rustix::io::{Errno, Result};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

const ARCHIVE_SUFFIX: &[u8] = b".bsz";
const SAFETENSORS_SUFFIX: &[u8] = b".safetensors";

/// The source entry behind a name of the view.
pub(super) struct Found {
    pub source_name: OsString,
    pub stat: Stat,
    /// The original, if this is an archive.
    pub packed: Option<Packed>,
    /// How the name of the original follows from that of the archive, or of the symlink to one.
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

/// An entry of a directory listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub name: OsString,
    pub kind: FileType,
    pub ino: u64,
}

pub(super) struct View {
    files: Files,
    /// The device of the source directory.
    root_dev: u64,
    /// If a single archive is mounted: its name. Nothing else in its directory is shown.
    only: Option<OsString>,
    footers: Footers,
}

impl View {
    /// A view of all `files` of a source, or of `only` one archive among them.
    ///
    /// # Errors
    /// The source is gone.
    pub fn new(files: Files, only: Option<OsString>) -> Result<Self> {
        let root_dev = Identity::of(&files.stat_root()?).dev;
        Ok(Self { files, root_dev, only, footers: Footers::new() })
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The source, if it is on this machine. There are no symlinks elsewhere.
    fn source(&self) -> Result<&Source> {
        self.files.local().ok_or(Errno::INVAL)
    }

    /// The inode number in the view of a source file, or of the original that it decodes to.
    pub fn number(&self, stat: &Stat, decoded: bool) -> u64 {
        let Identity { dev, ino, .. } = Identity::of(stat);
        inode_number(self.root_dev, dev, ino, decoded)
    }

    /// The inode number of the directory at `path`, which is not the root.
    pub fn dir_number(&self, path: &Path) -> Result<u64> {
        Ok(self.number(&self.files.stat_dir(path)?, false))
    }

    /// The entry that `name` in the directory at `dir` stands for; `ENOENT` if there is none.
    pub fn find(&self, dir: &Path, name: &OsStr) -> Result<Found> {
        match self.find_known(dir, name) {
            Err(Errno::NOENT) if self.files.renew(dir) => self.find_known(dir, name),
            found => found,
        }
    }

    fn find_known(&self, dir: &Path, name: &OsStr) -> Result<Found> {
        let handle = self.files.dir(dir)?;
        if let Some(only) = &self.only {
            let found = self.entry(&handle, dir, only)?;
            return if found.shown_name() == name { Ok(found) } else { Err(Errno::NOENT) };
        }
        if is_pin(name) {
            return Err(Errno::NOENT);
        }
        match self.entry(&handle, dir, name) {
            Ok(found) if found.naming.is_none() => return Ok(found),
            // The name may be too long for the source, and that of the archive may not; or vice
            // versa.
            Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
            Err(e) => return Err(e),
        }
        for archive in candidate_archives(name).filter(|archive| !is_pin(archive)) {
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

    /// The entries of the directory at `dir`, sorted by name.
    pub fn list(&self, dir: &Path) -> Result<Vec<Listed>> {
        let shown = |found: &Found| Listed {
            name: found.shown_name(),
            kind: found.kind(),
            ino: self.number(&found.stat, found.packed.is_some()),
        };
        if let Some(only) = &self.only {
            return Ok(vec![shown(&self.entry(&self.files.dir(dir)?, dir, only)?)]);
        }
        let mut listing = self.files.list(dir)?;
        listing.entries.retain(|(name, ..)| !is_pin(name));
        let renamed = listing.entries.iter().filter(|(name, kind, _)| may_be_renamed(name, *kind));
        let renamed: Vec<&OsStr> = renamed.map(|(name, ..)| name.as_os_str()).collect();
        listing.dir.look_ahead(&renamed, |handle, name| self.entry(handle, dir, name).map(drop))?;
        let (mut listed, mut archives) = (Vec::new(), Vec::new());
        let unchanged = |name, kind, ino| Listed {
            name,
            kind,
            ino: inode_number(self.root_dev, listing.dev, ino, false),
        };
        for (name, kind, ino) in listing.entries {
            if let Some(ino) =
                ino.filter(|_| kind != FileType::Unknown && !may_be_renamed(&name, kind))
            {
                listed.push(unchanged(name, kind, ino));
                continue;
            }
            match self.entry(&listing.dir, dir, &name) {
                Ok(found) if found.naming.is_some() => archives.push(found),
                Ok(found) => listed.push(shown(&found)),
                // Deleted since it was listed.
                Err(Errno::NOENT) => {}
                Err(e) if is_transient(e) => return Err(e),
                // A lookup will report the error.
                Err(_) => listed.push(unchanged(name, kind, ino.unwrap_or(0))),
            }
        }
        // If two archives show the same name, the order is that of `candidate_archives`, as in
        // `find`.
        archives.sort_by_key(|found| found.naming == Some(Naming::Appended));
        let mut taken: HashSet<OsString> = listed.iter().map(|l| l.name.clone()).collect();
        let mut is_free = |entry: &Listed| taken.insert(entry.name.clone());
        listed.extend(archives.iter().map(shown).filter(|entry| is_free(entry)));
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// The target in the view of the symlink `found` in the directory at `dir`. It leads to what
    /// the symlink of the source leads to.
    pub fn read_link(&self, dir: &Path, found: &Found) -> Result<OsString> {
        let target = self.files.dir(dir)?.read_link(&found.source_name)?;
        let target = links::relative_target(self.source()?, dir, &target).unwrap_or(target);
        Ok(self.renamed_target(dir, &target).unwrap_or(target))
    }

    /// The target of a symlink with the name of the original, if it leads to an archive that is
    /// shown as such.
    fn renamed_target(&self, dir: &Path, target: &OsStr) -> Option<OsString> {
        // Only archives are renamed, so no other target needs to be resolved.
        target.as_bytes().ends_with(ARCHIVE_SUFFIX).then_some(())?;
        let at = links::resolve(self.source().ok()?, dir, target, false)?;
        let found = self.entry(&self.files.dir(&at.dir).ok()?, &at.dir, &at.name?).ok()?;
        (found.naming.is_some() && self.shows(&at.dir, &found)).then_some(())?;
        links::with_last(target, &found.shown_name())
    }

    /// Whether an entry of the source is shown, and not hidden by another one of the same name.
    fn shows(&self, dir: &Path, found: &Found) -> bool {
        self.find(dir, &found.shown_name()).is_ok_and(|it| it.source_name == found.source_name)
    }

    /// The source entry of `found`, without opening the file. `ESTALE` if the name refers to
    /// another file by now.
    pub fn open_entry(&self, dir: &Path, found: &Found) -> Result<Entry> {
        let entry = self.source()?.dir(dir)?.entry(&found.source_name)?;
        let (now, then) = (Identity::of(&entry.stat()?), Identity::of(&found.stat));
        if (now.dev, now.ino) == (then.dev, then.ino) { Ok(entry) } else { Err(Errno::STALE) }
    }

    /// Examine the source entry `name`: whether it is an archive, or a symlink to one.
    fn entry(&self, handle: &Directory<'_>, dir: &Path, name: &OsStr) -> Result<Found> {
        let stat = handle.stat(name)?;
        let mut found = Found { source_name: name.to_owned(), stat, packed: None, naming: None };
        if may_be_renamed(name, found.kind()) {
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

    /// The naming of the archive that a symlink leads to, if it is inside the source.
    fn naming_of_target(&self, handle: &Directory<'_>, dir: &Path, name: &OsStr) -> Option<Naming> {
        let target = handle.read_link(name).ok()?;
        let at = links::resolve(self.source().ok()?, dir, &target, true)?;
        let archive = at.name.filter(|name| name.as_bytes().ends_with(ARCHIVE_SUFFIX))?;
        let found = self.entry(&self.files.dir(&at.dir).ok()?, &at.dir, &archive).ok()?;
        found.packed.as_ref().map(|p| p.naming).filter(|_| self.shows(&at.dir, &found))
    }

    /// Set `packed` from the footer of the file.
    ///
    /// # Errors
    /// The footer cannot be read at the moment.
    fn peek(&self, handle: &Directory<'_>, dir: &Path, found: &mut Found) -> Result<()> {
        let (name, stat) = (&found.source_name, &mut found.stat);
        found.packed = handle.packed(&self.footers, name, stat, &dir.join(name))?;
        Ok(())
    }
}

/// Whether an error is due to a temporary lack of resources, and not to the file.
fn is_transient(e: Errno) -> bool {
    matches!(e, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR)
}

/// Whether an entry may be an archive or a symlink to one, which have other names in the view.
fn may_be_renamed(name: &OsStr, kind: FileType) -> bool {
    matches!(kind, FileType::RegularFile | FileType::Symlink)
        && name.as_bytes().ends_with(ARCHIVE_SUFFIX)
}

/// The name of the original of `archive`, if it is a valid file name.
fn original_name(naming: Naming, archive: &OsStr) -> Option<OsString> {
    naming.original_name(archive).filter(|name| is_name(name))
}

/// The names of archives that may have an original called `name`, in order of precedence.
fn candidate_archives(name: &OsStr) -> impl Iterator<Item = OsString> {
    let with_suffix = |stem: &[u8]| OsString::from_vec([stem, ARCHIVE_SUFFIX].concat());
    let stem = name.as_bytes().strip_suffix(SAFETENSORS_SUFFIX);
    stem.map(with_suffix).into_iter().chain([with_suffix(name.as_bytes())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_in_each_archive_that_may_show_it() {
        let names = |n: &str| candidate_archives(OsStr::new(n)).collect::<Vec<_>>();
        assert_eq!(names("m.safetensors"), ["m.bsz", "m.safetensors.bsz"]);
        assert_eq!(names("0a1b"), ["0a1b.bsz"]);
    }

    #[test]
    fn invalid_file_names_are_recognized() {
        for bad in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
            assert!(!is_name(OsStr::new(bad)), "{bad:?}");
        }
        for good in ["a", "...", ".hidden", "with space", &"x".repeat(255)] {
            assert!(is_name(OsStr::new(good)), "{good:?}");
        }
    }

    #[test]
    fn a_file_that_has_only_the_suffix_of_an_archive_is_shown_as_it_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["junk.bsz", ".bsz", "plain"] {
            std::fs::write(dir.path().join(name), vec![7; 4096]).expect("write");
        }
        std::fs::create_dir(dir.path().join("dir.bsz")).expect("mkdir");
        let files = Files::Local(Source::open(dir.path()).expect("source"));
        let view = View::new(files, None).expect("view");
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
