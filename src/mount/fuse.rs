//! The thin adapter between `fuser` and the tree: decode the arguments, make one call, encode the
//! reply.
//!
//! The threads that read `/dev/fuse` look things up in the tree. They never decode or wait for a
//! thread that does: reads, and opens that load an index, are passed to the cache's threads, which
//! send the reply.

use super::control::{self, Control};
use super::convert::{errno, file_type, reply_opened, reply_statfs, reply_value, reply_xattr};
#[cfg(feature = "remote")]
use super::failure::errno_of;
use super::handles::Opener;
use super::negotiate::negotiate;
use super::opened::Content;
#[cfg(feature = "remote")]
use super::plain::read_object;
use super::plain::read_plain;
use super::reply::Replier;
use super::tree::Tree;
use super::waiting::{Awaited, Waiting};
use super::xattrs::{self, Origin};
use crate::cache::{ChunkCache, Slice};
use crate::error::{Error, Result};
use crate::escape;
use crate::log_once::LogOnce;
use crate::readahead::Readahead;
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the kernel may cache names and attributes: how far the view lags behind its source.
const TTL: Duration = Duration::from_secs(1);

/// Most bytes of a reply. The kernel requests up to 1 MiB unless an administrator raises its limit.
const MAX_READ: usize = 16 << 20;

pub(super) struct BszFs {
    pub tree: Arc<Tree>,
    pub cache: Arc<ChunkCache>,
    pub readahead: Arc<Readahead>,
    pub control: Arc<Control>,
    pub errors: Arc<LogOnce>,
    pub replier: Arc<Replier>,
    /// If requests may wait for a network.
    pub waiting: Option<Waiting>,
}

impl BszFs {
    /// What happens when a read of the file at `path` fails: the reason is logged, and this is the
    /// error number for the program.
    fn read_failed(&self, path: &Path) -> impl FnOnce(&Error) -> Errno + Send + use<> {
        let (errors, path) = (self.errors.clone(), path.to_owned());
        #[cfg(feature = "remote")]
        let remote = self.tree.remote().cloned();
        move |e| {
            let shown = escape::path(&path);
            errors.log(log::Level::Error, &format!("{shown}: {e}"));
            #[cfg(feature = "remote")]
            if let Some(remote) = remote {
                if e.errno() == Some(libc::ESTALE) {
                    remote.forget_beside(&path);
                }
                return errno(errno_of(e));
            }
            Errno::EIO
        }
    }

    /// Look something up in the tree: here, or on a thread that may wait for the network. A job
    /// that no thread can be started for replies with an error when it is dropped.
    fn with_tree<R: Send + 'static>(
        &self,
        request: &Request,
        reply: R,
        job: impl FnOnce(&Arc<Tree>, Awaited<R>) + Send + 'static,
    ) {
        let reply = self.awaited(request, reply);
        #[cfg(feature = "remote")]
        if let Some(remote) = self.tree.remote() {
            let tree = Arc::clone(&self.tree);
            return remote.spawn(move || job(&tree, reply));
        }
        job(&self.tree, reply);
    }

    fn awaited<R>(&self, request: &Request, reply: R) -> Awaited<R> {
        match &self.waiting {
            Some(waiting) => waiting.begin(request.unique(), request.pid(), reply),
            None => Awaited::surely(reply),
        }
    }
}

