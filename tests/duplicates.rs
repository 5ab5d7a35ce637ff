//! Tensors that several files of a store hold: they share their place on disk where the file system
//! can do that, every archive stays whole, and the status says what that saves, or would.

mod common;

use bszfs::codec;
use bszfs::error::Result;
use bszfs::output::Dir;
use bszfs::pack::{Preparation, PrepareOptions, Prepared, Progress, Twins, prepare};
use bszfs::read::{self, Archive};
use common::disks::Disk;
use common::mounts::{BSZ, Mount, Rig, mount_test, run, wait_for};
use common::samples::{Fill, Silent, safetensors, tensor};
use rustix::fs::getxattr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const MIB: u64 = 1 << 20;

/// Two models that share a tensor of 24 MiB, which is two windows, and one of 4 MiB, at other
/// places; each has tensors of its own, also before and between these.
fn models() -> [Vec<u8>; 2] {
    let weights = |len: usize, seed| tensor("BF16", len, Fill::Weights, seed);
    let (large, small) = (weights(24 << 20, 1), weights(4 << 20, 2));
    [
        safetensors(&[
            ("a", "BF16", weights(2 << 20, 3)),
            ("large", "BF16", large.clone()),
            ("n", "BF16", weights(5000, 4)),
            ("small", "BF16", small.clone()),
        ]),
        safetensors(&[
            ("n", "BF16", weights(7000, 5)),
            ("small", "BF16", small),
            ("o", "BF16", weights(3000, 6)),
            ("large", "BF16", large),
            ("z", "BF16", weights(6 << 20, 7)),
        ]),
    ]
}

/// A store that packs when it is told to.
struct Store {
    mount: Mount,
    below: PathBuf,
}

impl Store {
    fn new(rig: &Rig, below: &Path) -> Self {
        let args = ["--read-write", "--pack", "off", "--settle", "0"];
        let name = format!("store-{}", below.file_name().expect("a name").to_string_lossy());
        Self { mount: rig.mount(below, &name, &args), below: below.to_owned() }
    }

    /// Write files and have them packed.
    fn pack(&self, files: &[(&str, &[u8])]) {
        for (name, bytes) in files {
            fs::write(self.mount.path(name), bytes).expect("written");
        }
        getxattr(self.mount.root(), "user.bsz.pack.now", &mut [0u8; 0]).expect("a command");
        for (name, _) in files {
            wait_for("the file to be packed", || !self.below.join(name).exists());
        }
        wait_for("the packer to finish", || {
            let status = self.status();
            status["draining"] == false && status["packing"].is_null()
        });
        for (name, bytes) in files {
            self.holds(name, bytes);
        }
    }

    fn status(&self) -> serde_json::Value {
        self.mount.status()["store"].clone()
    }

    fn figure(&self, name: &str) -> u64 {
        self.status()[name].as_u64().expect("a figure")
    }

    /// The archive of a file is exact, read from the disk.
    #[track_caller]
    fn holds(&self, name: &str, bytes: &[u8]) {
        let archive = Archive::open(&self.archive(name)).expect("opens");
        archive.read_directly();
        read::verify(&archive, &*codec::reference(), &|_| ()).expect("verifies");
        let mut back = vec![0; bytes.len()];
        archive.read_at(0, &mut back, &*codec::fastest()).expect("decodes");
        assert!(back == bytes, "{name} differs");
    }

    fn archive(&self, name: &str) -> PathBuf {
        self.below.join(format!("{name}.bsz"))
    }

    fn stored(&self, name: &str) -> u64 {
        self.archive(name).metadata().expect("stat").len()
    }
}

/// What the shared tensors of [`models`] take at least in an archive, and at most.
fn shared_size() -> std::ops::Range<u64> {
    28 * MIB * 60 / 100..28 * MIB * 80 / 100
}

