//! Space: what callers may use of it, and what the packer gives back.

use super::files::Handle;
use super::tree::Tree;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fstat, openat, seek, syncfs};
use rustix::io::{Errno, ReadWriteFlags, Result, pwritev2};
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

/// `EXT4_SUPER_MAGIC`, also of ext2 and ext3, and `F2FS_SUPER_MAGIC` (linux/magic.h): file systems
/// that reserve blocks for root.
const RESERVING: [u64; 2] = [0xEF53, 0xF2F5_2010];

/// Whether a call has failed for lack of space.
pub(super) fn is_full(e: Errno) -> bool {
    // The packer's files take from the quota of their owner, too.
    matches!(e, Errno::NOSPC | Errno::DQUOT)
}

/// The same for an error of the standard library.
pub(super) fn is_full_io(e: &std::io::Error) -> bool {
    Errno::from_io_error(e).is_some_and(is_full)
}

/// Where to write.
#[derive(Clone, Copy)]
pub(super) struct WriteAt {
    pub offset: u64,
    /// At the end of the file, wherever that is: another mount may have moved it, and the kernel
    /// knows only the end that it saw.
    pub appends: bool,
}

/// A call that takes space may be made again after it has failed, this often.
#[derive(Default)]
struct Room {
    attempts: u32,
}

impl Room {
    /// Have the packer give its space back. Returns whether the call may be made again.
    fn make(&mut self, tree: &Tree) -> bool {
        self.attempts += 1;
        match self.attempts {
            1 => tree.packer.give_room(),
            // Some file systems free space only with their next transaction.
            2 => tree.sync_all().is_ok(),
            _ => false,
        }
    }
}

impl Tree {
    /// Do something that takes space; again, if the packer can give some back.
    pub fn with_room<T>(&self, make: impl Fn() -> Result<T>) -> Result<T> {
        let mut room = Room::default();
        loop {
            match make() {
                Err(e) if is_full(e) && room.make(self) => {}
                other => return other,
            }
        }
    }

    fn sync_all(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&self.dir(crate::mount::ROOT)?, ".", flags, rustix::fs::Mode::empty())?;
        syncfs(root)
    }

    /// How many bytes callers may still use who may not use blocks that are reserved for root;
    /// `None` if there are none such.
    fn unreserved(&self) -> Result<Option<u64>> {
        let reserves = match self.reserves.get() {
            Some(reserves) => *reserves,
            None => *self.reserves.get_or_init(|| self.reserves_blocks()),
        };
        if !reserves {
            return Ok(None);
        }
        let space = self.statfs()?;
        Ok(Some(space.f_bavail.saturating_mul(space.f_frsize)))
    }

    #[allow(clippy::unnecessary_cast, reason = "the type differs between architectures")]
    fn reserves_blocks(&self) -> bool {
        let found = self.dir(crate::mount::ROOT).and_then(rustix::fs::fstatfs);
        found.is_ok_and(|found| RESERVING.contains(&(found.f_type as u64)))
    }

    /// Check that a caller who is `limited` may use so many bytes. The packer gives its own back.
    pub fn may_use(&self, bytes: u64, limited: bool) -> Result<()> {
        if !limited {
            return Ok(());
        }
        self.with_room(|| match self.unreserved()? {
            Some(free) if free < bytes => Err(Errno::NOSPC),
            _ => Ok(()),
        })
    }

    /// Write `data`, or less of it if the disk is full before its end. `waits`: for the packer to
    /// give its space back.
    pub fn write(
        &self,
        handle: &Handle,
        at: WriteAt,
        data: &[u8],
        waits: bool,
    ) -> std::io::Result<usize> {
        let file = self.writable(handle)?;
        let (mut written, mut room) = (0, Room::default());
        while written < data.len() {
            let offset = at.offset.saturating_add(written as u64);
            let at = WriteAt { offset, ..at };
            match self.write_some(&file, at, &data[written..], handle.limited) {
                Ok(n) => written += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if waits && is_full_io(&e) && room.make(self) => {}
                // The next write of the caller gets the error.
                Err(_) if written > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(written)
    }

    fn write_some(
        &self,
        file: &File,
        at: WriteAt,
        data: &[u8],
        limited: bool,
    ) -> std::io::Result<usize> {
        let free = if limited { self.unreserved()? } else { None };
        let takes = || match at.appends {
            true => Ok(true),
            false => takes_blocks(file, at.offset, data.len() as u64),
        };
        match free {
            Some(free) if free < data.len() as u64 && takes()? => {
                // A page, or what is left of one.
                let first = (4096 - at.offset % 4096).min(data.len() as u64);
                if free < 4096 {
                    return Err(Errno::NOSPC.into());
                }
                write_at(file, at, &data[..first as usize])
            }
            _ => write_at(file, at, data),
        }
    }

    pub fn allocate(&self, handle: &Handle, mode: i32, offset: u64, len: u64) -> Result<()> {
        let mode = FallocateFlags::from_bits(mode as u32).ok_or(Errno::OPNOTSUPP)?;
        let supported =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !supported.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.writable(handle)?;
        if !mode.contains(FallocateFlags::PUNCH_HOLE) && takes_blocks(&file, offset, len)? {
            self.may_use(len, handle.limited)?;
        }
        self.with_room(|| fallocate(&*file, mode, offset, len))
    }
}

fn write_at(file: &File, at: WriteAt, data: &[u8]) -> std::io::Result<usize> {
    if at.appends {
        let (data, flags) = ([IoSlice::new(data)], ReadWriteFlags::APPEND);
        match pwritev2(file, &data, at.offset, flags) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            written => return Ok(written?),
        }
    }
    file.write_at(data, at.offset)
}

/// Whether writing a range of a file takes blocks that it does not have yet. What was allocated
/// before it is written looks like a hole, but then the file has as many blocks as bytes.
#[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
fn takes_blocks(file: &File, offset: u64, len: u64) -> Result<bool> {
    let stat = fstat(file)?;
    let (size, end) = (stat.st_size as u64, offset.saturating_add(len));
    if end > size {
        return Ok(true);
    }
    let is_sparse = (stat.st_blocks as u64).saturating_mul(512) < size;
    Ok(is_sparse && seek(file, SeekFrom::Hole(offset)).map_or(true, |hole| hole < end))
}
