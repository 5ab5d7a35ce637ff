//! The view grants access to the same users as the source, by mode and by ACL; and files keep their
//! extended attributes.
#![allow(clippy::unwrap_used)]

mod common;

use common::models::write_model;
use common::mounts::{Rig, bsz, mount_test, run, wait_for};
use common::users::is_root;
use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

const OWNER: u32 = 7001;
const GROUP: u32 = 6001;
const NAMED: u32 = 7002;

const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// The tags of ACL entries.
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// An ACL in the format of its attribute, with these permissions for [`NAMED`] and the others.
fn acl(owner: u16, named: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let nobody = u32::MAX;
    [
        2u32.to_le_bytes().to_vec(),
        entry(USER_OBJ, owner, nobody),
        entry(USER, named, NAMED),
        entry(GROUP_OBJ, group, nobody),
        entry(MASK, mask, nobody),
        entry(OTHER, other, nobody),
    ]
    .concat()
}

fn set_acl(path: &Path, name: &str, acl: &[u8]) {
    setxattr(path, name, acl, XattrFlags::empty()).expect("the file system has ACLs");
}

fn xattr(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = [0; 1024];
    getxattr(path, name, &mut value).map(|n| value[..n].to_vec())
}

fn xattrs(path: &Path) -> Vec<String> {
    let mut names = [0; 1024];
    let n = listxattr(path, &mut names).expect("a list");
    let names = names[..n].split(|&b| b == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// Whether the user `uid` with the single group `gid` can read a file.
fn reads(uid: u32, gid: u32, path: &Path) -> bool {
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "cat"]).arg(path);
    run(&mut command).status.success()
}

/// Who can read a file: its group, the user named in ACLs, anybody else.
fn readers(path: &Path) -> [bool; 3] {
    [reads(7009, GROUP, path), reads(NAMED, NAMED, path), reads(7010, 7010, path)]
}

/// A source with files of [`OWNER`] and [`GROUP`] and mode 0600: a plain one, and one that was
/// packed with mode 0644.
fn source(rig: &Rig) -> Option<(PathBuf, [&'static str; 2], [&'static str; 2])> {
    if !is_root() {
        eprintln!("skipped: only root can become another user");
        return None;
    }
    fs::set_permissions(rig.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let source = rig.mkdir("source");
    write_model(&source.join("plain.safetensors"), 1, 10_000);
    write_model(&source.join("packed.safetensors"), 2, 10_000);
    fs::set_permissions(source.join("packed.safetensors"), fs::Permissions::from_mode(0o644))
        .unwrap();
    bsz([Path::new("pack"), Path::new("--in-place"), &source.join("packed.safetensors")]);
    for name in ["plain.safetensors", "packed.bsz"] {
        chown(source.join(name), Some(OWNER), Some(GROUP)).unwrap();
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    Some((source, ["plain.safetensors", "packed.bsz"], ["plain.safetensors", "packed.safetensors"]))
}

/// Wait until the view follows the source, once the kernel has asked for the attributes again.
fn follows(what: &str, holds: impl FnMut() -> bool) {
    wait_for(what, holds);
}

#[test]
fn an_acl_grants_the_same_access_in_the_view_as_in_the_source() {
    mount_test(|rig| {
        let Some((source, names, shown)) = source(rig) else { return };
        let view = rig.mount(&source, "view", &["--allow-other"]);
        for (name, shown) in names.into_iter().zip(shown) {
            let (file, shown) = (source.join(name), view.path(shown));
            for (acl, who) in [
                // The mode shows the mask as the group's bits, although the group has no access.
                (acl(6, 4, 0, 4, 0), [false, true, false]),
                (acl(6, 0, 4, 4, 4), [true, false, true]),
                // A user that had access loses it.
                (acl(6, 4, 4, 4, 0), [true, true, false]),
                (acl(6, 4, 4, 0, 0), [false, false, false]),
            ] {
                set_acl(&file, ACL, &acl);
                assert_eq!(readers(&file), who, "{name}, in the source");
                follows("the ACL in the view", || xattr(&shown, ACL).as_deref() == Ok(&acl));
                follows("the readers of the view", || readers(&shown) == who);
                assert!(xattrs(&shown).contains(&ACL.to_owned()));
            }
            rustix::fs::removexattr(&file, ACL).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            follows("the bits alone", || readers(&shown) == [true; 3]);
        }
    });
}

#[test]
fn the_acl_of_a_directory_applies_to_the_names_in_it() {
    mount_test(|rig| {
        let Some((source, ..)) = source(rig) else { return };
        let closed = source.join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("file"), "x").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let (access, default) = (acl(7, 5, 0, 5, 0), acl(7, 4, 4, 4, 0));
        set_acl(&closed, ACL, &access);
        set_acl(&closed, DEFAULT_ACL, &default);
        chown(&closed, Some(OWNER), Some(GROUP)).unwrap();
        let view = rig.mount(&source, "view", &["--allow-other"]);
        assert_eq!(readers(&view.path("closed/file")), [false, true, false]);
        assert_eq!(xattr(&view.path("closed"), DEFAULT_ACL).as_deref(), Ok(&default[..]));
    });
}

#[test]
fn the_acl_of_a_packed_file_grants_no_more_than_the_mode_of_the_original() {
    mount_test(|rig| {
        let Some((source, ..)) = source(rig) else { return };
        let original = source.join("closed.safetensors");
        write_model(&original, 3, 10_000);
        fs::set_permissions(&original, fs::Permissions::from_mode(0o640)).unwrap();
        bsz([Path::new("pack"), Path::new("--in-place"), &original]);
        let archive = source.join("closed.bsz");
        chown(&archive, Some(OWNER), Some(GROUP)).unwrap();
        set_acl(&archive, ACL, &acl(6, 6, 4, 6, 4));
        let view = rig.mount(&source, "view", &["--allow-other"]);
        let shown = view.path("closed.safetensors");
        assert_eq!((readers(&archive), readers(&shown)), ([true; 3], [true, true, false]));
        assert_eq!(xattr(&shown, ACL), Ok(acl(6, 6, 4, 4, 0)));
    });
}

#[test]
fn access_revoked_in_the_source_is_revoked_in_the_view() {
    mount_test(|rig| {
        let Some((source, _, [plain, packed])) = source(rig) else { return };
        let view = rig.mount(&source, "view", &["--allow-other"]);
        let archive = source.join("packed.bsz");
        for (of_archive, of_view) in
            [(0o600, 0o600), (0o640, 0o640), (0o7777, 0o644), (0o400, 0o400)]
        {
            fs::set_permissions(&archive, fs::Permissions::from_mode(of_archive)).unwrap();
            follows("the mode", || {
                fs::metadata(view.path(packed)).unwrap().mode() & 0o7777 == of_view
            });
            follows("the readers", || {
                readers(&view.path(packed))
                    == [of_view & 0o040 != 0, of_view & 4 != 0, of_view & 4 != 0]
            });
        }
        let meta = fs::metadata(view.path(packed)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (OWNER, GROUP));
        assert_eq!(readers(&view.path(plain)), [false; 3]);
    });
}

#[test]
fn an_open_packed_file_stays_readable_when_its_mode_changes() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        let bytes = write_model(&source.join("m.safetensors"), 4, 300_000);
        bsz([Path::new("pack"), Path::new("--in-place"), &source.join("m.safetensors")]);
        let view = rig.mount(&source, "view", &[]);
        let mut file = fs::File::open(view.path("m.safetensors")).unwrap();
        let before = file.metadata().unwrap().ino();
        fs::set_permissions(source.join("m.bsz"), fs::Permissions::from_mode(0o600)).unwrap();
        follows("the mode", || file.metadata().unwrap().mode() & 0o777 == 0o600);
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut read).unwrap();
        assert!(read == bytes);
        assert_eq!(fs::metadata(view.path("m.safetensors")).unwrap().ino(), before);
    });
}

