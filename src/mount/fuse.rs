//! The thin adapter between `fuser` and the tree: its types here, ours there.
//!
//! The threads that read `/dev/fuse` look things up in the tree. They never decode, nor wait for a thread that
//! does: reads, and opens that load an index, are handed to the cache's threads with the means to reply.

use super::Prefetch;
use super::ahead::Learner;
use super::control::{self, Control};
use super::handles::Opener;
use super::pull::Puller;
use super::reply::Replier;
use super::tree::{Content, Handle, Tree};
use super::xattrs::{self, Origin};
use crate::codec::checksum;
use crate::escape;
use crate::read::{ChunkCache, Reader, Slice};
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
    RequestId,
};
use lru::LruCache;
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the kernel may trust a name or attributes before it asks again: how far the view lags its source.
const TTL: Duration = Duration::from_secs(1);

/// Readahead asked of the kernel, which grants ordinary users 128 KiB.
pub(super) const READAHEAD: u32 = 1 << 20;

/// Requests that the kernel may have under way before it makes readers wait: enough that parallel faults of
/// many threads never stand behind readahead.
const MAX_BACKGROUND: u16 = 128;

/// Most bytes of a reply. The kernel asks for 1 MiB at most unless an administrator raised its limit.
const MAX_READ: usize = 16 << 20;

pub(super) struct BszFs {
    tree: Arc<Tree>,
    cache: Arc<ChunkCache>,
    learner: Learner,
    control: Arc<Control>,
    said: Arc<Said>,
    replier: Arc<Replier>,
    /// Who pulls layers into the page cache, where there is somebody.
    puller: Option<Arc<Puller>>,
}

impl BszFs {
    pub fn new(
        tree: Tree,
        cache: Arc<ChunkCache>,
        prefetch: Prefetch,
        puller: Option<Arc<Puller>>,
        control: Arc<Control>,
        said: Arc<Said>,
    ) -> Self {
        let (tree, replier) = (Arc::new(tree), Arc::default());
        let learner = Learner::start(tree.clone(), cache.clone(), prefetch, said.clone());
        Self { tree, cache, learner, control, said, replier, puller }
    }

    /// What is to know the descriptor that requests are read from.
    pub fn replier(&self) -> Arc<Replier> {
        self.replier.clone()
    }

    /// Who pulls layers into the page cache, if this request is of the process that does.
    fn puller_of(&self, request: &Request) -> Option<&Puller> {
        self.puller.as_deref().filter(|puller| puller.is(request.pid()))
    }
}

