//! Access control beyond permission bits: POSIX ACLs, which the kernel applies to the view as it
//! does to the source, and ACLs of other kinds, which it does not.
//!
//! In doubt, access is denied. If a file has an ACL that the kernel cannot apply here, group and
//! others lose access to it, because its permission bits alone could admit users whom the ACL
//! denies.

use super::attr::Packed;
use super::source::Entry;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The ACL of a file or a directory, and the one that new files in a directory inherit (acl(5)).
pub(crate) const ACL: &str = "system.posix_acl_access";
pub(crate) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// ACLs that the kernel cannot apply: of NFS 4, of ZFS with NFS 4 ACLs, of kernels with richacls.
const NFS4_ACL: &str = "system.nfs4_acl";
const UNSUPPORTED_ACLS: [&str; 3] = [NFS4_ACL, "system.nfs4_acl_xdr", "system.richacl"];

/// The permission bits that remain if group and others lose access.
const OWNER_ONLY: u16 = 0o7700;

/// The layout of a POSIX ACL attribute: a version, and entries of tag, permissions and id
/// (include/uapi/linux/posix_acl_xattr.h of Linux).
const VERSION: [u8; 4] = 2u32.to_le_bytes();
const ENTRY: usize = 8;
const USER_OBJ: u8 = 0x01;
const GROUP_OBJ: u8 = 0x04;
const MASK: u8 = 0x10;
const OTHER: u8 = 0x20;

/// Which kinds of ACLs exist, and whether the kernel applies them.
#[derive(Default)]
pub(crate) struct Access {
    /// Whether the kernel applies POSIX ACLs.
    kernel_applies_acls: AtomicBool,
    /// For each device of the source that was seen: the unsupported ACLs that it can have.
    devices: Mutex<HashMap<u64, Vec<&'static str>>>,
}

impl Access {
    /// The kernel will request POSIX ACLs and apply them.
    pub fn kernel_applies_acls(&self) {
        self.kernel_applies_acls.store(true, Ordering::Relaxed);
    }

    /// The permission bits to show for an entry on device `dev`. `entry` opens it, which is rarely
    /// necessary.
    pub fn bits(&self, perm: u16, dev: u64, entry: impl Fn() -> Result<Entry>) -> u16 {
        let acls = self.kernel_applies_acls.load(Ordering::Relaxed);
        let known = self.devices().get(&dev).cloned();
        if acls && known.as_ref().is_some_and(Vec::is_empty) || perm & !OWNER_ONLY == 0 {
            return perm;
        }
        let Ok(entry) = entry() else { return perm & OWNER_ONLY };
        let unsupported = known.unwrap_or_else(|| self.unsupported_acls(dev, &entry));
        let bits_suffice = (acls || is_absent(&entry.xattr(OsStr::new(ACL))))
            && unsupported.iter().all(|&name| match entry.xattr(OsStr::new(name)) {
                Ok(acl) => name == NFS4_ACL && is_trivial_nfs4_acl(&acl),
                other => is_absent(&other),
            });
        if bits_suffice { perm } else { perm & OWNER_ONLY }
    }

