//! Replies that `fuser` cannot send: data of several chunks without a copy, and attributes whose
//! inode number differs from the nodeid.
//!
//! `fuser` takes the data of a reply as one slice, so several chunks would have to be
//! concatenated. It also uses the nodeid as the inode number that programs see. These replies are
//! therefore written here, to the descriptor that the requests are read from.

use super::attr::Attr;
use fuser::{Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectoryPlus, ReplyEntry, RequestId};
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::time::Duration;

/// Most parts of a reply besides its header. The kernel accepts 1024 at once.
const MAX_PARTS: usize = 1000;

/// Most bytes of a listing with attributes: what the kernel asks for at least. `fuser` does not
/// tell what it asked for.
const MAX_LISTING: usize = 4096;

/// The entries of a directory with their attributes, as the kernel reads them.
#[derive(Default)]
pub(crate) struct Entries(Vec<u8>);

impl Entries {
    /// Whether there is room for an entry with this name.
    pub fn has_room(&self, name: &OsStr) -> bool {
        // `struct fuse_direntplus` has 152 bytes before the name.
        self.0.len() + (152 + name.len()).next_multiple_of(8) <= MAX_LISTING
    }

    /// Add an entry; `offset` is that of the next one. Without a node and its attributes, the
    /// kernel only lists the entry.
    pub fn add(
        &mut self,
        ino: u64,
        offset: u64,
        kind: FileType,
        name: &OsStr,
        node: Option<(u64, &Attr, Duration)>,
    ) {
        let entry = match node {
            Some((node, attr, ttl)) => entry_out(node, attr, ttl),
            None => vec![0; 128],
        };
        let name = name.as_bytes();
        // `struct fuse_dirent`. The types of directory entries are the upper bits of a mode.
        let entry =
            Wire(entry).longs(&[ino, offset]).words(&[name.len() as u32, kind.as_raw_mode() >> 12]);
        self.0.extend(entry.0);
        self.0.extend(name);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }
}

/// Writes replies, once it has a descriptor.
#[derive(Default)]
pub(crate) struct Replier(OnceLock<OwnedFd>);

impl Replier {
    /// Write to this `/dev/fuse`. All requests must be read from it, because the kernel looks up
    /// the request of a reply among those.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn write_to(&self, fuse: impl AsFd) -> std::io::Result<()> {
        let fuse = fuse.as_fd().try_clone_to_owned()?;
        // The first descriptor stays.
        let _ = self.0.set(fuse);
        Ok(())
    }

    /// Reply to a read.
    pub fn data(&self, request: RequestId, parts: &[impl Deref<Target = [u8]>], reply: ReplyData) {
        match parts {
            [] => reply.data(&[]),
            [only] => reply.data(only),
            several => {
                if let Err(reply) = self.parts(request, several, reply) {
                    reply.data(&several.iter().map(|part| &**part).collect::<Vec<_>>().concat());
                }
            }
        }
    }

    /// Reply with several parts; returns `reply` if `fuser` has to do it.
    fn parts(
        &self,
        request: RequestId,
        parts: &[impl Deref<Target = [u8]>],
        reply: ReplyData,
    ) -> Result<(), ReplyData> {
        let Some(fuse) = self.0.get().filter(|_| parts.len() <= MAX_PARTS) else {
            return Err(reply);
        };
        let data: usize = parts.iter().map(|part| part.len()).sum();
        let header = header(request, data);
        let mut slices = Vec::with_capacity(1 + parts.len());
        slices.push(IoSlice::new(&header));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        // The kernel takes all or nothing. After an error, no reader waits: it was interrupted, or
        // the mount has ended.
        if let Err(e) = rustix::io::writev(fuse, &slices) {
            log::debug!("the kernel rejected a reply of {data} bytes: {e}");
        }
        // Dropping it would send a second reply. It owns nothing but a reference count.
        std::mem::forget(reply);
        Ok(())
    }

    /// Reply to a lookup with the nodeid and the attributes, which the kernel may cache for `ttl`.
    pub fn entry(
        &self,
        request: RequestId,
        node: u64,
        attr: &Attr,
        ttl: Duration,
        reply: ReplyEntry,
    ) {
        match self.whole(request, &entry_out(node, attr, ttl)) {
            true => std::mem::forget(reply),
            false => reply.error(Errno::EIO),
        }
    }

    /// Reply to a creation with the nodeid, the attributes and the handle of the new file.
    pub fn created(
        &self,
        request: RequestId,
        node: u64,
        attr: &Attr,
        ttl: Duration,
        handle: u64,
        reply: ReplyCreate,
    ) {
        // `struct fuse_open_out` follows: the handle, no flags, no backing file.
        let body = [entry_out(node, attr, ttl), Wire::default().longs(&[handle, 0]).0].concat();
        match self.whole(request, &body) {
            true => std::mem::forget(reply),
            false => reply.error(Errno::EIO),
        }
    }

    /// Reply with a part of a listing.
    pub fn entries(&self, request: RequestId, entries: &Entries, reply: ReplyDirectoryPlus) {
        match self.whole(request, &entries.0) {
            true => std::mem::forget(reply),
            false => reply.error(Errno::EIO),
        }
    }

    /// Reply with attributes, which the kernel may cache for `ttl`.
    pub fn attr(&self, request: RequestId, attr: &Attr, ttl: Duration, reply: ReplyAttr) {
        match self.whole(request, &attr_out(attr, ttl)) {
            true => std::mem::forget(reply),
            false => reply.error(Errno::EIO),
        }
    }

    /// Reply to a request whose program was killed, whatever it was.
    pub fn interrupted(&self, request: RequestId) {
        let Some(fuse) = self.0.get() else { return };
        let mut header = header(request, 0);
        header[4..8].copy_from_slice(&(-libc::EINTR).to_ne_bytes());
        if let Err(e) = rustix::io::write(fuse, &header) {
            log::debug!("the kernel rejected the reply to a killed program: {e}");
        }
    }

    /// Write a reply; false if there is no descriptor.
    fn whole(&self, request: RequestId, body: &[u8]) -> bool {
        let Some(fuse) = self.0.get() else { return false };
        let header = header(request, body.len());
        if let Err(e) = rustix::io::writev(fuse, &[IoSlice::new(&header), IoSlice::new(body)]) {
            log::debug!("the kernel rejected a reply of {} bytes: {e}", body.len());
        }
        true
    }
}

