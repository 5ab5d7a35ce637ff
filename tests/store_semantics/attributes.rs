//! Modes, owners, times, extended attributes and ACLs.

use super::store::{PACKED, Store, both, error, holds, is_packed, xattr};
use crate::common::mounts::{mount_test, wait_for};
use crate::common::users::is_root;
use rustix::fs::{
    AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, listxattr, removexattr,
    setxattr, utimensat,
};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// The names of a file's extended attributes.
fn xattrs(path: &Path) -> Vec<String> {
    let mut listed = [0; 1024];
    let len = listxattr(path, &mut listed).unwrap();
    let listed = listed[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    let mut listed: Vec<String> =
        listed.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    listed.sort();
    listed
}

/// An ACL, in the format of its attribute, that lets the user 7002 do `named`, and the owner, the
/// group and others what `mode` says.
fn acl(named: u16, mode: u16) -> Vec<u8> {
    let entries =
        [(1, mode >> 6, !0), (2, named, 7002), (4, mode >> 3, !0), (16, 7, !0), (32, mode, !0)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend(u16::to_le_bytes(permissions & 7));
        bytes.extend(u32::to_le_bytes(id));
    }
    bytes
}

/// Change something of a file, which must stay in the form that it has; and be the same when its
/// form changes.
fn change(path: &Path, model: &[u8], change: impl Fn(), holds_true: impl Fn()) {
    let was_packed = is_packed(path);
    change();
    assert_eq!(is_packed(path), was_packed, "an attribute changes no content");
    holds_true();
    holds(path, model);
    // A write of the same bytes unpacks.
    let before = fs::metadata(path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&model[..1], 0).unwrap();
    let times = Timespec { tv_sec: before.mtime(), tv_nsec: before.mtime_nsec() };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: omit, last_modification: times };
    rustix::fs::futimens(&file, &times).unwrap();
    drop(file);
    assert!(!is_packed(path));
    holds_true();
    holds(path, model);
}

#[test]
fn modes_can_be_changed() {
    both(|_, path, model| {
        let set = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o644, 0o400, 0o777, 0o4750, 0o1644] {
            set(mode);
            assert_eq!(fs::metadata(path).unwrap().mode(), 0o100_000 | mode);
        }
        let is_640 = || assert_eq!(fs::metadata(path).unwrap().mode(), 0o100_640);
        change(path, model, || set(0o640), is_640);
    });
}

#[test]
fn owners_can_be_changed() {
    both(|_, path, model| {
        if !is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let owner = || {
            let now = fs::metadata(path).unwrap();
            (now.uid(), now.gid())
        };
        chown(path, Some(7001), None).unwrap();
        assert_eq!(owner(), (7001, 0));
        // Who changes the owner loses these bits.
        fs::set_permissions(path, fs::Permissions::from_mode(0o6755)).unwrap();
        chown(path, None, Some(6001)).unwrap();
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o755);
        let give = || chown(path, Some(7009), Some(6009)).unwrap();
        change(path, model, give, || assert_eq!(owner(), (7009, 6009)));
    });
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    both(|_, path, model| {
        let set = |access, modified| {
            let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: time(access), last_modification: time(modified) };
            utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
        };
        let times = || {
            let now = fs::metadata(path).unwrap();
            ((now.atime(), now.atime_nsec()), (now.mtime(), now.mtime_nsec()))
        };
        set((1_000_000_000, 123_456_789), (1_100_000_000, 987_654_321));
        assert_eq!(times(), ((1_000_000_000, 123_456_789), (1_100_000_000, 987_654_321)));
        set((0, UTIME_OMIT), (-5, 1));
        assert_eq!(times(), ((1_000_000_000, 123_456_789), (-5, 1)));
        set((7, 7), (0, UTIME_OMIT));
        assert_eq!(times(), ((7, 7), (-5, 1)));
        set((0, UTIME_NOW), (0, UTIME_NOW));
        assert!(times().1.0 > 1_700_000_000);
        let modified = || assert_eq!(times().1, (1_234_567_890, 111_222_333));
        change(path, model, || set((9, 9), (1_234_567_890, 111_222_333)), modified);
    });
}

