//! Archives that are the user's own, and not forms of the store's files.

use super::store::{PACKED, Store, holds, is_packed};
use crate::common::models::write_model;
use crate::common::mounts::{BSZ, bsz, mount_test, run, wait_for};
use crate::common::program::SOME;
use crate::common::users::is_root;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Pack a file as people do, which leaves the file; returns the path and the bytes of the archive.
fn archive_of(file: &Path) -> (PathBuf, Vec<u8>) {
    let packed = run(Command::new(BSZ).args(["--quiet", "pack"]).arg(file));
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let archive = file.with_extension("bsz");
    let bytes = fs::read(&archive).unwrap();
    (archive, bytes)
}

#[test]
fn an_archive_of_something_else_is_never_removed() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("written", |file| {
            let file = fs::File::options().append(true).open(file).unwrap();
            rustix::io::write(&file, b"more").unwrap();
        }),
        ("removed", |file| fs::remove_file(file).unwrap()),
        ("renamed", |file| fs::rename(file, file.with_extension("other")).unwrap()),
        ("replaced", |file| {
            let new = file.with_extension("part");
            fs::write(&new, b"new").unwrap();
            fs::rename(&new, file).unwrap();
        }),
        ("packed", |file| wait_for("the file to be packed", || is_packed(file))),
    ];
    for (name, change) in changes {
        mount_test(move |rig| {
            let below = rig.mkdir("below");
            let file = below.join("m.safetensors");
            write_model(&file, 1, SOME);
            let (archive, bytes) = archive_of(&file);
            write_model(&file, 2, SOME);
            let store = Store::of(rig, below);
            if name != "packed" {
                store.command("pause");
            }
            change(&store.path("m.safetensors"));
            let kept = fs::read(&archive).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(kept == bytes, "{name}");
            holds(&store.path("m.bsz"), &bytes);
        });
    }
}

#[test]
fn names_of_forms_are_free_for_archives_of_the_user() {
    mount_test(|rig| {
        let below = rig.mkdir("below");
        let mut archives = Vec::new();
        for (seed, name) in [
            (1, "a.safetensors.bsz-old"),
            (2, "a.safetensors.bsz-over"),
            (3, "k.safetensors.bsz-old"),
        ] {
            let model = below.join("m.safetensors");
            write_model(&model, seed, SOME);
            let (archive, bytes) = archive_of(&model);
            fs::rename(archive, below.join(name)).unwrap();
            fs::remove_file(model).unwrap();
            archives.push((name, bytes));
        }
        let model = write_model(&below.join("a.safetensors"), 4, SOME);
        // Not even one of the same size and time.
        let b = below.join("b.safetensors");
        write_model(&b, 5, SOME);
        archives.push(("b.bsz", archive_of(&b).1));
        let time = fs::metadata(&b).unwrap().modified().unwrap();
        write_model(&b, 6, SOME);
        fs::File::options().write(true).open(&b).unwrap().set_modified(time).unwrap();
        let store = Store::of(rig, below);
        wait_for("recovery", || store.status()["recovered"] == true);
        holds(&store.path("a.safetensors"), &model);
        store.pack(&store.path("a.safetensors"));
        holds(&store.path("a.safetensors"), &model);
        fs::remove_file(store.path("a.safetensors")).unwrap();
        fs::remove_file(store.path("b.safetensors")).unwrap();
        for (name, bytes) in archives {
            holds(&store.path(name), &bytes);
        }
        assert!(!store.path("a.safetensors").exists());
    });
}

#[test]
fn what_fails_leaves_an_archive_what_it_is() {
    mount_test(|rig| {
        let below = rig.mkdir("below");
        // A directory with the name that an archive shows.
        let model = below.join("dir.safetensors");
        write_model(&model, 1, SOME);
        let (archive, bytes) = archive_of(&model);
        fs::remove_file(&model).unwrap();
        fs::create_dir_all(model.join("inside")).unwrap();
        fs::create_dir_all(below.join("other")).unwrap();
        fs::create_dir_all(below.join("sub")).unwrap();
        if is_root() {
            mount("tmpfs", below.join("sub"), "tmpfs", MountFlags::empty(), c"").unwrap();
        }
        let sub = below.join("sub");
        let store = Store::of(rig, below);
        fs::remove_dir(store.path("dir.safetensors")).expect_err("it is not empty");
        fs::rename(store.path("other"), store.path("dir.safetensors")).expect_err("not empty");
        assert!(fs::read(&archive).unwrap() == bytes);
        // Made through the store, so it is a file like others.
        store.command("pause");
        fs::copy(&archive, store.path("mine.bsz")).unwrap();
        write_model(&store.path("mine.safetensors"), 2, SOME);
        if is_root() {
            let moved = fs::rename(store.path("mine.bsz"), store.path("sub/mine"));
            moved.expect_err("another file system");
            holds(&store.path("mine.bsz"), &bytes);
            unmount(&sub, UnmountFlags::DETACH).unwrap();
        }
        fs::write(store.path("mine.safetensors"), b"new").unwrap();
        holds(&store.path("mine.bsz"), &bytes);
        fs::remove_file(store.path("mine.safetensors")).unwrap();
        holds(&store.path("mine.bsz"), &bytes);
    });
}