impl Filesystem for BszFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // The kernel must not cache symlinks: their targets depend on what exists in the source.
        negotiate(config, &[]);
        // The kernel caches ACLs as long as attributes.
        match config.add_capabilities(InitFlags::FUSE_POSIX_ACL) {
            Ok(()) => self.tree.access().kernel_applies_acls(),
            Err(_) => {
                log::warn!(
                    "the kernel does not apply ACLs to FUSE mounts: files with ACLs are accessible \
                     to their owners only"
                )
            }
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (id, name, replier) = (request.unique(), name.to_owned(), self.replier.clone());
        self.with_tree(request, reply, move |tree, reply| {
            match (tree.look_up(parent.0, &name), reply.take()) {
                (Ok((node, attr)), Some(reply)) => replier.entry(id, node, &attr, TTL, reply),
                (Ok((node, _)), None) => tree.forget(node, 1),
                (Err(e), Some(reply)) => reply.error(errno(e)),
                (Err(_), None) => {}
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.tree.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (id, replier) = (request.unique(), self.replier.clone());
        self.with_tree(request, reply, move |tree, reply| match (tree.attr(ino.0), reply.take()) {
            (_, None) => {}
            (Ok(attr), Some(reply)) => replier.attr(id, &attr, TTL, reply),
            (Err(e), Some(reply)) => reply.error(errno(e)),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.read_link(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let (pid, by) = (request.pid(), Opener::of(flags.0));
        let (cache, readahead) = (self.cache.clone(), self.readahead.clone());
        self.with_tree(request, reply, move |tree, reply| match tree.try_open(ino.0, by) {
            Ok(Some(handle)) => {
                readahead.opened(pid, handle.number);
                reply_opened(tree, by, Ok(handle), reply);
            }
            // The programs that read the file have closed it, so it needs no warming.
            Ok(None) if readahead.is_warmer(pid) => {
                reply_opened(tree, by, Err(rustix::io::Errno::AGAIN), reply);
            }
            #[cfg(feature = "remote")]
            Ok(None) if tree.remote().is_some() => {
                reply_opened(tree, by, tree.open(ino.0, by), reply);
            }
            Ok(None) => {
                let tree = tree.clone();
                cache.spawn(move || reply_opened(&tree, by, tree.open(ino.0, by), reply));
            }
            Err(e) => reply_opened(tree, by, Err(e), reply),
        });
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = size as usize;
        let opened = match self.tree.file(handle.0) {
            Ok(_) if len > MAX_READ => return reply.error(Errno::EINVAL),
            Ok(opened) => opened,
            Err(e) => return reply.error(errno(e)),
        };
        match &opened.content {
            Content::Archive { archive, .. } => {
                let (replier, answer) = (self.replier.clone(), self.read_failed(archive.path()));
                let is_direct = flags.0 & libc::O_DIRECT != 0;
                let id = request.unique();
                let reply = self.awaited(request, reply);
                let done = move |slices: Result<Vec<Slice>>| match (slices, reply.take()) {
                    (_, None) => {}
                    (Ok(slices), Some(reply)) => replier.data(id, &slices, reply),
                    (Err(e), Some(reply)) => reply.error(answer(&e)),
                };
                self.readahead.read(archive, offset, len, request.pid(), is_direct, done);
            }
            Content::Plain(file) => {
                read_plain(&self.cache, Arc::clone(file), offset, len, reply);
            }
            #[cfg(feature = "remote")]
            Content::Object(object, path) => {
                let failed = self.read_failed(path);
                let reply = self.awaited(request, reply);
                let to = (self.replier.clone(), request.unique(), reply);
                read_object(&self.cache, object, offset, len, to, failed);
            }
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.tree.release(handle.0, Opener::of(flags.0));
        reply.ok();
        self.readahead.closed(handle.0, closed.as_ref().and_then(|closed| closed.archive()));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.with_tree(request, reply, move |tree, reply| {
            match (tree.open_dir(ino.0), reply.take()) {
                (Ok(handle), Some(reply)) => {
                    reply.opened(FileHandle(handle), FopenFlags::empty());
                }
                (Ok(handle), None) => tree.release_dir(handle),
                (Err(e), Some(reply)) => reply.error(errno(e)),
                (Err(_), None) => {}
            }
        });
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.tree.dir(handle.0) {
            Ok(entries) => entries,
            Err(e) => return reply.error(errno(e)),
        };
        // The offset of an entry is that of the next one.
        for (next, entry) in
            (1..).zip(entries.iter()).skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if reply.add(INodeNo(entry.ino), next, file_type(entry.kind), &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.tree.release_dir(handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply_statfs(self.tree.statfs(), reply);
    }

    fn access(&self, _: &Request, _: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself (`default_permissions`).
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        match xattrs::origin(ino.0, name) {
            Origin::None => reply.error(Errno::NO_XATTR),
            Origin::Daemon if name != control::DROP_CACHE => {
                let status = serde_json::to_vec(&self.control.status());
                reply_xattr(status.map_err(|_| rustix::io::Errno::IO), size, reply);
            }
            Origin::Daemon if !control::may_control(request.uid()) => reply.error(Errno::EPERM),
            Origin::Daemon => {
                let control = self.control.clone();
                self.cache.spawn(move || {
                    control.drop_cache();
                    reply_xattr(Ok(Vec::new()), size, reply);
                });
            }
            Origin::Entry => {
                let name = name.to_owned();
                self.with_tree(request, reply, move |tree, reply| {
                    reply_value(xattrs::get(tree, ino.0, &name), size, reply);
                });
            }
            Origin::Index => {
                let cache = self.cache.clone();
                self.with_tree(request, reply, move |tree, reply| {
                    #[cfg(feature = "remote")]
                    if tree.remote().is_some() {
                        return reply_value(xattrs::coding(tree, ino.0), size, reply);
                    }
                    let tree = tree.clone();
                    cache.spawn(move || reply_value(xattrs::coding(&tree, ino.0), size, reply));
                });
            }
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.with_tree(request, reply, move |tree, reply| {
            reply_value(xattrs::list(tree, ino.0), size, reply);
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let tree = self.tree.clone();
        self.cache.spawn(move || {
            match tree.file(handle.0).and_then(|file| file.seek(offset, whence)) {
                Ok(at) => reply.offset(at),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    // Unsupported operations. ENOSYS tells the kernel not to ask again, which saves round trips.
    // `fuser` does the same by default, but logs a warning each time.

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