#[test]
fn user_attributes_can_be_changed() {
    both(|_, path, model| {
        let set = |name: &str, value: &[u8], flags| setxattr(path, name, value, flags);
        assert_eq!(xattr(path, "user.a"), Err(Errno::NODATA));
        set("user.a", b"1", XattrFlags::CREATE).unwrap();
        assert_eq!(set("user.a", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(set("user.b", b"2", XattrFlags::REPLACE), Err(Errno::NODATA));
        set("user.a", b"22", XattrFlags::REPLACE).unwrap();
        set("user.empty", b"", XattrFlags::empty()).unwrap();
        assert_eq!(xattrs(path), ["user.a", "user.empty"]);
        removexattr(path, "user.a").unwrap();
        assert_eq!(removexattr(path, "user.a"), Err(Errno::NODATA));
        // Those of the store itself.
        assert_eq!(set("user.bsz.plain", b"", XattrFlags::empty()), Err(Errno::PERM));
        let add = || set("user.a", &[3; 500], XattrFlags::empty()).unwrap();
        change(path, model, add, || {
            assert_eq!(xattrs(path), ["user.a", "user.empty"]);
            assert_eq!(xattr(path, "user.a").unwrap(), [3; 500]);
        });
    });
}

#[test]
fn acls_are_kept_and_inherited() {
    both(|store, path, model| {
        let wanted = acl(6, 0o640);
        let set = || setxattr(path, ACL, &wanted, XattrFlags::empty()).unwrap();
        change(path, model, set, || {
            assert_eq!(xattr(path, ACL).unwrap(), wanted);
            // The mask stands where the group was.
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o670);
        });
        removexattr(path, ACL).unwrap();
        assert_eq!(xattr(path, ACL), Err(Errno::NODATA));

        let dir = path.with_extension("dir");
        fs::create_dir(&dir).unwrap();
        setxattr(&dir, DEFAULT_ACL, &acl(4, 0o750), XattrFlags::empty()).unwrap();
        fs::write(dir.join("file"), b"").unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        assert!(xattr(&dir.join("file"), ACL).is_ok(), "inherited");
        assert_eq!(xattr(&dir.join("sub"), DEFAULT_ACL), xattr(&dir, DEFAULT_ACL));
        // The same as below, to the last bit.
        let below = store.below.join(dir.file_name().unwrap());
        fs::write(below.join("below"), b"").unwrap();
        assert_eq!(xattr(&dir.join("file"), ACL), xattr(&below.join("below"), ACL));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode();
        assert_eq!(mode(&dir.join("file")), mode(&below.join("below")));
    });
}

#[test]
fn packing_keeps_attributes() {
    mount_test(|rig| {
        let store = Store::new(rig);
        store.command("pause");
        let path = store.path(PACKED);
        let model = crate::common::models::write_model(&path, 9, 60_000);
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times =
            Timestamps { last_access: time(1_500_000_000, 5), last_modification: time(1, 2) };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        setxattr(&path, "user.mine", b"value", XattrFlags::empty()).unwrap();
        setxattr(&path, ACL, &acl(6, 0o640), XattrFlags::empty()).unwrap();
        if is_root() {
            chown(&path, Some(7001), Some(6001)).unwrap();
        }
        let shown = || {
            let now = fs::metadata(&path).unwrap();
            let times = (now.mtime(), now.mtime_nsec());
            (now.ino(), now.len(), times, now.mode(), now.uid(), now.gid(), now.nlink())
        };
        let extended = || (xattrs(&path), xattr(&path, "user.mine"), xattr(&path, ACL));
        let (before, extended_before) = (shown(), extended());
        let (atime, blocks) =
            (fs::metadata(&path).unwrap().atime(), fs::metadata(&path).unwrap().blocks());
        store.pack(&path);
        assert_eq!((shown(), extended()), (before, extended_before.clone()));
        assert_eq!(fs::metadata(&path).unwrap().atime(), atime, "packing is no access");
        // The kernel asks for this again after a second.
        wait_for("the blocks of the archive", || {
            let now = fs::metadata(&path).unwrap().blocks();
            0 < now && now < blocks
        });
        assert_eq!(fs::metadata(&path).unwrap().atime(), atime, "nor are the walks before it");
        assert_eq!((shown(), extended()), (before, extended_before));
        // Nor do listings show the archive's own number.
        let listed = fs::read_dir(store.mount.root()).unwrap().next().unwrap().unwrap();
        assert_eq!(std::os::unix::fs::DirEntryExt::ino(&listed), before.0);
        holds(&path, &model);
        let file = File::options().append(true).open(&path).unwrap();
        assert_eq!(error(file.read_at(&mut [0], 0)), Errno::BADF);
        assert!(is_packed(&path), "opening for writing changes nothing yet");
        assert_eq!(shown(), before);
    });
}

#[test]
fn the_access_time_moves_when_a_file_is_read_and_not_before() {
    both(|store, path, _| {
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let open = |path: &Path| {
            let times = fs::FileTimes::new().set_accessed(long_ago);
            File::options().write(true).open(path).unwrap().set_times(times).unwrap();
            File::open(path).unwrap()
        };
        let accessed = |file: &File| file.metadata().unwrap().accessed().unwrap();
        let ordinary = store.below.with_extension("ordinary");
        fs::write(&ordinary, b"a file").unwrap();
        let ordinary = open(&ordinary);
        ordinary.read_exact_at(&mut [0], 5).unwrap();
        if accessed(&ordinary) == long_ago {
            eprintln!("skipped: the file system of the tests has no access times");
            return;
        }
        let was_packed = is_packed(path);
        let file = open(path);
        // What the kernel has cached is read without the daemon.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // The kernel trusts attributes for one second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(accessed(&file), long_ago);
        file.read_exact_at(&mut [0], 5).unwrap();
        wait_for("the access time to move", || accessed(&file) > long_ago);
        assert_eq!(is_packed(path), was_packed);
    });
}
