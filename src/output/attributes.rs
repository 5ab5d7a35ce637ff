//! The attributes of a file besides its bytes: permissions, owner, times, access control lists and
//! extended attributes.
//!
//! Attributes that cannot be kept are reported, and never leave a file open to more people than
//! before.

use super::{
    acl::{self, Acl},
    support::is_unsupported,
};
use rustix::{
    fs::{
        FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown,
        fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat, futimens,
    },
    io::{Errno, Result},
    process::geteuid,
};
use std::{
    ffi::OsStr,
    fmt,
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

/// Setuid, setgid, and write permission for all users.
const RISKY: u32 = 0o6002;

/// Access control other than POSIX ACLs: that of network file systems, and labels.
const OTHER_ACLS: [&[u8]; 6] = [
    b"system.nfs4_acl",
    b"system.nfs4_acl_xattr",
    b"system.richacl",
    b"system.cifs_acl",
    b"security.NTACL",
    b"security.SMACK64",
];
/// A label that most users may not set. Without one, a file has the label of its directory.
const SELINUX: &[u8] = b"security.selinux";

/// More bytes than the kernel allows for an extended attribute, or for the list of their names.
const MAX_VALUE: usize = 1 << 20;

/// The attributes of a file or directory besides its bytes.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Access time.
    atime: (i64, u32),
    owner: (u32, u32),
    directory: bool,
    access: Option<Acl>,
    default: Option<Acl>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether some attributes could not be read.
    unread: bool,
}

/// An attribute that a copy could not be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The owner.
    Owner,
    /// The group.
    Group,
    /// The permission bits.
    Permissions,
    /// The access control list.
    Acl,
    /// The list that new entries of a directory inherit.
    DefaultAcl,
    /// Extended attributes of these names.
    Xattrs(Vec<String>),
    /// Some of what else is lost, because there is no space for it.
    Space,
    /// The access and modification times.
    Times,
}

impl Lost {
    /// A message about the attributes `lost`, if there are any.
    pub fn message(lost: &[Self]) -> Option<String> {
        let named = lost.iter().filter(|what| **what != Self::Space);
        let names: Vec<String> = named.map(Self::to_string).collect();
        (!names.is_empty()).then(|| format!("could not keep its {}", names.join(", ")))
    }

    /// The same without owner and group: a copy belongs to the user who makes it, unless that is
    /// root.
    pub fn message_for_copy(mut lost: Vec<Self>) -> Option<String> {
        lost.retain(|what| !matches!(what, Self::Owner | Self::Group));
        Self::message(&lost)
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Owner => "owner",
            Self::Group => "group",
            Self::Permissions => "permissions",
            Self::Acl => "ACL",
            Self::DefaultAcl => "default ACL",
            Self::Times => "times",
            Self::Space => "what there is no space for",
            Self::Xattrs(names) => {
                return write!(f, "extended attributes ({})", names.join(", "));
            }
        })
    }
}

impl Attributes {
    /// The attributes of an open file or directory.
    ///
    /// # Errors
    /// Those of `fstat`.
    pub fn of(file: impl AsFd) -> Result<Self> {
        let file = file.as_fd();
        let stat = fstat(file)?;
        let mut found = Self {
            mode: stat.st_mode & 0o7777,
            mtime: mtime(&stat),
            atime: (stat.st_atime, stat.st_atime_nsec as u32),
            owner: (stat.st_uid, stat.st_gid),
            directory: FileType::from_raw_mode(stat.st_mode).is_dir(),
            access: None,
            default: None,
            xattrs: Vec::new(),
            unread: false,
        };
        // Some file systems leave these out of their listings.
        for (name, list) in [(acl::ACCESS, &mut found.access), (acl::DEFAULT, &mut found.default)] {
            match value(|buffer| fgetxattr(file, name, buffer)) {
                Ok(bytes) => *list = Some(Acl::new(bytes)),
                Err(e) if e == Errno::NODATA || is_unsupported(e) => {}
                Err(_) => found.unread = true,
            }
        }
        let names = match value(|buffer| flistxattr(file, buffer)) {
            Ok(names) => names,
            Err(e) => {
                found.unread |= !is_unsupported(e);
                Vec::new()
            }
        };
        for name in names.split(|&b| b == 0).filter(|name| is_copied(name)) {
            match value(|buffer| fgetxattr(file, name, buffer)) {
                Ok(bytes) => found.xattrs.push((name.to_vec(), bytes)),
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(_) => found.unread = true,
            }
        }
        // File systems list them in any order.
        found.xattrs.sort();
        Ok(found)
    }

