//! Mounted URLs, through a real kernel mount: the same bytes as the originals or the right error,
//! few requests, and no thread that a silent server holds up.

#![allow(unsafe_code, reason = "files are mapped")]

mod common;

use common::models::write_model;
use common::mounts::{Mount, Rig, bsz_fails, mount_line, mount_test, wait_for};
use common::objects::{all_files, autoindex, hub, listed};
use common::program::{packed_objects, run, same_tree};
use common::random::Random;
use common::web::{Act, Request, Server};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const NAME: &str = "large.safetensors";
const ARCHIVE: &str = "/d/large.bsz";

/// The weights of that one: enough for several requests.
const WEIGHTS: usize = 3_000_000;

/// Originals in `s`, what the server has of them in `p`, and the server.
struct Served {
    dir: TempDir,
    server: Arc<Server>,
}

impl Served {
    fn new() -> Self {
        let served = Self { dir: packed_objects(), server: Arc::new(Server::start()) };
        write_model(&served.dir.path().join("s").join(NAME), 5, WEIGHTS);
        let pack = ["pack".to_owned(), format!("s/{NAME}"), "-o".into(), "p/large.bsz".into()];
        run(served.dir.path(), &pack).ok();
        autoindex(&served.server, &served.packed());
        served
    }

    fn packed(&self) -> BTreeMap<String, Vec<u8>> {
        all_files(&self.dir.path().join("p"))
    }

    fn original(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join("s").join(name)).expect("the original")
    }

    fn url(&self) -> PathBuf {
        self.server.url("/d/").into()
    }

    /// Answer listings as before, and decide about all other requests.
    fn script(&self, mut script: impl FnMut(&Request) -> Act + Send + 'static) {
        let list = listed(&self.server, &self.packed());
        self.server.script(move |request| match list(request) {
            Some(listing) => listing,
            None => script(request),
        });
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("fails").raw_os_error().expect("an errno")
}

#[test]
fn a_directory_is_shown_exactly_and_reads_of_all_kinds_are() {
    mount_test(|rig| {
        let served = Served::new();
        let mount = rig.mount(&served.url(), "m", &[]);
        same_tree(&served.dir.path().join("s"), mount.root());
        let original = served.original(NAME);
        let file = File::open(mount.path(NAME)).expect("opens");
        assert_eq!(file.metadata().expect("attributes").mode() & 0o777, 0o444);
        let mut random = Random(7);
        for _ in 0..50 {
            let at = random.below(original.len() as u64) as usize;
            let len = (random.below(300_000) as usize).min(original.len() - at);
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at as u64).expect("reads");
            assert!(bytes == original[at..at + len], "{len} bytes at {at}");
        }
        assert_mapped(&file, &original);
        let status = mount.status();
        let by_url =
            ["status".into(), "--json".into(), format!("{}?x=SECRET", served.server.url("/d"))];
        let by_url = run(served.dir.path(), &by_url).ok().stdout;
        assert!(by_url.contains(&mount.root().to_string_lossy()[..]), "{by_url}");
        let other = run(served.dir.path(), &["status", "s3://bucket/other"]);
        other.fails("bsz: s3://bucket/other: is not mounted");
        assert!(status["remote"]["requests"].as_u64() > Some(0), "{status}");
        assert_eq!(status["remote"]["failed"], 0, "{status}");
        assert_eq!(errno(File::create(mount.path("new"))), libc::EROFS);
        assert_eq!(errno(File::open(mount.path("none"))), libc::ENOENT);
    });
}

fn assert_mapped(file: &File, original: &[u8]) {
    // SAFETY: nothing changes the file.
    let map = unsafe { memmap2::Mmap::map(file) }.expect("maps");
    for at in (0..original.len()).step_by(70_001).rev() {
        assert_eq!(map[at], original[at], "mapped, at {at}");
    }
}

#[test]
fn one_archive_is_shown_by_its_url_and_secrets_are_not() {
    mount_test(|rig| {
        let served = Served::new();
        let url = served.server.url(&format!("{ARCHIVE}?signature=SECRET"));
        let mount = rig.mount(Path::new(&url), "m", &[]);
        assert_eq!(common::program::names(mount.root()), [NAME]);
        assert!(fs::read(mount.path(NAME)).expect("reads") == served.original(NAME));
        let line = mount_line(mount.root()).expect("mounted");
        let status = mount.status().to_string();
        for (what, text) in [("mounts", line), ("status", status), ("log", mount.log())] {
            assert!(!text.contains("SECRET"), "{what}: {text}");
        }
    });
}

