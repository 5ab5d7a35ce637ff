//! `bsz store` from outside: enabling, disabling, status, commands to the packer, refusals.

mod common;

use common::models::write_model;
use common::mounts::{BSZ, Rig, bsz, bsz_fails, mount_line, mount_test, run, wait_for};
use common::program::{copy_tree, same_tree};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mount options with which packing takes no time.
const QUICK: &str = "pack=now,settle=0,min_size=64KiB";

/// Weights of a model that is worth packing.
const WEIGHTS: usize = 700_000;

/// Five repositories in the layout of the hub's cache, and what surrounds them.
fn hub(rig: &Rig) -> PathBuf {
    let hub = rig.mkdir("hub");
    for seed in 1..=5 {
        let repository = hub.join(format!("models--org--m{seed}"));
        let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/abc"));
        fs::create_dir_all(&blobs).expect("mkdir");
        fs::create_dir_all(&snapshot).expect("mkdir");
        fs::create_dir_all(repository.join("refs")).expect("mkdir");
        fs::write(repository.join("refs/main"), "abc").expect("write");
        let (blob, config) = (format!("{seed:064x}"), format!("{seed:040x}"));
        write_model(&blobs.join(&blob), seed, WEIGHTS);
        fs::write(blobs.join(&config), "{}").expect("write");
        symlink(format!("../../blobs/{blob}"), snapshot.join("model.safetensors")).expect("link");
        symlink(format!("../../blobs/{config}"), snapshot.join("config.json")).expect("link");
    }
    let model = |seed: u64| hub.join(format!("models--org--m{seed}/blobs/{seed:064x}"));
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    mode(&model(1), 0o444);
    mode(&model(2), 0o4750);
    fs::hard_link(model(3), hub.join("models--org--m3/second")).expect("link");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(model(4), Some(1234), Some(4321)).expect("chown");
    }
    let note =
        rustix::fs::setxattr(model(5), "user.note", b"mine", rustix::fs::XattrFlags::empty());
    note.expect("a file system with extended attributes");
    let old = std::time::SystemTime::now() - std::time::Duration::new(1_000_000, 123_456_789);
    File::open(model(5)).and_then(|file| file.set_modified(old)).expect("set the time");
    hub
}

/// All that must come back: for each path its mode, owner, size, mtime, links and attributes.
fn described(top: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![top.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().expect("stat");
        if meta.is_dir() {
            left.extend(
                fs::read_dir(&path).expect("a directory").map(|e| e.expect("entry").path()),
            );
        }
        let mtime = if meta.is_dir() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        let size = if meta.is_dir() { 0 } else { meta.len() };
        let mut xattrs = vec![0; 4096];
        let len = rustix::fs::llistxattr(&path, &mut xattrs[..]).unwrap_or(0);
        let mut names: Vec<String> =
            xattrs[..len].split(|b| *b == 0).map(|n| String::from_utf8_lossy(n).into()).collect();
        names.sort();
        let (mode, uid, gid, links) = (meta.mode(), meta.uid(), meta.gid(), meta.nlink());
        let name = path.strip_prefix(top).expect("below").display();
        lines.push(format!("{name}: {mode:o} {uid}:{gid} {size} {mtime:?} {links} {names:?}"));
    }
    lines.sort();
    lines
}

fn enable(dir: &Path, options: &str) {
    bsz([OsStr::new("store"), "enable".as_ref(), "--no-unit".as_ref(), "-o".as_ref()]
        .into_iter()
        .chain([options.as_ref(), dir.as_os_str()]));
}

fn store(command: &str, dir: &Path) {
    bsz([OsStr::new("store"), command.as_ref(), dir.as_ref()]);
}

fn pack(dir: &Path) {
    bsz([OsStr::new("store"), "pack-now".as_ref(), "--wait".as_ref(), dir.as_ref()]);
}

/// What `bsz store status --json` reports of one store.
fn status(dir: &Path) -> Value {
    let output = run(Command::new(BSZ).args(["store", "status", "--json"]).arg(dir));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    all[0].clone()
}

#[test]
fn disabling_leaves_everything_as_it_was_before_enabling() {
    mount_test(|rig| {
        let hub = hub(rig);
        let copy = rig.path("copy");
        copy_tree(&hub, &copy);
        let before = described(&hub);
        enable(&hub, QUICK);
        enable(&hub, QUICK);
        pack(&hub);
        same_tree(&copy, &hub);
        let status = status(&hub);
        // The third has two names, and is left alone.
        assert_eq!(status["packed"], 4, "{status}");
        store("disable", &hub);
        assert!(mount_line(&hub).is_none());
        same_tree(&copy, &hub);
        assert_eq!(described(&hub), before);
        store("disable", &hub);
        assert_eq!(described(&hub), before);
    });
}

