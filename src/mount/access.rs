//! Who may read, beyond permission bits: POSIX ACLs, which the kernel applies to the view as it does to the source,
//! and other rules, which it cannot.
//!
//! On any doubt fewer are let in. Where a file has rules that the kernel cannot apply here, group and others
//! are shut out of it, since its bits alone could let in whom those rules keep out.

use super::attr::Packed;
use super::source::Entry;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The ACL of a file or directory, and what a directory's new files would inherit (acl(5)).
pub(super) const ACL: &str = "system.posix_acl_access";
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Rules of other kinds: of NFS 4, of ZFS with NFS 4's rules, of kernels with rich ACLs.
const NFS4_ACL: &str = "system.nfs4_acl";
const OTHER_RULES: [&str; 3] = [NFS4_ACL, "system.nfs4_acl_xdr", "system.richacl"];

/// The bits that are left where group and others are shut out.
const OWNER_ONLY: u16 = 0o7700;

/// The layout of an ACL's attribute: a version, and entries of tag, permissions, and whose they are
/// (include/uapi/linux/posix_acl_xattr.h of Linux).
const VERSION: [u8; 4] = 2u32.to_le_bytes();
const ENTRY: usize = 8;
const USER_OBJ: u8 = 0x01;
const GROUP_OBJ: u8 = 0x04;
const MASK: u8 = 0x10;
const OTHER: u8 = 0x20;

/// Which rules there are, and who applies them.
#[derive(Default)]
pub(super) struct Access {
    /// Whether the kernel asks for ACLs and applies them.
    kernel_applies_acls: AtomicBool,
    /// The devices of the source that were seen, and which of the other rules' attributes they know.
    devices: Mutex<HashMap<u64, Vec<&'static str>>>,
}

impl Access {
    /// The kernel will ask for ACLs and apply them.
    pub fn kernel_applies_acls(&self) {
        self.kernel_applies_acls.store(true, Ordering::Relaxed);
    }

    /// Those of an entry's permission bits that may be shown. `entry` gives the entry, which is seldom needed.
    pub fn bits(&self, perm: u16, dev: u64, entry: impl Fn() -> Result<Entry>) -> u16 {
        let acls = self.kernel_applies_acls.load(Ordering::Relaxed);
        let known = self.devices().get(&dev).cloned();
        if acls && known.as_ref().is_some_and(Vec::is_empty) || perm & !OWNER_ONLY == 0 {
            return perm;
        }
        let Ok(entry) = entry() else { return perm & OWNER_ONLY };
        let others = known.unwrap_or_else(|| self.other_rules_of(dev, &entry));
        let open = (acls || is_none(&entry.xattr(OsStr::new(ACL))))
            && others.iter().all(|&name| match entry.xattr(OsStr::new(name)) {
                Ok(acl) => name == NFS4_ACL && says_what_bits_say(&acl),
                none => is_none(&none),
            });
        if open { perm } else { perm & OWNER_ONLY }
    }

    /// Learn which other rules a device knows, from one entry of it.
    fn other_rules_of(&self, dev: u64, entry: &Entry) -> Vec<&'static str> {
        let knows = |name: &str| !matches!(entry.xattr(OsStr::new(name)), Err(Errno::OPNOTSUPP));
        let others: Vec<&str> = OTHER_RULES.into_iter().filter(|name| knows(name)).collect();
        if !others.is_empty() {
            log::warn!(
                "the source has access rules that a mount cannot have ({}): group and others are shut out of \
                 files which those rules do not leave to their permission bits",
                others.join(", ")
            );
        }
        self.devices().insert(dev, others.clone());
        others
    }

    fn devices(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<&'static str>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is no such attribute, for sure.
fn is_none(value: &Result<Vec<u8>>) -> bool {
    matches!(value, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

/// An ACL of an entry. The kernel takes every error but `ENODATA` for a reason to let nobody in.
pub(super) fn acl(entry: &Entry, name: &OsStr, packed: Option<&Packed>) -> Result<Vec<u8>> {
    let mut acl = match entry.xattr(name) {
        // A file system that has no ACLs applies none.
        none if is_none(&none) => return Err(Errno::NODATA),
        // A reason of its own to refuse, not one for the kernel to stop asking.
        other => other.map_err(|_| Errno::IO)?,
    };
    if let Some(packed) = packed {
        restrict(&mut acl, packed.mode).ok_or(Errno::IO)?;
    }
    Ok(acl)
}

/// Take from an ACL what the permission bits `mode` do not allow.
fn restrict(acl: &mut [u8], mode: u32) -> Option<()> {
    let (version, entries) = acl.split_at_mut_checked(VERSION.len())?;
    let (entries, rest): (&mut [[u8; ENTRY]], _) = entries.as_chunks_mut();
    (version == VERSION && rest.is_empty()).then_some(())?;
    let has_mask = entries.iter().any(|entry| entry[0] == MASK);
    for entry in entries {
        let allowed = match entry[0] {
            USER_OBJ => mode >> 6,
            // Where there is a mask, that is what the group's bits stand for.
            MASK => mode >> 3,
            GROUP_OBJ if !has_mask => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        entry[2] &= (allowed & 0o7) as u8;
    }
    Some(())
}

/// Whether an ACL of NFS 4 is of the owner, the group and everyone alone, which is what the server makes
/// the permission bits of (RFC 8881, 6.2.1 and 6.4; nfs4_acl(5)).
fn says_what_bits_say(acl: &[u8]) -> bool {
    let word = |at: usize| Some(u32::from_be_bytes(*acl.get(at..)?.first_chunk()?) as usize);
    let end = || {
        let mut at = 4;
        for _ in 0..word(0)? {
            // A type, flags and a mask; then who.
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
    fn an_acl_is_restricted_to_what_the_originals_bits_allow() {
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
    fn only_an_nfs_acl_without_named_users_is_left_to_the_bits() {
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
        assert!(says_what_bits_say(&nfs(&["OWNER@", "GROUP@", "EVERYONE@"])));
        assert!(!says_what_bits_say(&nfs(&["OWNER@", "7003@example.org", "EVERYONE@"])));
        let whole = nfs(&["OWNER@", "GROUP@"]);
        for len in 0..whole.len() {
            assert!(!says_what_bits_say(&whole[..len]), "{len} bytes");
        }
        assert!(!says_what_bits_say(&[0xff; 64]));
    }
}
