//! POSIX access control lists as the kernel stores them in an extended attribute, and the
//! permission bits that replace one that cannot be kept: they never allow more than the list did.
//!
//! Layout: `struct posix_acl_xattr_header` and `posix_acl_xattr_entry` of Linux's
//! `posix_acl_xattr.h`. How entries combine: acl(5).

/// The extended attribute of a file's own list.
pub(super) const ACCESS: &str = "system.posix_acl_access";
/// The extended attribute of the list that new entries of a directory inherit.
pub(super) const DEFAULT: &str = "system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;

const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A list in the kernel's encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<u8>);

impl Acl {
    /// Wrap the value of the extended attribute.
    pub(super) fn new(value: Vec<u8>) -> Self {
        Self(value)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The tags and permissions (0 to 7) of the entries; `None` if the encoding is unknown.
    fn entries(&self) -> Option<Vec<(u16, u32)>> {
        let (header, entries) = self.0.split_first_chunk::<HEADER>()?;
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        let known = u32::from_le_bytes(*header) == VERSION && rest.is_empty();
        let entry = |e: &[u8; ENTRY]| {
            (u16::from_le_bytes([e[0], e[1]]), u32::from(u16::from_le_bytes([e[2], e[3]])) & 7)
        };
        known.then(|| entries.iter().map(entry).collect())
    }

    /// The widest permission bits within `mode` that admit nobody whom the list excludes, for a
    /// file that cannot have the list. The group bits of a file with a list are its mask, which may
    /// be wider than the permissions of the group itself.
    pub(super) fn mode_without(&self, mode: u32) -> u32 {
        let Some(entries) = self.entries() else { return mode & 0o7700 };
        let all = |tags: u16| {
            let of = entries.iter().filter(|(tag, _)| tag & tags != 0).map(|(_, perm)| perm);
            of.fold(7, |all, perm| all & perm)
        };
        let mask = all(MASK);
        // Without the list, a user whom it names falls into the group or the others.
        let group = all(GROUP_OBJ | USER) & mask;
        let other = all(OTHER | USER | GROUP) & mask;
        mode & (0o7700 | group << 3 | other)
    }

    /// The list for a file whose group has changed. Former members of the group are now among the
    /// others, and some of the others are in the new group, so both get what both had.
    pub(super) fn with_other_group(&self) -> Option<Self> {
        let entries = self.entries()?;
        let of = |tag| entries.iter().find(|(t, _)| *t == tag).map_or(0, |(_, perm)| *perm);
        let both = of(GROUP_OBJ) & of(OTHER);
        let mut bytes = self.0.clone();
        for (entry, (tag, _)) in bytes[HEADER..].chunks_exact_mut(ENTRY).zip(&entries) {
            if tag & (GROUP_OBJ | OTHER) != 0 {
                entry[2..4].copy_from_slice(&(both as u16).to_le_bytes());
            }
        }
        Some(Self(bytes))
    }

    /// The list without write permission for the users and groups it names, and for others: it was
    /// written by somebody who is not trusted.
    pub(super) fn without_named_writers(&self) -> Option<Self> {
        let entries = self.entries()?;
        let mut bytes = self.0.clone();
        for (entry, (tag, perm)) in bytes[HEADER..].chunks_exact_mut(ENTRY).zip(&entries) {
            if tag & (USER | GROUP | OTHER) != 0 {
                entry[2..4].copy_from_slice(&(*perm as u16 & !2).to_le_bytes());
            }
        }
        Some(Self(bytes))
    }
}

/// `mode` for a file whose group has changed, as [`Acl::with_other_group`].
pub(super) fn mode_with_other_group(mode: u32) -> u32 {
    let both = mode >> 3 & mode & 7;
    mode & 0o5700 | both << 3 | both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Acl {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, perm) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&perm.to_le_bytes());
            bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        Acl(bytes)
    }

    const USER_OBJ: u16 = 0x01;

    #[test]
    fn a_file_that_loses_its_list_admits_nobody_new() {
        // A user may read, the group may not, which the mode shows as 0640.
        let one = acl(&[(USER_OBJ, 6), (USER, 4), (GROUP_OBJ, 0), (MASK, 4), (OTHER, 0)]);
        assert_eq!(one.mode_without(0o640), 0o600);
        // All may read but one user, who may be in the group.
        let all_but_one = acl(&[(USER_OBJ, 6), (USER, 0), (GROUP_OBJ, 4), (MASK, 4), (OTHER, 4)]);
        assert_eq!(all_but_one.mode_without(0o644), 0o600);
        let group_out = acl(&[(USER_OBJ, 6), (GROUP_OBJ, 4), (GROUP, 0), (MASK, 6), (OTHER, 4)]);
        assert_eq!(group_out.mode_without(0o664), 0o640);
        assert_eq!(acl(&[(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4)]).mode_without(0o2644), 0o2644);
        for unknown in [vec![], vec![3, 0, 0, 0], [one.bytes(), &[1]].concat()] {
            assert_eq!(Acl(unknown).mode_without(0o4755), 0o4700);
        }
    }

    #[test]
    fn another_group_gets_no_more_than_all_users_had() {
        assert_eq!(mode_with_other_group(0o640), 0o600);
        assert_eq!(mode_with_other_group(0o644), 0o644);
        assert_eq!(mode_with_other_group(0o2604), 0o600);
        assert_eq!(mode_with_other_group(0o4775), 0o4755);
        let list = acl(&[(USER_OBJ, 6), (USER, 4), (GROUP_OBJ, 6), (MASK, 6), (OTHER, 4)]);
        let expected = acl(&[(USER_OBJ, 6), (USER, 4), (GROUP_OBJ, 4), (MASK, 6), (OTHER, 4)]);
        assert_eq!(list.with_other_group(), Some(expected));
        assert_eq!(Acl(vec![9]).with_other_group(), None);
        let list =
            acl(&[(USER_OBJ, 6), (USER, 6), (GROUP_OBJ, 6), (GROUP, 7), (MASK, 7), (OTHER, 2)]);
        let expected =
            acl(&[(USER_OBJ, 6), (USER, 4), (GROUP_OBJ, 6), (GROUP, 5), (MASK, 7), (OTHER, 0)]);
        assert_eq!(list.without_named_writers(), Some(expected));
    }
}
