//! What packing and unpacking preserve: owner, group, mode, ACLs, extended attributes, times, holes
//! and names. Nobody gains access along the way.

mod common;

use common::models::write_model;
use common::program::{self, Ran, bsz, names, run};
use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const SOME: usize = 60_000;
const ACL: &str = "system.posix_acl_access";

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become other users");
    }
    root
}

/// A directory with `s/m.safetensors` and the program, both reachable by all users.
fn model() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
    fs::create_dir(dir.path().join("s")).expect("mkdir");
    let path = dir.path().join("s/m.safetensors");
    write_model(&path, 1, SOME);
    fs::copy(bsz().get_program(), dir.path().join("bsz")).expect("copied");
    (dir, path)
}

/// Run `bsz` as the given user, whose groups are the one of the same number and 6001.
fn run_as(dir: &Path, user: &str, args: &[&str]) -> Ran {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", user, "--groups", "6001"])
        .arg(dir.join("bsz"))
        .args(args);
    command.current_dir(dir).output().expect("setpriv starts").into()
}

fn can_read(user: &str, group: &str, path: &Path) -> bool {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", group, "--clear-groups", "cat"]).arg(path);
    command.output().expect("setpriv starts").status.success()
}

/// An ACL: read and write for the owner, the given entries for the user, group, mask and others.
fn acl(user: u32, perm: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, perm, id) in
        [(1u16, 6, none), (2, perm, user), (4, group, none), (16, mask, none), (32, other, none)]
    {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn value(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1000];
    let n = getxattr(path, name, &mut buffer[..]).ok()?;
    buffer.truncate(n);
    Some(buffer)
}

#[test]
fn acls_and_extended_attributes_survive_packing_and_unpacking() {
    let (dir, path) = model();
    let wanted = acl(7002, 4, 0, 4, 0);
    if setxattr(&path, ACL, &wanted, XattrFlags::empty()).is_err()
        || setxattr(&path, "user.note", b"from here", XattrFlags::empty()).is_err()
    {
        eprintln!("skipped: no ACLs or extended attributes here");
        return;
    }
    let times = path.metadata().map(|m| (m.mtime(), m.mtime_nsec())).expect("stat");
    for step in [
        &["pack", "--in-place", "s"][..],
        &["unpack", "s", "-o", "back"],
        &["pack", "back", "-o", "again"],
    ] {
        run(dir.path(), step).ok();
    }
    for kept in ["s/m.bsz", "back/m.safetensors", "again/m.bsz"] {
        let kept = dir.path().join(kept);
        assert_eq!(value(&kept, ACL).as_ref(), Some(&wanted), "{kept:?}");
        assert_eq!(value(&kept, "user.note").as_deref(), Some(&b"from here"[..]), "{kept:?}");
        assert_eq!(
            kept.metadata().map(|m| (m.mtime(), m.mtime_nsec())).expect("stat"),
            times,
            "{kept:?}"
        );
        if rustix::process::geteuid().is_root() {
            assert!(can_read("7002", "7002", &kept) && !can_read("7009", "0", &kept), "{kept:?}");
        }
    }
}

#[test]
fn a_default_acl_does_not_open_an_archive_to_others() {
    let (dir, path) = model();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
    let inherited = acl(7003, 6, 6, 6, 4);
    if setxattr(dir.path().join("s"), "system.posix_acl_default", &inherited, XattrFlags::empty())
        .is_err()
    {
        eprintln!("skipped: no ACLs here");
        return;
    }
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    let archive = dir.path().join("s/m.bsz");
    assert_eq!(value(&archive, ACL), None);
    assert_eq!(archive.metadata().expect("stat").mode() & 0o777, 0o640);
    // The directories of a copy keep theirs.
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    let default = |path: &str| value(&dir.path().join(path), "system.posix_acl_default");
    assert_eq!((default("out"), default("s")), (Some(inherited.clone()), Some(inherited)));
}

#[test]
fn without_acl_support_nobody_else_gets_access() {
    let (dir, path) = model();
    if !is_root() || setxattr(&path, ACL, &acl(7002, 4, 0, 4, 0), XattrFlags::empty()).is_err() {
        return;
    }
    // ramfs has no ACLs.
    let plain = dir.path().join("plain");
    fs::create_dir(&plain).expect("mkdir");
    let mounted = Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&plain).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no ramfs can be mounted");
        return;
    }
    let ran = run(dir.path(), &["pack", "s", "-o", "plain/out"]);
    let mode = plain.join("out/m.bsz").metadata().map(|m| m.mode() & 0o777);
    assert!(Command::new("umount").arg(&plain).status().is_ok_and(|status| status.success()));
    assert!(ran.code == Some(0) && ran.stderr.contains("could not keep its ACL"), "{ran:?}");
    assert_eq!(mode.expect("an archive"), 0o600);
}

