//! Extended attributes: the users' own, ACLs, what an archive is, and what the daemon does.
//!
//! Only `user.*` and ACLs are passed on. Others are not the view's to give: `security.*` holds privileges and labels
//! that an administrator gave to a file of the source, not to what an archive decodes to, and `trusted.*` is
//! not for other mounts' users.

use super::access::{ACL, DEFAULT_ACL};
use super::attr::{Packed, ROOT};
use super::control;
use super::opened::Content;
use super::source::Entry;
use super::tree::Tree;
use crate::read::Archive;
use rustix::io::{Errno, Result};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What archives and the daemon say of themselves. They are given to who asks for them by name but are not listed, or
/// programs that copy a file with its attributes would leave on the copy what is not true of it.
const OURS: &[u8] = b"user.bsz.";

/// On files that are shown from archives.
const CODING: &str = "user.bsz.coding";
const RATIO: &str = "user.bsz.ratio";
const SHA256: &str = "user.bsz.sha256";
const STORED: &str = "user.bsz.stored";

/// Those of the users.
const USERS: &[u8] = b"user.";

/// Whether a file in a mount is shown from an archive, as anyone may ask who may read it.
pub(super) fn is_of_archive(path: &Path) -> bool {
    rustix::fs::getxattr(path, STORED, &mut [0u8; 32]).is_ok()
}

/// Where an attribute is had from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The daemon: what it does, and what it is to do.
    Daemon,
    /// The archive's index, which takes its time to load.
    Index,
    /// What the source has, or what is known of it.
    Entry,
    /// There is none of that name.
    None,
}

/// Where the attribute `name` of an inode is had from: nearly everything that is asked for is of no kind that is given.
pub(super) fn origin(ino: u64, name: &OsStr) -> Origin {
    match name.as_bytes() {
        _ if control::is_known(name) => {
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
        bytes if is_users(bytes) => Origin::Entry,
        _ => Origin::None,
    }
}

fn is_users(name: &[u8]) -> bool {
    name.starts_with(USERS) && !name.starts_with(OURS)
}

/// The names of an inode's attributes, each with a zero behind it.
pub(super) fn list(tree: &Tree, ino: u64) -> Result<Vec<u8>> {
    let (entry, _) = tree.entry(ino)?;
    let names = match entry.xattrs() {
        Ok(names) => names,
        // The source has none, or a symlink may not be asked.
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let shown =
        |name: &[u8]| is_users(name) || [ACL, DEFAULT_ACL].iter().any(|acl| name == acl.as_bytes());
    let names = names.split_inclusive(|&b| b == 0);
    Ok(names.filter(|name| shown(&name[..name.len() - 1])).flatten().copied().collect())
}

/// The value of an attribute of [`Origin::Entry`].
pub(super) fn get(tree: &Tree, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
    if name == ACL || name == DEFAULT_ACL {
        return tree.acl(ino, name);
    }
    let (entry, packed) = tree.entry(ino)?;
    if !name.as_bytes().starts_with(OURS) {
        return entry.xattr(name);
    }
    of_archive(&entry, &packed.ok_or(Errno::NODATA)?, name)
}

fn of_archive(entry: &Entry, packed: &Packed, name: &OsStr) -> Result<Vec<u8>> {
    let stored = entry.stat()?.st_size as u64;
    let value = match name.to_str() {
        Some(SHA256) => packed.sha256.iter().map(|b| format!("{b:02x}")).collect(),
        Some(RATIO) => format!("{:.4}", stored as f64 / packed.size.max(1) as f64),
        _ => stored.to_string(),
    };
    Ok(value.into())
}

/// How many of an archive's chunks are coded how: `planes 4212, raw 3`. Loads its index, if it is not open.
pub(super) fn coding(tree: &Tree, ino: u64) -> Result<Vec<u8>> {
    tree.entry(ino)?.1.ok_or(Errno::NODATA)?;
    match &tree.opened(ino)?.content {
        Content::Archive { archive, .. } => Ok(codings(archive.file().archive())?.into()),
        Content::Plain(_) => Err(Errno::NODATA),
    }
}

fn codings(archive: &Archive) -> Result<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in 0..archive.index().len() {
        *counts
            .entry(archive.index().chunk(id).map_err(|_| Errno::IO)?.coding.name())
            .or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(coding, n)| format!("{coding} {n}")).collect();
    Ok(counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_attributes_acls_and_our_own_are_given() {
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
