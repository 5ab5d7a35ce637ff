//! Symlinks, hard links and inode numbers of the view.
#![allow(clippy::unwrap_used)]

mod common;

use common::models::write_model;
use common::mounts::{Mount, Rig, bsz, mount_test, run, wait_for};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn pack(file: &Path) {
    bsz([Path::new("pack"), Path::new("--in-place"), file]);
}

/// The target of a symlink in the view; its size must be the target's length.
fn text(view: &Mount, link: &str) -> PathBuf {
    let text = fs::read_link(view.path(link)).unwrap();
    let size = fs::symlink_metadata(view.path(link)).unwrap().len();
    assert_eq!(size, text.as_os_str().len() as u64, "{link}");
    text
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every file of the view: its path, its inode number in the listing, and the one that `stat`
/// reports.
fn numbers(view: &Mount) -> Vec<(PathBuf, u64, u64)> {
    fn into(dir: &Path, found: &mut Vec<(PathBuf, u64, u64)>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            found.push((entry.path(), std::os::unix::fs::DirEntryExt::ino(&entry), meta.ino()));
            if meta.is_dir() {
                into(&entry.path(), found);
            }
        }
    }
    let mut found = Vec::new();
    into(view.root(), &mut found);
    found.sort();
    found
}

/// A tree in the layout of model hubs: a blob named by its hash, and links to it from a snapshot.
fn hub(rig: &Rig) -> (PathBuf, Vec<u8>) {
    let source = rig.mkdir("source").canonicalize().unwrap();
    fs::create_dir_all(source.join("blobs")).unwrap();
    fs::create_dir_all(source.join("snapshots/rev")).unwrap();
    let model = write_model(&source.join("blobs/0123abc"), 1, 20_000);
    (source, model)
}

#[test]
fn links_into_the_source_lead_to_the_originals_in_the_view() {
    mount_test(|rig| {
        let (source, model) = hub(rig);
        let snapshot = source.join("snapshots/rev");
        symlink("../../blobs/0123abc", snapshot.join("relative")).unwrap();
        symlink(source.join("blobs/0123abc"), snapshot.join("absolute")).unwrap();
        symlink("../../../source/blobs/0123abc", snapshot.join("around")).unwrap();
        symlink(source.join("snapshots/rev"), source.join("current")).unwrap();
        symlink("current/absolute", source.join("chain")).unwrap();
        pack(&source.join("blobs/0123abc"));
        // Links made after the archive.
        symlink("../../blobs/0123abc.bsz", snapshot.join("to-archive")).unwrap();
        symlink(source.join("blobs/0123abc.bsz"), snapshot.join("absolute-to-archive")).unwrap();
        let view = rig.mount(&source, "view", &[]);
        // What is read comes from the view; the source has only the archive left.
        for link in ["relative", "absolute", "around", "to-archive", "absolute-to-archive"] {
            let link = format!("snapshots/rev/{link}");
            assert_eq!(text(&view, &link), Path::new("../../blobs/0123abc"), "{link}");
            assert!(fs::read(view.path(&link)).unwrap() == model, "{link}");
        }
        assert_eq!(text(&view, "current"), Path::new("snapshots/rev"));
        assert!(fs::read(view.path("chain")).unwrap() == model);
    });
}

#[test]
fn a_link_to_an_archive_is_shown_under_the_original_name_if_that_is_free() {
    mount_test(|rig| {
        let (source, _) = hub(rig);
        let model = write_model(&source.join("m.safetensors"), 2, 20_000);
        pack(&source.join("m.safetensors"));
        symlink("m.bsz", source.join("alias.bsz")).unwrap();
        symlink("alias.bsz", source.join("second.bsz")).unwrap();
        symlink("m.bsz", source.join("taken.bsz")).unwrap();
        fs::write(source.join("taken.safetensors"), "plain").unwrap();
        symlink("nowhere.bsz", source.join("dangling.bsz")).unwrap();
        symlink("blobs", source.join("directory.bsz")).unwrap();
        symlink("loop.bsz", source.join("loop.bsz")).unwrap();
        fs::copy(source.join("m.bsz"), rig.path("outside.bsz")).unwrap();
        symlink(rig.path("outside.bsz"), source.join("outside.bsz")).unwrap();
        let view = rig.mount(&source, "view", &[]);
        assert_eq!(
            names(view.root()),
            [
                "alias.safetensors",
                "blobs",
                "dangling.bsz",
                "directory.bsz",
                "loop.bsz",
                "m.safetensors",
                "outside.bsz",
                "second.safetensors",
                "snapshots",
                "taken.safetensors",
            ]
        );
        assert_eq!(text(&view, "alias.safetensors"), Path::new("m.safetensors"));
        assert_eq!(text(&view, "second.safetensors"), Path::new("alias.safetensors"));
        assert!(fs::read(view.path("second.safetensors")).unwrap() == model);
        assert!(fs::symlink_metadata(view.path("alias.bsz")).is_err());
        assert_eq!(fs::read(view.path("taken.safetensors")).unwrap(), b"plain");
        assert_eq!(text(&view, "outside.bsz"), rig.path("outside.bsz"));
        assert_eq!(text(&view, "dangling.bsz"), Path::new("nowhere.bsz"));
    });
}

