//! Replies that `fuser` cannot give: to reads, in one system call and without a copy; and to lookups and for attributes, with inode
//! numbers.
//!
//! `fuser` takes a reply's bytes as one slice, for which those of several chunks would have to be copied together; and
//! it tells programs that a file's inode number is the one by which the kernel knows the file here. So these replies
//! are written to the kernel here, on the descriptor that the requests are read from.

use super::attr::Attr;
use fuser::{Errno, ReplyAttr, ReplyData, ReplyEntry, RequestId};
use std::io::IoSlice;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

/// Most parts of a reply, beside its header; the kernel takes 1024 at once.
const MOST_PARTS: usize = 1000;

/// Writes replies, once it knows whereto.
#[derive(Default)]
pub(super) struct Replier(OnceLock<OwnedFd>);

impl Replier {
    /// Write to this `/dev/fuse` from now on: the only one that requests are read from, for the kernel looks for a reply's
    /// request among those that were read there.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn write_to(&self, fuse: impl AsFd) -> std::io::Result<()> {
        let fuse = fuse.as_fd().try_clone_to_owned()?;
        // The first one stays.
        let _ = self.0.set(fuse);
        Ok(())
    }

    /// Answer a request for data with these parts of them; gives `reply` back where `fuser` must do it.
    pub fn parts(
        &self,
        request: RequestId,
        parts: &[impl Deref<Target = [u8]>],
        reply: ReplyData,
    ) -> Result<(), ReplyData> {
        let Some(fuse) = self.0.get().filter(|_| parts.len() <= MOST_PARTS) else {
            return Err(reply);
        };
        let data: usize = parts.iter().map(|part| part.len()).sum();
        let header = header(request, data);
        let mut slices = Vec::with_capacity(1 + parts.len());
        slices.push(IoSlice::new(&header));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        // Whole or not at all. An error says that nobody waits any more: the reader was interrupted, or the mount ended.
        if let Err(e) = rustix::io::writev(fuse, &slices) {
            log::debug!("a reply of {data} bytes was not taken: {e}");
        }
        // Its drop would answer a second time. It owns nothing but a count of who uses the descriptor.
        std::mem::forget(reply);
        Ok(())
    }

    /// Answer a lookup: the kernel's number of the file, its attributes, and how long they hold.
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

    /// Answer a question for attributes.
    pub fn attr(&self, request: RequestId, attr: &Attr, ttl: Duration, reply: ReplyAttr) {
        match self.whole(request, &attr_out(attr, ttl)) {
            true => std::mem::forget(reply),
            false => reply.error(Errno::EIO),
        }
    }

    /// Write a reply in one piece; false where it is not known whereto.
    fn whole(&self, request: RequestId, body: &[u8]) -> bool {
        let Some(fuse) = self.0.get() else { return false };
        let header = header(request, body.len());
        if let Err(e) = rustix::io::writev(fuse, &[IoSlice::new(&header), IoSlice::new(body)]) {
            log::debug!("a reply of {} bytes was not taken: {e}", body.len());
        }
        true
    }
}

/// Numbers as the kernel's structures have them, after each other.
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

    /// `struct fuse_attr`, as it is since version 7.9 of the protocol.
    fn attr(self, a: &Attr) -> Vec<u8> {
        let times = [a.atime, a.mtime, a.ctime];
        let mode = (a.kind.as_raw_mode() & libc::S_IFMT) | u32::from(a.perm);
        // Device numbers have 32 bits here, in the encoding that small ones share with `dev_t`.
        let rdev = u32::try_from(a.rdev).unwrap_or(0);
        self.longs(&[a.ino, a.size, a.blocks])
            .longs(&times.map(|time| time.0.cast_unsigned()))
            .words(&times.map(|time| time.1))
            .words(&[mode, a.nlink, a.uid, a.gid, rdev, a.blksize, 0])
            .0
    }
}

/// `struct fuse_entry_out`. Numbers are never used twice, so that one generation will do.
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

/// `struct fuse_out_header` of the kernel's protocol: the length of all, no error, and which request is answered.
fn header(request: RequestId, data: usize) -> [u8; 16] {
    let len = (16 + data) as u32;
    let mut header = [0; 16];
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[8..].copy_from_slice(&request.0.to_ne_bytes());
    header
}