    /// Set them on a file or directory that the caller owns. Returns those that could not be kept.
    ///
    /// # Errors
    /// Failures of the disk; a file system that does not support an attribute is not an error.
    pub fn apply(&self, to: impl AsFd) -> Result<Vec<Lost>> {
        let to = to.as_fd();
        let mut lost = Vec::new();
        let mut mode = self.mode;
        let now = fstat(to)?;
        // Two calls: a member of the group may keep the group, but not the owner.
        let (uid, gid) = self.owner;
        if now.st_uid != uid && !kept(fchown(to, Some(Uid::from_raw(uid)), None))? {
            lost.push(Lost::Owner);
            mode &= !SETUID;
        }
        let group = now.st_gid == gid || kept(fchown(to, None, Some(Gid::from_raw(gid))))?;
        if !group {
            lost.push(Lost::Group);
            mode &= !SETGID;
        }
        mode = self.apply_lists(to, mode, group, &mut lost)?;
        let (mut names, is_full) = self.apply_xattrs(to, &mut mode)?;
        if is_full {
            lost.push(Lost::Space);
        }
        if self.unread {
            names.push("some that could not be read".to_owned());
        }
        if !kept(fchmod(to, Mode::from_raw_mode(mode)))? {
            lost.push(Lost::Permissions);
        }
        if !names.is_empty() {
            lost.push(Lost::Xattrs(names));
        }
        if !self.apply_times(to)? {
            lost.push(Lost::Times);
        }
        Ok(lost)
    }

    /// Set only the access and modification times; returns whether they were set.
    ///
    /// # Errors
    /// As [`Attributes::apply`].
    pub fn apply_times(&self, to: impl AsFd) -> Result<bool> {
        let time = |(secs, nanos): (i64, u32)| Timespec { tv_sec: secs, tv_nsec: nanos.into() };
        let times =
            Timestamps { last_access: time(self.atime), last_modification: time(self.mtime) };
        kept(futimens(to, &times))
    }

    /// Set the access control lists; returns the permission bits to go with them.
    fn apply_lists(
        &self,
        to: impl AsFd,
        mode: u32,
        group: bool,
        lost: &mut Vec<Lost>,
    ) -> Result<u32> {
        let to = to.as_fd();
        let set = |name, list: &Acl| kept(fsetxattr(to, name, list.bytes(), XattrFlags::empty()));
        // A new file inherits lists from its directory that the original did not have.
        let unset = |name| match fremovexattr(to, name) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(e) if is_unsupported(e) => Ok(()),
            Err(e) => Err(e),
        };
        match &self.default {
            Some(list) if !set(acl::DEFAULT, list)? => lost.push(Lost::DefaultAcl),
            None if self.directory => unset(acl::DEFAULT)?,
            _ => {}
        }
        let Some(list) = &self.access else {
            unset(acl::ACCESS)?;
            return Ok(if group { mode } else { acl::mode_with_other_group(mode) });
        };
        let wanted = if group { Some(list.clone()) } else { list.with_other_group() };
        if let Some(wanted) = &wanted
            && set(acl::ACCESS, wanted)?
        {
            return Ok(mode);
        }
        lost.push(Lost::Acl);
        let mode = list.mode_without(mode);
        Ok(if group { mode } else { acl::mode_with_other_group(mode) })
    }

    /// Set the extended attributes; returns the names of those that could not be set, and whether
    /// that was for lack of space. A file that loses its access control is left to its owner alone.
    fn apply_xattrs(&self, to: impl AsFd, mode: &mut u32) -> Result<(Vec<String>, bool)> {
        let (mut lost, mut is_full) = (Vec::new(), false);
        for (name, value) in &self.xattrs {
            let set = fsetxattr(to.as_fd(), &**name, value, XattrFlags::empty());
            if kept_or_full(set)? || name == SELINUX {
                continue;
            }
            is_full |= matches!(set, Err(Errno::NOSPC | Errno::DQUOT));
            if OTHER_ACLS.contains(&&**name) {
                *mode &= 0o7700;
            }
            lost.push(OsStr::from_bytes(name).to_string_lossy().into_owned());
        }
        Ok((lost, is_full))
    }

    /// Clear the permission bits that `mode` lacks.
    pub fn narrow(&mut self, mode: u32) {
        self.mode &= mode;
    }

    /// Drop what an owner other than the caller could have set to harm whoever restores the file:
    /// setuid, setgid, and write permission for others.
    pub fn distrust_others(&mut self) {
        if self.owner.0 == geteuid().as_raw() {
            return;
        }
        self.mode &= !RISKY;
        for list in [&mut self.access, &mut self.default] {
            let Some(whole) = list.take() else { continue };
            *list = whole.without_named_writers();
            if list.is_none() {
                self.mode &= !0o077;
            }
        }
    }

    /// Whether a file with these attributes has all of the `wanted` ones. It may belong to the
    /// caller instead; the access time does not count.
    pub fn satisfy(&self, wanted: &Self) -> bool {
        let lists = |a: &Self| (a.access.clone(), a.default.clone(), a.xattrs.clone());
        (self.mode, self.mtime, self.owner.1) == (wanted.mode, wanted.mtime, wanted.owner.1)
            && [wanted.owner.0, geteuid().as_raw()].contains(&self.owner.0)
            && lists(self) == lists(wanted)
            && !self.unread
            && !wanted.unread
    }
}

