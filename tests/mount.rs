//! What the mount shows when read through the kernel.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::models::write_model;
use common::mounts::{Mount, Rig, bsz, bsz_fails, mount_test, wait_for};
use common::random::Random;
use common::samples::samples;
use memmap2::{Mmap, MmapOptions};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

/// Longer than the kernel caches names and attributes.
const BEYOND_TTL: Duration = Duration::from_millis(1200);

/// A directory of models and other files, its packed copy, and the bytes of the first model.
fn sample(rig: &Rig) -> (PathBuf, PathBuf, Vec<u8>) {
    let plain = rig.mkdir("plain");
    fs::create_dir_all(plain.join("sub/deeper")).unwrap();
    let model = write_model(&plain.join("model.safetensors"), 1, 1_500_000);
    write_model(&plain.join("sub/model-00001-of-00002.safetensors"), 2, 200_000);
    write_model(&plain.join("sub/deeper/with space, and comma.safetensors"), 3, 1000);
    fs::write(plain.join("config.json"), "{}").unwrap();
    fs::write(plain.join("sub/empty"), "").unwrap();
    fs::write(plain.join("broken.safetensors"), "this is no safetensors file").unwrap();
    symlink("sub/model-00001-of-00002.safetensors", plain.join("link.safetensors")).unwrap();
    symlink("/nowhere", plain.join("dangling")).unwrap();
    fs::set_permissions(plain.join("model.safetensors"), fs::Permissions::from_mode(0o640))
        .unwrap();
    fs::set_permissions(plain.join("sub/deeper"), fs::Permissions::from_mode(0o711)).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::options()
        .write(true)
        .open(plain.join("model.safetensors"))
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let packed = rig.path("packed");
    bsz([Path::new("pack"), &plain, Path::new("-o"), &packed]);
    assert!(packed.join("model.bsz").exists() && !packed.join("model.safetensors").exists());
    (plain, packed, model)
}

fn mounted(rig: &Rig, args: &[&str]) -> (Mount, PathBuf, Vec<u8>) {
    let (plain, packed, model) = sample(rig);
    (rig.mount(&packed, "view", args), plain, model)
}

/// Every path below `root`, relative to it.
fn walk(root: &Path) -> Vec<PathBuf> {
    fn into(dir: &Path, root: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            found.push(entry.path().strip_prefix(root).unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                into(&entry.path(), root, found);
            }
        }
    }
    let mut found = Vec::new();
    into(root, root, &mut found);
    found.sort();
    found
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn the_view_shows_the_names_sizes_modes_times_and_bytes_of_the_originals() {
    mount_test(|rig| {
        let (mount, plain, _) = mounted(rig, &[]);
        let paths = walk(&plain);
        assert_eq!(walk(mount.root()), paths);
        for path in paths {
            let (original, shown) = (plain.join(&path), mount.root().join(&path));
            let (a, b) =
                (fs::symlink_metadata(&original).unwrap(), fs::symlink_metadata(&shown).unwrap());
            let shown_as = format!("{}", path.display());
            assert_eq!(a.mode(), b.mode(), "{shown_as}");
            assert_eq!((a.uid(), a.gid()), (b.uid(), b.gid()), "{shown_as}");
            if a.is_symlink() {
                assert_eq!(fs::read_link(&original).unwrap(), fs::read_link(&shown).unwrap());
            } else if a.is_file() {
                assert_eq!(a.len(), b.len(), "{shown_as}");
                assert_eq!((a.mtime(), a.mtime_nsec()), (b.mtime(), b.mtime_nsec()), "{shown_as}");
                assert_eq!(b.nlink(), 1, "{shown_as}");
                assert!(
                    fs::read(&original).unwrap() == fs::read(&shown).unwrap(),
                    "{shown_as}: other bytes"
                );
            }
        }
        // The kernel follows a symlink in the view.
        let through = fs::read(mount.path("link.safetensors")).unwrap();
        assert!(through == fs::read(plain.join("link.safetensors")).unwrap());
    });
}

