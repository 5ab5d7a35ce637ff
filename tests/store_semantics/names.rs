//! Links, directories, special files, and names that mean something to the store.

use super::store::{PACKED, Store, both, error, holds, is_packed, xattr};
use crate::common::mounts::{bsz, mount_test};
use crate::common::program::names;
use crate::common::users::is_root;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::Path;

#[test]
fn links_are_names_of_the_same_file() {
    both(|_, path, model| {
        let other = path.with_extension("name");
        fs::hard_link(path, &other).unwrap();
        let [one, two] = [path, &other].map(|path| fs::metadata(path).unwrap());
        assert_eq!((one.ino(), one.nlink(), one.dev()), (two.ino(), 2, two.dev()));
        assert_eq!(two.nlink(), 2);
        assert!(!is_packed(&other), "both names must be those of one file below, too");
        holds(&other, model);
        assert_eq!(error(fs::hard_link(path, &other)), Errno::EXIST);
        fs::remove_file(path).unwrap();
        holds(&other, model);
        assert_eq!(fs::metadata(&other).unwrap().nlink(), 1);
        let file = File::options().write(true).open(&other).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        holds(&other, &[b"x", &model[1..]].concat());
    });
}

#[test]
fn symlinks_lead_where_they_say() {
    both(|_, path, model| {
        let link = path.with_extension("link");
        symlink(path.file_name().unwrap(), &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), path.file_name().unwrap());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        holds(&link, model);
        assert_eq!(error(symlink("x", &link)), Errno::EXIST);
        fs::rename(&link, link.with_extension("moved")).unwrap();
        holds(&link.with_extension("moved"), model);
        // Over a file, as hub clients do.
        symlink("nowhere", &link).unwrap();
        fs::rename(&link, path).unwrap();
        assert_eq!(fs::read_link(path).unwrap(), Path::new("nowhere"));
        fs::remove_file(path).unwrap();
    });
}

#[test]
fn removed_files_are_gone() {
    both(|store, path, _| {
        fs::remove_file(path).unwrap();
        assert_eq!(error(fs::metadata(path)), Errno::NOENT);
        assert_eq!(error(fs::remove_file(path)), Errno::NOENT);
        assert_eq!(names(&store.below), [""; 0]);
        fs::write(path, b"another").unwrap();
        holds(path, b"another");
        fs::remove_file(path).unwrap();
    });
}

#[test]
fn directories_come_and_go() {
    both(|_, path, _| {
        let dir = path.with_extension("dir");
        fs::create_dir(&dir).unwrap();
        assert_eq!(error(fs::create_dir(&dir)), Errno::EXIST);
        assert_eq!(error(fs::create_dir(path)), Errno::EXIST);
        let links = || fs::metadata(&dir).unwrap().nlink();
        let before = links();
        fs::create_dir(dir.join("sub")).unwrap();
        assert_eq!(links(), before + 1);
        fs::rename(path, dir.join("sub/file")).unwrap();
        assert_eq!(error(fs::remove_dir(&dir)), Errno::NOTEMPTY);
        assert_eq!(error(fs::remove_dir(dir.join("sub"))), Errno::NOTEMPTY);
        assert_eq!(error(fs::remove_dir(dir.join("sub/file"))), Errno::NOTDIR);
        assert_eq!(error(fs::remove_file(dir.join("sub"))), Errno::ISDIR);
        assert_eq!(names(&dir.join("sub")), ["file"]);
        fs::remove_file(dir.join("sub/file")).unwrap();
        fs::remove_dir(dir.join("sub")).unwrap();
        fs::create_dir_all(dir.join("a/b/c")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(!dir.exists());
    });
}

#[test]
fn special_files_can_be_made() {
    mount_test(|rig| {
        let store = Store::new(rig);
        for dir in store.dirs(rig) {
            let make = |name: &str, kind, dev| {
                mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), dev).unwrap();
                fs::symlink_metadata(dir.join(name)).unwrap()
            };
            assert!(make("fifo", FileType::Fifo, 0).file_type().is_fifo());
            assert!(make("socket", FileType::Socket, 0).file_type().is_socket());
            let file = make("file", FileType::RegularFile, 0);
            assert_eq!((file.mode(), file.len()), (0o100_640, 0));
            if is_root() {
                let device = make("device", FileType::CharacterDevice, makedev(1, 3));
                assert!(device.file_type().is_char_device());
                assert_eq!(device.rdev(), makedev(1, 3));
            }
            let _bound = std::os::unix::net::UnixListener::bind(dir.join("bound")).unwrap();
            assert!(fs::metadata(dir.join("bound")).unwrap().file_type().is_socket());
        }
    });
}

