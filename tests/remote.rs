//! Objects on other machines: exact bytes or the right error, whatever the server does.

mod common;

use bszfs::codec;
use bszfs::error::{ErrorKind, Result};
use bszfs::read::{self, Archive};
use bszfs::remote::{Deadlines, Done, Found, Object, Pattern, Place, RemoteOptions};
use common::random::Random;
use common::samples::{Fill, pack_bytes, safetensors, tensor};
use common::web::{Act, Server};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Deadlines for tests in which all goes well in the end.
const PATIENT: Deadlines = Deadlines {
    connect: Duration::from_secs(20),
    silence: Duration::from_secs(20),
    total: Duration::from_secs(60),
};

/// Deadlines for tests of deadlines.
const SHORT: Deadlines = Deadlines {
    connect: Duration::from_millis(400),
    silence: Duration::from_millis(300),
    total: Duration::from_millis(900),
};

/// What no test takes unless something hangs.
const HANG: Duration = Duration::from_secs(45);

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes: Vec<u8> =
        (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

fn options(deadlines: Deadlines) -> RemoteOptions {
    RemoteOptions { deadlines, ..RemoteOptions::default() }
}

fn place(url: &str, deadlines: Deadlines) -> Place {
    Place::new(url, &options(deadlines)).expect("a place")
}

fn open(server: &Server, path: &str, deadlines: Deadlines) -> Result<Object> {
    place(&server.url(path), deadlines).open("", None)
}

fn read(object: &Object, at: u64, len: usize) -> Result<Vec<u8>> {
    let begun = Instant::now();
    let mut out = vec![0xa5; len];
    let read = object.read(at, &mut out);
    assert!(begun.elapsed() < HANG, "it hung");
    read.map(|()| out)
}

/// Open an object of 12 MiB, and read a part of it after the server has changed its ways.
fn read_under(acts: Vec<Act>, deadlines: Deadlines) -> (Result<Vec<u8>>, Vec<u8>, usize) {
    let server = Server::start();
    let all = bytes(12 << 20, 3);
    server.put("/o", &all, Some("tag"));
    let object = open(&server, "/o", deadlines).expect("opens");
    server.requests();
    server.acts(acts);
    let (at, len) = (5_000_001, 3_000_000);
    let got = read(&object, at, len);
    (got, all[at as usize..at as usize + len].to_vec(), server.requests().len())
}

#[test]
fn any_range_is_exact_and_streams_take_few_requests() {
    let server = Server::start();
    let all = bytes(40_000_003, 1);
    server.put("/o", &all, Some("tag"));
    let object = open(&server, "/o", PATIENT).expect("opens");
    assert_eq!(object.size(), all.len() as u64);
    let mut random = Random(5);
    for _ in 0..60 {
        let at = random.below(all.len() as u64);
        let len = random.below(2_000_000).min(all.len() as u64 - at) as usize;
        assert!(read(&object, at, len).expect("read") == all[at as usize..][..len]);
    }
    assert!(read(&object, all.len() as u64 - 1, 2).is_err());
    drop(object);
    // In order.
    server.requests();
    let (before, object) = (server.sent(), open(&server, "/o", PATIENT).expect("opens"));
    for at in (0..all.len()).step_by(170_000) {
        let len = 170_000.min(all.len() - at);
        assert!(read(&object, at as u64, len).expect("read") == all[at..at + len]);
    }
    let (requests, sent) = (server.requests().len(), server.sent() - before);
    assert!(requests <= 14, "{requests} requests for 40 MB");
    assert!(sent <= all.len() + (2 << 20), "{sent} bytes were sent");
}

#[test]
fn a_random_read_is_one_request_of_its_length() {
    let server = Server::start();
    let all = bytes(200 << 20, 2);
    server.put("/o", &all, Some("tag"));
    let object = open(&server, "/o", PATIENT).expect("opens");
    assert_eq!(server.requests().len(), 1, "one request opens it");
    let before = server.sent();
    read(&object, 150_000_000, 170_000).expect("read");
    assert_eq!((server.requests().len(), server.sent() - before), (1, 170_000));
}

#[test]
fn faults_that_pass_are_survived() {
    for acts in [
        vec![Act::Reset],
        vec![Act::Cut(0), Act::Cut(1_500_000), Act::Cut(10)],
        vec![Act::Status(503, None), Act::Status(500, None), Act::Status(429, Some(0))],
        vec![Act::Shorter(1000)],
        vec![Act::Trickle(40, 10)],
        vec![Act::Status(403, None)],
    ] {
        let (got, wanted, requests) = read_under(acts.clone(), PATIENT);
        let got = got.unwrap_or_else(|e| panic!("{acts:?}: {e}"));
        assert!(got == wanted, "{acts:?}: wrong bytes");
        assert!(requests <= 12, "{acts:?}: {requests} requests");
    }
}

#[test]
fn what_does_not_pass_becomes_the_right_error() {
    let always = |act: Act| vec![act; 1000];
    for (acts, errno) in [
        (always(Act::Mute), libc::EIO),
        (always(Act::Silence(100)), libc::EIO),
        (always(Act::Reset), libc::EIO),
        (always(Act::Status(503, None)), libc::EIO),
        (always(Act::Status(403, None)), libc::EACCES),
        (always(Act::Status(401, None)), libc::EACCES),
        (always(Act::Status(404, None)), libc::ESTALE),
        (always(Act::Status(412, None)), libc::ESTALE),
        (always(Act::Status(416, None)), libc::ESTALE),
        (always(Act::Whole), libc::EIO),
        (always(Act::OtherSize), libc::ESTALE),
        (always(Act::OtherRange(1)), libc::EIO),
        (always(Act::Longer(9)), libc::EIO),
        (always(Act::Tag(Some("other".into()))), libc::ESTALE),
        (always(Act::Tag(None)), libc::EIO),
        (always(Act::Status(302, None)), libc::EIO),
    ] {
        let (got, ..) = read_under(acts.clone(), SHORT);
        let e = got.expect_err("no bytes");
        assert_eq!(e.errno(), Some(errno), "{:?}: {e}", acts[0]);
    }
}

#[test]
fn an_object_that_is_replaced_is_stale_even_if_the_server_ignores_if_match() {
    for ignores in [false, true] {
        let server = Server::start();
        let all = bytes(30 << 20, 4);
        server.put("/o", &all, Some("one"));
        if ignores {
            server.ignore_if_match();
        }
        let object = open(&server, "/o", PATIENT).expect("opens");
        read(&object, 0, 1000).expect("read");
        // The same length and layout.
        server.put("/o", &bytes(30 << 20, 5), Some("two"));
        let e = read(&object, 20 << 20, 1000).expect_err("another object");
        assert_eq!(e.errno(), Some(libc::ESTALE), "{e}");
        let again = open(&server, "/o", PATIENT).expect("opens");
        assert!(read(&again, 20 << 20, 1000).is_ok(), "a new open sees the new object");
        server.remove("/o");
        let e = read(&again, 10 << 20, 1000).expect_err("deleted");
        assert_eq!(e.errno(), Some(libc::ESTALE), "{e}");
        let e = open(&server, "/o", PATIENT).map(drop).expect_err("deleted");
        assert_eq!(e.errno(), Some(libc::ENOENT), "{e}");
    }
}

#[test]
fn an_object_that_is_replaced_between_two_parts_is_never_mixed() {
    let server = Arc::new(Server::start());
    let (one, two) = (bytes(24 << 20, 6), bytes(24 << 20, 7));
    server.put("/o", &one, Some("one"));
    let object = open(&server, "/o", PATIENT).expect("opens");
    let mut left = 2;
    let (weak, replacement) = (Arc::downgrade(&server), two);
    server.script(move |_| {
        left -= 1;
        if left == 0
            && let Some(server) = weak.upgrade()
        {
            server.put("/o", &replacement, Some("two"));
        }
        Act::Serve
    });
    let got = read(&object, 0, 20 << 20);
    assert_eq!(got.expect_err("replaced").errno(), Some(libc::ESTALE));
}

#[test]
fn without_a_strong_tag_the_time_counts() {
    for tag in [None, Some("W/\"weak\"")] {
        let server = Server::start();
        let all = bytes(60 << 20, 8);
        server.put("/o", &all, tag);
        let object = open(&server, "/o", PATIENT).expect("opens");
        assert!(read(&object, 1000, 100_000).expect("read") == all[1000..101_000]);
        server.put("/o", &all[1..], tag);
        let far = read(&object, 50 << 20, 10);
        assert_eq!(far.map(drop).map_err(|e| e.errno()), Err(Some(libc::ESTALE)));
    }
}

#[test]
fn redirects_are_followed_and_forgotten_when_they_expire() {
    let (front, back) = (Server::start(), Server::start());
    let all = bytes(20 << 20, 9);
    back.put("/signed", &all, Some("back"));
    let signed = back.url("/signed?signature=1");
    front.script(move |_| Act::Redirect(302, signed.clone()));
    let object = open(&front, "/o", PATIENT).expect("opens");
    for at in [0, 9 << 20, 3 << 20, 14 << 20] {
        assert!(read(&object, at, 1000).expect("read") == all[at as usize..][..1000]);
    }
    assert_eq!(front.requests().len(), 1, "the redirect was asked for again");
    // It expires.
    let signed = back.url("/signed?signature=2");
    front.script(move |_| Act::Redirect(307, signed.clone()));
    back.script(|request| match request.path.ends_with("=2") {
        true => Act::Serve,
        false => Act::Status(403, None),
    });
    assert!(read(&object, 6 << 20, 1000).expect("read") == all[6 << 20..][..1000]);
    // Those that ran at the same time may each have asked.
    assert!((1..=4).contains(&front.requests().len()));
    // Round and round.
    let own = front.url("/o");
    front.script(move |_| Act::Redirect(302, own.clone()));
    let e = open(&front, "/o", SHORT).map(drop).expect_err("a circle");
    assert!(e.to_string().contains("redirects more than"), "{e}");
}

#[test]
fn nobody_waits_for_a_server_that_is_not_there() {
    let url = {
        let server = Server::start();
        server.url("/o")
    };
    let begun = Instant::now();
    let e = place(&url, SHORT).find().map(drop).expect_err("no server");
    assert_eq!(e.errno(), Some(libc::EIO), "{e}");
    assert!(e.to_string().contains("refused"), "{e}");
    assert!(begun.elapsed() < HANG);
}

#[test]
fn reads_that_nobody_can_answer_are_answered_when_all_is_dropped() {
    let server = Server::start();
    server.put("/o", &bytes(20 << 20, 1), Some("tag"));
    let object = open(&server, "/o", PATIENT).expect("opens");
    server.script(|_| Act::Mute);
    let (send, answers) = mpsc::channel();
    for at in 0..20u64 {
        let send = send.clone();
        let done: Done = Box::new(move |result| drop(send.send(result.map(|s| s.len()))));
        object.fetch(at << 19..(at << 19) + 5000, Pattern::Random, done);
    }
    drop((send, object));
    let answers: Vec<_> = answers.iter().collect();
    assert_eq!(answers.len(), 20);
    assert!(answers.iter().all(|answer| answer.is_err()));
}

#[test]
fn the_thread_that_asks_does_not_wait() {
    let server = Server::start();
    let all = bytes(20 << 20, 1);
    server.put("/o", &all, Some("tag"));
    let object = open(&server, "/o", PATIENT).expect("opens");
    server.script(|_| Act::Late(1500));
    let (send, answers) = mpsc::channel();
    let begun = Instant::now();
    for at in 0..8usize {
        let (send, range) = (send.clone(), at << 21..(at << 21) + 300_000);
        let expected = all[range.clone()].to_vec();
        let done: Done = Box::new(move |result| {
            let mut out = vec![0; expected.len()];
            result.expect("read").copy_to(&mut out);
            send.send(out == expected).expect("listened to");
        });
        object.fetch(range.start as u64..range.end as u64, Pattern::Random, done);
    }
    assert!(begun.elapsed() < Duration::from_millis(1400), "it waited");
    drop(send);
    assert_eq!(answers.iter().filter(|exact| *exact).count(), 8);
}

/// A packed model, and its bytes.
fn packed() -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let model = safetensors(&[
        ("a", "BF16", tensor("BF16", 6 << 20, Fill::Weights, 1)),
        ("b", "F32", tensor("F32", 1 << 20, Fill::Weights, 2)),
    ]);
    (pack_bytes(dir.path(), "m", &model, 256 << 10), model)
}