#[test]
fn files_of_every_kind_read_like_their_originals() {
    mount_test(|rig| {
        let (plain, packed) = (rig.mkdir("plain"), rig.path("packed"));
        let files = samples();
        files.iter().for_each(|(name, data)| {
            fs::write(plain.join(format!("{name}.safetensors")), data).unwrap();
        });
        bsz([Path::new("pack"), &plain, Path::new("-o"), &packed]);
        let mount = rig.mount(&packed, "view", &[]);
        for (name, data) in files {
            assert!(
                fs::read(mount.path(&format!("{name}.safetensors"))).unwrap() == data,
                "{name}"
            );
        }
    });
}

#[test]
fn du_reports_the_size_of_the_archive() {
    mount_test(|rig| {
        let (mount, _, _) = mounted(rig, &[]);
        let shown = fs::metadata(mount.path("model.safetensors")).unwrap();
        let archive = fs::metadata(rig.path("packed/model.bsz")).unwrap();
        assert_eq!(shown.blocks(), archive.blocks());
    });
}

#[test]
fn random_reads_and_reads_across_the_end_are_exact() {
    mount_test(|rig| {
        let (mount, _, model) = mounted(rig, &[]);
        let file = File::open(mount.path("model.safetensors")).unwrap();
        let mut random = Random(7);
        for _ in 0..300 {
            let offset = random.below(model.len() as u64 + 1000);
            let mut buffer = vec![0xAA; random.below(300_000) as usize];
            let n = file.read_at(&mut buffer, offset).unwrap();
            let rest = &model[model.len().min(offset as usize)..];
            assert_eq!(n, rest.len().min(buffer.len()));
            assert!(buffer[..n] == rest[..n], "{n} bytes at {offset}");
        }
        let len = model.len() as u64;
        let mut buffer = [0; 100];
        assert_eq!(file.read_at(&mut buffer, len - 10).unwrap(), 10);
        assert_eq!(file.read_at(&mut buffer, len).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, len + 1_000_000).unwrap(), 0);
    });
}

#[test]
fn private_and_shared_mappings_are_exact() {
    mount_test(|rig| {
        let (mount, _, model) = mounted(rig, &[]);
        let file = File::open(mount.path("model.safetensors")).unwrap();
        // SAFETY: nothing writes to the file while it is mapped.
        let (private, shared) = unsafe {
            (MmapOptions::new().map_copy_read_only(&file).unwrap(), Mmap::map(&file).unwrap())
        };
        assert!(private[..] == model[..]);
        assert!(shared[..] == model[..]);
    });
}

#[test]
fn direct_reads_are_exact() {
    mount_test(|rig| {
        let (mount, _, model) = mounted(rig, &[]);
        let path = mount.path("model.safetensors");
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let mut read = vec![0; model.len().next_multiple_of(4096)];
        let mut filled = 0;
        while filled < model.len() {
            let end = (filled + (2 << 20)).min(read.len());
            let n = file.read_at(&mut read[filled..end], filled as u64).unwrap();
            assert_ne!(n, 0);
            filled += n;
        }
        assert_eq!(filled, model.len());
        assert!(read[..filled] == model[..]);
    });
}

#[test]
fn many_threads_at_random_offsets_read_exactly_with_a_tiny_cache() {
    mount_test(|rig| {
        let (mount, _, model) = mounted(rig, &["--cache-size", "1MiB", "--threads", "2"]);
        let path = mount.path("model.safetensors");
        let (path, model) = (&path, &model);
        thread::scope(|scope| {
            for seed in 0..16 {
                scope.spawn(move || {
                    let file = File::open(path).unwrap();
                    // SAFETY: nothing writes to the file while it is mapped.
                    let map = unsafe { Mmap::map(&file).unwrap() };
                    let direct =
                        File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
                    let mut random = Random(seed);
                    for _ in 0..60 {
                        let at = random.below(model.len() as u64 - 70_000) as usize / 512 * 512;
                        assert!(map[at..at + 4096] == model[at..at + 4096], "mapped at {at}");
                        let mut buffer = vec![0; 65_536];
                        direct.read_exact_at(&mut buffer, at as u64).unwrap();
                        assert!(buffer[..] == model[at..at + 65_536], "read at {at}");
                    }
                });
            }
        });
    });
}

