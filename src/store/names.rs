//! Names: which file of the source a name of the store stands for.
//!
//! The file `N` of a store may be in the source under several names. The first that exists is
//! shown:
//!
//! | form | name in the source | what it is |
//! |---|---|---|
//! | over | `N.bsz-over` | an archive that is on its way over the plain file `N` |
//! | plain | `N` | the file itself |
//! | packed | `N.bsz` | its archive; `X.bsz` for `X.safetensors` if `bsz pack` made it |
//! | old | `N.bsz-old` | an archive that is being replaced |
//!
//! *Over* and *old* exist only during an operation, or after a crash, and only of archives that the
//! store has made, which carry the attribute [`OWN_MARK`]. A `.bsz` file that was made through the
//! store carries the attribute [`PLAIN_MARK`], and is shown under its own name.

use super::marks;
use crate::format::{Naming, is_pin};
use crate::mount::{Footers, Packed, open_regular};
use crate::output::is_temporary;
use lru::LruCache;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

pub(super) use crate::mount::PLAIN_MARK;

/// The attribute of an archive that the store has made. Any other may be the user's: it is shown,
/// but never called `.bsz-over` or `.bsz-old`, and never removed beside a plain file.
pub(super) const OWN_MARK: &str = "user.bsz.own";

/// The attribute of a file that is not worth packing: its size, its mtime, and the version of the
/// rule that decided so. It moves with the file.
pub(super) const LEFT: &str = "user.bsz.left";

const PACKED: &[u8] = b".bsz";
const OVER: &[u8] = b".bsz-over";
const OLD: &[u8] = b".bsz-old";
const SAFETENSORS: &[u8] = b".safetensors";

/// Most bytes of a file name.
const NAME_MAX: usize = 255;

/// The longest name of a file that may be packed: with any suffix, it is still a file name.
pub(super) const MAX_PACKED_NAME: usize = NAME_MAX - OVER.len();

/// In which form a file is in the source. Their order is that of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    Over,
    Plain,
    /// `X.bsz` that shows `X.safetensors`.
    PackedStem,
    Packed,
    Old,
}

/// A file of the source.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub form: Form,
    pub source_name: OsString,
    pub stat: Stat,
    /// What it shows, if it is an archive.
    pub packed: Option<Packed>,
}

impl Found {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub fn key(&self) -> Key {
        Key::of(&self.stat)
    }
}

/// Identifies a file of the source: device and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub dev: u64,
    pub ino: u64,
}

impl Key {
    // The types of `struct stat` differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    pub fn of(stat: &Stat) -> Self {
        Self { dev: stat.st_dev as u64, ino: stat.st_ino as u64 }
    }
}

/// The archive names of a shown name.
pub(super) fn packed_name(name: &OsStr) -> OsString {
    with_suffix(name, PACKED)
}

pub(super) fn over_name(name: &OsStr) -> OsString {
    with_suffix(name, OVER)
}

pub(super) fn old_name(name: &OsStr) -> OsString {
    with_suffix(name, OLD)
}

/// The archive that shows `name` because it was packed without appending to the name.
pub(super) fn stem_name(name: &OsStr) -> Option<OsString> {
    let stem = name.as_bytes().strip_suffix(SAFETENSORS).filter(|stem| !stem.is_empty())?;
    Some(OsString::from_vec([stem, PACKED].concat()))
}

fn with_suffix(name: &OsStr, suffix: &[u8]) -> OsString {
    OsString::from_vec([name.as_bytes(), suffix].concat())
}

/// Whether a file called `name` could be taken for an archive of another name.
pub(super) fn may_be_archive(name: &OsStr) -> bool {
    [PACKED, OVER, OLD].iter().any(|suffix| name.as_bytes().ends_with(suffix))
}