#[test]
fn a_group_member_keeps_the_group_and_anybody_else_closes_the_archive() {
    let (dir, path) = model();
    if !is_root() {
        return;
    }
    for (path, mode) in [(dir.path().join("s"), 0o770), (path.clone(), 0o640)] {
        chown(&path, Some(7001), Some(6001)).expect("chown");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
    }
    let ran = run_as(dir.path(), "7002", &["pack", "--in-place", "s"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("could not keep its owner"), "{ran:?}");
    let packed = dir.path().join("s/m.bsz").metadata().expect("stat");
    assert_eq!((packed.uid(), packed.gid(), packed.mode() & 0o777), (7002, 6001, 0o640));
    let back = dir.path().join("back");
    fs::create_dir(&back).expect("mkdir");
    chown(&back, Some(7003), Some(7003)).expect("chown");
    let ran = run_as(dir.path(), "7003", &["unpack", "s", "-o", "back/o"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for (path, mode) in [("back/o", 0o770), ("back/o/m.safetensors", 0o640)] {
        let made = dir.path().join(path).metadata().expect("stat");
        assert_eq!((made.gid(), made.mode() & 0o777), (6001, mode), "{path}");
    }
    // If the packer is not a member of the group, the archive is closed to the packer's own group.
    let stranger = dir.path().join("s/x.safetensors");
    write_model(&stranger, 2, SOME);
    chown(&stranger, Some(7002), Some(6009)).expect("chown");
    fs::set_permissions(&stranger, Permissions::from_mode(0o640)).expect("chmod");
    let ran = run_as(dir.path(), "7002", &["pack", "--in-place", "s"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("could not keep its group"), "{ran:?}");
    let packed = dir.path().join("s/x.bsz").metadata().expect("stat");
    assert_eq!((packed.uid(), packed.mode() & 0o777), (7002, 0o600));
}

#[test]
fn setuid_bits_are_restored_only_with_preserve() {
    let (dir, path) = model();
    if !is_root() {
        return;
    }
    chown(&path, Some(7001), Some(7001)).expect("chown");
    fs::set_permissions(&path, Permissions::from_mode(0o6757)).expect("chmod");
    run(dir.path(), &["pack", "s", "-o", "packed"]).ok();
    let mode = |path: &str| dir.path().join(path).metadata().expect("stat").mode() & 0o7777;
    run(dir.path(), &["unpack", "packed/m.bsz", "-o", "one"]).ok();
    assert_eq!(mode("one"), 0o755);
    run(dir.path(), &["unpack", "--preserve", "packed/m.bsz", "-o", "two"]).ok();
    assert_eq!(mode("two"), 0o6757);
    // Permissions revoked on the archive are revoked on the restored file.
    fs::set_permissions(dir.path().join("packed/m.bsz"), Permissions::from_mode(0o600))
        .expect("chmod");
    run(dir.path(), &["unpack", "packed/m.bsz", "-o", "three"]).ok();
    assert_eq!(mode("three"), 0o600);
}

#[test]
fn holes_stay_holes() {
    let (dir, _) = model();
    let gib = 1u64 << 30;
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{gib}],"data_offsets":[0,{gib}]}}}}"#);
    let sparse = File::create(dir.path().join("s/sparse.safetensors")).expect("made");
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[7; 5000]].concat();
    sparse.write_all_at(&start, 0).expect("written");
    sparse.set_len(8 + header.len() as u64 + gib).expect("long");
    File::create(dir.path().join("s/swap.gguf")).and_then(|f| f.set_len(gib)).expect("long");
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    run(dir.path(), &["unpack", "out", "-o", "back"]).ok();
    for file in ["out/swap.gguf", "out/sparse.bsz", "back/swap.gguf", "back/sparse.safetensors"] {
        let blocks = dir.path().join(file).metadata().expect("stat").blocks();
        assert!(blocks < 2000, "{file}: {blocks} blocks");
    }
    let mut cmp = Command::new("cmp");
    cmp.args(["s/sparse.safetensors", "back/sparse.safetensors"]).current_dir(dir.path());
    assert!(cmp.status().expect("cmp").success());
}