impl Filesystem for BszFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_readahead(READAHEAD).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(MAX_BACKGROUND);
        // Symlinks are not cached by the kernel: what their texts are depends on what they lead to.
        // Each alone, for a kernel that lacks one refuses all that are asked for together.
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ] {
            if config.add_capabilities(wanted).is_err() {
                log::debug!("the kernel has no {wanted:?}");
            }
        }
        // It keeps what it was told of an ACL no longer than attributes.
        match config.add_capabilities(InitFlags::FUSE_POSIX_ACL) {
            Ok(()) => self.tree.access().kernel_applies_acls(),
            Err(_) => {
                log::warn!(
                    "the kernel applies no ACLs to mounts: files with ACLs are their owners' alone"
                )
            }
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.look_up(parent.0, name) {
            Ok((node, attr)) => self.replier.entry(request.unique(), node, &attr, TTL, reply),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.tree.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.attr(ino.0) {
            Ok(attr) => self.replier.attr(request.unique(), &attr, TTL, reply),
            Err(e) => reply.error(errno(e)),
        }
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
        let (puller, by) = (self.puller_of(request), Opener::of(flags.0));
        match self.tree.open_at_once(ino.0, by) {
            Ok(Some(handle)) => {
                puller.inspect(|puller| puller.opened(handle.number));
                reply_opened(Ok(handle), reply);
            }
            // Its readers have closed it: nobody needs it.
            Ok(None) if puller.is_some() => reply.error(Errno::EAGAIN),
            Ok(None) => {
                let tree = self.tree.clone();
                self.cache.spawn(move || reply_opened(tree.open(ino.0, by), reply));
            }
            Err(e) => reply.error(errno(e)),
        }
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
        let pulls = self.puller_of(request).is_some();
        let opened = match self.tree.file(handle.0) {
            Ok(_) if len > MAX_READ => return reply.error(Errno::EINVAL),
            Ok(opened) => opened,
            Err(e) => return reply.error(errno(e)),
        };
        match &opened.content {
            Content::Archive { archive, path, model, .. } => {
                let (said_of, said) = (path.clone(), self.said.clone());
                let (request, replier) = (request.unique(), self.replier.clone());
                // What is read into the page cache stays there.
                let paged = flags.0 & libc::O_DIRECT == 0;
                let reader = match paged {
                    _ if pulls => Reader::Taker,
                    true => Reader::Keeping,
                    false => Reader::Passing,
                };
                self.cache.read(archive, offset, len, reader, move |slices| match slices {
                    Ok(slices) => reply_slices(&slices, request, &replier, reply),
                    Err(e) => {
                        said.say(log::Level::Error, &format!("{}: {e}", escape::path(&said_of)));
                        reply.error(Errno::EIO);
                    }
                });
                match model.get() {
                    _ if pulls => {}
                    Some(Some((model, shard))) => {
                        model.is_read(*shard, offset, size.into(), paged, &self.cache);
                    }
                    None => self.learner.seek(&opened),
                    Some(None) => {}
                }
            }
            Content::Plain(_) => {
                let cache = self.cache.clone();
                self.cache.spawn(move || {
                    if let Content::Plain(file) = &opened.content {
                        cache.with_room(len, |room| reply_plain(file, offset, room, reply));
                    }
                });
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
        let Some(puller) = self.puller.as_ref().filter(|puller| !puller.closed(handle.0)) else {
            return;
        };
        if let Some(Content::Archive { archive, .. }) =
            closed.as_ref().map(|closed| &closed.content)
        {
            // Others who read it will wish again.
            self.cache.forget_wishes(archive);
            puller.let_go(archive.id());
        }
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.tree.open_dir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        }
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
        // An entry's offset is that of the one after it.
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
        match self.tree.statfs() {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                u32::try_from(s.f_bsize).unwrap_or(u32::MAX),
                u32::try_from(s.f_namemax).unwrap_or(u32::MAX),
                u32::try_from(s.f_frsize).unwrap_or(u32::MAX),
            ),
            Err(e) => reply.error(errno(e)),
        }
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
            Origin::Daemon if !control::may_drop(request.uid()) => reply.error(Errno::EPERM),
            Origin::Daemon => {
                let control = self.control.clone();
                self.cache.spawn(move || {
                    control.drop_cache();
                    reply_xattr(Ok(Vec::new()), size, reply);
                });
            }
            Origin::Entry => reply_xattr(xattrs::get(&self.tree, ino.0, name), size, reply),
            Origin::Index => {
                let tree = self.tree.clone();
                self.cache.spawn(move || reply_xattr(xattrs::coding(&tree, ino.0), size, reply));
            }
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(xattrs::list(&self.tree, ino.0), size, reply);
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

    // What follows is not offered. ENOSYS tells the kernel not to ask again, and spares a round trip each time;
    // `fuser`'s own answers are the same, with a warning each.

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

fn reply_opened(handle: rustix::io::Result<Handle>, reply: ReplyOpen) {
    match handle {
        Ok(handle) => {
            let flags =
                if handle.keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
            reply.opened(FileHandle(handle.number), flags);
        }
        Err(e) => reply.error(errno(e)),
    }
}

fn reply_xattr(value: rustix::io::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

fn reply_slices(slices: &[Slice], request: RequestId, replier: &Replier, reply: ReplyData) {
    match slices {
        [] => reply.data(&[]),
        [only] => reply.data(only),
        several => {
            if let Err(reply) = replier.parts(request, several, reply) {
                reply.data(&several.iter().map(|slice| &**slice).collect::<Vec<_>>().concat());
            }
        }
    }
}

fn reply_plain(file: &File, offset: u64, room: crate::error::Result<&mut [u8]>, reply: ReplyData) {
    let room = match room {
        Ok(room) => room,
        Err(e) => {
            log::error!("{e}");
            return reply.error(Errno::ENOMEM);
        }
    };
    let mut filled = 0;
    while filled < room.len() {
        match file.read_at(&mut room[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return reply.error(e.into()),
        }
    }
    reply.data(&room[..filled]);
}

/// Errors said already, so that a reader who tries a damaged chunk again and again does not fill the log.
/// Their checksums are kept.
pub(super) struct Said(Mutex<LruCache<u64, ()>>);

impl Default for Said {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(1024).expect("not zero"))))
    }
}

impl Said {
    /// Say all of them again.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn say(&self, level: log::Level, message: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.put(checksum(message.as_bytes()), ()).is_none() {
            log::log!(level, "{message}");
        }
    }
}

fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_i32(e.raw_os_error())
}

fn file_type(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::RegularFile | FileType::Unknown => fuser::FileType::RegularFile,
    }
}
