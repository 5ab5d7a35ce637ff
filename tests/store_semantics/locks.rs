//! Locks of one machine.

use super::store::{both, holds, is_packed};
use crate::common::mounts::wait_for;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Try to lock a range for an open file description; `kind` is `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
fn ofd_lock(file: &File, kind: libc::c_int, start: i64, len: i64) -> rustix::io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the lock is valid for the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
    }
}

#[test]
fn flock_excludes_other_descriptors() {
    both(|_, path, model| {
        let link = path.with_extension("other-name");
        std::fs::hard_link(path, &link).unwrap();
        let before = is_packed(path);
        let (one, other) = (open(path), open(&link));
        flock(&one, EXCLUSIVE).unwrap();
        assert_eq!(flock(&other, EXCLUSIVE), Err(Errno::WOULDBLOCK));
        assert_eq!(flock(&other, SHARED), Err(Errno::WOULDBLOCK));
        flock(&one, SHARED).unwrap();
        flock(&other, SHARED).unwrap();
        drop(one);
        // A program that another test starts has its descriptors for a moment.
        wait_for("the lock", || flock(&other, EXCLUSIVE).is_ok());
        // A lock holds for a file without a name, too.
        std::fs::remove_file(&link).unwrap();
        assert_eq!(flock(open(path), SHARED), Err(Errno::WOULDBLOCK));
        assert_eq!(is_packed(path), before, "locking changes nothing");
        holds(path, model);
    });
}

#[test]
fn posix_locks_belong_to_the_process() {
    both(|_, path, _| {
        let (one, other) = (open(path), open(path));
        fcntl_lock(&one, EXCLUSIVE).unwrap();
        // Its own lock is no obstacle for a process, but for others, as whom descriptors count.
        fcntl_lock(&other, EXCLUSIVE).unwrap();
        assert_eq!(ofd_lock(&other, libc::F_RDLCK, 0, 0), Err(Errno::AGAIN));
        // Closing any descriptor gives all of them up.
        drop(open(path));
        ofd_lock(&other, libc::F_WRLCK, 0, 0).unwrap();
        assert_eq!(fcntl_lock(&one, SHARED), Err(Errno::AGAIN));
        ofd_lock(&other, libc::F_UNLCK, 0, 0).unwrap();
        fcntl_lock(&one, SHARED).unwrap();
    });
}

#[test]
fn ofd_locks_belong_to_the_descriptor() {
    both(|_, path, _| {
        let (one, other) = (open(path), open(path));
        ofd_lock(&one, libc::F_WRLCK, 100, 50).unwrap();
        assert_eq!(ofd_lock(&other, libc::F_RDLCK, 149, 10), Err(Errno::AGAIN));
        ofd_lock(&other, libc::F_WRLCK, 150, 0).unwrap();
        ofd_lock(&other, libc::F_WRLCK, 0, 100).unwrap();
        drop(open(path));
        assert_eq!(ofd_lock(&other, libc::F_RDLCK, 100, 1), Err(Errno::AGAIN));
        drop(one);
        wait_for("the lock", || ofd_lock(&other, libc::F_WRLCK, 100, 50).is_ok());
    });
}
