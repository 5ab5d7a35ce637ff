//! Creating, opening, reading, writing, truncating and syncing.

use super::store::{PACKED, Store, both, error, holds, is_packed, same};
use crate::common::mounts::mount_test;
use rustix::fs::{CWD, Mode, OFlags, fdatasync, fsync, openat};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

fn writer(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn new_files_are_empty() {
    mount_test(|rig| {
        let store = Store::new(rig);
        for dir in store.dirs(rig) {
            let path = dir.join("new");
            let mut file =
                File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
            let made = fs::metadata(&path).unwrap();
            assert_eq!((made.len(), made.mode(), made.nlink()), (0, 0o100_600, 1));
            assert_eq!(made.uid(), rustix::process::getuid().as_raw());
            file.write_all(b"abc").unwrap();
            holds(&path, b"abc");
            // The mode holds for later openings only.
            let path = dir.join("read-only");
            let mut file =
                File::options().write(true).create_new(true).mode(0o400).open(&path).unwrap();
            file.write_all(b"abc").unwrap();
            holds(&path, b"abc");
        }
    });
}

#[test]
fn open_flags_do_what_they_say() {
    both(|_, path, model| {
        let open = |path: &Path, flags| openat(CWD, path, flags, Mode::RUSR | Mode::WUSR);
        let fails = |path: &Path, flags| open(path, flags).map(drop).unwrap_err();
        assert_eq!(fails(path, OFlags::DIRECTORY), Errno::NOTDIR);
        let link = path.with_extension("link");
        symlink(path.file_name().unwrap(), &link).unwrap();
        assert_eq!(fails(&link, OFlags::NOFOLLOW), Errno::LOOP);
        holds(&link, model);
        open(path, OFlags::PATH).unwrap();
        let temporary = fails(path.parent().unwrap(), OFlags::TMPFILE | OFlags::RDWR);
        assert_eq!(temporary, Errno::OPNOTSUPP);

        let read_only = File::from(open(path, OFlags::RDONLY).unwrap());
        assert_eq!(error(read_only.write_at(b"x", 0)), Errno::BADF);
        let write_only = File::from(open(path, OFlags::WRONLY).unwrap());
        assert_eq!(error(write_only.read_at(&mut [0], 0)), Errno::BADF);
        // Existing files are opened, and nothing else happens to them.
        let _ = open(path, OFlags::CREATE | OFlags::RDWR).unwrap();
        for flags in [OFlags::DIRECT, OFlags::NOATIME, OFlags::NONBLOCK, OFlags::NOCTTY] {
            let file = File::from(open(path, OFlags::RDONLY | flags).unwrap());
            let mut read = vec![0; model.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            same(&read, model);
        }
        for (at, flags) in [(0, OFlags::SYNC), (1, OFlags::DSYNC)] {
            let file = File::from(open(path, OFlags::WRONLY | flags).unwrap());
            file.write_all_at(&model[at..5], at as u64).unwrap();
        }
        holds(path, model);
    });
}

#[test]
fn exclusive_creation_fails_for_what_exists() {
    both(|store, path, model| {
        let create = |path: &Path| File::options().write(true).create_new(true).open(path);
        assert_eq!(error(create(path)), Errno::EXIST);
        holds(path, model);
        let dangling = store.path("dangling");
        let _ = symlink("nowhere", &dangling);
        assert_eq!(error(create(&dangling)), Errno::EXIST);
        // Of many who try, one succeeds.
        let new = path.with_extension("lock");
        let made: usize = std::thread::scope(|scope| {
            let one = || scope.spawn(|| usize::from(create(&new).is_ok()));
            let all: Vec<_> = (0..16).map(|_| one()).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(made, 1);
    });
}

#[test]
fn reading_gives_the_bytes_at_each_offset() {
    both(|_, path, model| {
        holds(path, model);
        let file = File::open(path).unwrap();
        let end = model.len();
        for (at, len) in [(0, 1), (1, 4096), (4095, 2), (70_001, 30_000), (end - 3, 10), (end, 1)] {
            let mut read = vec![0; len];
            let got = file.read_at(&mut read, at as u64).unwrap();
            same(&read[..got], &model[at..end.min(at + len)]);
        }
        assert_eq!(file.read_at(&mut [0; 9], 1 << 40).unwrap(), 0);
    });
}

#[test]
fn writing_changes_what_is_written() {
    both(|_, path, model| {
        let (file, reader) = (writer(path), File::open(path).unwrap());
        let mut wanted = model.to_vec();
        let end = model.len();
        for (at, len) in [(0, 1), (4095, 2), (50_000, 9000), (end - 1, 5), (end + 9000, 3)] {
            let data: Vec<u8> = (0..len).map(|n| (n * 7 + at) as u8).collect();
            file.write_all_at(&data, at as u64).unwrap();
            wanted.resize(wanted.len().max(at + len), 0);
            wanted[at..at + len].copy_from_slice(&data);
            // Seen at once through every descriptor, and by name.
            let mut read = vec![0; wanted.len()];
            reader.read_exact_at(&mut read, 0).unwrap();
            same(&read, &wanted);
            assert_eq!(fs::metadata(path).unwrap().len(), wanted.len() as u64);
        }
        assert!(!is_packed(path));
        drop((file, reader));
        holds(path, &wanted);
    });
}

#[test]
fn appended_bytes_come_after_all_others() {
    both(|_, path, model| {
        let open = || File::options().append(true).open(path).unwrap();
        let (mut one, mut other) = (open(), open());
        let mut wanted = model.to_vec();
        for n in 0..20u8 {
            let file = if n % 3 == 0 { &mut one } else { &mut other };
            file.write_all(&[n; 777]).unwrap();
            wanted.extend([n; 777]);
        }
        holds(path, &wanted);
    });
}

#[test]
fn truncation_shrinks_grows_and_empties() {
    both(|store, path, model| {
        let before = fs::metadata(path).unwrap();
        let has = |bytes: &[u8]| {
            holds(path, bytes);
            let now = fs::metadata(path).unwrap();
            assert_eq!((now.len(), now.ino()), (bytes.len() as u64, before.ino()));
        };
        let repack = |store: &Store| {
            fs::write(path, model).unwrap();
            if path.ends_with(PACKED) {
                store.pack(path);
            }
        };
        // By name, which must not be followed by what was there before.
        for len in [100_000, 1, 0] {
            rustix::fs::ftruncate(writer(path), len).unwrap();
            has(&model[..len as usize]);
            rustix::fs::ftruncate(writer(path), 3000).unwrap();
            has(&[&model[..len.min(3000) as usize], &vec![0; 3000 - len.min(3000) as usize]]
                .concat());
            repack(store);
        }
        let file = writer(path);
        file.set_len(model.len() as u64 + 5000).unwrap();
        has(&[model, &[0; 5000]].concat());
        drop(file);
        repack(store);
        rustix::fs::ftruncate(writer(path), model.len() as u64).unwrap();
        has(model);
        assert!(fs::metadata(path).unwrap().modified().unwrap() > before.modified().unwrap());
    });
}

#[test]
fn opening_with_truncation_empties() {
    both(|_, path, _| {
        let before = fs::metadata(path).unwrap();
        let reader = File::open(path).unwrap();
        let mut file = File::options().write(true).truncate(true).open(path).unwrap();
        let now = fs::metadata(path).unwrap();
        assert_eq!((now.len(), now.ino(), now.mode()), (0, before.ino(), before.mode()));
        assert_eq!(reader.read_at(&mut [0], 0).unwrap(), 0);
        file.write_all(b"new").unwrap();
        holds(path, b"new");
        let mut read = [0; 3];
        reader.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"new");
    });
}

#[test]
fn fsync_and_fdatasync_succeed() {
    both(|_, path, model| {
        for file in [File::open(path).unwrap(), writer(path)] {
            fsync(&file).unwrap();
            fdatasync(&file).unwrap();
        }
        let file = writer(path);
        file.write_all_at(b"synced", 10).unwrap();
        fdatasync(&file).unwrap();
        fsync(&file).unwrap();
        let dir = File::open(path.parent().unwrap()).unwrap();
        fsync(&dir).unwrap();
        fdatasync(&dir).unwrap();
        holds(path, &[&model[..10], b"synced", &model[16..]].concat());
    });
}

#[test]
fn writes_survive_the_daemons_death() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let plain = store.plain("plain.part");
        let packed = store.packed(PACKED);
        let untouched = store.packed("untouched.safetensors");
        let files = ["plain.part", PACKED].map(|name| writer(&store.path(name)));
        for file in &files {
            file.write_all_at(b"written", 70_000).unwrap();
        }
        store.mount.signal(Signal::KILL);
        store.mount.exit_code();
        assert_eq!(error(fs::read(store.path(PACKED))), Errno::NOTCONN);
        for (name, model) in [("plain.part", plain), (PACKED, packed)] {
            let changed = [&model[..70_000], b"written", &model[70_007..]].concat();
            holds(&store.below.join(name), &changed);
        }
        assert!(!store.below.join(format!("{PACKED}.bsz")).exists(), "it would be stale");
        drop(files);
        rustix::mount::unmount(store.mount.root(), rustix::mount::UnmountFlags::DETACH).unwrap();
        let again = Store::of(rig, store.below.clone());
        holds(&again.path("untouched.safetensors"), &untouched);
    });
}

#[test]
fn unlinked_open_files_stay_usable() {
    both(|_, path, model| {
        let (reader, file) = (File::open(path).unwrap(), writer(path));
        let before = file.metadata().unwrap();
        fs::remove_file(path).unwrap();
        assert!(!path.exists());
        for file in [&reader, &file] {
            let now = file.metadata().unwrap();
            assert_eq!((now.nlink(), now.ino(), now.len()), (0, before.ino(), before.len()));
            let mut read = vec![0; model.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            same(&read, model);
        }
        // The name is free for another file, which is not this one.
        fs::write(path, b"another").unwrap();
        assert_ne!(fs::metadata(path).unwrap().ino(), before.ino());
        file.write_all_at(b"more", model.len() as u64).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        fsync(&file).unwrap();
        let mut read = [0; 4];
        reader.read_exact_at(&mut read, model.len() as u64).unwrap();
        assert_eq!(&read, b"more");
        let now = reader.metadata().unwrap();
        assert_eq!((now.len(), now.mode() & 0o777), (model.len() as u64 + 4, 0o640));
        file.set_len(5).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 5);
        holds(path, b"another");
    });
}
