//! Replies to reads, in one system call and without a copy.
//!
//! `fuser` takes a reply's bytes as one slice, for which those of several chunks would have to be copied together. So they
//! are written to the kernel here, on the descriptor that the requests are read from.

use fuser::{ReplyData, RequestId};
use std::io::IoSlice;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

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
        let Some(fuse) = self.0.get().filter(|_| parts.len() <= MOST_PARTS) else { return Err(reply) };
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
}

/// `struct fuse_out_header` of the kernel's protocol: the length of all, no error, and which request is answered.
fn header(request: RequestId, data: usize) -> [u8; 16] {
    let len = (16 + data) as u32;
    let mut header = [0; 16];
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[8..].copy_from_slice(&request.0.to_ne_bytes());
    header
}