/// Run a test on each file system that can share ranges.
fn on_each_disk(test: fn(&Rig, &Disk)) {
    for kind in ["xfs", "btrfs"] {
        mount_test(move |rig| {
            if let Some(disk) = Disk::new(&rig.path(""), kind) {
                test(rig, &disk);
            }
        });
    }
}

#[test]
fn equal_tensors_of_different_files_are_stored_once() {
    on_each_disk(|rig, disk| {
        let store = Store::new(rig, disk.path());
        let [a, b] = models();
        let empty = disk.used();
        store.pack(&[("a", &a)]);
        let first = disk.used() - empty;
        store.pack(&[("b", &b)]);
        let second = disk.used() - empty - first;
        let status = store.status();
        eprintln!(
            "archives of {} and {} bytes took {first} and {second}: {status}",
            store.stored("a"),
            store.stored("b")
        );
        assert!(first + MIB > store.stored("a"));
        assert!(shared_size().contains(&(store.stored("b") - second)), "{second}");
        assert_eq!((&status["shares"], &status["repeated_bytes"]), (&true.into(), &0.into()));
        assert!(shared_size().contains(&store.figure("shared_bytes")), "{status}");
        // A copy of a whole file costs next to nothing.
        let before = disk.used();
        store.pack(&[("c", &b)]);
        let third = disk.used().saturating_sub(before);
        eprintln!("a copy took {third}");
        assert!(third < MIB, "{third}");
        assert_eq!(store.figure("equal_files"), 1);
        let text = run(Command::new(BSZ).args(["store", "status"]).arg(store.mount.root())).stdout;
        assert!(String::from_utf8_lossy(&text).contains("equal tensors share "));
        // Each archive is whole: the others are not needed.
        fs::remove_file(store.mount.path("a")).expect("removed");
        fs::remove_file(store.mount.path("c")).expect("removed");
        store.holds("b", &b);
        assert_eq!(fs::read(store.mount.path("b")).expect("read"), b);
        assert_eq!((store.figure("shared_bytes"), store.figure("examined")), (0, 1));
    });
}

#[test]
fn a_store_that_is_mounted_again_knows_its_archives() {
    on_each_disk(|rig, disk| {
        let [a, b] = models();
        let store = Store::new(rig, disk.path());
        fs::create_dir(store.mount.path("d")).expect("mkdir");
        let empty = disk.used();
        store.pack(&[("d/a", &a)]);
        store.mount.signal(rustix::process::Signal::TERM);
        store.mount.exit_code();
        let store = Store::new(rig, disk.path());
        store.pack(&[("b", &b)]);
        assert!(shared_size().contains(&store.figure("shared_bytes")), "{}", store.status());
        // A renamed archive is found, too, and one that was removed behind the store is forgotten.
        fs::rename(store.mount.path("b"), store.mount.path("d/c")).expect("renamed");
        fs::remove_file(store.archive("d/a")).expect("removed");
        store.pack(&[("e", &a)]);
        let status = store.status();
        assert!(shared_size().contains(&store.figure("shared_bytes")), "{status}");
        assert_eq!((&status["examined"], &status["repeated_bytes"]), (&2.into(), &0.into()));
        fs::remove_file(store.archive("d/c")).expect("removed");
        fs::remove_file(store.archive("e")).expect("removed");
        wait_for("the space of both", || disk.used() < empty + MIB);
        store.pack(&[("f", &a)]);
        assert!(disk.used() - empty + MIB > store.stored("f"));
        assert_eq!(store.figure("shared_bytes"), 0);
        assert_eq!(store.figure("examined"), 1);
    });
}

