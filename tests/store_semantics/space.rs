//! Space: allocation, holes, copying, and what a full disk does.

use super::store::{PLAIN, Store, both, holds, is_packed};
use crate::common::models::write_model;
use crate::common::mounts::{mount_test, wait_for};
use crate::common::program::names;
use crate::common::users::is_root;
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek, statvfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

fn writer(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn fallocate_reserves_punches_and_zeroes() {
    both(|_, path, model| {
        let file = writer(path);
        let end = model.len() as u64;
        let keep = FallocateFlags::KEEP_SIZE;
        fallocate(&file, keep, 0, end + (1 << 20)).unwrap();
        holds(path, model);
        let mut wanted = model.to_vec();
        for (how, at, len) in [
            (keep | FallocateFlags::PUNCH_HOLE, 8192, 4096),
            (keep | FallocateFlags::PUNCH_HOLE, 50_001, 77),
            (FallocateFlags::ZERO_RANGE, 60_000, 5000),
        ] {
            match fallocate(&file, how, at, len) {
                // As below: tmpfs cannot do all of this.
                Err(Errno::OPNOTSUPP) if how.contains(FallocateFlags::ZERO_RANGE) => continue,
                other => other.unwrap(),
            }
            wanted[at as usize..(at + len) as usize].fill(0);
            holds(path, &wanted);
        }
        fallocate(&file, FallocateFlags::empty(), end, 5000).unwrap();
        wanted.resize(wanted.len() + 5000, 0);
        holds(path, &wanted);
        for how in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            assert_eq!(fallocate(&file, how, 0, 4096), Err(Errno::OPNOTSUPP));
        }
        assert!(!is_packed(path));
    });
}

#[test]
fn seeking_finds_data_and_holes() {
    both(|_, path, model| {
        let file = File::open(path).unwrap();
        let end = model.len() as u64;
        assert_eq!(seek(&file, SeekFrom::Data(5)), Ok(5));
        assert_eq!(seek(&file, SeekFrom::Hole(5)), Ok(end));
        assert_eq!(seek(&file, SeekFrom::Data(end)), Err(Errno::NXIO));
        assert_eq!(seek(&file, SeekFrom::Hole(end + 9)), Err(Errno::NXIO));
        // A hole, where the file system below makes one.
        writer(path).set_len(1 << 20).unwrap();
        let (hole, none) = (seek(&file, SeekFrom::Hole(0)), seek(&file, SeekFrom::Data(1 << 19)));
        assert!(hole.is_ok_and(|at| at >= end && at < end + (1 << 16)), "{hole:?}");
        assert_eq!(none, Err(Errno::NXIO));
        assert_eq!(seek(&file, SeekFrom::End(-1)), Ok((1 << 20) - 1));
    });
}

#[test]
fn copy_file_range_copies() {
    both(|_, path, model| {
        let copy = path.with_extension("copy");
        let (from, to) = (File::open(path).unwrap(), File::create(&copy).unwrap());
        let mut at = 0;
        while at < model.len() as u64 {
            let copied = copy_file_range(&from, Some(&mut at), &to, None, 1 << 20).unwrap();
            assert!(copied > 0);
        }
        holds(&copy, model);
        // Within a file, which unpacks it.
        let file = writer(path);
        let (mut from, mut to) = (100, 90_000);
        let copied = copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 500).unwrap();
        assert_eq!(copied, 500);
        let mut wanted = model.to_vec();
        wanted.copy_within(100..600, 90_000);
        holds(path, &wanted);
    });
}

#[test]
fn statvfs_is_that_of_the_directory_below() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let figures = |path: &Path| {
            let of = statvfs(path).unwrap();
            (of.f_blocks * of.f_frsize, of.f_files, of.f_namemax, of.f_frsize)
        };
        assert_eq!(figures(store.mount.root()), figures(&store.below));
        let free = |path: &Path| statvfs(path).unwrap().f_bavail;
        // Others write to this disk, too.
        let matches = || free(store.mount.root()) == free(&store.below);
        wait_for("the same free space", matches);
    });
}

/// A small file system in memory, unmounted when it is dropped.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf, mebibytes: u64) -> Self {
        let options = std::ffi::CString::new(format!("size={mebibytes}m")).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), &*options).unwrap();
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_writer_gets_the_space_of_packing() {
    mount_test(|rig| {
        if !is_root() {
            return eprintln!("skipped: only root can mount a file system");
        }
        let small = Small::new(rig.mkdir("small"), 160);
        let store = Store::of(rig, small.0.clone());
        store.command("pause");
        let path = store.path("large.safetensors");
        let model = write_model(&path, 5, 12_000_000);
        let free = || {
            let of = statvfs(&small.0).unwrap();
            of.f_bavail * of.f_frsize
        };
        let room = free();
        let file = File::create(store.path("mine.part")).unwrap();
        let chunk = vec![9; 4 << 20];
        // Nearly all; whole mebibytes.
        let most = (room - (room >> 8)) & !0xfffff;
        store.command("now");
        wait_for("packing", || store.status()["packing"] == "large.safetensors");
        wait_for("a part of the archive", || free() < room);
        let mut at = 0;
        while at < most {
            let len = chunk.len().min((most - at) as usize);
            file.write_all_at(&chunk[..len], at).unwrap();
            at += len as u64;
        }
        assert_eq!(store.path("mine.part").metadata().unwrap().len(), most);
        wait_for("the archive to be given up", || !is_packed(&path) && free() + most <= room);
        assert_eq!(store.status()["packed"], 0);
        holds(&path, &model);
        // What is really full is reported.
        let full = file.write_all_at(&vec![9; 64 << 20], most);
        assert_eq!(full.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(names(&small.0), ["large.safetensors", "mine.part"]);
        drop(file);
    });
}

#[test]
fn sparse_files_stay_sparse() {
    mount_test(|rig| {
        let store = Store::new(rig);
        for dir in store.dirs(rig) {
            let file = File::create(dir.join(PLAIN)).unwrap();
            file.set_len(1 << 30).unwrap();
            file.write_all_at(b"x", 1 << 29).unwrap();
            let blocks = fs::metadata(dir.join(PLAIN)).unwrap().blocks();
            assert!(blocks < 1024, "{blocks}");
        }
    });
}
