//! Proof that nobody can write to a file: a read lease, or the next best thing where there is none.
//!
//! A lease is refused while a process has the file open for writing, or still has it mapped that
//! way. Whoever opens it for writing later blocks until the lease is released (fcntl(2),
//! `F_SETLEASE`). Only the owner, or a process with `CAP_LEASE`, can take one, and only on a file
//! system that supports leases.

#![allow(unsafe_code)]

use super::writers::{Writers, find_writers};
use crate::{
    error::{Context, Error, Result},
    escape,
    output::mtime,
};
use rustix::{
    fs::{Stat, fstat, fstatfs},
    io::Errno,
};
use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Once, atomic::AtomicBool},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long a file must not have changed if no lease reveals writers.
const QUIET: Duration = Duration::from_secs(3);
/// The same on file systems to which other machines may write unnoticed.
const QUIET_SHARED: Duration = Duration::from_secs(60);

/// File systems to which no other machine writes, by their magic numbers (statfs(2)).
const LOCAL: [u32; 11] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0xf2f5_2010, // F2FS
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // ZFS
    0x794c_7630, // overlayfs
    0x2011_bab0, // exFAT
    0x4d44,      // FAT
];

/// See the documentation of the module. Released when dropped.
pub(super) struct Lease {
    /// A duplicate of the descriptor, which shares the lease.
    file: File,
    path: PathBuf,
    /// Whether the kernel granted a lease.
    held: bool,
}

impl Lease {
    /// Take a lease on a file that is open for reading only.
    ///
    /// # Errors
    /// Invalid argument if somebody may be writing to the file.
    pub(super) fn take(file: &File, path: &Path) -> Result<Self> {
        survive_breaks();
        let lease = |held| {
            Ok(Self { file: file.try_clone().about_path(path)?, path: path.to_owned(), held })
        };
        match set(file, libc::F_RDLCK) {
            Ok(()) => return lease(true),
            Err(Errno::AGAIN) => return Err(open_for_writing("somebody").about_path(path)),
            // Not the owner, or the file system has no leases.
            Err(e) => log::debug!("{}: no lease: {e}", escape::path(path)),
        }
        // Write back pages that a mapping has dirtied, so that the next change updates the times.
        let _ = crate::output::sync_file(file);
        wait_for_quiet(file, path)?;
        let lease = lease(false)?;
        lease.check()?;
        Ok(lease)
    }

    /// The same for a file that another run may have just made, and not closed yet.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub(super) fn take_of_new(file: &File, path: &Path) -> Result<Self> {
        const PATIENCE: usize = 20;
        for _ in 0..PATIENCE {
            match Self::take(file, path) {
                Ok(lease) => return Ok(lease),
                Err(e) => log::debug!("{e}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Self::take(file, path)
    }

    /// Check that still nobody can write to the file.
    ///
    /// # Errors
    /// Invalid argument if somebody can, or is trying to.
    pub(super) fn check(&self) -> Result<()> {
        if self.held {
            return match get(&self.file).about_path(&self.path)? {
                libc::F_RDLCK => Ok(()),
                _ => Err(open_for_writing("somebody").about_path(&self.path)),
            };
        }
        let _ = crate::output::sync_file(&self.file);
        let e = match find_writers(&self.file).about_path(&self.path)? {
            Writers::None => return Ok(()),
            Writers::Found(pid) => open_for_writing(&format!("process {pid}")),
            Writers::Unknown { pid, uid } => Error::invalid(format!(
                "process {pid} of user {uid} may be writing to it, which only that user and root \
                 can tell; nothing was replaced"
            )),
        };
        Err(e.about_path(&self.path))
    }

    /// The same, but only if that is cheap.
    ///
    /// # Errors
    /// As [`Lease::check`].
    pub(super) fn check_quickly(&self) -> Result<()> {
        if self.held { self.check() } else { Ok(()) }
    }
}

/// Release the lease on a file that is being packed, if there is one: writers need not wait, and
/// the packer gives up. Any descriptor that shares the file description of the packer's will do.
pub fn release_lease(file: &File) {
    let _ = set(file, libc::F_UNLCK);
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held {
            let _ = set(&self.file, libc::F_UNLCK);
        }
    }
}

fn open_for_writing(who: &str) -> Error {
    Error::invalid(format!("{who} has it open for writing; nothing was replaced"))
}

/// The kernel announces the break of a lease by SIGIO, which by default ends the process.
fn survive_breaks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(e) = signal_hook::flag::register(libc::SIGIO, Arc::new(AtomicBool::new(false))) {
            log::warn!("SIGIO: {e}");
        }
    });
}

/// Wait until the file has not changed for a while.
fn wait_for_quiet(file: &File, path: &Path) -> Result<()> {
    let stat = fstat(file).about_path(path)?;
    let since = unchanged_for(&stat);
    let local = fstatfs(file).is_ok_and(|fs| LOCAL.contains(&(fs.f_type as u32)));
    if !local && since.is_none_or(|since| since < QUIET_SHARED) {
        let why = "changed less than a minute ago, and this file system does not reveal who writes \
                   to it; try again later";
        return Err(Error::invalid(why).about_path(path));
    }
    if since.is_none_or(|since| since < QUIET) {
        std::thread::sleep(QUIET);
        let now = fstat(file).about_path(path)?;
        if !same_state(&now, &stat) {
            return Err(open_for_writing("somebody").about_path(path));
        }
    }
    Ok(())
}

/// How long a file has not changed; `None` if its times are in the future.
fn unchanged_for(stat: &Stat) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let changed = stat.st_ctime.max(stat.st_mtime);
    now.checked_sub(Duration::from_secs(u64::try_from(changed).unwrap_or(0)))
}

/// Whether two looks at a file saw the same file, unchanged in between.
pub(super) fn same_state(a: &Stat, b: &Stat) -> bool {
    let ctime = |s: &Stat| (s.st_ctime, s.st_ctime_nsec);
    (a.st_dev, a.st_ino, a.st_size, mtime(a), ctime(a))
        == (b.st_dev, b.st_ino, b.st_size, mtime(b), ctime(b))
}

fn set(file: &File, lease: i32) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and F_SETLEASE takes an integer.
    let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) };
    if set == 0 { Ok(()) } else { Err(last_error()) }
}

fn get(file: &File) -> Result<i32, Errno> {
    // SAFETY: the descriptor is open, and F_GETLEASE takes nothing.
    let lease = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) };
    if lease >= 0 { Ok(lease) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_lease_is_refused_while_a_file_is_written_and_broken_by_a_writer() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "content").expect("written");
        let writer = OpenOptions::new().write(true).open(&path).expect("opens");
        let file = File::open(&path).expect("opens");
        let refused = Lease::take(&file, &path).err().expect("refused").to_string();
        assert!(refused.contains("has it open for writing"), "{refused}");
        drop(writer);
        let lease = Lease::take(&file, &path).expect("taken");
        lease.check().expect("nobody writes");
        let other = path.clone();
        if !lease.held {
            eprintln!("skipped in part: no leases on this file system");
            return;
        }
        // This blocks until the lease is released.
        let opening =
            std::thread::spawn(move || OpenOptions::new().append(true).open(other).map(drop));
        let lost = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            lease.check().is_err()
        });
        assert!(lost, "a writer is waiting");
        drop(lease);
        opening.join().expect("no panic").expect("opens");
    }
}