#[test]
fn without_sharing_the_status_says_what_it_would_save() {
    mount_test(|rig| {
        let store = Store::new(rig, &rig.mkdir("below"));
        let [a, b] = models();
        store.pack(&[("a", &a)]);
        assert_eq!(store.figure("repeated_bytes"), 0);
        store.pack(&[("b", &b)]);
        let status = store.status();
        if status["shares"] == true {
            return eprintln!("skipped: temporary files share ranges here");
        }
        assert_eq!(status["shared_bytes"], 0);
        assert!(shared_size().contains(&store.figure("repeated_bytes")), "{status}");
        let text = run(Command::new(BSZ).args(["store", "status"]).arg(store.mount.root())).stdout;
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("that XFS, btrfs or bcachefs would save"), "{text}");
        // Nothing is aligned there.
        let archive = Archive::open(&store.archive("a")).expect("opens");
        let chunks = (0..archive.index().len()).map(|id| archive.index().chunk(id).expect("read"));
        assert_eq!(
            chunks.map(|c| u64::from(c.stored_len)).sum::<u64>() + 16,
            archive.footer().index_offset
        );
        // Writing to a file, and removing it, changes the figures.
        fs::remove_file(store.mount.path("a")).expect("removed");
        assert_eq!((store.figure("repeated_bytes"), store.figure("examined")), (0, 1));
    });
}

/// Finds tensors where a test says so.
struct Found<'a> {
    archive: &'a Path,
    /// Where each tensor starts, in the order in which they are asked for.
    at: Vec<u64>,
    asked: AtomicUsize,
    distrusted: AtomicUsize,
}

impl<'a> Found<'a> {
    fn none() -> Self {
        Self::at(Path::new("/none"), Vec::new())
    }

    fn at(archive: &'a Path, at: Vec<u64>) -> Self {
        Self { archive, at, asked: AtomicUsize::new(0), distrusted: AtomicUsize::new(0) }
    }

    /// The large tensors of [`models`] in an archive of the first, asked for by the second.
    fn new(archive: &'a Path) -> Self {
        let open = Archive::open(archive).expect("opens");
        let starts: Vec<u64> = (1..open.index().len())
            .map(|id| [id - 1, id].map(|id| open.index().chunk(id).expect("read")))
            .filter(|[a, b]| a.stored_at + u64::from(a.stored_len) != b.stored_at)
            .map(|[_, b]| b.stored_at)
            .collect();
        // Tensors `a`, `large` and `small` start at a block.
        let [_, large, small] = starts[..] else { panic!("{starts:?}") };
        Self::at(archive, vec![small, large])
    }
}

impl Twins for Found<'_> {
    fn find(&self, _: u64) -> Option<(File, u64)> {
        let at = *self.at.get(self.asked.fetch_add(1, Ordering::Relaxed))?;
        Some((File::open(self.archive).ok()?, at))
    }

    fn distrust(&self) {
        self.distrusted.fetch_add(1, Ordering::Relaxed);
    }
}

fn check(file: &File, _: &dyn Progress) -> Result<()> {
    let archive = Archive::from_file(file.try_clone()?)?;
    archive.read_directly();
    read::verify(&archive, &*codec::fastest(), &|_| ())
}

#[track_caller]
fn prepared(dir: &Path, name: &str, twins: &dyn Twins) -> Prepared {
    let o = PrepareOptions { twins: Some(twins), ..PrepareOptions::default() };
    let dir = Dir::open(dir).expect("opens");
    match prepare(&dir, name.as_ref(), &o, &check, &Silent).expect("prepared") {
        Preparation::Ready(prepared) => prepared,
        Preparation::NotWorthIt(why) | Preparation::Lossy(why) => panic!("{why}"),
    }
}

/// The bytes that an archive without a name shows.
fn shown(prepared: &Prepared, len: usize) -> Vec<u8> {
    let archive = Archive::from_file(prepared.archive().try_clone().expect("dup")).expect("opens");
    let mut back = vec![0; len];
    archive.read_at(0, &mut back, &*codec::reference()).expect("decodes");
    back
}

