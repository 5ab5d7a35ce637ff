//! Tests of the tree, without a kernel.

use super::*;
use crate::cache::{CacheOptions, ChunkCache};
use crate::codec;
use crate::mount::files::Files;
use crate::mount::source::Source;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

fn tree() -> (TempDir, Tree) {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::create_dir_all(dir.path().join("sub/deep")).expect("mkdir");
    std::fs::write(dir.path().join("sub/file"), "content").expect("write");
    symlink("sub/file", dir.path().join("link")).expect("symlink");
    let options =
        CacheOptions { capacity: 0, threads: 1, decoder: codec::reference(), readahead: None };
    let cache = ChunkCache::new(options).expect("starts");
    let tree = Tree::new(
        View::new(Files::Local(Source::open(dir.path()).expect("source")), None).expect("view"),
        &BaseFinder::new(&cache, false),
    );
    (dir, tree.expect("a tree"))
}

/// The nodeid and the attributes of a file that was looked up.
#[derive(Debug)]
struct Known {
    node: u64,
    attr: Attr,
}

fn look_up(tree: &Tree, path: &str) -> Result<Known> {
    let mut at = Known { node: ROOT, attr: tree.attr(ROOT)? };
    for name in path.split('/') {
        let (node, attr) = tree.look_up(at.node, OsStr::new(name))?;
        at = Known { node, attr };
    }
    Ok(at)
}

/// Wait until the clock has ticked, so that a change from now on gets another ctime.
fn let_settle() {
    std::thread::sleep(std::time::Duration::from_millis(60));
}

#[test]
fn an_inode_lives_until_every_lookup_is_forgotten() {
    let (_dir, tree) = tree();
    let first = look_up(&tree, "sub").expect("found");
    let again = look_up(&tree, "sub").expect("found");
    assert_eq!((first.node, first.attr.ino), (again.node, again.attr.ino));
    tree.forget(first.node, 1);
    assert!(tree.attr(first.node).is_ok());
    tree.forget(first.node, 1);
    assert_eq!(tree.attr(first.node), Err(Errno::STALE));
    assert_eq!(tree.inodes().count(), 1);
    tree.forget(ROOT, 99);
    assert!(tree.attr(ROOT).is_ok());
}

#[test]
fn another_file_under_a_name_is_another_inode_while_the_old_one_is_open() {
    let (dir, tree) = tree();
    let old = look_up(&tree, "sub/file").expect("found");
    let handle = tree.try_open(old.node, Opener::Other).expect("opens").expect("at once");
    std::fs::write(dir.path().join("new"), "other content").expect("write");
    std::fs::rename(dir.path().join("new"), dir.path().join("sub/file")).expect("rename");
    let new = look_up(&tree, "sub/file").expect("found");
    assert_ne!((old.node, old.attr.ino), (new.node, new.attr.ino));
    assert_eq!((new.attr.size, tree.attr(old.node).expect("still open").size), (13, 7));
    assert_eq!(tree.open(old.node, Opener::Other).err(), Some(Errno::STALE));
    tree.release(handle.number, Opener::Other);
    assert_eq!(tree.attr(old.node), Err(Errno::STALE));
    let again = look_up(&tree, "sub/file").expect("found");
    assert_eq!(
        (again.node, again.attr),
        (old.node, new.attr),
        "a client that knows the old inode finds the new file"
    );
    tree.forget(old.node, 2);
    assert!(tree.attr(new.node).is_ok(), "the old inode does not take the name with it");
}

#[test]
fn a_replaced_file_keeps_its_inode_unless_it_is_open() {
    let (dir, tree) = tree();
    let old = look_up(&tree, "sub/file").expect("found");
    let_settle();
    let keep = || {
        let handle = tree.open(old.node, Opener::Other).expect("opens");
        tree.release(handle.number, Opener::Other);
        handle.keep_cache
    };
    assert_eq!((keep(), keep()), (false, true));
    std::fs::write(dir.path().join("new"), "other content").expect("write");
    std::fs::rename(dir.path().join("new"), dir.path().join("sub/file")).expect("rename");
    let new = look_up(&tree, "sub/file").expect("found");
    assert_eq!((new.node, new.attr.size), (old.node, 13));
    assert_ne!(new.attr.ino, old.attr.ino);
    assert!(!keep(), "these are the pages of the old file");
    // A directory does not take over the inode of a file.
    std::fs::remove_file(dir.path().join("sub/file")).expect("remove");
    std::fs::create_dir(dir.path().join("sub/file")).expect("mkdir");
    assert_ne!(look_up(&tree, "sub/file").expect("found").node, old.node);
}

