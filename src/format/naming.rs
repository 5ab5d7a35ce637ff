//! Names: what an archive is called, and what it shows.

use crate::error::{Error, Result};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

/// How an original's name follows from its archive's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Naming {
    /// `X.bsz` shows `X.safetensors`.
    Safetensors = 0,
    /// `X.bsz` shows `X`, such as a hub's blob named by its hash.
    Appended = 1,
}

const ARCHIVE: &[u8] = b".bsz";
const ORIGINAL: &[u8] = b".safetensors";

impl Naming {
    /// The naming of an original called `name`.
    pub fn of(name: &OsStr) -> Self {
        match name.as_bytes().strip_suffix(ORIGINAL) {
            Some(stem) if !stem.is_empty() => Self::Safetensors,
            _ => Self::Appended,
        }
    }

    /// What the archive of `original` is called under this naming, which is [that of](Naming::of) the original, or
    /// [`Naming::Appended`].
    pub fn archive_name(self, original: &OsStr) -> OsString {
        let name = original.as_bytes();
        let stem = match self {
            Self::Safetensors => name.strip_suffix(ORIGINAL).unwrap_or(name),
            Self::Appended => name,
        };
        OsString::from_vec([stem, ARCHIVE].concat())
    }

    /// What an archive called `archive` shows; `None` where that is no name for an archive.
    pub fn original_name(self, archive: &OsStr) -> Option<OsString> {
        let stem = archive.as_bytes().strip_suffix(ARCHIVE).filter(|s| !s.is_empty())?;
        let name = OsString::from_vec(match self {
            Self::Safetensors => [stem, ORIGINAL].concat(),
            Self::Appended => stem.to_vec(),
        });
        (name != "." && name != "..").then_some(name)
    }

    pub(super) fn from_wire(n: u64) -> Result<Self> {
        match n {
            0 => Ok(Self::Safetensors),
            1 => Ok(Self::Appended),
            _ => Err(Error::unsupported(format!(
                "the archive's naming {n} is unknown; a newer bsz is needed"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_there_and_back() {
        for (original, archive) in [
            ("model.safetensors", "model.bsz"),
            ("a.b.safetensors", "a.b.bsz"),
            ("53aa51172d142c89d9012cce15ae4d6c", "53aa51172d142c89d9012cce15ae4d6c.bsz"),
            (".safetensors", ".safetensors.bsz"),
            ("x.bin", "x.bin.bsz"),
        ] {
            let naming = Naming::of(original.as_ref());
            assert_eq!(naming.archive_name(original.as_ref()), archive);
            assert_eq!(naming.original_name(archive.as_ref()).expect("an archive"), original);
        }
        assert_eq!(Naming::Appended.original_name("..bsz".as_ref()), None);
        assert_eq!(Naming::Appended.original_name(".bsz".as_ref()), None);
        assert_eq!(Naming::Safetensors.original_name("model.bin".as_ref()), None);
    }
}