#[test]
fn the_view_is_read_only() {
    mount_test(|rig| {
        let (mount, _, _) = mounted(rig, &[]);
        let model = mount.path("model.safetensors");
        assert_eq!(errno(File::options().write(true).open(&model)), Some(libc::EROFS));
        assert_eq!(
            errno(File::options().append(true).open(mount.path("config.json"))),
            Some(libc::EROFS)
        );
        assert_eq!(errno(File::create(mount.path("new"))), Some(libc::EROFS));
        assert_eq!(errno(fs::remove_file(&model)), Some(libc::EROFS));
        assert_eq!(errno(fs::create_dir(mount.path("dir"))), Some(libc::EROFS));
        assert_eq!(errno(fs::rename(&model, mount.path("other"))), Some(libc::EROFS));
        assert_eq!(
            errno(fs::set_permissions(&model, fs::Permissions::from_mode(0o600))),
            Some(libc::EROFS)
        );
    });
}

#[test]
fn statfs_reports_the_file_system_of_the_source() {
    mount_test(|rig| {
        let (mount, _, _) = mounted(rig, &[]);
        let view = rustix::fs::statvfs(mount.root()).unwrap();
        let source = rustix::fs::statvfs(rig.path("packed")).unwrap();
        assert_eq!((view.f_blocks, view.f_frsize), (source.f_blocks, source.f_frsize));
        assert_eq!(view.f_namemax, source.f_namemax);
    });
}

#[test]
fn a_large_directory_is_listed_completely() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        let names: Vec<String> =
            (0..3000).map(|n| format!("a rather long file name, number {n:05}")).collect();
        names.iter().for_each(|name| fs::write(source.join(name), "").unwrap());
        let mount = rig.mount(&source, "view", &[]);
        assert_eq!(walk(mount.root()), names.iter().map(PathBuf::from).collect::<Vec<_>>());
    });
}

#[test]
fn a_plain_file_shadows_the_archive_of_its_name() {
    mount_test(|rig| {
        let (_, packed, _) = sample(rig);
        fs::write(packed.join("model.safetensors"), "newer").unwrap();
        let mount = rig.mount(&packed, "view", &[]);
        assert_eq!(fs::read(mount.path("model.safetensors")).unwrap(), b"newer");
        let shown = walk(mount.root());
        assert_eq!(shown.iter().filter(|p| p.to_string_lossy().starts_with("model.")).count(), 1);
        assert_eq!(errno(File::open(mount.path("model.bsz"))), Some(libc::ENOENT));
    });
}

#[test]
fn an_archive_is_not_shown_under_its_own_name() {
    mount_test(|rig| {
        let (mount, _, _) = mounted(rig, &[]);
        assert_eq!(errno(fs::metadata(mount.path("model.bsz"))), Some(libc::ENOENT));
    });
}

#[test]
fn a_bsz_file_that_is_not_an_archive_is_shown_as_it_is() {
    mount_test(|rig| {
        let (_, packed, _) = sample(rig);
        let archive = fs::read(packed.join("model.bsz")).unwrap();
        let torn = &archive[..archive.len() - 5];
        for (name, bytes) in
            [("garbage.bsz", &b"garbage"[..]), ("empty.bsz", b""), ("torn.bsz", torn)]
        {
            fs::write(packed.join(name), bytes).unwrap();
        }
        fs::write(packed.join(".bsz"), &archive).unwrap();
        let mount = rig.mount(&packed, "view", &[]);
        let shown = walk(mount.root());
        for name in ["garbage.bsz", "empty.bsz", "torn.bsz", ".bsz"] {
            assert!(shown.contains(&name.into()), "{name}");
            assert!(
                fs::read(mount.path(name)).unwrap() == fs::read(packed.join(name)).unwrap(),
                "{name}"
            );
        }
        assert_eq!(errno(fs::metadata(mount.path("garbage.safetensors"))), Some(libc::ENOENT));
    });
}

