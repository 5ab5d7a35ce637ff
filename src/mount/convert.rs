//! Our types as those of `fuser`.

use super::handles::Opener;
use super::tree::{Handle, Tree};
use super::waiting::Awaited;
use fuser::{Errno, FileHandle, FopenFlags, ReplyOpen, ReplyStatfs, ReplyXattr};
use rustix::fs::{FileType, StatVfs};

pub(crate) fn reply_statfs(statfs: rustix::io::Result<StatVfs>, reply: ReplyStatfs) {
    match statfs {
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

pub(crate) fn reply_xattr(value: rustix::io::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

pub(crate) fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_i32(e.raw_os_error())
}

pub(crate) fn file_type(kind: FileType) -> fuser::FileType {
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

/// Reply to an opening, or close the handle again.
pub(super) fn reply_opened(
    tree: &Tree,
    by: Opener,
    handle: rustix::io::Result<Handle>,
    reply: Awaited<ReplyOpen>,
) {
    match (handle, reply.take()) {
        (Ok(handle), Some(reply)) => {
            let flags =
                if handle.keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
            reply.opened(FileHandle(handle.number), flags);
        }
        (Ok(handle), None) => drop(tree.release(handle.number, by)),
        (Err(e), Some(reply)) => reply.error(errno(e)),
        (Err(_), None) => {}
    }
}

/// Reply to a request for an attribute that somebody may not wait for any more.
pub(super) fn reply_value(
    value: rustix::io::Result<Vec<u8>>,
    size: u32,
    reply: Awaited<ReplyXattr>,
) {
    if let Some(reply) = reply.take() {
        reply_xattr(value, size, reply);
    }
}
