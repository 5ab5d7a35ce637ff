//! An archive is prepared completely before it gets a name, the file is left alone if anything but
//! its bytes would change, and what packing would save is known from samples.

mod common;

use bszfs::codec;
use bszfs::error::{Error, Result};
use bszfs::output::{Dir, FileId, file_id};
use bszfs::pack::{
    self, Preparation, PrepareOptions, Prepared, Progress, estimate, prepare as prepare_with,
};
use bszfs::read::{self, Archive};
use common::models::write_model;
use common::random::Random;
use common::samples::{Fill, Silent, matrices, pack_bytes, safetensors, samples, tensor};
use rustix::fs::{Timespec, Timestamps, XattrFlags, fgetxattr, fsetxattr, futimens};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

const NAME: &str = "53aa51172d142c89d9012cce15ae4d6c";

/// A directory with a model that is named as in the cache of a hub.
fn model(weights: usize) -> (TempDir, Arc<Dir>, Vec<u8>) {
    let root = tempfile::tempdir().expect("a directory");
    let bytes = write_model(&root.path().join(NAME), 7, weights);
    let dir = Dir::open(root.path()).expect("opens");
    (root, dir, bytes)
}

fn check(file: &File, p: &dyn Progress) -> Result<()> {
    let archive = Archive::from_file(file.try_clone()?)?;
    archive.read_directly();
    read::verify(&archive, &*codec::fastest(), &|n| p.advance(n))
}

fn prepare(dir: &Arc<Dir>, name: &str) -> Result<Preparation> {
    prepare_with(dir, name.as_ref(), &PrepareOptions::default(), &check, &Silent)
}

#[track_caller]
fn ready(dir: &Arc<Dir>, name: &str) -> Prepared {
    match prepare(dir, name).expect("prepared") {
        Preparation::Ready(prepared) => prepared,
        Preparation::NotWorthIt(why) | Preparation::Lossy(why) => panic!("{why}"),
    }
}

#[track_caller]
fn refused(dir: &Arc<Dir>, name: &str) -> Error {
    prepare(dir, name).err().expect("refused")
}

fn names(dir: &Dir) -> Vec<String> {
    let entries = dir.entries().expect("lists").into_iter();
    entries.map(|e| e.name.to_string_lossy().into_owned()).collect()
}

fn id(file: &File) -> FileId {
    file_id(&rustix::fs::fstat(file).expect("stat"))
}

#[test]
fn a_prepared_archive_replaces_its_original() {
    let (root, dir, bytes) = model(100_000);
    let original = File::open(root.path().join(NAME)).expect("opens");
    original.set_permissions(Permissions::from_mode(0o444)).expect("chmod");
    let has_xattrs = fsetxattr(&original, "user.note", b"x", XattrFlags::empty()).is_ok();
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(1_500_000_000, 123_456_789),
        last_modification: time(1_700_000_000, 987_654_321),
    };
    futimens(&original, &times).expect("times");
    let before = original.metadata().expect("stat");

    let mut prepared = ready(&dir, NAME);
    assert_eq!(names(&dir), [NAME], "it has no name yet");
    assert_eq!(prepared.original(), bytes.len() as u64);
    assert_eq!(prepared.stored(), prepared.archive().metadata().expect("stat").len());
    assert_eq!(file_id(prepared.source_stat()), id(&original));
    assert!(prepared.unchanged().expect("unchanged"));

    let linked = prepared.link().expect("linked");
    assert_eq!(linked, prepared.archive_id().expect("an id"));
    assert_eq!(linked, id(prepared.archive()));
    assert!(prepared.unchanged().expect("unchanged"));
    prepared.sync_dir().expect("synced");
    assert_eq!(names(&dir), [NAME.to_owned(), format!("{NAME}.bsz")]);
    assert!(prepared.link().is_err(), "the name is taken");

    fs::remove_file(root.path().join(NAME)).expect("removed");
    prepared.keeps_its_bytes().expect("it keeps its bytes");
    assert!(!prepared.unchanged().expect("it lost its name"));
    drop(prepared);

    let path = root.path().join(format!("{NAME}.bsz"));
    let file = File::open(&path).expect("opens");
    let after = file.metadata().expect("stat");
    assert_eq!(
        (after.mode(), after.uid(), after.gid()),
        (before.mode(), before.uid(), before.gid())
    );
    let all = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec(), m.atime(), m.atime_nsec());
    assert_eq!(all(&after), all(&before));
    if has_xattrs {
        let mut note = [0; 8];
        assert_eq!(fgetxattr(&file, "user.note", &mut note), Ok(1));
    }
    let archive = Archive::open(&path).expect("opens");
    let mut back = vec![0; bytes.len()];
    archive.read_at(0, &mut back, &*codec::reference()).expect("read");
    assert!(back == bytes);
    let shown = archive.footer().naming.original_name(path.file_name().expect("a name"));
    assert_eq!(shown.as_deref(), Some(NAME.as_ref()));
}