#[test]
fn disabling_twice_leaves_an_archive_that_was_made_through_the_store() {
    mount_test(|rig| {
        let (dir, other) = (rig.mkdir("d"), rig.mkdir("other"));
        write_model(&other.join("m.safetensors"), 1, WEIGHTS);
        bsz([OsStr::new("--quiet"), "pack".as_ref(), other.join("m.safetensors").as_ref()]);
        let archive = fs::read(other.join("m.bsz")).expect("read");
        enable(&dir, QUICK);
        fs::write(dir.join("mine.bsz"), &archive).expect("written");
        for _ in 0..2 {
            store("disable", &dir);
            assert!(fs::read(dir.join("mine.bsz")).expect("still there") == archive);
        }
        // Nor is any other directory unpacked that nobody has named.
        let unnamed = run(Command::new(BSZ).args(["store", "disable"]).current_dir(&other));
        assert!(!unnamed.status.success());
        assert!(String::from_utf8_lossy(&unnamed.stderr).contains("is not a store now"));
        assert!(other.join("m.bsz").exists());
    });
}

#[test]
fn names_of_a_packed_file_are_one_file_again() {
    mount_test(|rig| {
        let dir = rig.mkdir("d");
        let bytes = write_model(&dir.join("a.safetensors"), 1, WEIGHTS);
        enable(&dir, QUICK);
        pack(&dir);
        fs::hard_link(dir.join("a.safetensors"), dir.join("b.safetensors")).expect("link");
        store("disable", &dir);
        let of = |name| fs::metadata(dir.join(name)).expect("stat");
        assert_eq!(of("a.safetensors").ino(), of("b.safetensors").ino());
        assert_eq!(fs::read(dir.join("b.safetensors")).expect("read"), bytes);
        assert_eq!(fs::read_dir(&dir).expect("a directory").count(), 2);
    });
}

#[test]
fn the_status_has_a_row_for_each_repository() {
    mount_test(|rig| {
        let hub = hub(rig);
        enable(&hub, QUICK);
        pack(&hub);
        let status = status(&hub);
        let rows = status["directories"].as_array().expect("rows");
        let mut names: Vec<_> = rows.iter().map(|r| r["name"].as_str().expect("name")).collect();
        names.sort_unstable();
        assert_eq!(names, ["org/m1", "org/m2", "org/m3", "org/m4", "org/m5"]);
        for row in rows {
            let is_packed = row["name"] != "org/m3";
            assert_eq!(row["packed"], u64::from(is_packed), "{row}");
            assert_eq!(row["saved_bytes"].as_u64() > Some(300_000), is_packed, "{row}");
        }
        let shown = run(Command::new(BSZ).arg("status"));
        assert!(String::from_utf8_lossy(&shown.stdout).contains("hub: packed 4 files, saved "));
        store("disable", &hub);
    });
}

#[test]
fn while_it_is_paused_nothing_is_packed() {
    mount_test(|rig| {
        let dir = rig.mkdir("d");
        enable(&dir, QUICK);
        store("pause", &dir);
        write_model(&dir.join("a.safetensors"), 1, WEIGHTS);
        wait_for("the file to be queued", || status(&dir)["store"]["queued"] == 1);
        assert_eq!(status(&dir)["store"]["paused"], true);
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(status(&dir)["packed"], 0);
        store("resume", &dir);
        wait_for("the file to be packed", || status(&dir)["packed"] == 1);
        store("disable", &dir);
    });
}

#[test]
fn files_in_use_keep_a_store_from_being_disabled() {
    mount_test(|rig| {
        let dir = rig.mkdir("d");
        let model = dir.join("a.safetensors");
        write_model(&model, 1, WEIGHTS);
        enable(&dir, QUICK);
        pack(&dir);
        let open = File::open(&model).expect("open");
        let why = bsz_fails([OsStr::new("store"), "disable".as_ref(), dir.as_ref()]);
        assert!(why.contains("in use"), "{why}");
        assert_eq!(status(&dir)["packed"], 1);
        drop(open);
        store("disable", &dir);
    });
}

#[test]
fn where_a_store_would_do_harm_it_is_refused() {
    mount_test(|rig| {
        let refused = |dir: &Path, why: &str| {
            let line = [OsStr::new("store"), "enable".as_ref(), "--no-unit".as_ref(), dir.as_ref()];
            let said = bsz_fails(line);
            assert!(said.contains(why), "{said}");
            assert!(mount_line(dir).is_none() || dir.ends_with("view"));
        };
        let ollama = rig.mkdir("ollama/models/blobs");
        fs::write(ollama.join(format!("sha256-{}", "a".repeat(64))), "x").expect("write");
        refused(&rig.path("ollama"), "Ollama");
        refused(&ollama, "Ollama");
        rig.mkdir("o/blobs");
        rig.mkdir("o/manifests");
        refused(&rig.path("o"), "Ollama");
        rig.mount(&rig.mkdir("source"), "view", &[]);
        refused(&rig.path("view"), "not the store");
        refused(rig.path("view").parent().expect("parent"), "contains the bszfs mount");
        let outer = rig.mkdir("outer");
        rig.mkdir("outer/inner");
        enable(&outer, QUICK);
        refused(&outer.join("inner"), "inside the bszfs mount");
        store("disable", &outer);
        refused(&rig.path("missing"), "No such file");
    });
}
