//! A mount uses no more memory than its cache size and 64 MiB, whatever the archives contain, and
//! reads exactly.

#![allow(clippy::unwrap_used, reason = "a test fails where it has no value")]

mod common;

use common::crafted;
use common::mounts::{self, Mount, Rig, mount_test};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

const MIB: u64 = 1 << 20;
/// What a mount may use in addition to its cache.
const BESIDE: u64 = 64 * MIB;

/// The peak memory of a mount's daemon, in bytes.
fn peak(mount: &Mount) -> u64 {
    let pid = mount.status()["pid"].as_u64().expect("a number");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("told by Linux");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[track_caller]
fn is_within_bounds(mount: &Mount, cache: u64) {
    let peak = peak(mount);
    assert!(peak < cache + BESIDE, "{} MiB with a cache of {} MiB", peak / MIB, cache / MIB);
    let held = mount.status()["cache"]["held_bytes"].as_u64().expect("a number");
    assert!(held <= peak, "{held} bytes are held in {peak}");
}

/// Reads past the page cache: at multiples of the page size, into memory aligned to it.
struct Direct {
    file: File,
    memory: memmap2::MmapMut,
}

impl Direct {
    fn open(path: &Path, most: usize) -> Self {
        let file =
            File::options().read(true).custom_flags(libc::O_DIRECT).open(path).expect("opens");
        Self { file, memory: memmap2::MmapMut::map_anon(most).expect("memory") }
    }

    fn read(&mut self, at: u64, len: usize) -> &[u8] {
        let n = self.file.read_at(&mut self.memory[..len], at).expect("read");
        &self.memory[..n]
    }
}

/// A header of `n` one-byte tensors, alternating between two layers and padded to a multiple of the
/// page size.
fn tiny_tensors(n: usize) -> Vec<u8> {
    let entry = |i: usize| {
        format!(
            r#""layers.{}.t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
            i % 2,
            i + 1
        )
    };
    let mut json = format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(","));
    json.push_str(&" ".repeat((json.len() + 8).next_multiple_of(4096) - json.len() - 8));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

#[test]
fn hundreds_of_thousands_of_tiny_tensors_stay_within_bounds_and_block_no_other_reader() {
    mount_test(|rig| {
        let (source, tensors) = (rig.mkdir("p"), 400_000);
        let head = tiny_tensors(tensors);
        crafted::archive(&source.join("m.bsz"), &head, &[7], (0..tensors).map(|_| 1));
        std::fs::write(source.join("other"), "content").unwrap();
        let mount = rig.mount(&source, "v", &["--cache-size=16MiB"]);
        let path = mount.path("m.safetensors");
        // Several readers at once, with the largest requests of the kernel and with a few tensors
        // at a time.
        thread::scope(|scope| {
            for len in [1 << 20, 1 << 20, 64 << 10, 4096, 512] {
                let (path, head) = (&path, &head);
                scope.spawn(move || {
                    let mut file = Direct::open(path, len);
                    let most = if len > 4096 { tensors } else { 40 * len };
                    for at in (0..most).step_by(len) {
                        let n = len.min(tensors - at);
                        assert!(
                            file.read((head.len() + at) as u64, len) == vec![7; n],
                            "{n} bytes at {at}"
                        );
                    }
                });
            }
            assert_eq!(std::fs::read(mount.path("other")).unwrap(), b"content");
        });
        let whole = std::fs::read(&path).unwrap();
        assert!(whole[..head.len()] == head && whole[head.len()..] == vec![7; tensors]);
        is_within_bounds(&mount, 16 * MIB);
    });
}

#[test]
fn chunks_of_several_sizes_stay_within_bounds() {
    mount_test(|rig| {
        const SIZES: [usize; 6] = [256 << 10, 300_000, 128 << 10, 64 << 10, 20_000, 3000];
        let source = rig.mkdir("p");
        let blob = crafted::blob(SIZES[1]);
        for (i, size) in SIZES.into_iter().enumerate() {
            let lens = (0..(160 << 20) / size.max(20_000)).map(|_| size);
            crafted::archive(&source.join(format!("m{i}.bsz")), &[], &blob, lens);
        }
        let mount = rig.mount(&source, "v", &["--cache-size=64MiB", "--prefetch=off"]);
        let mut files: Vec<Direct> = (0..SIZES.len())
            .map(|i| Direct::open(&mount.path(&format!("m{i}.safetensors")), 4096))
            .collect();
        let touch = |files: &mut Vec<Direct>, which: usize, chunk: usize| {
            let (size, len) = (SIZES[which], 4096.min(SIZES[which]));
            // The page that contains the middle of the chunk.
            let at = (chunk * size + size / 2) & !4095;
            let read = files[which].read(at as u64, 4096);
            assert!(read.iter().enumerate().take(len).all(|(i, b)| *b == blob[(at + i) % size]));
        };
        // A few chunks of each size stay in use, and keep their slabs alive.
        let mut hot = Vec::new();
        for (which, size) in SIZES.into_iter().enumerate() {
            let chunks = (100 << 20) / size.max(20_000);
            for chunk in 0..chunks {
                touch(&mut files, which, chunk);
                if chunk % 12 == 0 {
                    hot.push((which, chunk));
                }
                if chunk % 60 == 0 {
                    hot.iter().for_each(|&(which, chunk)| touch(&mut files, which, chunk));
                }
            }
        }
        is_within_bounds(&mount, 64 * MIB);
        let cache = &mount.status()["cache"];
        let [held, most] =
            ["held_bytes", "capacity_bytes"].map(|name| cache[name].as_u64().unwrap());
        // Whole pages are counted, so only a remainder smaller than one stays free.
        assert!(held <= most && held > most / 2, "{held} of {most}");
    });
}

#[test]
fn many_shards_with_large_indexes_stay_within_bounds() {
    mount_test(|rig| {
        let (source, shards, chunk) = (rig.mkdir("p"), 12, 64 << 10);
        let first = source.join("model-00001-of-00012.bsz");
        let mut blob = crafted::blob(chunk);
        // The chunks differ in length, so that one read in place of another would be noticed.
        blob.push(1);
        let len = |i: usize| chunk - i % 7;
        let chunks = 190_000;
        let original = crafted::archive(&first, &[], &blob, (0..chunks).map(len));
        for i in 2..=shards {
            std::fs::copy(&first, source.join(format!("model-{i:05}-of-00012.bsz"))).unwrap();
        }
        assert!(std::fs::metadata(&first).unwrap().len() > 6 * MIB);
        let mount = rig.mount(&source, "v", &["--cache-size=8MiB"]);
        let files: Vec<File> = (1..=shards)
            .map(|i| File::open(mount.path(&format!("model-{i:05}-of-00012.safetensors"))).unwrap())
            .collect();
        // Seven consecutive chunks all differ in length.
        let period: usize = (0..7).map(len).sum();
        let at = |i: usize| i / 7 * period + (0..i % 7).map(len).sum::<usize>();
        for (i, file) in files.iter().cycle().take(20 * shards).enumerate() {
            let number = i * 7919 % chunks;
            let mut read = vec![0; len(number)];
            file.read_exact_at(&mut read, at(number) as u64).unwrap();
            assert!(read == blob[..read.len()], "chunk {number}");
        }
        assert_eq!(files[0].metadata().unwrap().len(), original);
        is_within_bounds(&mount, 8 * MIB);
    });
}

#[test]
fn a_sparse_index_stays_within_bounds() {
    mount_test(|rig| {
        let source = rig.mkdir("p");
        let blob = crafted::blob(4096);
        crafted::sparse(&source.join("m.bsz"), &blob, 7000);
        assert!(std::fs::metadata(source.join("m.bsz")).unwrap().len() > 240 * MIB);
        let mount = rig.mount(&source, "v", &["--cache-size=8MiB"]);
        let read = std::fs::read(mount.path("m.safetensors")).unwrap();
        assert!(read.len() == 7000 * 4096 && read.chunks(4096).all(|chunk| chunk == blob));
        is_within_bounds(&mount, 8 * MIB);
    });
}

#[test]
fn a_header_too_long_for_layer_readahead_is_logged_once_and_still_read() {
    mount_test(|rig: &Rig| {
        let source = rig.mkdir("p");
        let mut head = tiny_tensors(1000);
        head.resize(20 << 20, b' ');
        head[..8].copy_from_slice(&((20 << 20) as u64 - 8).to_le_bytes());
        crafted::archive(&source.join("m.bsz"), &head, &[7], (0..1000).map(|_| 1));
        let mount = rig.mount(&source, "v", &["--cache-size=8MiB"]);
        let what = "its layers are not prefetched";
        for _ in 0..3 {
            assert!(std::fs::read(mount.path("m.safetensors")).unwrap()[..head.len()] == head);
            mounts::wait_for("the log line about layers", || mount.log().contains(what));
        }
        assert_eq!(mount.log().matches(what).count(), 1, "{}", mount.log());
        is_within_bounds(&mount, 8 * MIB);
    });
}