#[test]
fn archives_that_are_made_stay_archives() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let source = rig.path("model.safetensors");
        crate::common::models::write_model(&source, 3, 60_000);
        let archive = rig.path("model.safetensors.bsz");
        bsz([Path::new("pack"), &source, Path::new("-o"), &archive]);
        let bytes = fs::read(&archive).unwrap();
        // Copied, renamed and linked to such a name.
        fs::write(store.path("a.bsz"), &bytes).unwrap();
        fs::write(store.path("b"), &bytes).unwrap();
        fs::rename(store.path("b"), store.path("b.safetensors.bsz")).unwrap();
        fs::write(store.path("c"), &bytes).unwrap();
        fs::hard_link(store.path("c"), store.path("d.bsz")).unwrap();
        let shown = ["a.bsz", "b.safetensors.bsz", "c", "d.bsz"];
        assert_eq!(names(store.mount.root()), shown);
        for name in shown {
            holds(&store.path(name), &bytes);
        }
        for name in ["a.bsz", "b.safetensors.bsz", "d.bsz"] {
            xattr(&store.below.join(name), "user.bsz.plain").unwrap();
        }
        // And it is an ordinary file.
        fs::write(store.path("a.bsz"), b"short").unwrap();
        holds(&store.path("a.bsz"), b"short");
        assert_eq!(error(fs::metadata(store.path("a"))), Errno::NOENT);
    });
}

#[test]
fn names_of_archives_are_free() {
    mount_test(|rig| {
        let store = Store::new(rig);
        for (how, name) in ["created", "renamed", "linked", "directory"].into_iter().enumerate() {
            let model = store.packed_of(name, 40 + how as u64);
            let taken = store.path(&format!("{name}.bsz"));
            assert_eq!(error(fs::metadata(&taken)), Errno::NOENT);
            let other = store.path("other");
            fs::write(&other, b"mine").unwrap();
            match how {
                0 => fs::write(&taken, b"mine").unwrap(),
                1 => fs::rename(&other, &taken).unwrap(),
                2 => fs::hard_link(&other, &taken).unwrap(),
                _ => fs::create_dir(&taken).unwrap(),
            }
            let _ = fs::remove_file(&other);
            holds(&store.path(name), &model);
            if how < 3 {
                holds(&taken, b"mine");
            } else {
                assert!(taken.is_dir());
            }
        }
    });
}

#[test]
fn names_may_have_255_bytes() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let model = store.packed(PACKED);
        let (longest, too_long) = ("n".repeat(255), "n".repeat(256));
        let packable = "p".repeat(246);
        for name in [&*longest, &"n".repeat(254), &"m".repeat(251), &"ü".repeat(127)] {
            fs::rename(store.path(PACKED), store.path(name)).unwrap();
            holds(&store.path(name), &model);
            assert_eq!(names(store.mount.root()), [name]);
            fs::rename(store.path(name), store.path(PACKED)).unwrap();
        }
        assert_eq!(error(fs::write(store.path(&too_long), b"")), Errno::NAMETOOLONG);
        let renamed = fs::rename(store.path(PACKED), store.path(&too_long));
        assert_eq!(error(renamed), Errno::NAMETOOLONG);
        fs::rename(store.path(PACKED), store.path(&packable)).unwrap();
        store.pack(&store.path(&packable));
        holds(&store.path(&packable), &model);
    });
}

#[test]
fn names_of_temporary_files_are_reserved() {
    both(|store, path, model| {
        let reserved = store.path(".x.bsz-partial");
        assert_eq!(error(fs::write(&reserved, b"")), Errno::PERM);
        assert_eq!(error(fs::rename(path, &reserved)), Errno::PERM);
        assert_eq!(error(fs::hard_link(path, &reserved)), Errno::PERM);
        assert_eq!(error(fs::create_dir(&reserved)), Errno::PERM);
        holds(path, model);
        // Similar ones are not.
        fs::write(store.path("x.bsz-partial"), b"mine").unwrap();
        holds(&store.path("x.bsz-partial"), b"mine");
    });
}
