//! Open files: handles, reading, writing, and what else is done with a descriptor.
//!
//! A handle for reading has no descriptor: it reads from the content of its node, and follows when
//! that is packed. A handle for writing gets a descriptor of the plain file, at once if the file is
//! plain, or else when it first changes anything, which unpacks the file.

use super::names::{Found, Key, may_be_archive, packed_name, stem_name};
use super::node::{Content, Node};
use super::plain::Written;
use super::tree::{Located, Tree, stat_at, write};
use super::unpack::{Keep, proc_path};
use rustix::fs::{Mode, OFlags, SeekFrom, fstat, openat, seek};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

/// How long to wait between attempts to open a file whose lease is being given up.
const LEASE_POLL: Duration = Duration::from_millis(1);

/// How often to try. The packer gives a lease up within milliseconds; a stranger's may take up to
/// /proc/sys/fs/lease-break-time.
const LEASE_ATTEMPTS: usize = 60_000;

/// How often to look at a file again that is renamed meanwhile.
const ATTEMPTS: usize = 8;

/// Flags of open(2) that are not passed on: the kernel has applied them to the name, or gives
/// offsets and buffers that do not suit them.
const OWN_FLAGS: OFlags = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::APPEND)
    .union(OFlags::DIRECT)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOATIME)
    .union(OFlags::TRUNC);

/// An open file, as one open(2) sees it.
pub(super) struct Handle {
    pub node: Arc<Node>,
    flags: OFlags,
    /// Whether it was opened by somebody who may not use blocks that are reserved for root.
    pub limited: bool,
    /// The descriptor of a handle that may write, once it has one.
    file: OnceLock<Arc<File>>,
    pub written: Written,
}

impl Handle {
    fn new(node: Arc<Node>, flags: OFlags, limited: bool) -> Arc<Self> {
        let (file, written) = (OnceLock::new(), Written::default());
        Arc::new(Self { node, flags, limited, file, written })
    }

    pub fn may_write(&self) -> bool {
        may_write(self.flags)
    }

    /// Count a write. Returns the range of which file should be sent to the disk now: see
    /// [`Written::add`].
    pub fn wrote(&self, offset: u64, len: usize) -> Option<(Arc<File>, (u64, u64))> {
        let file = self.file.get()?;
        Some((Arc::clone(file), self.written.add(offset, len as u64)?))
    }
}

pub(super) fn may_write(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR)
}

impl Tree {
    /// Whether [`Tree::open`] may block: it loads an index, or unpacks.
    pub fn open_blocks(&self, id: u64, flags: OFlags) -> bool {
        let Ok(node) = self.nodes.get(id) else { return false };
        let state = node.state();
        state.leased.is_some()
            || state.packed.is_some() && (state.content.is_none() || flags.contains(OFlags::TRUNC))
    }

    /// Open a file. Returns the handle, and whether the kernel may keep the pages it has cached.
    pub fn open(&self, id: u64, flags: OFlags, limited: bool) -> Result<(Arc<Handle>, bool)> {
        let node = self.nodes.get(id)?;
        let handle = Handle::new(node, flags, limited);
        self.count(&handle);
        let opened = self.open_counted(&handle);
        if opened.is_err() {
            self.release(&handle);
        }
        opened.map(|keep| (handle, keep))
    }

    fn open_counted(&self, handle: &Handle) -> Result<bool> {
        let node = &handle.node;
        if handle.may_write() {
            if handle.flags.contains(OFlags::TRUNC) {
                self.truncate(node, 0, handle.limited)?;
            }
            if node.state().packed.is_none() {
                self.writable(handle)?;
            }
        }
        if !handle.flags.contains(OFlags::WRONLY) && handle.file.get().is_none() {
            self.content(node)?;
        }
        self.keeps_pages(node)
    }

    /// The handle of a file that was just created with `fd`.
    pub fn created(
        &self,
        node: Arc<Node>,
        flags: OFlags,
        limited: bool,
        file: File,
    ) -> Arc<Handle> {
        let handle = Handle::new(node, flags, limited);
        self.count(&handle);
        if handle.may_write() {
            // Nobody else has it yet.
            self.has_opened(&handle, Arc::new(file));
        }
        handle
    }

    /// From here on, the packer keeps away from a file that is open for writing.
    fn count(&self, handle: &Handle) {
        let mut state = handle.node.state();
        state.opens += 1;
        if handle.may_write() {
            state.writers += 1;
            state.epoch += 1;
            self.end_lease(&mut state);
        }
    }

    /// Let writers open a file that is being packed.
    fn end_lease(&self, state: &mut super::node::State) {
        if let Some(file) = state.leased.take() {
            crate::pack::release_lease(&file);
        }
    }

    /// Close a handle.
    pub fn release(&self, handle: &Handle) {
        let node = &handle.node;
        let (is_done, requested) = {
            let mut state = node.state();
            state.opens -= 1;
            state.writers -= u32::from(handle.may_write());
            let content = if state.opens == 0 { state.content.take() } else { None };
            let is_done = handle.may_write()
                && state.writers == 0
                && state.packed.is_none()
                && state.orphan.is_none();
            let requested = is_done && std::mem::take(&mut state.requested);
            drop(state);
            drop(content);
            (is_done, requested)
        };
        if is_done {
            // Written through the kernel, so its page cache has what the file has.
            if let Ok(attr) = self.attr(node.id) {
                node.state().cached = Some(Box::new((attr.size, attr.mtime)));
                match requested {
                    true => self.queue_node(node.id, Duration::MAX),
                    false => self.settle(node.id, &attr),
                }
            }
        }
    }

