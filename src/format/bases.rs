//! The table of bases: the files from which an archive of version 2 stores differences
//! (`docs/FORMAT.md`, "Bases").

use crate::error::{Error, Result};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

/// Bytes of an entry before its name.
const FIXED: usize = 41;
/// The most bases of an archive.
pub const MAX_BASES: usize = 255;
/// Bytes of the longest table.
pub(super) const MAX_TABLE: usize = MAX_BASES * (FIXED + 255);

/// A file from which an archive stores differences. It is known by its original bytes, however they
/// are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// SHA-256 of the base's original.
    pub sha256: [u8; 32],
    /// Bytes of the base's original.
    pub len: u64,
    /// The file name of the base when the archive was written: where to look first.
    pub name: String,
}

impl Base {
    /// The SHA-256 in hexadecimal.
    pub fn hex(&self) -> String {
        self.sha256.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The file name of its pin: a hard link of the base's archive that is kept beside those that
    /// need it.
    pub fn pin_name(&self) -> String {
        format!("{PIN}{}{PIN_END}", self.hex())
    }
}

const PIN: &str = ".bsz-base-";
const PIN_END: &str = ".bsz";

/// Whether a file called `name` is the pin of a base, which nobody is shown.
pub fn is_pin(name: &OsStr) -> bool {
    let hex = name.as_bytes().strip_prefix(PIN.as_bytes());
    let hex = hex.and_then(|rest| rest.strip_suffix(PIN_END.as_bytes()));
    hex.is_some_and(|hex| {
        hex.len() == 64 && hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The wire form of a table.
pub(super) fn to_bytes(bases: &[Base]) -> Vec<u8> {
    let mut out = Vec::new();
    for base in bases {
        out.extend_from_slice(&base.sha256);
        out.extend_from_slice(&base.len.to_le_bytes());
        out.push(base.name.len() as u8);
        out.extend_from_slice(base.name.as_bytes());
    }
    out
}

/// Whether `name` can be stored: the name of a file, not a path.
pub(super) fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(['/', '\0'])
}

/// Reads a table of `count` bases that takes all of `input`.
///
/// # Errors
/// Corruption if anything is out of bounds.
pub(super) fn from_bytes(mut input: &[u8], count: usize) -> Result<Vec<Base>> {
    let bad = || Error::corrupt("the archive's table of bases is malformed");
    let mut bases = Vec::with_capacity(count.min(MAX_BASES));
    for _ in 0..count {
        let (fixed, rest) = input.split_first_chunk::<FIXED>().ok_or_else(bad)?;
        let (name, rest) = rest.split_at_checked(fixed[40].into()).ok_or_else(bad)?;
        let name = std::str::from_utf8(name).ok().filter(|n| is_name(n)).ok_or_else(bad)?;
        let len = u64::from_le_bytes(std::array::from_fn(|i| fixed[32 + i]));
        let sha256 = std::array::from_fn(|i| fixed[i]);
        if len > i64::MAX as u64 {
            return Err(bad());
        }
        bases.push(Base { sha256, len, name: name.to_owned() });
        input = rest;
    }
    if input.is_empty() { Ok(bases) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_known_by_its_name() {
        let base = Base { sha256: [0xab; 32], len: 1, name: "m.safetensors".to_owned() };
        let pin = base.pin_name();
        assert!(is_pin(pin.as_ref()));
        let others = [&pin[1..], &pin[..pin.len() - 1], ".bsz-base-.bsz", "m.bsz"];
        assert!(others.iter().all(|name| !is_pin(name.as_ref())));
        assert!(!is_pin(pin.replace("ab", "AB").as_ref()));
    }

    #[test]
    fn a_table_equals_what_is_read_back_and_names_are_no_paths() {
        let base = |name: &str| Base { sha256: [7; 32], len: 1 << 40, name: name.to_owned() };
        let bases = vec![base("model.safetensors"), base("ü")];
        let wire = to_bytes(&bases);
        assert_eq!(from_bytes(&wire, 2).expect("reads"), bases);
        assert!(wire.len() <= MAX_TABLE);
        for n in 0..wire.len() {
            assert!(from_bytes(&wire[..n], 2).is_err(), "{n} bytes were enough");
        }
        assert!(from_bytes(&wire, 1).is_err() && from_bytes(&wire, 3).is_err());
        for name in ["", ".", "..", "../a", "/a", "a\0"] {
            assert!(from_bytes(&to_bytes(&[base(name)]), 1).is_err(), "{name:?}");
        }
        assert!(from_bytes(&to_bytes(&[Base { len: u64::MAX, ..base("a") }]), 1).is_err());
    }
}