fn archive(server: &Server, path: &str) -> Result<Archive> {
    match place(&server.url(path), PATIENT).find()? {
        Found::Object(object) => Archive::from_object(object),
        Found::Directory(_) => panic!("a directory"),
    }
}

#[test]
fn archives_are_opened_verified_and_read_as_from_a_file() {
    let server = Server::start();
    let (stored, model) = packed();
    server.put("/m.bsz", &stored, Some("tag"));
    let archive = archive(&server, "/m.bsz").expect("opens");
    assert_eq!(server.requests().len(), 1, "one request opens a small archive");
    read::verify(&archive, &*codec::fastest(), &|_| {}).expect("verifies");
    let mut random = Random(3);
    for _ in 0..30 {
        let at = random.below(model.len() as u64) as usize;
        let mut out = vec![0; (random.below(700_000) as usize).min(model.len() - at)];
        archive.read_at(at as u64, &mut out, &*codec::fastest()).expect("read");
        assert!(out == model[at..at + out.len()]);
    }
}

#[test]
fn damage_on_the_way_is_fetched_again_and_damage_that_stays_is_an_error() {
    let (stored, _) = packed();
    let server = Server::start();
    server.put("/m.bsz", &stored, Some("tag"));
    let archive_ = archive(&server, "/m.bsz").expect("opens");
    let flipped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&flipped);
    server.script(move |request| {
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
        let (from, to) = range.and_then(|range| range.split_once('-')).expect("a range");
        let len = to.parse::<usize>().expect("end") - from.parse::<usize>().expect("start");
        // What is fetched again is the one block in the middle of which the damage is.
        match len > 3 << 19 {
            true => Act::Flip((1 << 19) + count.fetch_add(1, Ordering::Relaxed)),
            false => Act::Serve,
        }
    });
    read::verify(&archive_, &*codec::fastest(), &|_| {}).expect("verifies");
    assert!(flipped.load(Ordering::Relaxed) > 0, "nothing was damaged");
    let mut damaged = stored.clone();
    damaged[stored.len() / 2] ^= 1;
    server.script(|_| Act::Serve);
    server.put("/m.bsz", &damaged, Some("damaged"));
    let archive = archive(&server, "/m.bsz").expect("opens");
    let e = read::verify(&archive, &*codec::fastest(), &|_| {}).expect_err("damaged");
    assert_eq!(e.kind(), ErrorKind::Corruption, "{e}");
}

#[test]
fn what_is_no_archive_is_told_from_what_was_cut() {
    let (stored, _) = packed();
    let server = Server::start();
    for (name, bytes, kind) in [
        ("/text", &b"not an archive"[..], ErrorKind::InvalidArgument),
        ("/empty", b"", ErrorKind::InvalidArgument),
        ("/noise", &bytes(3 << 20, 1)[..], ErrorKind::InvalidArgument),
        ("/cut", &stored[..stored.len() - 1], ErrorKind::Truncated),
        ("/short", &stored[..100], ErrorKind::Truncated),
    ] {
        server.put(name, bytes, Some(name));
        let e = archive(&server, name).map(drop).expect_err(name);
        assert_eq!(e.kind(), kind, "{name}: {e}");
    }
}