#[test]
fn a_file_that_overlayfs_has_open_keeps_its_name_until_it_is_closed() {
    let (dir, tree) = tree();
    let old = look_up(&tree, "sub/file").expect("found");
    let by = Opener::of(libc::O_NOATIME);
    let handle = tree.try_open(old.node, by).expect("opens").expect("at once");
    std::fs::write(dir.path().join("new"), "other content").expect("write");
    std::fs::rename(dir.path().join("new"), dir.path().join("sub/file")).expect("rename");
    let pinned = look_up(&tree, "sub/file").expect("found");
    assert_eq!((pinned.node, pinned.attr.ino, pinned.attr.size), (old.node, old.attr.ino, 7));
    assert_eq!(tree.attr(old.node), Ok(pinned.attr));
    let again = tree.try_open(old.node, by).expect("opens").expect("at once");
    tree.release(handle.number, by);
    assert_eq!(look_up(&tree, "sub/file").expect("found").attr.size, 7);
    tree.release(again.number, by);
    let new = look_up(&tree, "sub/file").expect("found");
    assert_eq!((new.node, new.attr.size), (old.node, 13));
}

#[test]
fn hard_links_share_an_inode_number_and_outlive_each_other() {
    let (dir, tree) = tree();
    std::fs::hard_link(dir.path().join("sub/file"), dir.path().join("other")).expect("link");
    let (one, other) = (look_up(&tree, "sub/file"), look_up(&tree, "other"));
    let (one, other) = (one.expect("found"), other.expect("found"));
    assert_eq!((one.attr.ino, one.attr.nlink), (other.attr.ino, 2));
    std::fs::remove_file(dir.path().join("sub/file")).expect("remove");
    assert_eq!(tree.attr(other.node).map(|attr| attr.nlink), Ok(1));
    assert_eq!(tree.attr(one.node), Err(Errno::STALE));
}

#[test]
fn a_listing_and_a_lookup_agree_on_inode_numbers() {
    let (_dir, tree) = tree();
    let sub = look_up(&tree, "sub").expect("found");
    for (dir, path, dot_dot) in [(ROOT, "", ROOT), (sub.node, "sub/", ROOT)] {
        let handle = tree.open_dir(dir).expect("opens");
        for entry in tree.dir(handle).expect("open").iter() {
            let number = match entry.name.to_str().expect("a name") {
                "." => tree.attr(dir).expect("a directory").ino,
                ".." => dot_dot,
                name => look_up(&tree, &format!("{path}{name}")).expect("found").attr.ino,
            };
            assert_eq!(entry.ino, number, "{path}{:?}", entry.name);
        }
    }
}

#[test]
fn cached_pages_are_kept_only_while_the_file_is_unchanged() {
    let (dir, tree) = tree();
    let file = look_up(&tree, "sub/file").expect("found");
    let keep = || tree.open(file.node, Opener::Other).expect("opens").keep_cache;
    assert!(!keep());
    assert!(!keep(), "the file could have changed again without a trace");
    let_settle();
    assert!(!keep());
    assert!(keep());
    std::fs::write(dir.path().join("sub/file"), "longer content").expect("write");
    let_settle();
    assert!(!keep());
    assert!(keep());
}

#[test]
fn a_symlink_is_shown_and_never_followed() {
    let (_dir, tree) = tree();
    let link = look_up(&tree, "link").expect("found");
    assert_eq!(link.attr.kind, FileType::Symlink);
    assert_eq!(tree.read_link(link.node), Ok("sub/file".into()));
    assert_eq!(tree.open(link.node, Opener::Other).err(), Some(Errno::INVAL));
    assert!(tree.look_up(link.node, OsStr::new("x")).is_err());
}

#[test]
fn errors_are_those_of_a_posix_file_system() {
    let (_dir, tree) = tree();
    assert_eq!(look_up(&tree, "none").err(), Some(Errno::NOENT));
    assert_eq!(look_up(&tree, "..").err(), Some(Errno::NOENT));
    let file = look_up(&tree, "sub/file").expect("found").node;
    assert_eq!(tree.look_up(file, OsStr::new("x")).err(), Some(Errno::NOTDIR));
    assert_eq!(tree.open_dir(file).err(), Some(Errno::NOTDIR));
    let sub = look_up(&tree, "sub").expect("found").node;
    assert_eq!(tree.open(sub, Opener::Other).err(), Some(Errno::ISDIR));
    assert_eq!(tree.attr(4711), Err(Errno::STALE));
    assert_eq!(tree.file(4711).err().map(|e| e.raw_os_error()), Some(libc::EBADF));
}

#[test]
fn an_open_directory_keeps_its_listing() {
    let (dir, tree) = tree();
    let sub = look_up(&tree, "sub").expect("found").node;
    let handle = tree.open_dir(sub).expect("opens");
    std::fs::remove_file(dir.path().join("sub/file")).expect("remove");
    let names: Vec<_> = tree.dir(handle).expect("open").iter().map(|e| e.name.clone()).collect();
    assert_eq!(names, [".", "..", "deep", "file"]);
    tree.release_dir(handle);
    assert!(tree.dir(handle).is_err());
}
