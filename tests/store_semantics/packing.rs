//! What programs notice of packing: nothing.

use super::store::{PACKED, Store, holds, is_packed, same, xattr};
use crate::common::models::write_model;
use crate::common::mounts::{mount_test, wait_for};
use crate::common::program::SOME;
use crate::common::users::is_root;
use rustix::fs::{OFlags, RenameFlags, XattrFlags, fgetxattr, setxattr};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_file_that_was_open_when_packing_was_requested_is_packed_when_it_is_closed() {
    mount_test(|rig| {
        let below = rig.mkdir("below");
        let mut args = vec!["--read-write", "--pack", "off", "--min-size", "64KiB"];
        if is_root() {
            args.push("--allow-other");
        }
        let store = Store { mount: rig.mount(&below, "store", &args), below };
        let (open, closed) = (store.path("open.safetensors"), store.path("closed.safetensors"));
        let model = write_model(&open, 8, SOME);
        write_model(&closed, 9, SOME);
        let writer = File::options().write(true).open(&open).expect("open");
        store.command("now");
        wait_for("the other file to be packed", || is_packed(&closed));
        wait_for("the request to be served", || store.status()["draining"] == false);
        assert!(!is_packed(&open));
        drop(writer);
        wait_for("the file to be packed", || is_packed(&open));
        assert!(fs::read(&open).expect("read") == model);
        // The request is served: the next writer's file stays as it is.
        drop(File::options().write(true).open(&open).expect("open"));
        fs::write(&open, &model).expect("written");
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert!(!is_packed(&open));
    });
}

#[test]
fn a_writer_never_waits_for_the_packer() {
    mount_test(|rig| {
        let store = Store::new(rig);
        store.command("pause");
        let path = store.path("large.safetensors");
        let mut model = write_model(&path, 5, 12_000_000);
        store.command("now");
        wait_for("packing", || store.status()["packing"] == "large.safetensors");
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!is_packed(&path), "a model that takes a while to pack");
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.write_all_at(b"written meanwhile", 1_000_000).unwrap();
        // Had it waited, the file would have been packed before, and unpacked.
        let status = store.status();
        assert_eq!((&status["packed"], &status["unpacked"]), (&0.into(), &0.into()), "{status}");
        model[1_000_000..1_000_017].copy_from_slice(b"written meanwhile");
        wait_for("the packer to give up", || store.status()["packing"].is_null());
        holds(&path, &model);
        assert!(!is_packed(&path), "it is open for writing");
        drop(file);
        store.pack(&path);
        holds(&path, &model);
    });
}

#[test]
fn files_are_exact_at_each_moment() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let model = store.packed(PACKED);
        let path = store.path(PACKED);
        let (done, ino) = (AtomicBool::new(false), fs::metadata(&path).unwrap().ino());
        std::thread::scope(|scope| {
            let reader = |direct: bool| {
                let (path, done, model) = (&path, &done, &model);
                move || {
                    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
                    while !done.load(Ordering::Relaxed) {
                        let mut options = File::options();
                        options.read(true).custom_flags(flags.bits().cast_signed());
                        let file = options.open(path).expect("it has its name at each moment");
                        let mut read = vec![0; model.len()];
                        file.read_exact_at(&mut read, 0).unwrap();
                        same(&read, model);
                        assert_eq!(fs::metadata(path).unwrap().ino(), ino);
                        let listed = fs::read_dir(path.parent().unwrap()).unwrap();
                        assert_eq!(listed.count(), 1);
                    }
                }
            };
            let readers = [scope.spawn(reader(false)), scope.spawn(reader(true))];
            for n in 0..15 {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(&model[n..n + 1], n as u64).unwrap();
                drop(file);
                store.pack(&path);
            }
            done.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    });
}

#[test]
fn handles_follow_the_file_through_packing() {
    mount_test(|rig| {
        let store = Store::new(rig);
        store.command("pause");
        let path = store.path(PACKED);
        let model = write_model(&path, 6, 60_000);
        let reader = File::open(&path).unwrap();
        let reads = |wanted: &[u8]| {
            let mut read = vec![0; wanted.len()];
            reader.read_exact_at(&mut read, 0).unwrap();
            same(&read, wanted);
            assert_eq!(reader.metadata().unwrap().len(), wanted.len() as u64);
        };
        reads(&model);
        store.pack(&path);
        assert!(!store.below.join(PACKED).exists(), "the space of the plain file is free");
        reads(&model);
        let file = File::options().append(true).open(&path).unwrap();
        rustix::io::write(&file, b"more").unwrap();
        drop(file);
        let longer = [&*model, b"more"].concat();
        reads(&longer);
        // Another file that takes its name is not its content.
        let other = store.path("other");
        fs::write(&other, b"other").unwrap();
        let exchange = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, &other, rustix::fs::CWD, &path, exchange)
            .unwrap();
        reads(&longer);
        holds(&path, b"other");
    });
}

#[test]
fn nothing_is_packed_once_the_store_is_unmounted() {
    mount_test(|rig| {
        let store = Store::new(rig);
        store.command("pause");
        let model = write_model(&store.path("waits.safetensors"), 3, SOME);
        let root = File::open(store.mount.root()).unwrap();
        unmount(store.mount.root(), UnmountFlags::DETACH).unwrap();
        // As long as a descriptor is open, the daemon lives on and answers.
        fgetxattr(&root, "user.bsz.pack.now", &mut [0u8; 0]).expect("a command to the packer");
        wait_for("the packer to notice", || {
            let mut status = vec![0; 1 << 16];
            let len = fgetxattr(&root, "user.bsz.status", &mut status[..]).unwrap();
            let status: serde_json::Value = serde_json::from_slice(&status[..len]).unwrap();
            status["store"]["waits"] == "the store was unmounted"
        });
        assert!(!store.mount.has_exited());
        holds(&store.below.join("waits.safetensors"), &model);
        drop(root);
        assert_eq!(store.mount.exit_code(), Some(0));
        holds(&store.below.join("waits.safetensors"), &model);
    });
}

#[test]
fn attributes_that_an_archive_would_lose_keep_a_file_plain() {
    if !is_root() {
        eprintln!("skipped: only root may set such attributes");
        return;
    }
    mount_test(|rig| {
        let store = Store::new(rig);
        store.packed(PACKED);
        let set = |name: &str| {
            let path = store.path(name);
            setxattr(&path, "trusted.note", b"kept", XattrFlags::empty()).unwrap();
        };
        set(PACKED);
        assert!(!is_packed(&store.path(PACKED)), "it was unpacked for that");
        write_model(&store.path("other.safetensors"), 2, SOME);
        set("other.safetensors");
        store.command("now");
        wait_for("both to be left", || store.status()["left"] == 2);
        for name in [PACKED, "other.safetensors"] {
            assert!(!is_packed(&store.path(name)), "{name}");
            assert_eq!(xattr(&store.path(name), "trusted.note").unwrap(), b"kept");
        }
    });
}

#[test]
fn files_may_settle_for_ever() {
    mount_test(|rig| {
        let below = rig.mkdir("below");
        let settle = u64::MAX.to_string();
        let args = ["--read-write", "--pack", "now", "--settle", &settle, "--min-size", "1KiB"];
        let mount = rig.mount(&below, "store", &args);
        for n in 0..20 {
            write_model(&mount.path(&format!("{n}.safetensors")), n, SOME);
        }
        assert_eq!(mount.status()["store"]["queued"], 20);
    });
}