#[test]
fn a_damaged_archive_gives_an_io_error_and_the_daemon_survives() {
    mount_test(|rig| {
        let (plain, packed, model) = sample(rig);
        let mut archive = fs::read(packed.join("model.bsz")).unwrap();
        let middle = archive.len() / 2;
        archive[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(packed.join("model.bsz"), archive).unwrap();
        let mount = rig.mount(&packed, "view", &[]);
        let path = mount.path("model.safetensors");
        assert_eq!(fs::metadata(&path).unwrap().len(), model.len() as u64);
        for _ in 0..3 {
            assert_eq!(errno(fs::read(&path)), Some(libc::EIO));
        }
        let mut start = [0; 4096];
        File::open(&path).unwrap().read_exact_at(&mut start, 0).unwrap();
        assert!(start == model[..4096], "what is not damaged can be read");
        let other = "sub/model-00001-of-00002.safetensors";
        assert!(fs::read(mount.path(other)).unwrap() == fs::read(plain.join(other)).unwrap());
        let said = mount.log();
        assert!(said.contains("model.bsz"), "the log names the archive: {said}");
        assert!(said.lines().count() < 20, "the log is not flooded: {said}");
    });
}

#[test]
fn new_opens_see_a_replaced_archive_and_open_files_keep_the_old_one() {
    mount_test(|rig| {
        let (mount, _, old) = mounted(rig, &["--cache-size", "1MiB"]);
        let path = mount.path("model.safetensors");
        let before = File::open(&path).unwrap();
        before.read_exact_at(&mut [0; 4096], 0).unwrap();
        let other = rig.mkdir("other");
        let new = write_model(&other.join("model.safetensors"), 99, 1_400_000);
        bsz([Path::new("pack"), &other, Path::new("-o"), &rig.path("other-packed")]);
        fs::rename(rig.path("other-packed/model.bsz"), rig.path("packed/model.bsz")).unwrap();
        thread::sleep(BEYOND_TTL);
        assert_eq!(fs::metadata(&path).unwrap().len(), new.len() as u64);
        assert!(fs::read(&path).unwrap() == new, "a new open reads the new file");
        let mut read = vec![0; old.len()];
        before.read_exact_at(&mut read, 0).unwrap();
        assert!(read == old, "the old handle reads the old file");
        assert_eq!(before.metadata().unwrap().len(), old.len() as u64);
        assert!(fs::read(&path).unwrap() == new);
    });
}

#[test]
fn the_view_follows_its_source() {
    mount_test(|rig| {
        let (mount, plain, model) = mounted(rig, &[]);
        let packed = rig.path("packed");
        fs::write(packed.join("new"), "new").unwrap();
        fs::write(packed.join("config.json"), "{\"longer\": true}").unwrap();
        fs::rename(packed.join("model.bsz"), packed.join("renamed.bsz")).unwrap();
        fs::remove_dir_all(packed.join("sub/deeper")).unwrap();
        thread::sleep(BEYOND_TTL);
        assert_eq!(fs::read(mount.path("new")).unwrap(), b"new");
        assert_eq!(fs::read(mount.path("config.json")).unwrap(), b"{\"longer\": true}");
        assert!(fs::read(mount.path("renamed.safetensors")).unwrap() == model);
        assert_eq!(errno(fs::metadata(mount.path("model.safetensors"))), Some(libc::ENOENT));
        assert_eq!(errno(fs::read_dir(mount.path("sub/deeper"))), Some(libc::ENOENT));
        // A plain file replaces the archive, as after `bsz unpack`.
        fs::copy(plain.join("model.safetensors"), packed.join("renamed.safetensors")).unwrap();
        fs::remove_file(packed.join("renamed.bsz")).unwrap();
        thread::sleep(BEYOND_TTL);
        assert!(fs::read(mount.path("renamed.safetensors")).unwrap() == model);
    });
}

#[test]
fn a_single_archive_can_be_mounted_under_its_original_name() {
    mount_test(|rig| {
        let (_, packed, model) = sample(rig);
        let mount = rig.mount(&packed.join("model.bsz"), "view", &[]);
        assert_eq!(walk(mount.root()), [Path::new("model.safetensors")]);
        assert!(fs::read(mount.path("model.safetensors")).unwrap() == model);
        assert_eq!(errno(fs::metadata(mount.path("config.json"))), Some(libc::ENOENT));
        let not_an_archive = packed.join("config.json");
        let said = bsz_fails([Path::new("mount"), &not_an_archive, &rig.mkdir("elsewhere")]);
        assert!(said.contains("is not an archive"), "{said}");
    });
}

#[test]
fn a_removed_file_is_served_until_it_is_closed() {
    mount_test(|rig| {
        let (mount, _, model) = mounted(rig, &[]);
        let file = File::open(mount.path("model.safetensors")).unwrap();
        fs::remove_file(rig.path("packed/model.bsz")).unwrap();
        wait_for("the name to go", || fs::metadata(mount.path("model.safetensors")).is_err());
        let mut read = vec![0; model.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == model);
    });
}
