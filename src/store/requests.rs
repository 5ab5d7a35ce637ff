//! What the requests of the kernel do with the tree: the larger bodies of the adapter in `fuse`.
//!
//! The threads that read `/dev/fuse` do what the directory below does at once. Decoding goes to the
//! threads of the cache, and whatever else may take long to the `workers`.

use super::change::Change;
use super::control::{self, Request as ControlRequest};
use super::files::{Handle, may_write};
use super::namespace::Caller;
use super::node::{Content, Node};
use super::nodes::Link;
use super::plain::{touch, write_behind};
use super::rename::End;
use super::space::{WriteAt, is_full_io};
use super::tree::{DirEntry, Tree};
use super::workers::Workers;
use crate::cache::{ChunkCache, Slice};
use crate::error::Result;
use crate::escape;
use crate::log_once::LogOnce;
use crate::mount::{
    Attr, Control, Handles, Replier, errno, read_plain, read_plain_blocking, reply_xattr,
};
use crate::readahead::{OpenArchive, Readahead};
use fuser::{
    Errno, FileHandle, FopenFlags, RenameFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, ReplyXattr, Request, RequestId,
};
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long the kernel may cache names and attributes. Changes through the store are known to the
/// kernel at once.
pub(super) const TTL: Duration = Duration::from_secs(1);

/// Most bytes of a reply.
const MAX_READ: usize = 16 << 20;

pub(super) struct StoreFs {
    pub tree: Arc<Tree>,
    pub cache: Arc<ChunkCache>,
    pub workers: Workers,
    /// Those that send what was written to the disk.
    pub writers: Workers,
    pub readahead: Readahead,
    pub control: Arc<Control>,
    pub errors: Arc<LogOnce>,
    pub replier: Arc<Replier>,
    pub files: Arc<Handles<Handle>>,
    /// Open directories, and the listing of each as it was when its beginning was last read.
    pub dirs: Handles<Mutex<Arc<Vec<DirEntry>>>>,
    /// Whether the daemon could write to blocks that are reserved for root.
    pub is_root: bool,
    /// Whether the kernel leaves the callers' masks to us.
    pub masks: bool,
}

impl StoreFs {
    pub fn caller(&self, request: &Request, umask: u32) -> Caller {
        let umask = if self.masks { umask } else { 0 };
        let limited = self.limits(request);
        Caller { uid: request.uid(), gid: request.gid(), umask, limited }
    }

    /// Whether a caller may not use blocks that are reserved for root, although this process may.
    pub fn limits(&self, request: &Request) -> bool {
        self.is_root && request.uid() != 0
    }

    pub fn reply_entry(
        &self,
        request: &Request,
        found: rustix::io::Result<(Arc<Node>, Attr)>,
        reply: ReplyEntry,
    ) {
        match found {
            Ok((node, attr)) => self.replier.entry(request.unique(), node.id, &attr, TTL, reply),
            Err(e) => reply.error(errno(e)),
        }
    }

    pub fn change_file(
        &self,
        request: RequestId,
        id: u64,
        change: Change,
        handle: Option<Arc<Handle>>,
        reply: ReplyAttr,
    ) {
        let (tree, replier) = (self.tree.clone(), self.replier.clone());
        let blocks = tree.change_blocks(id, &change);
        let change = move || match tree.change(id, &change, handle.as_deref()) {
            Ok(attr) => replier.attr(request, &attr, TTL, reply),
            Err(e) => reply.error(errno(e)),
        };
        if blocks { self.workers.spawn(change) } else { change() }
    }

    /// It may unpack.
    pub fn link_file(&self, request: &Request, id: u64, to: Link, reply: ReplyEntry) {
        let (limited, request) = (self.limits(request), request.unique());
        let (tree, replier) = (self.tree.clone(), self.replier.clone());
        self.workers.spawn(move || match tree.with_room(|| tree.link(id, to.0, &to.1, limited)) {
            Ok((node, attr)) => replier.entry(request, node.id, &attr, TTL, reply),
            Err(e) => reply.error(errno(e)),
        });
    }

    /// It may unpack, and it syncs if something packed is replaced.
    pub fn rename_file(
        &self,
        request: &Request,
        from: Link,
        to: Link,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (tree, limited) = (self.tree.clone(), self.limits(request));
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        self.workers.spawn(move || {
            let from = End { parent: from.0, name: &from.1 };
            let to = End { parent: to.0, name: &to.1 };
            reply_empty(tree.rename(from, to, flags, limited), reply);
        });
    }

    pub fn open_file(&self, request: &Request, id: u64, flags: OFlags, reply: ReplyOpen) {
        let (limited, pid) = (self.limits(request), request.pid());
        let blocks = self.tree.open_blocks(id, flags);
        // The programs that read the file have closed it, so it needs no warming.
        if self.readahead.is_warmer(pid) && blocks {
            return reply.error(Errno::EAGAIN);
        }
        let (tree, files) = (self.tree.clone(), self.files.clone());
        let open = move || match tree.open(id, flags, limited) {
            Ok((handle, keep)) => {
                let keep = if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                let number = files.insert(handle);
                reply.opened(FileHandle(number), keep);
                Some(number)
            }
            Err(e) => {
                reply.error(errno(e));
                None
            }
        };
        if blocks || may_write(flags) {
            self.workers.spawn(move || {
                open();
            });
        } else if let Some(number) = open() {
            self.readahead.opened(pid, number);
        }
    }

