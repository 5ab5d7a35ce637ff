//! Extended attributes: those of users, ACLs, properties of archives, and the control interface.
//!
//! From the source, only `user.*` and ACLs are passed on. `security.*` holds privileges and labels
//! that an administrator has granted to a file of the source, and not to what an archive decodes
//! to. `trusted.*` is not meant for users of other mounts.

use super::access::{ACL, DEFAULT_ACL};
use super::attr::{Packed, ROOT};
use super::control;
use super::opened::{Content, SourceEntry};
use super::tree::Tree;
use crate::read::Archive;
use rustix::io::{Errno, Result};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Attributes of archives and of the control interface. They can be read but are not listed.
/// Otherwise, programs that copy a file with its attributes would put them on the copy, of which
/// they are not true.
const BSZ_PREFIX: &[u8] = b"user.bsz.";

/// The attributes of packed files: the number of chunks by coding, the size of the archive relative
/// to the original, the hash of the original, and the size of the archive in bytes.
const CODING: &str = "user.bsz.coding";
const RATIO: &str = "user.bsz.ratio";
const SHA256: &str = "user.bsz.sha256";
pub(super) const STORED: &str = "user.bsz.stored";

/// Attributes of users.
const USER_PREFIX: &[u8] = b"user.";

/// Where the value of an attribute comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The control interface.
    Daemon,
    /// The index of the archive, which takes a while to load.
    Index,
    /// The source entry, or the footer of the archive.
    Entry,
    /// There is no such attribute.
    None,
}

/// Where the attribute `name` of an inode comes from. Most attributes that programs request do not
/// exist.
pub(super) fn origin(ino: u64, name: &OsStr) -> Origin {
    match name.as_bytes() {
        _ if control::is_control(name) => {
            if ino == ROOT {
                Origin::Daemon
            } else {
                Origin::None
            }
        }
        _ if name == CODING => Origin::Index,
        _ if [RATIO, SHA256, STORED, ACL, DEFAULT_ACL].iter().any(|known| name == *known) => {
            Origin::Entry
        }
        bytes if is_user_attribute(bytes) => Origin::Entry,
        _ => Origin::None,
    }
}

fn is_user_attribute(name: &[u8]) -> bool {
    name.starts_with(USER_PREFIX) && !name.starts_with(BSZ_PREFIX)
}

/// The names of an inode's attributes, each terminated by a zero byte.
pub(super) fn list(tree: &Tree, ino: u64) -> Result<Vec<u8>> {
    let Some(entry) = tree.entry(ino)?.entry else { return Ok(Vec::new()) };
    let names = match entry.xattrs() {
        Ok(names) => names,
        // The file system has none, symlinks have none, or they may not be read.
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let is_acl = |name: &[u8]| [ACL, DEFAULT_ACL].iter().any(|acl| name == acl.as_bytes());
    let shown = |name: &[u8]| is_user_attribute(name) || is_acl(name);
    let names = names.split_inclusive(|&b| b == 0);
    Ok(names.filter(|name| shown(&name[..name.len() - 1])).flatten().copied().collect())
}

/// The value of an attribute of [`Origin::Entry`].
pub(super) fn get(tree: &Tree, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
    if name == ACL || name == DEFAULT_ACL {
        return tree.acl(ino, name);
    }
    let SourceEntry { entry, stored, packed } = tree.entry(ino)?;
    if !name.as_bytes().starts_with(BSZ_PREFIX) {
        return entry.ok_or(Errno::NODATA)?.xattr(name);
    }
    Ok(archive_attribute(stored, &packed.ok_or(Errno::NODATA)?, name))
}

/// The value of one of our attributes of an archive of `stored` bytes.
pub(crate) fn archive_attribute(stored: u64, packed: &Packed, name: &OsStr) -> Vec<u8> {
    let value = match name.to_str() {
        Some(SHA256) => packed.sha256.iter().map(|b| format!("{b:02x}")).collect(),
        Some(RATIO) => format!("{:.4}", stored as f64 / packed.size.max(1) as f64),
        _ => stored.to_string(),
    };
    value.into()
}

/// The number of an archive's chunks by coding: `planes 4212, raw 3`. Loads its index unless it is
/// open.
pub(super) fn coding(tree: &Tree, ino: u64) -> Result<Vec<u8>> {
    tree.entry(ino)?.packed.ok_or(Errno::NODATA)?;
    match &tree.opened(ino)?.content {
        Content::Archive { archive, .. } => Ok(count_codings(archive.file().archive())?.into()),
        _ => Err(Errno::NODATA),
    }
}

fn count_codings(archive: &Archive) -> Result<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in 0..archive.index().len() {
        let chunk = archive.index().chunk(id).map_err(|_| Errno::IO)?;
        *counts.entry(chunk.coding.name()).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(coding, n)| format!("{coding} {n}")).collect();
    Ok(counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_attributes_acls_and_our_own_are_shown() {
        let of = |ino, name: &str| origin(ino, OsStr::new(name));
        for name in ["user.note", "user.xdg.origin.url", ACL, DEFAULT_ACL, SHA256, "user.bszfs"] {
            assert_eq!(of(7, name), Origin::Entry, "{name}");
        }
        for name in
            ["security.capability", "trusted.overlay.opaque", "system.nfs4_acl", "user.bsz.x", ""]
        {
            assert_eq!(of(7, name), Origin::None, "{name}");
        }
        assert_eq!(of(ROOT, control::STATUS), Origin::Daemon);
        assert_eq!(of(7, control::STATUS), Origin::None);
        assert_eq!(of(7, CODING), Origin::Index);
    }
}