#[test]
fn what_cannot_be_mounted_is_refused() {
    mount_test(|rig| {
        let served = Served::new();
        let at = rig.mkdir("m").to_string_lossy().into_owned();
        let url = |path: &str| served.server.url(path);
        for (args, why) in [
            (vec![url("/d/tokenizer.json?SECRET"), at.clone()], "is not an archive"),
            (vec![url("/none/"), at.clone()], "no such object"),
            (vec![url("/d/")], "needs a MOUNTPOINT"),
            (vec!["--read-write".into(), url("/d/"), at.clone()], "cannot be changed through"),
            (vec!["http://me:SECRET@h/".into(), at.clone()], "must not hold credentials"),
            (vec![url("/d/"), format!("{at}/none")], "does not exist"),
        ] {
            let line = [vec!["mount".to_owned()], args].concat();
            let said = bsz_fails(&line);
            assert!(said.contains(why) && !said.contains("SECRET"), "{line:?}: {said}");
        }
        assert!(mount_line(&rig.path("m")).is_none());
    });
}

#[test]
fn an_object_that_is_replaced_is_stale_to_those_who_have_it_open() {
    mount_test(|rig| {
        let served = Served::new();
        let mount = rig.mount(&served.url(), "m", &["--metadata-ttl", "0"]);
        let file = File::open(mount.path(NAME)).expect("opens");
        let mut first = vec![0; 4096];
        file.read_exact_at(&mut first, 0).expect("reads");
        // Another model takes its place.
        let other = served.dir.path().join("p/model-00002-of-00003.bsz");
        let other = fs::read(other).expect("packed");
        served.server.put(ARCHIVE, &other, Some("another"));
        let mut rest = vec![0; 1 << 16];
        let end = file.metadata().expect("attributes").len() - rest.len() as u64;
        let middle = end / 2;
        let read = file.read_exact_at(&mut rest, middle);
        let original = served.original(NAME);
        match read {
            // It may have been fetched before.
            Ok(()) => assert!(rest == original[middle as usize..middle as usize + rest.len()]),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ESTALE)),
        }
    });
}

#[test]
fn what_a_listing_does_not_tell_apart_is_not_mixed() {
    mount_test(|rig| {
        let served = Served::new();
        // The listing has neither tags nor times.
        let bytes = |salt: u8| (0..4 << 20).map(|i| (i / 4096) as u8 ^ salt).collect::<Vec<u8>>();
        fs::write(served.dir.path().join("p/weights"), bytes(0)).expect("write");
        autoindex(&served.server, &served.packed());
        let mount = rig.mount(&served.url(), "m", &["--metadata-ttl", "0"]);
        // What was modified just now is never cached, and the mount takes its own time for theirs.
        std::thread::sleep(Duration::from_millis(2500));
        let inode = || fs::metadata(mount.path("weights")).expect("attributes").ino();
        let first = inode();
        for salt in [0, 1, 1, 2, 0] {
            served.server.put("/d/weights", &bytes(salt), Some(&format!("tag {salt}")));
            let file = File::open(mount.path("weights")).expect("opens");
            let mut begin = vec![0; 4096];
            file.read_exact_at(&mut begin, 0).expect("reads");
            assert_eq!(begin[0], salt, "what the kernel has kept is of another object");
            drop(file);
            assert!(fs::read(mount.path("weights")).expect("reads") == bytes(salt), "{salt}");
            assert!(salt == 0 || inode() != first, "another object is another file");
        }
    });
}

#[test]
fn a_listing_is_used_for_a_while_and_hangup_ends_that() {
    mount_test(|rig| {
        let served = Served::new();
        let mount = rig.mount(&served.url(), "m", &["--metadata-ttl", "forever"]);
        assert!(!common::program::names(mount.root()).contains(&"new".to_owned()));
        fs::write(served.dir.path().join("p/new"), b"new").expect("write");
        autoindex(&served.server, &served.packed());
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(errno(fs::read(mount.path("new"))), libc::ENOENT);
        mount.signal(Signal::HUP);
        wait_for("the new file", || fs::read(mount.path("new")).is_ok_and(|bytes| bytes == b"new"));
        assert!(common::program::names(mount.root()).contains(&"new".to_owned()));
    });
}