#[test]
fn user_attributes_are_listed_and_copied_but_ours_are_not() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        write_model(&source.join("m.safetensors"), 5, 10_000);
        bsz([Path::new("pack"), Path::new("--in-place"), &source.join("m.safetensors")]);
        fs::write(source.join("c.json"), "{}").unwrap();
        fs::create_dir(source.join("sub")).unwrap();
        let long = vec![b'x'; 700];
        for name in ["m.bsz", "c.json", "sub"] {
            let set = |attribute, value: &[u8]| {
                setxattr(source.join(name), attribute, value, XattrFlags::empty()).unwrap();
            };
            set("user.note", &long);
            set("user.bsz.stored", b"of somebody else");
            if is_root() {
                set("trusted.note", b"x");
            }
        }
        let view = rig.mount(&source, "view", &[]);
        let copy = rig.mkdir("copy");
        let copied = run(Command::new("cp").arg("-a").arg(view.root()).arg(copy.join("view")));
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        for name in ["m.safetensors", "c.json", "sub"] {
            for at in [view.path(name), copy.join("view").join(name)] {
                assert_eq!(xattrs(&at), ["user.note"], "{}", at.display());
                assert_eq!(xattr(&at, "user.note").as_deref(), Ok(&long[..]));
            }
        }
        assert_eq!(xattrs(&copy.join("view")), [""; 0]);
        let stored = fs::metadata(source.join("m.bsz")).unwrap().len().to_string();
        assert_eq!(xattr(&view.path("m.safetensors"), "user.bsz.stored"), Ok(stored.into()));
        assert_eq!(xattr(&view.path("c.json"), "user.bsz.stored"), Err(rustix::io::Errno::NODATA));
    });
}

#[test]
fn a_fifo_in_place_of_an_archive_is_shown_and_blocks_nothing() {
    mount_test(|rig| {
        let source = rig.mkdir("source");
        let mkfifo = run(Command::new("mkfifo").args([source.join("a.bsz"), source.join("plain")]));
        assert!(mkfifo.status.success());
        let _socket = std::os::unix::net::UnixListener::bind(source.join("s.bsz")).unwrap();
        let view = rig.mount(&source, "view", &[]);
        let mut names: Vec<_> =
            fs::read_dir(view.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.bsz", "plain", "s.bsz"]);
        for name in names {
            let path = view.path(name.to_str().unwrap());
            assert!(!fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(xattrs(&path), [""; 0]);
            assert_eq!(xattr(&path, "user.bsz.sha256"), Err(rustix::io::Errno::NODATA));
        }
    });
}
