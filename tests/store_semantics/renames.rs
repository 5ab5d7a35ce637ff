//! Renaming: plain and packed files over each other.

use super::store::{PACKED, PLAIN, Store, both, error, holds, is_packed, same};
use crate::common::mounts::mount_test;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Rename one file over another, while readers have both open.
fn replace(from: &Path, to: &Path, moved: &[u8], replaced: &[u8]) {
    let (was_packed, ino) = (is_packed(from), fs::metadata(from).unwrap().ino());
    let readers = [(File::open(from).unwrap(), moved), (File::open(to).unwrap(), replaced)];
    fs::rename(from, to).unwrap();
    assert_eq!(error(fs::metadata(from)), Errno::NOENT);
    holds(to, moved);
    let now = fs::metadata(to).unwrap();
    assert_eq!((now.ino(), now.nlink(), is_packed(to)), (ino, 1, was_packed));
    for (file, bytes) in &readers {
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        same(&read, bytes);
    }
    let [(_, _), (old, _)] = readers;
    assert_eq!(old.metadata().unwrap().nlink(), 0);
}

/// The names in the source.
fn below(store: &Store) -> Vec<String> {
    crate::common::program::names(&store.below)
}

#[test]
fn renaming_moves_a_file_with_its_number_and_bytes() {
    both(|store, path, model| {
        let (before, was_packed) = (fs::metadata(path).unwrap(), is_packed(path));
        let dir = path.with_extension("dir");
        fs::create_dir(&dir).unwrap();
        for to in [path.with_extension("other"), dir.join("inside.safetensors"), path.to_owned()] {
            let from =
                [path.to_owned(), path.with_extension("other"), dir.join("inside.safetensors")];
            let from = from.iter().find(|from| from.exists()).unwrap();
            fs::rename(from, &to).unwrap();
            assert!(!from.exists());
            let now = fs::metadata(&to).unwrap();
            let times = |of: &fs::Metadata| (of.mtime(), of.mtime_nsec());
            assert_eq!((now.ino(), times(&now)), (before.ino(), times(&before)));
            assert_eq!(is_packed(&to), was_packed);
            holds(&to, model);
        }
        // A directory, with what is in it.
        fs::rename(path, dir.join("file")).unwrap();
        let elsewhere = path.with_extension("elsewhere");
        fs::rename(&dir, &elsewhere).unwrap();
        holds(&elsewhere.join("file"), model);
        fs::rename(elsewhere.join("file"), path).unwrap();
        assert_eq!(error(fs::rename(path, &elsewhere)), Errno::ISDIR);
        assert_eq!(error(fs::rename(&elsewhere, path)), Errno::NOTDIR);
        assert_eq!(error(fs::rename(store.path("nothing"), path)), Errno::NOENT);
        holds(path, model);
    });
}

#[test]
fn a_plain_file_replaces_a_packed_one() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let (plain, packed) = (store.plain(PLAIN), store.packed(PACKED));
        replace(&store.path(PLAIN), &store.path(PACKED), &plain, &packed);
        assert_eq!(below(&store), [PACKED]);
    });
}

#[test]
fn a_packed_file_replaces_a_plain_one() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let (plain, packed) = (store.plain(PLAIN), store.packed(PACKED));
        replace(&store.path(PACKED), &store.path(PLAIN), &packed, &plain);
        assert_eq!(below(&store), [format!("{PLAIN}.bsz")]);
    });
}

#[test]
fn a_packed_file_replaces_a_packed_one() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let (one, other) = (store.packed_of("one", 21), store.packed_of("other", 22));
        replace(&store.path("one"), &store.path("other"), &one, &other);
        assert_eq!(below(&store), ["other.bsz"]);
    });
}

#[test]
fn renaming_without_replacing_leaves_what_exists() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let (plain, packed) = (store.plain(PLAIN), store.packed(PACKED));
        let rename = |from: &str, to: &str| {
            let (from, to) = (store.path(from), store.path(to));
            renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
        };
        assert_eq!(rename(PLAIN, PACKED), Err(Errno::EXIST));
        assert_eq!(rename(PACKED, PLAIN), Err(Errno::EXIST));
        assert_eq!(rename(PACKED, PACKED), Err(Errno::EXIST));
        rename(PACKED, "free").unwrap();
        rename(PLAIN, PACKED).unwrap();
        holds(&store.path("free"), &packed);
        holds(&store.path(PACKED), &plain);
    });
}

#[test]
fn exchanging_swaps_two_files() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let (plain, packed) = (store.plain(PLAIN), store.packed_of("one", 31));
        let other = store.packed_of("other", 32);
        let exchange = |from: &str, to: &str| {
            let (from, to) = (store.path(from), store.path(to));
            let numbers = || [&from, &to].map(|path| fs::metadata(path).unwrap().ino());
            let [first, second] = numbers();
            renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE).unwrap();
            assert_eq!(numbers(), [second, first]);
        };
        exchange("one", "other");
        holds(&store.path("one"), &other);
        holds(&store.path("other"), &packed);
        store.pack(&store.path("one"));
        exchange("one", PLAIN);
        holds(&store.path("one"), &plain);
        holds(&store.path(PLAIN), &other);
        fs::create_dir(store.path("dir")).unwrap();
        store.pack(&store.path("other"));
        exchange("other", "dir");
        holds(&store.path("dir"), &packed);
        assert!(store.path("other").is_dir());
        let (from, to) = (store.path("dir"), store.path("nothing"));
        let missing = renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE);
        assert_eq!(missing, Err(Errno::NOENT));
    });
}
