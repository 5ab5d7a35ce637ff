//! Mounts of archives that are stored as differences from others: exact bytes at every alignment,
//! each chunk of a base decoded for all, and errors while a base is away.
#![allow(clippy::unwrap_used)]

mod common;

use common::dependants::{self, Piece, pieces};
use common::mounts::{Mount, Rig, bsz, mount_test, wait_for};
use common::random::Random;
use common::samples::{Fill, pack_bytes, safetensors, tensor};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

/// The directory `p` with `base.bsz` and two dependants of it; the originals of all three.
fn family(rig: &Rig) -> (PathBuf, [Vec<u8>; 3]) {
    let (made, dir) = (rig.mkdir("made"), rig.mkdir("p"));
    let weights = tensor("BF16", 3_000_000, Fill::Weights, 3);
    let base = safetensors(&[("w", "BF16", weights)]);
    let packed = pack_bytes(&made, "base.safetensors", &base, 64 << 10);
    fs::write(dir.join("base.bsz"), packed).unwrap();
    let bases = [("base.safetensors", &base[..])];
    let tuned = dependants::write(&dir.join("tuned.bsz"), &bases, &pieces(&base));
    // A stream: chunks that are not aligned to those of the base.
    let chunk = |i: usize| Piece::Tuned { base: 0, at: 8 + i * 65_536, len: 65_536 };
    let chunks: Vec<_> = (0..40).map(chunk).collect();
    let stream = dependants::write(&dir.join("stream.bsz"), &bases, &chunks);
    (dir, [base, tuned, stream])
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

fn drop_pages(mount: &Mount) {
    bsz(["cache".as_ref(), "drop".as_ref(), mount.root().as_os_str()]);
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path)
}

#[test]
fn reads_at_every_alignment_are_exact_with_any_cache() {
    mount_test(|rig| {
        let (dir, [base, tuned, stream]) = family(rig);
        for cache in ["64MiB", "1"] {
            let mount = rig.mount(&dir, &format!("m{cache}"), &["--cache-size", cache]);
            let names = ["base.safetensors", "tuned.safetensors", "stream.safetensors"];
            let originals = [&base, &tuned, &stream];
            thread::scope(|scope| {
                for seed in 0..6 {
                    let mount = &mount;
                    scope.spawn(move || {
                        let mut random = Random(seed + 1);
                        let file = File::open(mount.path(names[seed as usize % 3])).unwrap();
                        let original = originals[seed as usize % 3];
                        for _ in 0..100 {
                            let at = random.below(original.len() as u64) as usize;
                            let most = (original.len() - at).min(200_000) as u64;
                            let mut out = vec![0; 1 + random.below(most) as usize];
                            file.read_exact_at(&mut out, at as u64).unwrap();
                            assert!(out == original[at..at + out.len()], "at {at}");
                        }
                    });
                }
            });
            for (name, original) in names.iter().zip(originals) {
                assert!(read(&mount.path(name)).unwrap() == *original, "{name}");
            }
            assert_eq!(mount.status()["cache"]["errors"], 0);
        }
    });
}

#[test]
fn a_stream_decodes_each_chunk_of_its_base_once() {
    mount_test(|rig| {
        let (dir, [_, _, stream]) = family(rig);
        let mount = rig.mount(&dir, "m", &["--cache-size", "64MiB", "--threads", "1"]);
        assert!(read(&mount.path("stream.safetensors")).unwrap() == stream);
        let decoded = mount.status()["cache"]["decoded_bytes"].as_u64().unwrap();
        let most = 2 * stream.len() as u64 + (512 << 10);
        assert!(decoded <= most, "{decoded} bytes for {}", stream.len());
    });
}

#[test]
fn a_missing_base_is_an_error_of_its_dependants_only_until_it_is_back() {
    mount_test(|rig| {
        let (dir, [base, tuned, stream]) = family(rig);
        fs::write(dir.join("plain"), b"plain").unwrap();
        let away = rig.mkdir("away").join("base.bsz");
        fs::rename(dir.join("base.bsz"), &away).unwrap();
        let mount = rig.mount(&dir, "m", &[]);
        let (one, other) = (mount.path("tuned.safetensors"), mount.path("stream.safetensors"));
        assert_eq!(errno(read(&one)), Some(libc::EIO));
        assert_eq!(errno(read(&one)), Some(libc::EIO));
        assert_eq!(errno(read(&other)), Some(libc::EIO));
        // What needs no base is still readable.
        assert_eq!(read(&mount.path("plain")).unwrap(), b"plain");
        let mut own = [0; 1000];
        File::open(&one).unwrap().read_exact_at(&mut own, 131_072).ok();
        // Others may log why they go without the base; the error of a file is logged once.
        let said = |name: &str| {
            let log = mount.log();
            log.lines().filter(|l| l.contains("ERROR") && l.contains(name)).count()
        };
        wait_for("the errors", || said("tuned.bsz: its base") * said("stream.bsz: its base") > 0);
        assert_eq!((said("tuned.bsz:"), said("stream.bsz:")), (1, 1), "{}", mount.log());
        let missing = &mount.status()["bases"];
        assert_eq!(missing.as_array().unwrap().len(), 1);
        assert_eq!(missing[0]["name"], "base.safetensors");
        fs::rename(&away, dir.join("base.bsz")).unwrap();
        wait_for("the base", || read(&one).is_ok());
        assert!(read(&one).unwrap() == tuned);
        wait_for("the base", || read(&other).is_ok());
        assert!(read(&other).unwrap() == stream);
        assert!(read(&mount.path("base.safetensors")).unwrap() == base);
        assert!(mount.status().get("bases").is_none());
    });
}