#[test]
fn a_file_keeps_its_name_while_its_attributes_change() {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    mount_test(|rig| {
        let store = Store::new(rig);
        let model = store.packed(PACKED);
        let (path, done) = (store.path(PACKED), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let change = || {
                for mode in (0..).map(|n| 0o600 + n % 2) {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
            };
            let threads = [scope.spawn(change), scope.spawn(change)];
            for _ in 0..200 {
                let listed = fs::read_dir(store.mount.root()).unwrap();
                let names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(names, [PACKED]);
                holds(&path, &model);
            }
            done.store(true, Ordering::Relaxed);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    });
}

#[test]
fn directories_may_be_deep() {
    use rustix::fd::OwnedFd;
    use rustix::fs::{Dir, Mode, OFlags, mkdirat, openat};
    const DEPTH: usize = 6000;
    // More levels than the store keeps directories open.
    const ABOVE_THE_END: usize = 1200;
    mount_test(|rig| {
        let store = Store::new(rig);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at: OwnedFd = fs::File::open(store.mount.root()).unwrap().into();
        let mut middle = None;
        for level in 1..=DEPTH {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
            if level == DEPTH - ABOVE_THE_END {
                middle = Some(at.try_clone().unwrap());
            }
        }
        let names = Dir::read_from(middle.unwrap()).unwrap();
        assert_eq!(names.count(), 3);
        drop(at);
        let removed = run(Command::new("rm").arg("-r").arg(store.below.join("d")));
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    });
}

#[test]
fn an_archive_beside_a_directory_of_its_name_is_shown() {
    mount_test(|rig| {
        let below = rig.mkdir("below");
        let model = below.join("m.safetensors");
        write_model(&model, 1, SOME);
        let (archive, bytes) = archive_of(&model);
        fs::remove_file(&model).unwrap();
        fs::create_dir(&model).unwrap();
        let store = Store::of(rig, below);
        wait_for("recovery", || store.status()["recovered"] == true);
        assert!(store.path("m.safetensors").is_dir());
        holds(&store.path("m.bsz"), &bytes);
        assert!(fs::read(&archive).unwrap() == bytes);
    });
}

#[test]
fn an_archive_that_the_user_has_made_stays_beside_its_file() {
    for pack in ["now", "off"] {
        mount_test(move |rig| {
            let below = rig.mkdir("below");
            let file = below.join("m.safetensors");
            let model = write_model(&file, 1, SOME);
            let (archive, bytes) = archive_of(&file);
            let mount = rig.mount(&below, "store", &["--read-write", "--pack", pack]);
            let status = || mount.status()["store"].clone();
            wait_for("recovery", || status()["recovered"] == true);
            holds(&mount.path("m.safetensors"), &model);
            holds(&mount.path("m.bsz"), &bytes);
            bsz([OsStr::new("umount"), mount.root().as_ref()]);
            assert_eq!(mount.exit_code(), Some(0));
            bsz([OsStr::new("store"), "disable".as_ref(), below.as_ref()]);
            assert!(fs::read(&archive).unwrap() == bytes, "{pack}");
            let names = rustix::fs::listxattr(&archive, &mut [0u8; 0]).unwrap_or(0);
            assert_eq!(names, 0, "{pack}: the archive has attributes");
        });
    }
}

#[test]
fn an_archive_keeps_its_name_while_a_link_of_it_gets_others() {
    mount_test(|rig| {
        let store = Store::new(rig);
        store.command("pause");
        let other = rig.path("m.safetensors");
        write_model(&other, 1, SOME);
        let (archive, bytes) = archive_of(&other);
        fs::copy(archive, store.path("x.bsz")).unwrap();
        fs::hard_link(store.path("x.bsz"), store.path("w.bsz")).unwrap();
        fs::rename(store.path("x.bsz"), store.path("x")).unwrap();
        holds(&store.path("w.bsz"), &bytes);
        holds(&store.path("x"), &bytes);
        let below = store.below.clone();
        bsz([OsStr::new("umount"), store.mount.root().as_ref()]);
        assert_eq!(store.mount.exit_code(), Some(0));
        for _ in 0..2 {
            bsz([OsStr::new("store"), "disable".as_ref(), below.as_ref()]);
            assert!(fs::read(below.join("w.bsz")).unwrap() == bytes);
        }
    });
}