/// The modification time in `stat`.
pub fn mtime(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, stat.st_mtime_nsec as u32)
}

/// Whether an attribute of this name is kept, where there is space for it, and the right to set it.
pub fn is_kept(name: &OsStr) -> bool {
    let name = name.as_bytes();
    is_copied(name) || [acl::ACCESS, acl::DEFAULT].iter().any(|list| list.as_bytes() == name)
}

/// Whether an extended attribute is copied along with a file. Capabilities and signatures are not:
/// they vouch for the bytes.
fn is_copied(name: &[u8]) -> bool {
    let user = name.starts_with(b"user.") && !name.starts_with(b"user.bsz.");
    user || name == SELINUX || OTHER_ACLS.contains(&name)
}

/// Whether a call succeeded; `false` if the caller lacks the right, or the file system the feature.
fn kept(outcome: Result<()>) -> Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::OVERFLOW) => Ok(false),
        Err(e) if is_unsupported(e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The same for a call that also fails for lack of space.
fn kept_or_full(outcome: Result<()>) -> Result<bool> {
    match outcome {
        Err(Errno::NOSPC | Errno::DQUOT | Errno::TOOBIG | Errno::RANGE) => Ok(false),
        other => kept(other),
    }
}

/// Read a value of unknown length.
fn value(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < MAX_VALUE => buffer.resize(2 * buffer.len(), 0),
            Ok(n) => {
                buffer.truncate(n);
                return Ok(buffer);
            }
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_file_gets_the_attributes_of_another() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str| File::create_new(dir.path().join(name)).expect("made");
        let (a, b) = (make("a"), make("b"));
        a.set_permissions(Permissions::from_mode(0o640)).expect("chmod");
        let has_xattrs = fsetxattr(&a, "user.note", b"x", XattrFlags::empty()).is_ok();
        let when = Timespec { tv_sec: 1_700_000_000, tv_nsec: 123_456_789 };
        futimens(&a, &Timestamps { last_access: when, last_modification: when }).expect("times");
        assert_eq!(
            Attributes::of(&a).expect("read").apply(&b).expect("applied"),
            Vec::<Lost>::new()
        );
        let (a, meta) = (a.metadata().expect("stat"), b.metadata().expect("stat"));
        assert_eq!(meta.mode(), a.mode());
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec(), meta.atime()),
            (a.mtime(), a.mtime_nsec(), a.atime())
        );
        let note = value(|buffer| fgetxattr(&b, "user.note", buffer));
        assert!(!has_xattrs || note == Ok(b"x".to_vec()), "{note:?}");
    }

    #[test]
    fn attributes_that_may_not_be_set_are_reported_and_widen_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = File::create_new(dir.path().join("a")).expect("made");
        let mut wanted = Attributes::of(&file).expect("read");
        (wanted.mode, wanted.owner) = (0o6640, (u32::MAX - 1, u32::MAX - 1));
        if geteuid().is_root() {
            eprintln!("skipped: root may give files away");
            return;
        }
        assert_eq!(wanted.apply(&file).expect("applied"), [Lost::Owner, Lost::Group]);
        assert_eq!(file.metadata().expect("stat").mode() & 0o7777, 0o600);
    }
}