#[test]
fn a_missing_name_is_looked_for_again_after_a_second() {
    mount_test(|rig| {
        let served = Served::new();
        let mount = rig.mount(&served.url(), "m", &["--metadata-ttl", "3600"]);
        assert_eq!(errno(fs::read(mount.path("new"))), libc::ENOENT);
        fs::write(served.dir.path().join("p/new"), b"new").expect("write");
        autoindex(&served.server, &served.packed());
        wait_for("the new file", || fs::read(mount.path("new")).is_ok());
    });
}

#[test]
fn a_silent_server_ends_in_an_error_and_holds_up_nobody_else() {
    mount_test(|rig| {
        let served = Served::new();
        let mount = rig.mount(&served.url(), "m", &["--remote-timeout", "3"]);
        let tokenizer = served.original("tokenizer.json");
        assert!(fs::read(mount.path("tokenizer.json")).expect("reads") == tokenizer);
        let silent = Arc::new(AtomicBool::new(true));
        let is_silent = Arc::clone(&silent);
        served.script(move |request| {
            match request.path.ends_with(".bsz") && is_silent.load(Ordering::Relaxed) {
                true => Act::Mute,
                false => Act::Serve,
            }
        });
        let waiting: Vec<_> = (0..40)
            .map(|i| {
                let path = match i % 2 {
                    0 => mount.path(&format!("model-0000{}-of-00003.safetensors", i % 3 + 1)),
                    _ => mount.path(NAME),
                };
                std::thread::spawn(move || fs::read(path))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        let index = served.original("model.safetensors.index.json");
        assert!(fs::read(mount.path("model.safetensors.index.json")).expect("reads") == index);
        assert!(begun.elapsed() < Duration::from_millis(2500), "held up: {:?}", begun.elapsed());
        for reader in waiting {
            assert_eq!(errno(reader.join().expect("a reader")), libc::EIO);
        }
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        silent.store(false, Ordering::Relaxed);
        // What has failed is not tried again for a second.
        let original = served.original(NAME);
        wait_for("the server", || fs::read(mount.path(NAME)).is_ok_and(|read| read == original));
        let status = mount.status();
        assert!(status["remote"]["failed"].as_u64() > Some(0), "{status}");
        assert!(mount.log().contains("timed out"), "{}", mount.log());
    });
}

#[test]
fn programs_that_wait_for_a_silent_server_can_be_killed() {
    mount_test(|rig| {
        let served = Served::new();
        // The deadline is a minute.
        let mount = rig.mount(&served.url(), "m", &["--metadata-ttl", "forever"]);
        let open = File::open(mount.path(NAME)).expect("opens");
        let silent = Arc::new(AtomicBool::new(true));
        let is_silent = Arc::clone(&silent);
        served.server.script(move |_| match is_silent.load(Ordering::Relaxed) {
            true => Act::Mute,
            false => Act::Serve,
        });
        let commands = [
            ("lookup and open", "exec cat model-00002-of-00003.safetensors".to_owned()),
            ("direct read", format!("exec dd if={NAME} iflag=direct bs=1M skip=2")),
            ("read", "exec cat tokenizer.json".to_owned()),
            ("listing", "exec ls sub".to_owned()),
        ];
        for signal in [Signal::KILL, Signal::TERM, Signal::ABORT] {
            let mut waiting = Vec::new();
            for (what, command) in &commands {
                let mut shell = Command::new("sh");
                let shell = shell.args(["-c", command]).current_dir(mount.root());
                let program = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
                waiting.push((what, program.expect("starts")));
            }
            std::thread::sleep(Duration::from_secs(1));
            for (what, program) in &mut waiting {
                assert!(program.try_wait().expect("waits").is_none(), "{what} does not wait");
                kill_process(Pid::from_child(program), signal).expect("there");
            }
            let begun = Instant::now();
            for (what, program) in &mut waiting {
                wait_for(what, || program.try_wait().expect("waits").is_some());
                eprintln!("{signal:?}, {what}: gone after {:?}", begun.elapsed());
            }
        }
        silent.store(false, Ordering::Relaxed);
        drop(open);
        let original = served.original(NAME);
        wait_for("the server", || fs::read(mount.path(NAME)).is_ok_and(|read| read == original));
    });
}

#[test]
fn faults_at_random_end_in_the_right_bytes_or_an_error() {
    mount_test(|rig| {
        let served = Served::new();
        let random = Mutex::new(Random(11));
        let mount = rig.mount(
            &served.url(),
            "m",
            &["--remote-timeout", "3", "--cache-size", "8MiB", "--metadata-ttl", "0"],
        );
        served.script(move |_| {
            let mut random = random.lock().expect("random");
            let at = random.below(400_000) as usize;
            match random.below(12) {
                0 => Act::Cut(at),
                1 => Act::Status(503, None),
                2 => Act::Reset,
                3 => Act::Flip(at),
                4 => Act::Shorter(at % 1000 + 1),
                5 => Act::Whole,
                6 => Act::OtherRange(1),
                7 => Act::Late(30),
                _ => Act::Serve,
            }
        });
        let names = [NAME, "model-00002-of-00003.safetensors", NAME, "sub/adapter.safetensors"];
        let (mut right, mut failed) = (0, 0);
        let mut random = Random(13);
        for round in 0..60 {
            let name = names[round % names.len()];
            let original = served.original(name);
            let at = random.below(original.len() as u64) as usize;
            let len = (random.below(1 << 20) as usize).min(original.len() - at);
            let mut bytes = vec![0; len];
            let file = File::open(mount.path(name));
            match file.and_then(|file| file.read_exact_at(&mut bytes, at as u64)) {
                Ok(()) => {
                    assert!(bytes == original[at..at + len], "{name}: wrong bytes at {at}");
                    right += 1;
                }
                Err(e) => {
                    assert_ne!(e.kind(), ErrorKind::UnexpectedEof, "{name}: too short");
                    failed += 1;
                }
            }
        }
        eprintln!("{right} right, {failed} failed");
        assert!(right > 10, "{right} right, {failed} failed");
    });
}

#[test]
fn a_second_mount_with_a_disk_cache_asks_for_the_listing_only() {
    mount_test(|rig| {
        let served = Served::new();
        let cache = rig.path("cache").to_string_lossy().into_owned();
        let options = ["--disk-cache", &cache, "--disk-cache-size", "64MiB"];
        let first = rig.mount(&served.url(), "a", &options);
        same_tree(&served.dir.path().join("s"), first.root());
        first.signal(Signal::TERM);
        wait_for("the daemon to end", || first.has_exited());
        served.server.requests();
        let mut asked = Vec::new();
        // A disk that is slower than the network misses some, which later readers add.
        for round in 0..5 {
            let mount = rig.mount(&served.url(), &format!("b{round}"), &options);
            assert!(served.server.requests().len() <= 3);
            same_tree(&served.dir.path().join("s"), mount.root());
            asked = served.server.requests();
            asked.retain(|request| request.method == "GET" && !request.path.ends_with('/'));
            if asked.is_empty() {
                break;
            }
        }
        assert!(asked.is_empty(), "{asked:?}");
    });
}

#[test]
fn files_of_a_server_without_listings_are_found_by_their_names() {
    mount_test(|rig| {
        let served = Served::new();
        served.server.script(|request| match request.path.ends_with('/') {
            true => Act::Reply(200, Vec::new(), b"<html>".to_vec()),
            false => Act::Serve,
        });
        let mount = rig.mount(&served.url(), "m", &[]);
        assert_eq!(errno(fs::read_dir(mount.root()).map(Iterator::count)), libc::EOPNOTSUPP);
        for name in [NAME, "tokenizer.json"] {
            assert!(fs::read(mount.path(name)).expect(name) == served.original(name), "{name}");
        }
        assert_eq!(errno(fs::read(mount.path("none"))), libc::ENOENT);
    });
}

#[test]
fn a_repository_of_a_hub_is_mounted() {
    mount_test(|rig| {
        let dir = packed_objects();
        let hub = hub(all_files(&dir.path().join("p")));
        let mount = hub_mount(rig, &hub.front);
        same_tree(&dir.path().join("s"), mount.root());
    });
}

fn hub_mount(rig: &Rig, front: &Server) -> Mount {
    let endpoint = front.url("");
    let env = [("HF_ENDPOINT", Path::new(&endpoint)), ("HF_TOKEN", Path::new("good"))];
    rig.mount_with(Path::new("hf://org/repo"), "m", &[], &env)
}