#[test]
fn the_text_of_a_link_follows_the_file_it_points_to() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        write_model(&source.join("m.safetensors"), 3, 20_000);
        symlink("m.bsz", source.join("link")).unwrap();
        let view = rig.mount(&source, "view", &[]);
        assert_eq!(text(&view, "link"), Path::new("m.bsz"));
        pack(&source.join("m.safetensors"));
        wait_for("the text", || {
            fs::read_link(view.path("link")).unwrap() == Path::new("m.safetensors")
        });
    });
}

#[test]
fn inode_numbers_are_stable_across_listings_dropped_caches_and_mounts() {
    mount_test(|rig| {
        let (source, _) = hub(rig);
        write_model(&source.join("m.safetensors"), 4, 20_000);
        symlink("m.safetensors", source.join("link")).unwrap();
        fs::write(source.join("snapshots/plain"), "x").unwrap();
        pack(&source.join("m.safetensors"));
        pack(&source.join("blobs/0123abc"));
        let view = rig.mount(&source, "view", &[]);
        let first = numbers(&view);
        for (path, listed, told) in &first {
            assert_eq!(listed, told, "{}", path.display());
        }
        let mut distinct: Vec<u64> = first.iter().map(|(_, _, told)| *told).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), first.len());
        // Only root may drop caches; otherwise the next mount has to do.
        let _ = fs::write("/proc/sys/vm/drop_caches", "3");
        assert_eq!(numbers(&view), first);
        bsz([Path::new("umount"), view.root()]);
        let again = rig.mount(&source, "view", &[]);
        // The names are looked up in another order.
        fs::metadata(again.path("snapshots/plain")).unwrap();
        assert_eq!(numbers(&again), first);
    });
}

#[test]
fn hard_links_share_an_inode_number_and_count_once() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        for (name, seed) in [("plain", 5), ("m.safetensors", 6)] {
            write_model(&source.join(name), seed, 300_000);
        }
        pack(&source.join("m.safetensors"));
        fs::hard_link(source.join("plain"), source.join("plain-2")).unwrap();
        fs::hard_link(source.join("m.bsz"), source.join("m-2.bsz")).unwrap();
        // A link to the archive itself, which is a different file from the original it shows.
        fs::hard_link(source.join("m.bsz"), source.join("raw")).unwrap();
        let view = rig.mount(&source, "view", &[]);
        let of = |name: &str| {
            fs::metadata(view.path(name)).map(|meta| (meta.ino(), meta.nlink())).unwrap()
        };
        assert_eq!(of("plain"), of("plain-2"));
        assert_eq!(of("m.safetensors"), of("m-2.safetensors"));
        assert_ne!(of("m.safetensors").0, of("raw").0);
        assert_eq!((of("plain").1, of("m.safetensors").1), (2, 3));
        let raw = fs::read(view.path("raw")).unwrap();
        assert!(raw == fs::read(source.join("m.bsz")).unwrap());
        let kilobytes = |path: &Path, args: &[&str]| {
            let du = run(Command::new("du").args(["-sk"]).args(args).arg(path)).stdout;
            String::from_utf8_lossy(&du).split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let (mine, theirs) = (kilobytes(view.root(), &["--exclude=raw"]), kilobytes(&source, &[]));
        assert!(mine <= theirs + 8, "{mine} KiB of {theirs} KiB");
        // One name is removed, and the others stay.
        let original = fs::read(view.path("m.safetensors")).unwrap();
        fs::remove_file(source.join("m.bsz")).unwrap();
        fs::remove_file(source.join("plain")).unwrap();
        assert!(fs::read(view.path("m-2.safetensors")).unwrap() == original);
        assert!(fs::read(view.path("plain-2")).is_ok());
    });
}

#[test]
fn an_overlay_over_the_view_reads_exactly_when_an_archive_is_replaced() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        let old = write_model(&source.join("m.safetensors"), 7, 20_000);
        pack(&source.join("m.safetensors"));
        let new = write_model(&rig.path("n.safetensors"), 8, 30_000);
        pack(&rig.path("n.safetensors"));
        let view = rig.mount(&source, "view", &[]);
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| rig.mkdir(name));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            view.root().display(),
            upper.display(),
            work.display()
        );
        let mounted = run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&merged));
        if !mounted.status.success() {
            return eprintln!("skipped: overlayfs cannot be mounted here");
        }
        let outcome = std::panic::catch_unwind(|| {
            let shown = merged.join("m.safetensors");
            let held = fs::File::open(&shown).unwrap();
            fs::rename(rig.path("n.bsz"), source.join("m.bsz")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1200));
            // While somebody has the old file open, a new open gets the old one, too, and no error.
            assert!(fs::read(&shown).unwrap() == old);
            let mut read = Vec::new();
            std::io::Read::read_to_end(&mut &held, &mut read).unwrap();
            assert!(read == old);
            drop(held);
            wait_for("the new one", || fs::read(&shown).unwrap() == new);
        });
        rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).unwrap();
        outcome.unwrap();
    });
}