#[test]
fn archives_get_names_where_unnamed_files_cannot() {
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !works.is_ok_and(|ran| ran.status.success()) {
        assert!(std::env::var_os("BSZ_REQUIRE_STRACE").is_none(), "no strace that works");
        eprintln!("skipped: no strace that works");
        return;
    }
    let ran = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null"])
        .args(["-e", "trace=linkat", "-e", "inject=linkat:error=EOPNOTSUPP"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_prepared_archive_replaces_its_original"])
        .output()
        .expect("strace starts");
    assert!(ran.status.success(), "{ran:?}");
}

#[test]
fn nothing_is_left_of_an_archive_without_a_name() {
    let (_root, dir, _) = model(50_000);
    drop(ready(&dir, NAME));
    assert_eq!(names(&dir), [NAME]);
    fs::write(dir.path(format!("{NAME}.bsz").as_ref()), "taken").expect("written");
    let taken = ready(&dir, NAME).link().expect_err("the name is taken");
    assert_eq!(taken.errno(), Some(libc::EEXIST));
    assert_eq!(names(&dir).len(), 2);
}

#[test]
fn a_file_stays_plain_if_packing_does_not_pay() {
    let (root, dir, _) = model(20_000);
    let noise = tensor("U8", 300_000, Fill::Noise, 1);
    let mixed =
        [("w", "BF16", tensor("BF16", 20_000, Fill::Weights, 1)), ("n", "U8", noise.clone())];
    let archive = pack_bytes(root.path(), "x.safetensors", &safetensors(&mixed), 256 << 10);
    let large = tensor("U8", 20 << 20, Fill::Noise, 2);
    let long = "m".repeat(247);
    for (name, bytes, reason) in [
        ("noise", safetensors(&[("n", "U8", noise)]), "save too little"),
        ("large noise", safetensors(&[("n", "U8", large)]), "save too little"),
        ("mixed", safetensors(&mixed), "save too little"),
        ("archive", archive, "is an archive"),
        ("text", b"not a model at all\n".repeat(500), "is not a model"),
        ("empty", Vec::new(), "is not a model"),
        (&long, fs::read(root.path().join(NAME)).expect("read"), "too long"),
    ] {
        fs::write(root.path().join(name), bytes).expect("written");
        match prepare(&dir, name).expect(name) {
            Preparation::NotWorthIt(why) => assert!(why.contains(reason), "{name}: {why}"),
            Preparation::Ready(_) | Preparation::Lossy(_) => panic!("{name} was packed"),
        }
    }
    let longest = "m".repeat(246);
    fs::copy(root.path().join(NAME), root.path().join(&longest)).expect("copied");
    ready(&dir, &longest).link().expect("linked");
}

#[test]
fn a_reason_that_may_go_away_is_an_error() {
    let (root, dir, bytes) = model(50_000);
    let at = |name: &str| root.path().join(name);
    fs::write(at("cut"), &bytes[..bytes.len() / 2]).expect("written");
    assert!(refused(&dir, "cut").to_string().contains("is incomplete"));
    fs::write(at("page.safetensors"), "<html>").expect("written");
    assert!(refused(&dir, "page.safetensors").to_string().contains("not a model"));
    fs::hard_link(at(NAME), at("other")).expect("linked");
    assert!(refused(&dir, NAME).to_string().contains("hard links"));
    fs::remove_file(at("other")).expect("removed");
    std::os::unix::fs::symlink(NAME, at("link")).expect("linked");
    assert!(refused(&dir, "link").to_string().contains("not a regular file"));
    let writer = File::options().append(true).open(at(NAME)).expect("opens");
    assert!(refused(&dir, NAME).to_string().contains("open for writing"));
    drop(writer);
    ready(&dir, NAME);
}

#[test]
fn changes_after_the_file_was_read_are_noticed() {
    let (root, dir, _) = model(50_000);
    let path = root.path().join(NAME);
    let prepared = ready(&dir, NAME);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
    assert!(prepared.unchanged().is_err());
    prepared.keeps_its_bytes().expect("the same bytes");
    let prepared = ready(&dir, NAME);
    fs::rename(&path, root.path().join("renamed")).expect("renamed");
    assert!(!prepared.unchanged().expect("it lost its name"));
    let prepared = ready(&dir, "renamed");
    let file = File::open(root.path().join("renamed")).expect("opens");
    file.set_modified(std::time::SystemTime::now()).expect("touched");
    assert!(prepared.keeps_its_bytes().is_err());
}

#[test]
fn preparing_ends_when_it_is_cancelled() {
    // Three windows of 64 chunks or less: it asks before each chunk is written.
    let (_root, dir, _) = model(20 << 20);
    for last in [0, 2, 100] {
        let calls = AtomicUsize::new(0);
        let between = || match calls.fetch_add(1, Ordering::Relaxed) == last {
            true => Err(Error::invalid("cancelled")),
            false => Ok(()),
        };
        let o = PrepareOptions { between: &between, ..PrepareOptions::default() };
        let ended = prepare_with(&dir, NAME.as_ref(), &o, &check, &Silent).err().expect("ended");
        assert!(ended.to_string().ends_with("cancelled"), "{ended}");
        assert_eq!(calls.into_inner(), last + 1);
    }
    assert_eq!(names(&dir), [NAME]);
}

/// Bytes of a file in the page cache.
fn cached(path: &Path) -> Option<u64> {
    let ran = Command::new("fincore").args(["-bn", "-o", "RES"]).arg(path).output().ok()?;
    String::from_utf8(ran.stdout).ok()?.trim().parse().ok()
}

#[test]
fn preparing_moves_no_access_time_and_does_not_fill_the_page_cache() {
    let (root, dir, bytes) = model(20 << 20);
    let path = root.path().join(NAME);
    let file = File::open(&path).expect("opens");
    file.sync_all().expect("synced");
    // So old that reading it would move it on any file system.
    let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let now = Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    futimens(&file, &Timestamps { last_access: old, last_modification: now }).expect("times");
    let mut prepared = ready(&dir, NAME);
    assert_eq!(file.metadata().expect("stat").atime(), 1_000_000_000);
    prepared.link().expect("linked");
    for path in [&path, &root.path().join(format!("{NAME}.bsz"))] {
        match cached(path) {
            None => eprintln!("skipped in part: no fincore"),
            Some(cached) => assert!(cached < bytes.len() as u64 / 20, "{path:?}: {cached}"),
        }
    }
}

#[track_caller]
fn assert_estimated(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join("x.safetensors");
    let packed = pack_bytes(root, "x.safetensors", bytes, 256 << 10).len() as f64;
    let file = File::open(&path).expect("opens");
    let found = estimate(&file, &path, bytes.len() as u64).expect("estimated");
    let Some(estimate) = found else {
        assert!(!name.starts_with("every fill") && !name.starts_with("large"), "{name}");
        return;
    };
    assert_eq!(estimate.original, bytes.len() as u64);
    let off = (estimate.stored as f64 - packed) / bytes.len() as f64;
    eprintln!("{name}: {:.4} packed, off by {off:.4}", packed / bytes.len() as f64);
    assert!(off.abs() <= 0.03 || bytes.len() < 10_000, "{name}: off by {off}");
}

#[test]
fn estimates_of_small_models_are_close() {
    let root = tempfile::tempdir().expect("a directory");
    for (name, bytes) in samples() {
        assert_estimated(root.path(), &name, &bytes);
    }
    for weights in [1000, 60_000, 1 << 20] {
        let bytes = write_model(&root.path().join("m"), 3, weights);
        assert_estimated(root.path(), &format!("{weights} weights"), &bytes);
    }
}

#[test]
fn estimates_of_large_models_are_close() {
    let root = tempfile::tempdir().expect("a directory");
    let bytes = write_model(&root.path().join("m"), 3, 20 << 20);
    assert_estimated(root.path(), "large", &bytes);
    // Tensors of all kinds and sizes, in random order.
    let mut random = Random(5);
    let kinds = [
        ("BF16", Fill::Weights),
        ("F32", Fill::Scaled),
        ("BF16", Fill::Columns),
        ("F8_E4M3", Fill::Weights),
        ("F16", Fill::Frozen),
        ("U8", Fill::Noise),
        ("F32", Fill::Widened),
    ];
    let tensors: Vec<_> = (0..60u64)
        .map(|i| {
            let (dtype, fill) = kinds[(random.next() % 7) as usize];
            let len = [40_000, 300_000, 1_500_000, 2_500_000][(random.next() % 4) as usize];
            (format!("t{i}"), dtype, fill.row(), tensor(dtype, len, fill, i))
        })
        .collect();
    let tensors: Vec<_> = tensors.iter().map(|(n, d, r, t)| (&**n, *d, *r, t.clone())).collect();
    assert_estimated(root.path(), "large and mixed", &matrices(&tensors));
    // A tensor that is there twice is stored once.
    let weights = tensor("BF16", 20 << 20, Fill::Weights, 9);
    let twice = [("a", "BF16", weights.clone()), ("b", "BF16", weights)];
    assert_estimated(root.path(), "large and twice", &safetensors(&twice));
}

#[test]
fn what_is_prepared_can_be_handed_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Prepared>();
    is_send::<pack::Estimate>();
}
