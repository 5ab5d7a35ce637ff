//! The disk cache of remote objects: a second reader needs the network no more; whatever happens to
//! the files, bytes are right; its bound holds.

mod common;

use bszfs::remote::{Deadlines, DiskCacheOptions, Object, Place, RemoteOptions};
use common::program::bsz;
use common::random::Random;
use common::samples::{Fill, pack_bytes, safetensors, tensor};
use common::web::{Act, Server};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const PATIENT: Deadlines = Deadlines {
    connect: Duration::from_secs(20),
    silence: Duration::from_secs(20),
    total: Duration::from_secs(60),
};

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

fn place(url: &str, dir: &Path, size: u64) -> Place {
    let disk = Some(DiskCacheOptions { dir: dir.into(), size });
    let options = RemoteOptions { deadlines: PATIENT, disk, ..RemoteOptions::default() };
    Place::new(url, &options).expect("a place")
}

/// The object `/o` of a server, with a cache in `dir`.
fn open(server: &Server, dir: &TempDir) -> Object {
    place(&server.url("/o"), dir.path(), 1 << 30).open("", None).expect("opens")
}

/// Read all of an object in order, and compare.
fn read_all(object: &Object, all: &[u8]) {
    for at in (0..all.len()).step_by(400_000) {
        let mut out = vec![0; 400_000.min(all.len() - at)];
        object.read(at as u64, &mut out).expect("read");
        assert!(out == all[at..at + out.len()], "wrong bytes at {at}");
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.join("objects")];
    while let Some(dir) = todo.pop() {
        // Directories come and go while they are counted.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => todo.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

/// The bytes of all files, counted while nobody writes one.
fn used(dir: &Path) -> u64 {
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("evict.lock"));
    let lock = lock.expect("the lock");
    lock.lock().expect("locked");
    files(dir).iter().filter_map(|file| fs::metadata(file).ok()).map(|meta| meta.len()).sum()
}

#[test]
fn the_second_reader_asks_only_what_the_object_is() {
    let (server, dir) = (Server::start(), TempDir::new().expect("a directory"));
    let all = bytes(20 << 20, 1);
    server.put("/o", &all, Some("tag"));
    read_all(&open(&server, &dir), &all);
    // A disk that is slower than the network misses some, which later readers add.
    let mut requests = Vec::new();
    for _ in 0..10 {
        server.requests();
        read_all(&open(&server, &dir), &all);
        requests = server.requests();
        if requests.len() == 1 {
            break;
        }
    }
    assert!(requests.iter().all(|request| request.method == "HEAD"), "{requests:?}");
    assert_eq!(requests.len(), 1);
    // Another object of the same name.
    let other = bytes(20 << 20, 2);
    server.put("/o", &other, Some("other"));
    read_all(&open(&server, &dir), &other);
}

#[test]
fn damaged_files_are_fetched_again() {
    let (server, dir) = (Server::start(), TempDir::new().expect("a directory"));
    let all = bytes(8 << 20, 1);
    server.put("/o", &all, Some("tag"));
    read_all(&open(&server, &dir), &all);
    let mut random = Random(9);
    for round in 0..6 {
        for file in files(dir.path()) {
            let file = OpenOptions::new().read(true).write(true).open(file).expect("opens");
            let len = file.metadata().expect("its length").len();
            let at = random.below(len);
            match round % 3 {
                0 => file.set_len(at).expect("cut"),
                1 => file.write_all_at(&[random.next() as u8], at).expect("written"),
                _ => file.set_len(len + 1 + at).expect("longer"),
            }
        }
        read_all(&open(&server, &dir), &all);
    }
}

#[test]
fn without_a_strong_tag_nothing_is_kept() {
    let (server, dir) = (Server::start(), TempDir::new().expect("a directory"));
    let all = bytes(3 << 20, 1);
    server.put("/o", &all, None);
    read_all(&place(&server.url("/o"), dir.path(), 1 << 30).open("", None).expect("opens"), &all);
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn the_bound_holds_while_several_readers_share_the_directory() {
    let (server, dir) = (Server::start(), TempDir::new().expect("a directory"));
    let all = bytes(24 << 20, 1);
    for name in ["/a", "/b", "/c"] {
        server.put(name, &all, Some(name));
    }
    let bound = 20 << 20;
    thread::scope(|scope| {
        let readers: Vec<_> = ["/a", "/b", "/c"]
            .map(|name| {
                let (url, dir, all) = (server.url(name), dir.path(), &all);
                scope.spawn(move || {
                    let object = place(&url, dir, bound).open("", None).expect("opens");
                    read_all(&object, all);
                })
            })
            .into();
        while !readers.iter().all(|reader| reader.is_finished()) {
            let used = used(dir.path());
            assert!(used <= bound, "{used} bytes");
            thread::sleep(Duration::from_millis(5));
        }
    });
    let used = used(dir.path());
    assert!((bound / 2..=bound).contains(&used), "{used} bytes of {bound}");
}

#[test]
fn programs_that_are_killed_while_they_write_leave_nothing_wrong() {
    let (server, dir) = (Server::start(), TempDir::new().expect("a directory"));
    let models = TempDir::new().expect("a directory");
    let model = safetensors(&[("a", "BF16", tensor("BF16", 12 << 20, Fill::Weights, 1))]);
    server.put("/m.bsz", &pack_bytes(models.path(), "m", &model, 256 << 10), Some("tag"));
    let kills: usize = std::env::var("BSZ_REMOTE_KILLS").map_or(6, |n| n.parse().expect("number"));
    let (cache, url) = (dir.path().join("cache"), server.url("/m.bsz"));
    let verify = || {
        let mut command = bsz();
        command.args(["verify", &url, "--disk-cache-size", "12MiB", "--disk-cache"]).arg(&cache);
        command
    };
    server.script(|_| Act::Trickle(30, 2));
    let mut random = Random(11);
    for _ in 0..kills {
        let two = [(); 2].map(|()| {
            let mut command = verify();
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bsz starts")
        });
        thread::sleep(Duration::from_millis(random.below(600)));
        for mut child in two {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }
    server.script(|_| Act::Serve);
    let out = verify().output().expect("bsz runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(used(&cache) <= 12 << 20, "{} bytes", used(&cache));
}

#[test]
fn a_disk_cache_that_cannot_be_written_stops_nobody() {
    let (server, dir) = (Server::start(), TempDir::new().expect("a directory"));
    let all = bytes(6 << 20, 1);
    server.put("/o", &all, Some("tag"));
    let place = place(&server.url("/o"), dir.path(), 1 << 30);
    fs::remove_dir(dir.path().join("objects")).expect("removed");
    fs::write(dir.path().join("objects"), "in the way").expect("written");
    read_all(&place.open("", None).expect("opens"), &all);
}