    /// What a handle reads: its own descriptor, or the content of its node.
    pub fn readable(&self, handle: &Handle) -> Result<Content> {
        match handle.file.get().filter(|_| handle.flags.contains(OFlags::RDWR)) {
            Some(file) => Ok(Content::Plain(Arc::clone(file))),
            None => self.content(&handle.node),
        }
    }

    /// Whether [`Tree::readable`] is immediate.
    pub fn is_readable(&self, handle: &Handle) -> bool {
        handle.file.get().is_some() || handle.node.state().content.is_some()
    }

    /// Whether [`Tree::writable`] is immediate.
    pub fn is_writable(&self, handle: &Handle) -> bool {
        handle.file.get().is_some()
    }

    /// The descriptor that a handle writes to. Unpacks the file if it is packed.
    pub fn writable(&self, handle: &Handle) -> Result<Arc<File>> {
        if !handle.may_write() {
            return Err(Errno::BADF);
        }
        if let Some(file) = handle.file.get() {
            return Ok(Arc::clone(file));
        }
        let file = match self.unpack(&handle.node, Keep::All, handle.limited)? {
            Some(unpacked) => unpacked,
            None => Arc::new(self.open_plain(&handle.node, handle.flags)?),
        };
        Ok(self.has_opened(handle, file))
    }

    /// Give a handle its descriptor, unless it has one. Returns that.
    fn has_opened(&self, handle: &Handle, file: Arc<File>) -> Arc<File> {
        let file = handle.file.get_or_init(|| file);
        handle.node.state().written = Arc::downgrade(file);
        Arc::clone(file)
    }

    /// Open the plain file of a node for writing.
    pub fn open_plain(&self, node: &Node, flags: OFlags) -> Result<File> {
        for _ in 0..ATTEMPTS {
            match self.open_plain_once(node, flags) {
                // If it is gone, it is not found again, either.
                Err(Errno::STALE) => drop(self.locate(node)?),
                other => return other,
            }
        }
        Err(Errno::STALE)
    }

    fn open_plain_once(&self, node: &Node, flags: OFlags) -> Result<File> {
        let flags = flags.difference(OWN_FLAGS) | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Some(orphan) = node.orphan() {
            let path = proc_path(orphan.as_fd());
            return Ok(rustix::fs::open(path, flags, Mode::empty())?.into());
        }
        let Located { dir, link, found } = self.locate(node)?;
        if may_be_archive(&link.1) {
            // What is written may turn it into an archive.
            self.mark_plain(&dir, &link.1)?;
        }
        for _ in 0..LEASE_ATTEMPTS {
            match openat(&dir, &found.source_name, flags | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(fd) if Key::of(&fstat(&fd)?) == found.key() => {
                    // Not before: as long as another process has the lease, it may be replacing the
                    // file by its archive.
                    self.clear_twins(&dir, &link, &found)?;
                    return Ok(fd.into());
                }
                // It has lost this name since it was looked up.
                Ok(_) | Err(Errno::NOENT) => return Err(Errno::STALE),
                // Not blocking, because this thread may be the one that the lease waits for.
                Err(Errno::AGAIN) => thread::sleep(LEASE_POLL),
                Err(e) => return Err(e),
            }
        }
        Err(Errno::AGAIN)
    }

    /// Clear away archives beside a plain file that is about to change.
    fn clear_twins(
        &self,
        dir: &super::tree::DirFd,
        link: &(u64, std::ffi::OsString),
        found: &Found,
    ) -> Result<()> {
        let (parent, name) = link;
        let names = [Some(packed_name(name)), stem_name(name)];
        let may_exist = |twin: &std::ffi::OsString| {
            !matches!(stat_at(dir, twin), Err(Errno::NOENT | Errno::NAMETOOLONG))
        };
        if !names.iter().flatten().any(may_exist) {
            return Ok(());
        }
        let dir_node = self.nodes.get(*parent)?;
        let _names = write(&dir_node);
        // An archive may have taken its place meanwhile, and is not to be cleared away.
        if !stat_at(dir, name).is_ok_and(|stat| Key::of(&stat) == found.key()) {
            return Err(Errno::STALE);
        }
        self.clear_beside(dir, name, found)
    }

    /// fsync(2), or fdatasync(2) if `data_only`.
    pub fn sync(&self, handle: &Handle, data_only: bool) -> Result<()> {
        let file = match handle.file.get() {
            Some(file) => Arc::clone(file),
            None => match self.content(&handle.node)? {
                Content::Plain(file) => file,
                // It was synced before it got its name; its attributes may have changed since.
                Content::Archive { archive, .. } => {
                    let file = archive.file().archive().local_file();
                    return if data_only { Ok(()) } else { rustix::fs::fsync(file) };
                }
            },
        };
        if data_only { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) }
    }

    /// `SEEK_DATA` and `SEEK_HOLE` of lseek(2). An archive has no holes.
    pub fn seek(&self, handle: &Handle, offset: i64, whence: i32) -> Result<i64> {
        let from = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let content = match handle.file.get() {
            Some(file) => Content::Plain(Arc::clone(file)),
            None => self.content(&handle.node)?,
        };
        let (to, size) = match (content, whence) {
            (Content::Plain(file), libc::SEEK_DATA) => {
                return Ok(seek(&*file, SeekFrom::Data(from))?.cast_signed());
            }
            (Content::Plain(file), libc::SEEK_HOLE) => {
                return Ok(seek(&*file, SeekFrom::Hole(from))?.cast_signed());
            }
            (Content::Archive { packed, .. }, libc::SEEK_DATA) => (from, packed.size),
            (Content::Archive { packed, .. }, libc::SEEK_HOLE) => (packed.size, packed.size),
            _ => return Err(Errno::INVAL),
        };
        if from >= size { Err(Errno::NXIO) } else { Ok(to.cast_signed()) }
    }
}