    pub fn read_file(
        &self,
        request: &Request,
        handle: Arc<Handle>,
        offset: u64,
        len: usize,
        is_direct: bool,
        reply: ReplyData,
    ) {
        if len > MAX_READ {
            return reply.error(Errno::EINVAL);
        }
        if !self.tree.is_readable(&handle) {
            // Its content is opened on another thread, where this one read is answered, too.
            let (tree, cache) = (self.tree.clone(), self.cache.clone());
            let read = move || match tree.readable(&handle) {
                Ok(Content::Archive { archive, .. }) => {
                    if handle.node.is_first_access() {
                        touch(archive.file().archive().local_file());
                    }
                    read_archive(&cache, &archive, offset, len, reply);
                }
                Ok(Content::Plain(file)) => read_plain_blocking(&cache, &file, offset, len, reply),
                Err(e) => reply.error(errno(e)),
            };
            return self.cache.spawn(read);
        }
        match self.tree.readable(&handle) {
            Ok(Content::Archive { archive, .. }) => {
                if handle.node.is_first_access() {
                    let archive = archive.clone();
                    self.workers.spawn(move || touch(archive.file().archive().local_file()));
                }
                let (errors, replier) = (self.errors.clone(), self.replier.clone());
                let (id, of) = (request.unique(), archive.clone());
                let done = move |slices: Result<Vec<Slice>>| match slices {
                    Ok(slices) => replier.data(id, &slices, reply),
                    Err(e) => {
                        let path = escape::path(of.path());
                        errors.log(log::Level::Error, &format!("{path}: {e}"));
                        reply.error(Errno::EIO);
                    }
                };
                self.readahead.read(&archive, offset, len, request.pid(), is_direct, done);
            }
            Ok(Content::Plain(file)) => {
                read_plain(&self.cache, file, offset, len, reply);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    pub fn write_file(&self, handle: Arc<Handle>, at: WriteAt, data: &[u8], reply: ReplyWrite) {
        let offset = at.offset;
        if self.tree.is_writable(&handle) {
            match self.tree.write(&handle, at, data, false) {
                // Another thread waits for space.
                Err(e) if is_full_io(&e) => {}
                written => {
                    reply_written(written, reply);
                    return self.write_behind(&handle, offset, data.len());
                }
            }
        }
        let (tree, data) = (self.tree.clone(), data.to_owned());
        self.workers.spawn(move || {
            reply_written(tree.write(&handle, at, &data, true), reply);
        });
    }

    fn write_behind(&self, handle: &Arc<Handle>, offset: u64, len: usize) {
        if let Some((file, range)) = handle.wrote(offset, len) {
            let handle = Arc::clone(handle);
            self.writers.spawn(move || {
                write_behind(&file, range);
                handle.written.sent();
            });
        }
    }

    pub fn release_file(&self, number: u64, reply: ReplyEmpty) {
        let Some(handle) = self.files.remove(number) else { return reply.ok() };
        let content = handle.node.state().content.clone();
        let archive = match &content {
            Some(Content::Archive { archive, .. }) => Some(&**archive),
            _ => None,
        };
        self.readahead.closed(number, archive);
        drop(content);
        self.tree.release(&handle);
        reply.ok();
    }

    pub fn get_xattr(&self, uid: u32, id: u64, name: &OsStr, size: u32, reply: ReplyXattr) {
        match control::request(id, name) {
            ControlRequest::None => reply_xattr(self.tree.xattr(id, name), size, reply),
            ControlRequest::Status => {
                let status = serde_json::to_vec(&self.control.status());
                reply_xattr(status.map_err(|_| rustix::io::Errno::IO), size, reply);
            }
            _ if !crate::mount::may_control(uid) => reply.error(Errno::EPERM),
            ControlRequest::DropCache => {
                let control = self.control.clone();
                self.workers.spawn(move || {
                    control.drop_cache();
                    reply_xattr(Ok(Vec::new()), size, reply);
                });
            }
            ControlRequest::Packer(command) => {
                self.tree.packer.command(command);
                reply_xattr(Ok(Vec::new()), size, reply);
            }
        }
    }
}

/// Read from an archive on a thread of the cache, without readahead.
fn read_archive(
    cache: &Arc<ChunkCache>,
    archive: &OpenArchive,
    offset: u64,
    len: usize,
    reply: ReplyData,
) {
    let size = archive.file().archive().footer().original_len;
    let len = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
    cache.with_scratch(len, |buffer| {
        let read = buffer.and_then(|buffer| {
            archive.file().archive().read_at(offset, buffer, cache.decoder()).map(|_| buffer)
        });
        match read {
            Ok(buffer) => reply.data(buffer),
            Err(e) => {
                log::error!("{}: {e}", escape::path(archive.path()));
                reply.error(Errno::EIO);
            }
        }
    });
}

fn reply_written(written: std::io::Result<usize>, reply: ReplyWrite) {
    match written {
        Ok(len) => reply.written(len as u32),
        Err(e) => reply.error(e.into()),
    }
}

pub(super) fn reply_empty(outcome: rustix::io::Result<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}