#[test]
fn every_file_name_is_packed_or_reported() {
    let (dir, path) = model();
    let s = dir.path().join("s");
    let long = |n: usize, end: &str| format!("{}{end}", "n".repeat(n - end.len()));
    let models = [242, 243, 247, 251, 255].map(|n| long(n, ".safetensors"));
    for name in models.iter().chain([&long(251, ""), &long(252, "x"), &long(255, ".json")]) {
        fs::copy(&path, s.join(name)).expect("copied");
    }
    run(dir.path(), &["pack", "s", "-o", "packed"]);
    let ran = run(dir.path(), &["pack", "s", "-o", "packed"]);
    assert_eq!((ran.code, ran.stderr.matches("no name is free").count()), (Some(0), 2), "{ran:?}");
    let packed = names(&dir.path().join("packed"));
    assert_eq!(
        packed.iter().filter(|name| name.ends_with(".bsz")).count(),
        1 + models.len() + 1,
        "{packed:?}"
    );
    run(dir.path(), &["unpack", "packed", "-o", "back"]).ok();
    program::same_tree(&s, &dir.path().join("back"));
}

#[test]
fn no_two_files_share_an_archive() {
    let (dir, path) = model();
    let s = dir.path().join("s");
    // Equal times and sizes, different bytes.
    fs::remove_file(&path).expect("rm");
    let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    for (seed, name) in [(1, "model"), (2, "model.safetensors"), (3, "z.safetensors")] {
        write_model(&s.join(name), seed, SOME);
        File::options()
            .write(true)
            .open(s.join(name))
            .and_then(|f| f.set_times(time))
            .expect("times");
    }
    program::copy_tree(&s, &dir.path().join("keep"));
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    for (packed, back) in [("out", "back1"), ("s", "back2")] {
        assert_eq!(
            names(&dir.path().join(packed)),
            ["model.bsz", "model.safetensors.bsz", "z.bsz"]
        );
        run(dir.path(), &["unpack", packed, "-o", back]).ok();
        program::same_tree(&dir.path().join("keep"), &dir.path().join(back));
    }
    // Several files named in one command, as a shell expands a pattern.
    run(
        dir.path(),
        &["pack", "keep/model", "keep/model.safetensors", "keep/z.safetensors", "-o", "named"],
    )
    .ok();
    assert_eq!(names(&dir.path().join("named")), ["model.bsz", "model.safetensors.bsz", "z.bsz"]);
    fs::create_dir_all(dir.path().join("x/llama")).expect("mkdir");
    program::copy_tree(&dir.path().join("keep"), &dir.path().join("llama"));
    for sources in [["keep/z.safetensors", "llama/z.safetensors"], ["x/llama", "llama"]] {
        let ran = run(dir.path(), &["pack", sources[0], sources[1], "-o", "collided"]);
        assert!(
            ran.code == Some(1) && sources.iter().all(|source| ran.stderr.contains(source)),
            "{ran:?}"
        );
        assert!(!dir.path().join("collided").exists());
    }
}

