//! Changing attributes: mode, owner, times, size, extended attributes.
//!
//! Those of a packed file are those of its archive, so nothing is unpacked for them.

use super::files::Handle;
use super::names::LEFT;
use super::node::Node;
use super::tree::Tree;
use super::unpack::{Keep, MODIFIED_NOW};
use crate::mount::Attr;
use crate::output::is_kept;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timestamps, Uid, XattrFlags, chmodat, chownat, ftruncate,
    futimens, removexattr, setxattr, utimensat,
};
use rustix::io::{Errno, Result};
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

/// The attributes that the kernel asks for before each write.
const CAPABILITY: &str = "security.capability";

/// Attributes of the store's own. They are not listed, and cannot be set.
const BSZ_PREFIX: &[u8] = b"user.bsz.";

/// What to change. What is `None` stays.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub times: Option<Times>,
    /// Whether the caller may not use blocks that are reserved for root.
    pub limited: bool,
}

/// The times to set; `UTIME_OMIT` for those that stay.
pub(super) type Times = Timestamps;

impl Tree {
    /// Whether [`Tree::change`] may take a while: it unpacks, or takes space.
    pub fn change_blocks(&self, id: u64, change: &Change) -> bool {
        let Ok(node) = self.nodes.get(id) else { return false };
        let is_packed = node.state().packed.is_some();
        change.size.is_some() || is_packed && loses_owner_read(change.mode)
    }

    /// Change attributes; the size first, because that changes the times.
    pub fn change(&self, id: u64, change: &Change, handle: Option<&Handle>) -> Result<Attr> {
        let node = self.nodes.get(id)?;
        if let Some(size) = change.size {
            self.resize(&node, size, handle, change.limited)?;
        }
        if loses_owner_read(change.mode) {
            // This process could not read the archive any more, and what it shows.
            self.unpack(&node, Keep::All, change.limited)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            self.with_entry(&node, |e| chownat(e, "", uid, gid, AtFlags::EMPTY_PATH))?;
        }
        if let Some(mode) = change.mode {
            if node.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = Mode::from_raw_mode(mode & 0o7777);
            self.with_entry(&node, |e| chmodat(CWD, e.path(), mode, AtFlags::empty()))?;
        }
        if let Some(times) = &change.times {
            self.with_entry(&node, |entry| match node.kind {
                FileType::Symlink => utimensat(entry, "", times, AtFlags::EMPTY_PATH),
                _ => utimensat(CWD, entry.path(), times, AtFlags::empty()),
            })?;
        }
        self.attr(id)
    }

    fn resize(&self, node: &Node, size: u64, handle: Option<&Handle>, limited: bool) -> Result<()> {
        if node.kind != FileType::RegularFile {
            return Err(if node.kind.is_dir() { Errno::ISDIR } else { Errno::INVAL });
        }
        let is_plain = node.state().packed.is_none();
        let Some(handle) = handle.filter(|handle| is_plain && handle.may_write()) else {
            return self.truncate(node, size, limited);
        };
        let file = self.writable(handle)?;
        self.with_room(|| ftruncate(&*file, size))?;
        // Some file systems leave the time alone if the size stays.
        futimens(&*file, &MODIFIED_NOW)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, id: u64, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.nodes.get(id)?;
        if name.as_bytes().starts_with(BSZ_PREFIX) {
            return self.own_xattr(&node, name);
        }
        let is_capability = name == CAPABILITY;
        if is_capability && node.no_capability.load(Ordering::Relaxed) {
            return Err(Errno::NODATA);
        }
        let value = self.entry(&node)?.xattr(name);
        if is_capability && matches!(value, Err(Errno::NODATA)) {
            node.no_capability.store(true, Ordering::Relaxed);
        }
        value
    }

    fn own_xattr(&self, node: &Node, name: &OsStr) -> Result<Vec<u8>> {
        let packed = node.state().packed.clone().ok_or(Errno::NODATA)?;
        let stored = self.entry(node)?.stat()?.st_size as u64;
        Ok(crate::mount::archive_attribute(stored, &packed, name))
    }

    /// The names of a file's extended attributes, each terminated by a zero byte.
    pub fn xattrs(&self, id: u64) -> Result<Vec<u8>> {
        let node = self.nodes.get(id)?;
        let names = match self.entry(&node)?.xattrs() {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            other => other?,
        };
        let names = names.split_inclusive(|&b| b == 0);
        Ok(names.filter(|name| !name.starts_with(BSZ_PREFIX)).flatten().copied().collect())
    }

    /// Whether [`Tree::set_xattr`] unpacks: an archive would not keep the attribute.
    pub fn set_xattr_blocks(&self, id: u64, name: &OsStr) -> bool {
        let packed = self.nodes.get(id).is_ok_and(|node| node.state().packed.is_some());
        packed && !is_kept(name)
    }

    pub fn set_xattr(
        &self,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        limited: bool,
    ) -> Result<()> {
        let node = self.changeable(id, name)?;
        // Not packed again before the attribute is there, which the packer looks at then.
        let writing = (!is_kept(name)).then(|| self.begin_writing(&node));
        if writing.is_some() {
            self.unpack(&node, Keep::All, limited)?;
        }
        let flags = XattrFlags::from_bits(flags as u32).ok_or(Errno::INVAL)?;
        let set = || self.with_entry(&node, |entry| setxattr(entry.path(), name, value, flags));
        let set = match set() {
            // The mark of a file that is not worth packing takes the place of the attribute.
            Err(Errno::NOSPC) if self.unmark_left(&node) => set(),
            other => other,
        };
        drop(writing);
        // Last: it may have been asked for meanwhile.
        node.no_capability.store(false, Ordering::Relaxed);
        set
    }

    /// Remove the mark of a file that is not worth packing. Returns whether there was one.
    fn unmark_left(&self, node: &Node) -> bool {
        self.with_entry(node, |entry| removexattr(entry.path(), LEFT)).is_ok()
    }

    pub fn remove_xattr(&self, id: u64, name: &OsStr) -> Result<()> {
        let node = self.changeable(id, name)?;
        self.with_entry(&node, |entry| removexattr(entry.path(), name))
    }

    fn changeable(&self, id: u64, name: &OsStr) -> Result<std::sync::Arc<Node>> {
        if name.as_bytes().starts_with(BSZ_PREFIX) {
            return Err(Errno::PERM);
        }
        self.nodes.get(id)
    }
}

/// Whether a change of mode takes the right to read from a daemon that is not root.
fn loses_owner_read(mode: Option<u32>) -> bool {
    mode.is_some_and(|mode| mode & 0o400 == 0) && !geteuid().is_root()
}