/// The encoding of the kernel's structures.
#[derive(Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn longs(mut self, numbers: &[u64]) -> Self {
        self.0.extend(numbers.iter().flat_map(|n| n.to_ne_bytes()));
        self
    }

    fn words(mut self, numbers: &[u32]) -> Self {
        self.0.extend(numbers.iter().flat_map(|n| n.to_ne_bytes()));
        self
    }

    /// `struct fuse_attr` since version 7.9 of the protocol.
    fn attr(self, a: &Attr) -> Vec<u8> {
        let times = [a.atime, a.mtime, a.ctime];
        let mode = (a.kind.as_raw_mode() & libc::S_IFMT) | u32::from(a.perm);
        // Device numbers have 32 bits here. The encoding equals `dev_t` for small ones.
        let rdev = u32::try_from(a.rdev).unwrap_or(0);
        self.longs(&[a.ino, a.size, a.blocks])
            .longs(&times.map(|time| time.0.cast_unsigned()))
            .words(&times.map(|time| time.1))
            .words(&[mode, a.nlink, a.uid, a.gid, rdev, a.blksize, 0])
            .0
    }
}

/// `struct fuse_entry_out`. The generation is 0, because nodeids are never reused.
fn entry_out(node: u64, attr: &Attr, ttl: Duration) -> Vec<u8> {
    let (seconds, nanoseconds) = (ttl.as_secs(), ttl.subsec_nanos());
    Wire::default()
        .longs(&[node, 0, seconds, seconds])
        .words(&[nanoseconds, nanoseconds])
        .attr(attr)
}

/// `struct fuse_attr_out`.
fn attr_out(attr: &Attr, ttl: Duration) -> Vec<u8> {
    Wire::default().longs(&[ttl.as_secs()]).words(&[ttl.subsec_nanos(), 0]).attr(attr)
}

/// `struct fuse_out_header`: the total length, no error, and the id of the request.
fn header(request: RequestId, data: usize) -> [u8; 16] {
    let len = (16 + data) as u32;
    let mut header = [0; 16];
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[8..].copy_from_slice(&request.0.to_ne_bytes());
    header
}