#[test]
fn a_different_file_of_the_same_size_and_time_is_not_already_done() {
    let (dir, path) = model();
    let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    let touch = |path: &Path| {
        File::options().write(true).open(path).and_then(|f| f.set_times(time)).expect("times")
    };
    touch(&path);
    fs::write(dir.path().join("s/c.json"), r#"{"a":1}"#).expect("written");
    touch(&dir.path().join("s/c.json"));
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    run(dir.path(), &["unpack", "out", "-o", "back"]).ok();
    // A second run has nothing to do.
    let again = run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    assert!(again.stdout.contains("2 already done"), "{again:?}");
    write_model(&path, 9, SOME);
    touch(&path);
    fs::write(dir.path().join("s/c.json"), r#"{"a":2}"#).expect("written");
    touch(&dir.path().join("s/c.json"));
    let ran = run(dir.path(), &["pack", "s", "-o", "out"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("2 of 2 failed"), "{ran:?}");
    run(dir.path(), &["pack", "s", "-o", "out", "--force"]).ok();
    let ran = run(dir.path(), &["unpack", "out", "-o", "back"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("2 of 2 failed"), "{ran:?}");
    run(dir.path(), &["unpack", "out", "-o", "back", "--force"]).ok();
    program::same_tree(&dir.path().join("s"), &dir.path().join("back"));
}

#[test]
fn absolute_symlinks_into_the_tree_point_into_the_copy() {
    let (dir, path) = model();
    let s = dir.path().join("s");
    fs::create_dir_all(s.join("blobs")).expect("mkdir");
    fs::create_dir_all(s.join("snapshots/1")).expect("mkdir");
    fs::rename(&path, s.join("blobs/0123")).expect("mv");
    let root = fs::canonicalize(&s).expect("a path");
    std::os::unix::fs::symlink(root.join("blobs/0123"), s.join("snapshots/1/m.safetensors"))
        .expect("a link");
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    let link = fs::read_link(dir.path().join("out/snapshots/1/m.safetensors")).expect("a link");
    assert_eq!(link, Path::new("../../blobs/0123"));
}

#[test]
fn attributes_of_the_view_are_not_copied() {
    let (dir, path) = model();
    if setxattr(&path, "user.bsz.archive", b"x", XattrFlags::empty()).is_err() {
        eprintln!("skipped: no extended attributes here");
        return;
    }
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    let mut listed = [0; 100];
    let n = listxattr(dir.path().join("out/m.bsz"), &mut listed[..]).expect("a list");
    assert!(!String::from_utf8_lossy(&listed[..n]).contains("user.bsz"));
}

#[test]
fn hard_links_to_an_archive_under_other_names_stay_archives() {
    let (dir, path) = model();
    let original = fs::read(&path).expect("the model");
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    let archive = fs::read(dir.path().join("s/m.bsz")).expect("the archive");
    for copy in ["a.backup", "z.backup"] {
        fs::hard_link(dir.path().join("s/m.bsz"), dir.path().join("s").join(copy)).expect("link");
    }
    run(dir.path(), &["unpack", "s", "-o", "back"]).ok();
    let back = |name: &str| fs::read(dir.path().join("back").join(name)).expect("restored");
    assert!(back("m.safetensors") == original);
    assert!(back("a.backup") == archive && back("z.backup") == archive);
}

#[test]
fn no_file_is_lost_to_a_name_collision() {
    let (dir, path) = model();
    let s = dir.path().join("s");
    let original = fs::read(&path).expect("the model");
    // A model with the name that the archive of the other one would get.
    write_model(&s.join("m.bsz"), 2, SOME);
    run(dir.path(), &["pack", "s", "-o", "packed"]).ok();
    run(dir.path(), &["unpack", "packed", "-o", "back"]).ok();
    program::same_tree(&s, &dir.path().join("back"));
    // An archive beside the file that a mount would show in its place: first with the same bytes,
    // then with others.
    let both = dir.path().join("both");
    fs::create_dir(&both).expect("mkdir");
    fs::write(both.join("m.safetensors"), &original).expect("written");
    run(dir.path(), &["pack", "s/m.safetensors", "-o", "x.bsz"]).ok();
    fs::copy(dir.path().join("x.bsz"), both.join("m.bsz")).expect("copied");
    run(dir.path(), &["unpack", "both", "-o", "back2"]).ok();
    assert_eq!(names(&dir.path().join("back2")), ["m.safetensors"]);
    write_model(&both.join("m.safetensors"), 3, SOME);
    let ran = run(dir.path(), &["unpack", "both", "-o", "back3"]);
    assert!(
        ran.code == Some(1)
            && ran.stderr.contains("both/m.bsz: left out: would be unpacked as m.safetensors"),
        "{ran:?}"
    );
}

#[test]
fn files_of_other_users_are_restored_without_dangerous_mode_bits() {
    let (dir, path) = model();
    if !is_root() {
        return;
    }
    let s = dir.path().join("s");
    fs::write(s.join("run.sh"), "#!/bin/sh").expect("written");
    fs::create_dir(s.join("sub")).expect("mkdir");
    for (path, mode) in [(path, 0o6777), (s.join("run.sh"), 0o6777), (s.join("sub"), 0o2777)] {
        chown(&path, Some(7001), Some(7001)).expect("chown");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
    }
    run(dir.path(), &["pack", "s", "-o", "packed"]).ok();
    run(dir.path(), &["unpack", "packed", "-o", "back"]).ok();
    run(dir.path(), &["unpack", "--preserve", "packed", "-o", "kept"]).ok();
    let mode = |path: &str| dir.path().join(path).metadata().expect("stat").mode() & 0o7777;
    for (name, kept) in [("m.safetensors", 0o6777), ("run.sh", 0o6777), ("sub", 0o2777)] {
        assert_eq!(mode(&format!("back/{name}")), 0o775, "{name}");
        assert_eq!(mode(&format!("kept/{name}")), kept, "{name}");
    }
}

#[test]
fn existing_output_directories_keep_their_modes() {
    let (dir, _) = model();
    fs::create_dir_all(dir.path().join("s/sub")).expect("mkdir");
    fs::set_permissions(dir.path().join("s/sub"), Permissions::from_mode(0o777)).expect("chmod");
    write_model(&dir.path().join("s/sub/x.safetensors"), 2, SOME);
    for (verb, source, out) in [("pack", "s", "out"), ("unpack", "out", "back")] {
        fs::create_dir_all(dir.path().join(out).join("sub")).expect("mkdir");
        fs::set_permissions(dir.path().join(out).join("sub"), Permissions::from_mode(0o700))
            .expect("chmod");
        run(dir.path(), &[verb, source, "-o", out]).ok();
        let sub = dir.path().join(out).join("sub");
        assert_eq!(sub.metadata().expect("stat").mode() & 0o777, 0o700, "{verb}");
        assert_eq!(names(&sub).len(), 1);
    }
}
