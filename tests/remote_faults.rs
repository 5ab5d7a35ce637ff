//! Random faults of servers: each read ends within its deadline with the right bytes or an error
//! number that fits, and nothing is left behind. `BSZ_REMOTE_FAULTS` is the number of reads.

mod common;

use bszfs::remote::{Deadlines, DiskCacheOptions, Object, Place, RemoteOptions};
use common::random::Random;
use common::web::{Act, Server, threads_and_descriptors};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_millis(150),
    silence: Duration::from_millis(120),
    total: Duration::from_millis(500),
};

/// Far beyond the deadline, on a machine that is busy with other things.
const HANG: Duration = Duration::from_secs(45);

fn fault(random: &mut Random, foreign: &str) -> Act {
    let some = |random: &mut Random| random.below(1 << 20) as usize;
    match random.below(34) {
        0 | 1 => Act::Cut(some(random)),
        2 => Act::Silence(some(random)),
        3 => Act::Mute,
        4 => Act::Trickle(2 + random.below(6) as usize, random.below(40)),
        5 => Act::Reset,
        6 => Act::Status(503, None),
        7 => Act::Status(429, Some(random.below(2))),
        8 => Act::Status(500, None),
        9 => Act::Status(403, None),
        10 => Act::Status(404, None),
        11 => Act::Status(416, None),
        12 => Act::Whole,
        13 => Act::OtherSize,
        14 => Act::OtherRange(1 + random.below(100)),
        15 => Act::Shorter(1 + some(random)),
        16 => Act::Longer(1 + random.below(1000) as usize),
        17 => Act::Tag(Some("other".into())),
        18 => Act::Tag(None),
        19 => Act::Redirect(302, foreign.to_owned()),
        20 => Act::Late(random.below(200)),
        21 => Act::Status(200 + random.below(400) as u16, None),
        _ => Act::Serve,
    }
}

/// Read an object that a misbehaving server has at random. Returns the outcomes by error number.
fn read_at_random(seed: u64, reads: u64) -> BTreeMap<i32, u64> {
    let server = Arc::new(Server::start());
    let foreign = Server::start();
    let mut random = Random(seed);
    let all: Vec<u8> =
        (0..(5 << 20) / 8).flat_map(|_| random.next().to_le_bytes()).chain([1, 2, 3]).collect();
    server.put("/o", &all, Some("tag"));
    foreign.put("/o", &vec![0; all.len()], Some("foreign"));
    let dir = tempfile::tempdir().expect("a directory");
    let disk = DiskCacheOptions { dir: dir.path().into(), size: 64 << 20 };
    let disk = random.below(2).eq(&0).then_some(disk);
    // Little memory, so that the server is asked again.
    let options =
        RemoteOptions { deadlines: DEADLINES, in_flight: 16 << 20, memory: 1 << 20, disk };
    let place = Place::new(&server.url("/o"), &options).expect("a place");
    let mut outcomes = BTreeMap::new();
    let (mut faults, foreign_url) = (Random(seed ^ 1), foreign.url("/o"));
    server.script(move |_| fault(&mut faults, &foreign_url));
    let mut object: Option<Object> = None;
    for _ in 0..reads {
        let begun = Instant::now();
        if object.is_none() {
            object = place.open("", None).ok();
        }
        let Some(open) = &object else { continue };
        // It may have been opened by an answer with another tag or size: then it is another object.
        let facts = &open.identity().facts;
        if facts.etag.as_deref() != Some("tag") || facts.size != all.len() as u64 {
            object = None;
            continue;
        }
        let at = random.below(all.len() as u64);
        let len = random.below(600_000).min(all.len() as u64 - at) as usize;
        let mut out = vec![0xa5; len];
        let outcome = match open.read(at, &mut out) {
            Ok(()) => {
                assert!(out == all[at as usize..][..len], "seed {seed}: wrong bytes at {at}");
                0
            }
            Err(e) => e.errno().unwrap_or(-1),
        };
        assert!(begun.elapsed() < HANG, "seed {seed}: it hung");
        *outcomes.entry(outcome).or_default() += 1;
        if random.below(20) == 0 {
            object = None;
        }
    }
    outcomes
}

#[test]
fn random_faults_lead_to_right_bytes_or_the_right_error_and_leave_nothing() {
    let reads: u64 = std::env::var("BSZ_REMOTE_FAULTS").map_or(300, |n| n.parse().expect("number"));
    let before = threads_and_descriptors();
    let mut outcomes: BTreeMap<i32, u64> = BTreeMap::new();
    let mut done = 0;
    for seed in 1.. {
        for (errno, n) in read_at_random(seed, reads.min(100)) {
            *outcomes.entry(errno).or_default() += n;
            done += n;
        }
        if done >= reads {
            break;
        }
    }
    println!("outcomes by error number: {outcomes:?}");
    let allowed = [0, libc::EIO, libc::ESTALE, libc::EACCES];
    assert!(outcomes.keys().all(|errno| allowed.contains(errno)), "{outcomes:?}");
    assert!(outcomes[&0] * 5 > done, "hardly anything succeeds: {outcomes:?}");
    // The network's threads end on their own.
    let begun = Instant::now();
    while threads_and_descriptors() != before {
        assert!(begun.elapsed() < HANG, "{before:?} became {:?}", threads_and_descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
}
