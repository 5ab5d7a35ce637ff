//! The highest rate that a FUSE file system can reach on this machine: one file, served from memory
//! by the same library with the same options as a bszfs mount, so that a read only copies.
//!
//! Run `cargo run --release --example ceiling FILE MOUNTPOINT`; it ends when unmounted.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, ReplyOpen, Request,
};
use std::{
    ffi::{OsStr, OsString},
    io,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

const TTL: Duration = Duration::from_secs(3600);
const FILE: INodeNo = INodeNo(2);

struct Ceiling {
    name: OsString,
    bytes: Vec<u8>,
}

impl Ceiling {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let file = ino == FILE;
        FileAttr {
            ino,
            size: if file { self.bytes.len() as u64 } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o555,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Ceiling {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_readahead(1 << 20).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(128);
        let _ = config
            .add_capabilities(fuser::InitFlags::FUSE_ASYNC_READ | fuser::InitFlags::FUSE_MAX_PAGES);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == self.name {
            true => reply.entry(&TTL, &self.attr(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = self.bytes.len().min(offset as usize);
        reply.data(&self.bytes[start..self.bytes.len().min(start + size as usize)]);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            let _ = reply.add(FILE, 1, FileType::RegularFile, &self.name);
        }
        reply.ok();
    }
}

fn main() -> io::Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [file, mountpoint] = &args[..] else {
        return Err(io::Error::other("usage: ceiling FILE MOUNTPOINT"));
    };
    let name = Path::new(file).file_name().ok_or_else(|| io::Error::other("FILE has no name"))?;
    let ceiling = Ceiling { name: name.into(), bytes: std::fs::read(file)? };
    let mut config = Config::default();
    config.n_threads = Some(2);
    config.clone_fd = true;
    config.mount_options = vec![MountOption::RO, MountOption::FSName("ceiling".into())];
    fuser::mount(ceiling, Path::new(mountpoint), &config)
}
