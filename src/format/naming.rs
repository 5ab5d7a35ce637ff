//! File names: how the name of an archive and that of its original map to each other.

use crate::error::{Error, Result};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

/// How the name of an original follows from that of its archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Naming {
    /// `X.bsz` shows `X.safetensors`.
    Safetensors = 0,
    /// `X.bsz` shows `X`: for example, a blob of a hub's cache, which is named by its hash.
    Appended = 1,
}

const ARCHIVE: &[u8] = b".bsz";
const ORIGINAL: &[u8] = b".safetensors";

impl Naming {
    /// The naming for an original called `name`.
    pub fn of(name: &OsStr) -> Self {
        match name.as_bytes().strip_suffix(ORIGINAL) {
            Some(stem) if !stem.is_empty() => Self::Safetensors,
            _ => Self::Appended,
        }
    }

    /// The name of the archive of `original` under this naming, which must be [`Naming::of`] the
    /// original or [`Naming::Appended`].
    pub fn archive_name(self, original: &OsStr) -> OsString {
        let name = original.as_bytes();
        let stem = match self {
            Self::Safetensors => name.strip_suffix(ORIGINAL).unwrap_or(name),
            Self::Appended => name,
        };
        OsString::from_vec([stem, ARCHIVE].concat())
    }

    /// The name that an archive called `archive` shows, or `None` if that is not a name of an
    /// archive.
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
    fn names_map_to_archives_and_back() {
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
