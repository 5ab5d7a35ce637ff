//! Extended attributes: what an archive is, on the file that it shows; what the daemon does, on the root.

use super::inodes::ROOT;
use super::status;
use super::tree::{Content, Tree};
use crate::read::Archive;
use rustix::io::{Errno, Result};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

/// On files that are shown from archives.
const OF_ARCHIVES: [&str; 4] = ["user.bsz.coding", "user.bsz.ratio", "user.bsz.sha256", "user.bsz.stored"];

/// The names of an inode's attributes, each with a zero behind it.
pub(super) fn list(tree: &Tree, ino: u64) -> Result<Vec<u8>> {
    let names: &[&str] = match ino {
        ROOT => &[status::ATTRIBUTE],
        _ if tree.is_archive(ino)? => &OF_ARCHIVES,
        _ => &[],
    };
    Ok(names.iter().flat_map(|name| name.bytes().chain([0])).collect())
}

/// Whether a file in a mount is shown from an archive, as anyone may ask.
pub(super) fn has_any(path: &Path) -> bool {
    rustix::fs::listxattr(path, &mut [0u8; 1 << 8]).is_ok_and(|len| len > 0)
}

/// Whether an inode may have an attribute of this name: nearly everything that is asked for is not ours.
pub(super) fn may_have(ino: u64, name: &OsStr) -> bool {
    if ino == ROOT { name == status::ATTRIBUTE } else { OF_ARCHIVES.iter().any(|n| name == *n) }
}

/// The value of an archive's attribute. Loads its index, if it is not open.
pub(super) fn get(tree: &Tree, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
    if !tree.is_archive(ino)? {
        return Err(Errno::NODATA);
    }
    let opened = tree.opened(ino)?;
    let Content::Archive { archive, .. } = &opened.content else { return Err(Errno::NODATA) };
    let footer = archive.footer();
    match name.to_str() {
        Some("user.bsz.sha256") => {
            Ok(footer.sha256.iter().map(|b| format!("{b:02x}")).collect::<String>().into())
        }
        Some("user.bsz.stored") => Ok(archive.stored_len().to_string().into()),
        Some("user.bsz.ratio") => {
            let ratio = archive.stored_len() as f64 / footer.original_len.max(1) as f64;
            Ok(format!("{ratio:.4}").into())
        }
        Some("user.bsz.coding") => Ok(codings(archive)?.into()),
        _ => Err(Errno::NODATA),
    }
}

/// How many chunks are coded how: `planes 4212, raw 3`.
fn codings(archive: &Archive) -> Result<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in 0..archive.index().len() {
        *counts.entry(archive.index().chunk(id).map_err(|_| Errno::IO)?.coding.name()).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(coding, n)| format!("{coding} {n}")).collect();
    Ok(counts.join(", "))
}