#[test]
fn holes_of_a_plain_file_are_holes_in_the_view() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        let file = fs::File::create(source.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 8 << 20).unwrap();
        file.set_len(64 << 20).unwrap();
        let model = write_model(&source.join("m.safetensors"), 9, 20_000);
        pack(&source.join("m.safetensors"));
        let view = rig.mount(&source, "view", &[]);
        let seek = |file: &fs::File, to| rustix::fs::seek(file, to);
        use rustix::fs::SeekFrom::{Data, Hole};
        let (theirs, mine) =
            (fs::File::open(source.join("sparse")), fs::File::open(view.path("sparse")));
        let (theirs, mine) = (theirs.unwrap(), mine.unwrap());
        for at in [0, 1 << 20, 8 << 20, (8 << 20) + 5000, 63 << 20, 64 << 20] {
            assert_eq!(seek(&mine, Data(at)), seek(&theirs, Data(at)), "data from {at}");
            assert_eq!(seek(&mine, Hole(at)), seek(&theirs, Hole(at)), "hole from {at}");
        }
        let packed = fs::File::open(view.path("m.safetensors")).unwrap();
        let len = model.len() as u64;
        assert_eq!((seek(&packed, Data(5)), seek(&packed, Hole(5))), (Ok(5), Ok(len)));
        assert_eq!(seek(&packed, Data(len)), Err(rustix::io::Errno::NXIO));
        assert_ne!(packed.metadata().unwrap().blocks(), 0);
    });
}

#[test]
fn an_archive_with_the_longest_name_is_shown() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        let model = write_model(&source.join("m.safetensors"), 10, 20_000);
        pack(&source.join("m.safetensors"));
        let stem = |len: usize| "n".repeat(len);
        fs::copy(source.join("m.bsz"), source.join(format!("{}.bsz", stem(243)))).unwrap();
        // The original would have a name that is too long for any file.
        fs::copy(source.join("m.bsz"), source.join(format!("{}.bsz", stem(251)))).unwrap();
        let view = rig.mount(&source, "view", &[]);
        let longest = format!("{}.safetensors", stem(243));
        assert_eq!(
            names(view.root()),
            ["m.safetensors".into(), longest.clone(), format!("{}.bsz", stem(251))]
        );
        assert!(fs::read(view.path(&longest)).unwrap() == model);
        assert!(fs::read(view.path(&format!("{}.bsz", stem(251)))).is_ok());
    });
}

#[test]
fn an_archive_that_is_replaced_repeatedly_is_never_read_as_a_mixture() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        let models = [11, 12].map(|seed| {
            let file = rig.path(&format!("{seed}.safetensors"));
            let model = write_model(&file, seed, 30_000);
            pack(&file);
            (model, fs::read(file.with_extension("bsz")).unwrap())
        });
        let archive = source.join("m.bsz");
        fs::write(&archive, &models[0].1).unwrap();
        let view = rig.mount(&source, "view", &[]);
        let started = std::time::Instant::now();
        let goes_on = || started.elapsed() < std::time::Duration::from_secs(3);
        let mut whole = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in (0..).take_while(|_| goes_on()) {
                    let bytes = &models[round % 2].1;
                    // Also rewritten in place, which nobody should do.
                    let at = if round % 3 == 0 { archive.clone() } else { rig.path("next.bsz") };
                    fs::write(&at, bytes).unwrap();
                    if at != archive {
                        fs::rename(at, &archive).unwrap();
                    }
                    std::thread::sleep(std::time::Duration::from_millis(round as u64 % 7));
                }
            });
            while goes_on() {
                // Between two versions, there may be an error or nothing to read.
                if let Ok(read) = fs::read(view.path("m.safetensors")) {
                    assert!(
                        models.iter().any(|(model, _)| *model == read),
                        "a mixture of {} bytes",
                        read.len()
                    );
                    whole += 1;
                }
            }
        });
        assert!(whole > 0);
        let last = fs::read(&archive).unwrap();
        let (model, _) = models.iter().find(|(_, archive)| *archive == last).unwrap();
        wait_for("the last one", || {
            fs::read(view.path("m.safetensors")).is_ok_and(|read| read == *model)
        });
    });
}