#[test]
fn a_base_is_found_outside_of_the_mount_where_the_user_says() {
    mount_test(|rig| {
        let (dir, [_, tuned, _]) = family(rig);
        let away = rig.mkdir("away");
        fs::rename(dir.join("base.bsz"), away.join("anything.bsz")).unwrap();
        let arguments = ["--bases".as_ref(), away.as_os_str()];
        let arguments = arguments.map(|a: &std::ffi::OsStr| a.to_str().unwrap());
        let mount = rig.mount(&dir, "m", &arguments);
        assert!(read(&mount.path("tuned.safetensors")).unwrap() == tuned);
        let option = format!("bases={}", away.display());
        let mount = rig.mount(&dir, "n", &["-o", &option]);
        assert!(read(&mount.path("tuned.safetensors")).unwrap() == tuned);
    });
}

#[test]
fn a_base_that_is_replaced_or_removed_never_gives_a_wrong_byte() {
    mount_test(|rig| {
        let (dir, [base, tuned, _]) = family(rig);
        let mount = rig.mount(&dir, "m", &[]);
        let path = mount.path("tuned.safetensors");
        let exact_or_error = |what: &str| {
            drop_pages(&mount);
            let read = read(&path);
            assert!(read.as_ref().is_ok_and(|r| *r == tuned) || read.is_err(), "{what}");
            read.is_ok()
        };
        assert!(exact_or_error("as it was"));
        let kept = fs::read(dir.join("base.bsz")).unwrap();
        // Overwritten in place with another archive, cut short, removed, another file.
        let mut other = base.clone();
        other.iter_mut().skip(200_000).step_by(2).for_each(|byte| *byte ^= 1);
        let packed = pack_bytes(&rig.mkdir("other"), "base.safetensors", &other, 64 << 10);
        fs::write(dir.join("base.bsz"), &packed).unwrap();
        exact_or_error("another archive");
        fs::write(dir.join("base.bsz"), &kept[..kept.len() / 2]).unwrap();
        exact_or_error("cut short");
        fs::remove_file(dir.join("base.bsz")).unwrap();
        exact_or_error("removed");
        fs::write(dir.join("base.safetensors"), &other).unwrap();
        exact_or_error("another plain file");
        fs::remove_file(dir.join("base.safetensors")).unwrap();
        // A symbolic link out of the source is not followed.
        fs::write(rig.path("secret.bsz"), &kept).unwrap();
        std::os::unix::fs::symlink(rig.path("secret.bsz"), dir.join("base.bsz")).unwrap();
        exact_or_error("a link");
        fs::remove_file(dir.join("base.bsz")).unwrap();
        fs::write(dir.join("base.bsz"), &kept).unwrap();
        wait_for("the base", || exact_or_error("back"));
    });
}

#[test]
fn pins_are_used_and_never_shown() {
    mount_test(|rig| {
        let (dir, [base, tuned, _]) = family(rig);
        let pin = dependants::base("base.safetensors", &base).pin_name();
        fs::rename(dir.join("base.bsz"), dir.join(&pin)).unwrap();
        let stem = pin.strip_suffix(".bsz").unwrap();
        let hidden = [pin.clone(), stem.to_owned(), format!("{stem}.safetensors")];
        let shows_none = |mount: &Mount| {
            assert_eq!(
                common::program::names(mount.root()),
                ["stream.safetensors", "tuned.safetensors"]
            );
            for name in &hidden {
                let e = fs::metadata(mount.path(name)).map(drop);
                assert_eq!(errno(e), Some(libc::ENOENT), "{name}");
            }
            assert!(read(&mount.path("tuned.safetensors")).unwrap() == tuned);
        };
        let mount = rig.mount(&dir, "m", &[]);
        shows_none(&mount);
        drop(mount);
        let store = rig.mount(&dir, "s", &["--read-write"]);
        shows_none(&store);
        let e = File::create(store.path(&pin)).map(drop);
        assert_eq!(errno(e), Some(libc::EPERM));
    });
}