/// Whether `name` is a file name.
pub(super) fn check(name: &OsStr) -> Result<()> {
    match name.as_bytes() {
        bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Listed {
    pub name: OsString,
    pub kind: FileType,
    pub ino: u64,
    pub form: Form,
}

/// Most files to remember that could not be marked.
const MAX_UNMARKED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Resolves names. The footers of archives are cached.
pub(super) struct Names {
    footers: Footers,
    /// Files that are shown under their own names, and could not be marked so.
    unmarked: Mutex<LruCache<Key, ()>>,
}

impl Names {
    pub fn new() -> Self {
        Self { footers: Footers::new(), unmarked: Mutex::new(LruCache::new(MAX_UNMARKED)) }
    }

    /// Show a file under its own name, although it cannot be marked, until this process ends.
    pub fn remember_plain(&self, key: Key) {
        self.unmarked.lock().unwrap_or_else(PoisonError::into_inner).put(key, ());
    }

    fn is_remembered_plain(&self, stat: &Stat) -> bool {
        let mut unmarked = self.unmarked.lock().unwrap_or_else(PoisonError::into_inner);
        unmarked.get(&Key::of(stat)).is_some()
    }

    /// Whether the store has made an archive.
    ///
    /// # Errors
    /// That cannot be read at the moment.
    pub fn is_own(&self, dir: BorrowedFd<'_>, archive: &Found) -> Result<bool> {
        self.own_mark(dir, archive).map(|mark| mark == Some(true))
    }

    /// Whether the store may have made an archive: that cannot be told where files have no extended
    /// attributes.
    pub fn may_be_own(&self, dir: BorrowedFd<'_>, archive: &Found) -> Result<bool> {
        self.own_mark(dir, archive).map(|mark| mark != Some(false))
    }

    /// Whether an archive has the mark of those that the store has made; `None` if it can have
    /// none.
    pub fn own_mark(&self, dir: BorrowedFd<'_>, archive: &Found) -> Result<Option<bool>> {
        match open_unnoticed(dir, &archive.source_name) {
            Ok((file, stat)) if Key::of(&stat) == archive.key() => marks::find(&file, OWN_MARK),
            Ok(_) | Err(Errno::NOENT | Errno::STALE | Errno::ACCESS | Errno::PERM) => {
                Ok(Some(false))
            }
            Err(e) => Err(e),
        }
    }

    /// The file that `name` shows; `ENOENT` if there is none.
    pub fn find(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Found> {
        self.search(dir, name).next().unwrap_or(Err(Errno::NOENT))
    }

    /// All files that are forms of `name`; the first is shown.
    pub fn forms(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<Found>> {
        self.search(dir, name).collect()
    }

    fn search<'a>(
        &'a self,
        dir: BorrowedFd<'a>,
        name: &'a OsStr,
    ) -> impl Iterator<Item = Result<Found>> + 'a {
        let candidates = [
            Some((Form::Over, over_name(name))),
            Some((Form::Plain, name.to_owned())),
            stem_name(name).map(|stem| (Form::PackedStem, stem)),
            Some((Form::Packed, packed_name(name))),
            Some((Form::Old, old_name(name))),
        ];
        let candidates = candidates.into_iter().flatten().filter(|(_, name)| !is_pin(name));
        candidates.filter_map(move |(form, source_name)| match self.entry(dir, &source_name) {
            Ok(found) => (found.form == form).then_some(Ok(found)),
            Err(Errno::NOENT) => None,
            Err(Errno::NAMETOOLONG) if source_name != name => None,
            Err(e) => Some(Err(e)),
        })
    }

    /// The entry `name` of the source, with the form in which it is shown.
    pub fn entry(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Found> {
        let mut stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let regular = FileType::from_raw_mode(stat.st_mode).is_file();
        let packed = match regular && may_be_archive(name) && !self.is_remembered_plain(&stat) {
            true => self.footers.of(&mut stat, || open_unnoticed(dir, name), Path::new(name))?,
            false => None,
        };
        let form = packed.as_ref().map_or(Form::Plain, |packed| form_of(name, packed));
        let mut found = Found { form, source_name: name.to_owned(), stat, packed };
        if matches!(form, Form::Over | Form::Old) && !self.is_own(dir, &found)? {
            found.form = Form::Plain;
        }
        if found.form == Form::Plain {
            found.packed = None;
        }
        Ok(found)
    }

    /// The entries of a directory, without duplicates.
    pub fn list(&self, dir: BorrowedFd<'_>) -> Result<Vec<Listed>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(dir, ".", flags, Mode::empty())?;
        let mut listing = Dir::read_from(&opened)?;
        let mut listed: HashMap<OsString, Listed> = HashMap::new();
        while let Some(entry) = listing.read() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." || is_temporary(name) || is_pin(name) {
                continue;
            }
            let (mut kind, mut ino, mut form) = (entry.file_type(), entry.ino(), Form::Plain);
            let mut shown = name.to_owned();
            if kind == FileType::Unknown || kind.is_file() && may_be_archive(name) {
                match self.entry(dir, name) {
                    Ok(found) => {
                        (kind, ino, form) = (found.kind(), found.key().ino, found.form);
                        shown = shown_name(name, form).unwrap_or(shown);
                    }
                    // Removed since it was listed.
                    Err(Errno::NOENT) => continue,
                    // What it shows cannot be read, and using it tells why.
                    Err(_) if kind.is_file() && name.as_bytes().ends_with(PACKED) => {
                        form = Form::Packed;
                        shown = shown_name(name, form).unwrap_or(shown);
                    }
                    Err(e) => return Err(e),
                }
            }
            let entry = Listed { name: shown.clone(), kind, ino, form };
            match listed.get(&shown) {
                Some(other) if other.form <= form => {}
                _ => drop(listed.insert(shown, entry)),
            }
        }
        let mut listed: Vec<Listed> = listed.into_values().collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }
}

/// The form in which the archive `name` is shown; plain if the name that it would show is none.
fn form_of(name: &OsStr, packed: &Packed) -> Form {
    let bytes = name.as_bytes();
    let form = match packed.naming {
        _ if bytes.ends_with(OVER) => Form::Over,
        _ if bytes.ends_with(OLD) => Form::Old,
        Naming::Safetensors => Form::PackedStem,
        Naming::Appended => Form::Packed,
    };
    if shown_name(name, form).is_some() { form } else { Form::Plain }
}

/// The name that the source file `name` of a form shows.
pub(super) fn shown_name(name: &OsStr, form: Form) -> Option<OsString> {
    let bytes = name.as_bytes();
    let shown = match form {
        Form::Plain => bytes.to_vec(),
        Form::Over => bytes.strip_suffix(OVER)?.to_vec(),
        Form::Old => bytes.strip_suffix(OLD)?.to_vec(),
        Form::Packed => bytes.strip_suffix(PACKED)?.to_vec(),
        Form::PackedStem => {
            let stem = bytes.strip_suffix(PACKED).filter(|stem| !stem.is_empty())?;
            [stem, SAFETENSORS].concat()
        }
    };
    let shown = OsString::from_vec(shown);
    check(&shown).is_ok().then_some(shown)
}

/// Open a regular file for reading. `ESTALE` if the name refers to anything else.
pub(super) fn open_file(dir: impl AsFd, name: &OsStr) -> Result<(File, Stat)> {
    open_regular(dir, name, OFlags::empty())
}

/// The same for what no program has asked for, which is no access to the file where that can be.
pub(super) fn open_unnoticed(dir: impl AsFd, name: &OsStr) -> Result<(File, Stat)> {
    unnoticed(|more| open_regular(&dir, name, more))
}

/// Open something with these flags besides others, without an access to it where that can be: only
/// its owner may ask for that.
pub(super) fn unnoticed<T>(open: impl Fn(OFlags) -> Result<T>) -> Result<T> {
    match open(OFlags::NOATIME) {
        Err(Errno::PERM) => open(OFlags::empty()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_name_leads_back_to_it() {
        let name = OsStr::new("model.safetensors");
        for (form, source) in [
            (Form::Over, over_name(name)),
            (Form::Plain, name.to_owned()),
            (Form::PackedStem, stem_name(name).expect("has a stem")),
            (Form::Packed, packed_name(name)),
            (Form::Old, old_name(name)),
        ] {
            assert_eq!(shown_name(&source, form).as_deref(), Some(name), "{form:?}");
        }
        for (source, form) in [(".bsz", Form::Packed), ("..bsz", Form::Packed), ("x", Form::Old)] {
            assert_eq!(shown_name(OsStr::new(source), form), None, "{source}");
        }
        assert_eq!(stem_name(OsStr::new(".safetensors")), None);
    }
}