#[test]
fn a_damaged_or_missing_archive_is_never_cloned() {
    on_each_disk(|_, disk| {
        let (dir, [a, b]) = (disk.path(), models());
        fs::write(dir.join("a"), &a).expect("written");
        fs::write(dir.join("b"), &b).expect("written");
        let none = Found::none();
        let mut first = prepared(dir, "a", &none);
        assert_eq!(first.cloned(), 0, "there is no other archive");
        first.link().expect("linked");
        drop(first);
        let path = dir.join("a.bsz");
        let whole = prepared(dir, "b", &Found::new(&path)).cloned();
        assert!(shared_size().contains(&whole), "{whole}");
        // Damage in the second window of the large tensor.
        let found = Found::new(&path);
        let at = found.at[1] + 14 * MIB;
        let file = File::options().read(true).write(true).open(&path).expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("written");
        let second = prepared(dir, "b", &found);
        assert!((whole / 4..whole - 100_000).contains(&second.cloned()), "{}", second.cloned());
        assert!(shown(&second, b.len()) == b);
        assert_eq!(found.distrusted.into_inner(), 0);
        // At another place.
        let mut found = Found::new(&path);
        found.at.iter_mut().for_each(|at| *at += 4096);
        let second = prepared(dir, "b", &found);
        assert!(second.cloned() == 0 && shown(&second, b.len()) == b);
        // Longer than the archive, and on another file system.
        let mut found = Found::new(&path);
        found.at.fill(file.metadata().expect("stat").len() / 4096 * 4096);
        assert_eq!(prepared(dir, "b", &found).cloned(), 0);
        let elsewhere = tempfile::tempdir().expect("a directory");
        let copy = elsewhere.path().join("a.bsz");
        fs::copy(&path, &copy).expect("copied");
        let second = prepared(dir, "b", &Found::new(&copy));
        assert!(second.cloned() == 0 && shown(&second, b.len()) == b);
    });
}

#[test]
fn what_was_cloned_is_verified_and_written_instead_if_it_is_damaged() {
    on_each_disk(|_, disk| {
        let (dir, [a, b]) = (disk.path(), models());
        fs::write(dir.join("a"), &a).expect("written");
        fs::write(dir.join("b"), &b).expect("written");
        let none = Found::none();
        prepared(dir, "a", &none).link().expect("linked");
        let path = dir.join("a.bsz");
        let found = Found::new(&path);
        // As if the bytes on disk were not those that were compared.
        let calls = AtomicUsize::new(0);
        let check = |file: &File, p: &dyn Progress| {
            if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                let archive = Archive::from_file(file.try_clone()?)?;
                let chunk = archive.index().chunk(archive.index().len() / 2)?;
                file.write_all_at(&[1, 2, 3, 4, 5, 6, 7, 8], chunk.stored_at + 1000)?;
            }
            check(file, p)
        };
        let o = PrepareOptions { twins: Some(&found), ..PrepareOptions::default() };
        let opened = Dir::open(dir).expect("opens");
        let made = prepare(&opened, "b".as_ref(), &o, &check, &Silent).expect("prepared");
        let Preparation::Ready(second) = made else { panic!("not worth it") };
        assert_eq!((second.cloned(), calls.load(Ordering::Relaxed)), (0, 2));
        assert!(shown(&second, b.len()) == b);
        assert_eq!(found.distrusted.into_inner(), 1);
        // The damage was done to the new archive only.
        let archive = Archive::open(&path).expect("opens");
        read::verify(&archive, &*codec::fastest(), &|_| ()).expect("the first is whole");
    });
}

#[test]
fn archives_are_whole_where_nothing_can_be_cloned() {
    let root = tempfile::tempdir().expect("a directory");
    let [a, b] = models();
    fs::write(root.path().join("a"), &a).expect("written");
    fs::write(root.path().join("b"), &b).expect("written");
    let none =
        Found { archive: Path::new("/none"), at: vec![], asked: 0.into(), distrusted: 0.into() };
    let mut first = prepared(root.path(), "a", &none);
    first.link().expect("linked");
    assert!(shown(&first, a.len()) == a);
    let path = root.path().join("a.bsz");
    let found = Found::new(&path);
    let second = prepared(root.path(), "b", &found);
    assert!(shown(&second, b.len()) == b);
    assert_eq!(found.asked.into_inner(), 3, "for each large tensor");
}
