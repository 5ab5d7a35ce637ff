//! Several mounts of one directory, as after a restart of the daemon while files are in use.

use super::store::{PACKED, PLAIN, Store, same};
use crate::common::mounts::{Mount, Rig, mount_test, wait_for};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

/// End the daemon, whose files stay in use, and mount its directory elsewhere.
fn restarted(rig: &Rig, store: &Store) -> Mount {
    store.mount.signal(Signal::TERM);
    wait_for("the mount to be detached", || !store.mount.is_mounted());
    rig.mount(&store.below, "again", &["--read-write", "--pack", "off"])
}

#[test]
fn files_in_use_survive_a_restart() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let models = [store.plain(PLAIN), store.packed(PACKED)];
        let open = |name: &str| File::open(store.path(name)).unwrap();
        let readers = [open(PLAIN), open(PACKED)];
        let writer = File::options().write(true).open(store.path(PLAIN)).unwrap();
        let mount = restarted(rig, &store);
        fs::rename(mount.path(PLAIN), mount.path("renamed.part")).unwrap();
        fs::remove_file(mount.path(PACKED)).unwrap();
        for (file, model) in readers.iter().zip(&models) {
            assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
            let mut read = vec![0; model.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            same(&read, model);
        }
        writer.write_all_at(b"written", 100).unwrap();
        let mut read = [0; 7];
        File::open(mount.path("renamed.part")).unwrap().read_exact_at(&mut read, 100).unwrap();
        assert_eq!(&read, b"written");
        drop((readers, writer));
        assert_eq!(store.mount.exit_code(), Some(0));
    });
}

#[test]
fn appended_bytes_of_two_mounts_follow_each_other() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let open = |path| File::options().create(true).append(true).open(path).unwrap();
        let mut first = open(store.path("log"));
        first.write_all(b"one\n").unwrap();
        let mount = restarted(rig, &store);
        let mut second = open(mount.path("log"));
        for n in 0..10 {
            writeln!(second, "from the second, {n}").unwrap();
            writeln!(first, "from the first, {n}").unwrap();
        }
        let log = fs::read_to_string(store.below.join("log")).unwrap();
        let pairs = (0..10).map(|n| format!("from the second, {n}\nfrom the first, {n}\n"));
        assert_eq!(log, format!("one\n{}", pairs.collect::<String>()));
        drop(first);
        assert_eq!(store.mount.exit_code(), Some(0));
    });
}