    /// Find out from one entry which unsupported ACLs its device can have.
    fn unsupported_acls(&self, dev: u64, entry: &Entry) -> Vec<&'static str> {
        let can_have = |name: &str| !matches!(entry.xattr(OsStr::new(name)), Err(Errno::OPNOTSUPP));
        let found: Vec<&str> = UNSUPPORTED_ACLS.into_iter().filter(|name| can_have(name)).collect();
        if !found.is_empty() {
            log::warn!(
                "the source has ACLs that a mount does not support ({}): files with an ACL that \
                 permission bits cannot express are accessible to their owners only",
                found.join(", ")
            );
        }
        self.devices().insert(dev, found.clone());
        found
    }

    fn devices(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<&'static str>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the attribute certainly does not exist.
fn is_absent(value: &Result<Vec<u8>>) -> bool {
    matches!(value, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

/// A POSIX ACL of an entry. After every error but `ENODATA`, the kernel denies all access.
pub(crate) fn acl(entry: &Entry, name: &OsStr, packed: Option<&Packed>) -> Result<Vec<u8>> {
    let mut acl = match entry.xattr(name) {
        // The file system may have no ACLs at all.
        absent if is_absent(&absent) => return Err(Errno::NODATA),
        // Some errors would make the kernel stop requesting ACLs.
        other => other.map_err(|_| Errno::IO)?,
    };
    if let Some(packed) = packed {
        restrict(&mut acl, packed.mode).ok_or(Errno::IO)?;
    }
    Ok(acl)
}

/// Remove the permissions from a POSIX ACL that the permission bits `mode` do not grant.
fn restrict(acl: &mut [u8], mode: u32) -> Option<()> {
    let (version, entries) = acl.split_at_mut_checked(VERSION.len())?;
    let (entries, rest): (&mut [[u8; ENTRY]], _) = entries.as_chunks_mut();
    (version == VERSION && rest.is_empty()).then_some(())?;
    let has_mask = entries.iter().any(|entry| entry[0] == MASK);
    for entry in entries {
        let allowed = match entry[0] {
            USER_OBJ => mode >> 6,
            // If there is a mask, the bits of the group are those of the mask.
            MASK => mode >> 3,
            GROUP_OBJ if !has_mask => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        entry[2] &= (allowed & 0o7) as u8;
    }
    Some(())
}

/// Whether an NFS 4 ACL names only the owner, the group and everyone. The server derives the
/// permission bits from these (RFC 8881, 6.2.1 and 6.4; nfs4_acl(5)).
fn is_trivial_nfs4_acl(acl: &[u8]) -> bool {
    let word = |at: usize| Some(u32::from_be_bytes(*acl.get(at..)?.first_chunk()?) as usize);
    let end = || {
        let mut at = 4;
        for _ in 0..word(0)? {
            // Type, flags and access mask, 4 bytes each; then the name and its length.
            let len = word(at + 12)?;
            let who = acl.get(at + 16..)?.get(..len)?;
            [&b"OWNER@"[..], b"GROUP@", b"EVERYONE@"].contains(&who).then_some(())?;
            at += 16 + len.next_multiple_of(4);
        }
        Some(at)
    };
    end() == Some(acl.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posix(entries: &[(u8, u8)]) -> Vec<u8> {
        let entry = |&(tag, perm): &(u8, u8)| [tag, 0, perm, 0, 1, 0, 0, 0];
        [&VERSION[..], entries.iter().map(entry).collect::<Vec<_>>().as_flattened()].concat()
    }

    #[test]
    fn an_acl_is_restricted_to_the_permission_bits_of_the_original() {
        const USER: u8 = 2;
        for (mode, acl, restricted) in [
            (
                0o640,
                vec![(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 7)],
                vec![(USER_OBJ, 6), (USER, 7), (GROUP_OBJ, 7), (MASK, 4), (OTHER, 0)],
            ),
            (
                0o604,
                vec![(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4)],
                vec![(USER_OBJ, 6), (GROUP_OBJ, 0), (OTHER, 4)],
            ),
        ] {
            let mut got = posix(&acl);
            assert_eq!(restrict(&mut got, mode), Some(()));
            assert_eq!(got, posix(&restricted), "{mode:o}");
        }
        for malformed in [&b""[..], b"\x02\0\0", b"\x03\0\0\0", b"\x02\0\0\0\x01"] {
            assert_eq!(restrict(&mut malformed.to_vec(), 0o644), None);
        }
    }

    #[test]
    fn an_nfs4_acl_that_names_a_user_is_not_trivial() {
        let nfs = |who: &[&str]| {
            let mut acl = (who.len() as u32).to_be_bytes().to_vec();
            for who in who {
                acl.extend_from_slice(&[0; 12]);
                acl.extend_from_slice(&(who.len() as u32).to_be_bytes());
                acl.extend_from_slice(who.as_bytes());
                acl.resize(acl.len().next_multiple_of(4), 0);
            }
            acl
        };
        assert!(is_trivial_nfs4_acl(&nfs(&["OWNER@", "GROUP@", "EVERYONE@"])));
        assert!(!is_trivial_nfs4_acl(&nfs(&["OWNER@", "7003@example.org", "EVERYONE@"])));
        let whole = nfs(&["OWNER@", "GROUP@"]);
        for len in 0..whole.len() {
            assert!(!is_trivial_nfs4_acl(&whole[..len]), "{len} bytes");
        }
        assert!(!is_trivial_nfs4_acl(&[0xff; 64]));
    }
}
