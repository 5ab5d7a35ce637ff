//! Mapped files.

use super::store::{PACKED, Store, both, holds, is_packed, same};
use crate::common::mounts::mount_test;
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

fn map(path: &Path) -> Mmap {
    // SAFETY: what changes the mapped file is what the test looks at.
    unsafe { Mmap::map(&File::open(path).unwrap()).unwrap() }
}

#[test]
fn shared_mappings_show_and_make_changes() {
    both(|_, path, model| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        // SAFETY: as in `map`.
        let mut writable = unsafe { MmapMut::map_mut(&file).unwrap() };
        let readable = map(path);
        same(&readable, model);
        writable[5000..5003].copy_from_slice(b"map");
        let mut wanted = model.to_vec();
        wanted[5000..5003].copy_from_slice(b"map");
        same(&readable, &wanted);
        holds(path, &wanted);
        file.write_all_at(b"written", 90_000).unwrap();
        wanted[90_000..90_007].copy_from_slice(b"written");
        same(&readable, &wanted);
        writable.flush().unwrap();
        drop((writable, readable, file));
        holds(path, &wanted);
        assert!(!is_packed(path));
    });
}

#[test]
fn private_mappings_keep_changes() {
    both(|_, path, model| {
        let before = is_packed(path);
        // SAFETY: as in `map`.
        let mut private =
            unsafe { MmapOptions::new().map_copy(&File::open(path).unwrap()).unwrap() };
        same(&private, model);
        private[5000..5003].copy_from_slice(b"map");
        assert_eq!(&private[5000..5003], b"map");
        holds(path, model);
        assert_eq!(is_packed(path), before);
    });
}

#[test]
fn mappings_stay_exact() {
    mount_test(|rig| {
        let store = Store::new(rig);
        let model = store.packed(PACKED);
        let path = store.path(PACKED);
        // Of the packed file; read here and there, so that some pages are cached, and some are not.
        let first = map(&path);
        same(&first[..5000], &model[..5000]);
        // Unpacked by a write of the same bytes.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&model[9000..9001], 9000).unwrap();
        drop(file);
        assert!(!is_packed(&path));
        same(&first[..70_000], &model[..70_000]);
        let second = map(&path);
        same(&second[40_000..50_000], &model[40_000..50_000]);
        store.pack(&path);
        same(&first[..90_000], &model[..90_000]);
        let moved = store.path("moved.safetensors");
        fs::rename(&path, &moved).unwrap();
        same(&second[..100_000], &model[..100_000]);
        fs::remove_file(&moved).unwrap();
        same(&first, &model);
        same(&second, &model);
    });
}
