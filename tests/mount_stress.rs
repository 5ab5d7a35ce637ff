//! The mount under stress: many threads, tiny caches, killed readers and daemons, archives that
//! vanish, a disk that fails. Nothing hangs, since every test has a deadline, and every byte read
//! is compared.

mod common;

use common::models::write_model;
use common::mounts::{Mount, Rig, bsz, mount_test, run, wait_for};
use common::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A directory with `count` archives of models of this many weights, and the bytes of the
/// originals.
fn shards(rig: &Rig, count: u64, weights: usize) -> (PathBuf, Vec<(String, Vec<u8>)>) {
    let packed = rig.mkdir("packed");
    let originals = rig.mkdir("originals");
    let model = |i: u64| {
        let name = format!("model-{i:05}-of-{count:05}.safetensors");
        let bytes = write_model(&originals.join(&name), i, weights);
        bsz([Path::new("pack"), &originals.join(&name), Path::new("-o"), &packed]);
        (name, bytes)
    };
    ((packed.clone()), (1..=count).map(model).collect())
}

fn open(mount: &Mount, name: &str) -> File {
    File::open(mount.path(name)).expect("open")
}

/// Read `len` bytes at `at` and compare them.
fn compare(file: &File, original: &[u8], at: u64, len: usize, buffer: &mut [u8]) {
    let end = original.len().min(at as usize + len);
    let buffer = &mut buffer[..end - at as usize];
    file.read_exact_at(buffer, at).expect("read");
    assert!(*buffer == original[at as usize..end], "{len} bytes at {at}");
}

/// The peak resident memory of the daemon, in KiB.
fn peak_kib(mount: &Mount) -> u64 {
    let pid = mount.status()["pid"].as_u64().expect("a process");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn drop_page_cache() {
    // Only root may; otherwise the page cache serves more of the reads.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

#[test]
fn threads_read_several_shards_at_random_with_the_smallest_cache() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 3, 3_000_000);
        let mount = rig.mount(&packed, "view", &["--cache-size", "1"]);
        for threads in [4, 16, 64] {
            drop_page_cache();
            thread::scope(|s| {
                for seed in 0..threads {
                    let (mount, shards) = (&mount, &shards);
                    s.spawn(move || {
                        let mut random = Random(seed);
                        let mut buffer = vec![0; 300_000];
                        let files: Vec<_> =
                            shards.iter().map(|(name, _)| open(mount, name)).collect();
                        for _ in 0..800 / threads {
                            let i = random.below(3) as usize;
                            let original = &shards[i].1;
                            let len = 1 + random.below(buffer.len() as u64) as usize;
                            let at = random.below(original.len() as u64);
                            compare(&files[i], original, at, len, &mut buffer);
                        }
                    });
                }
            });
        }
    });
}

#[test]
fn memory_stays_within_the_bound_for_64_threads() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 4, 12_000_000);
        let mount = rig.mount(&packed, "view", &["--cache-size", "64MiB"]);
        drop_page_cache();
        thread::scope(|s| {
            for seed in 0..64 {
                let (mount, shards) = (&mount, &shards);
                s.spawn(move || {
                    let mut random = Random(seed);
                    let mut buffer = vec![0; 1 << 20];
                    let (name, original) = &shards[seed as usize % shards.len()];
                    let file = open(mount, name);
                    for _ in 0..6 {
                        let at = random.below(original.len() as u64);
                        compare(&file, original, at, buffer.len(), &mut buffer);
                    }
                });
            }
        });
        let peak = peak_kib(&mount);
        assert!(peak < 128 << 10, "{peak} KiB resident");
    });
}

#[test]
fn streams_from_many_threads_in_any_order_are_exact() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 2, 16_000_000);
        for prefetch in ["off", "auto", "3"] {
            let mount = rig.mount(&packed, &format!("view-{prefetch}"), &["--prefetch", prefetch]);
            drop_page_cache();
            for (name, original) in &shards {
                let file = open(&mount, name);
                let next = std::sync::atomic::AtomicU64::new(0);
                thread::scope(|s| {
                    for _ in 0..16 {
                        s.spawn(|| {
                            let mut buffer = vec![0; 2 << 20];
                            loop {
                                let at =
                                    next.fetch_add(2 << 20, std::sync::atomic::Ordering::Relaxed);
                                if at >= original.len() as u64 {
                                    return;
                                }
                                compare(&file, original, at, 2 << 20, &mut buffer);
                            }
                        });
                    }
                });
            }
            assert_eq!(mount.status()["cache"]["errors"], 0);
        }
    });
}

/// A process that reads a file of the mount, slowly or not, and writes it to `to`.
fn reader(mount: &Mount, name: &str, to: &Path) -> Child {
    let (from, to) = (format!("if={}", mount.path(name).display()), format!("of={}", to.display()));
    let mut dd = Command::new("dd");
    dd.args([from.as_str(), to.as_str(), "bs=64k"]).stderr(Stdio::null()).spawn().expect("dd")
}

fn wait(child: &mut Child) -> bool {
    let mut status = None;
    wait_for("a reader to end", || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    status.is_some_and(|s| s.success())
}

#[test]
fn killed_readers_leave_the_mount_intact() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 2, 8_000_000);
        let mount = rig.mount(&packed, "view", &["--cache-size", "1MiB"]);
        let mut random = Random(5);
        for _ in 0..15 {
            drop_page_cache();
            let null = Path::new("/dev/null");
            let mut readers: Vec<_> =
                (0..4).map(|i| reader(&mount, &shards[i % 2].0, null)).collect();
            thread::sleep(Duration::from_millis(random.below(30)));
            readers.iter_mut().for_each(|r| r.kill().expect("kill"));
            for reader in &mut readers {
                wait(reader);
            }
        }
        drop_page_cache();
        for (name, original) in &shards {
            assert!(std::fs::read(mount.path(name)).expect("read") == *original);
        }
    });
}

#[test]
fn interrupted_readers_get_every_byte() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 1, 8_000_000);
        let mount = rig.mount(&packed, "view", &["--cache-size", "1MiB"]);
        drop_page_cache();
        let copy = rig.path("copy");
        let mut dd = reader(&mount, &shards[0].0, &copy);
        // dd reports its progress at each of these signals and resumes the interrupted read. Wait
        // until its handler is installed.
        thread::sleep(Duration::from_millis(20));
        let pid = Pid::from_child(&dd);
        while dd.try_wait().expect("wait").is_none() {
            let _ = kill_process(pid, Signal::USR1);
            thread::sleep(Duration::from_micros(300));
        }
        if wait(&mut dd) {
            assert!(std::fs::read(&copy).expect("the copy") == shards[0].1);
        }
        assert!(std::fs::read(mount.path(&shards[0].0)).expect("read") == shards[0].1);
    });
}

#[test]
fn truncated_or_removed_archives_give_errors_or_the_exact_bytes() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 3, 4_000_000);
        let mount = rig.mount(&packed, "view", &["--cache-size", "1MiB", "--prefetch", "off"]);
        let files: Vec<_> = shards.iter().map(|(name, _)| open(&mount, name)).collect();
        let archive = |i: usize| packed.join(&shards[i].0).with_extension("bsz");
        // Removed: open files stay readable.
        std::fs::remove_file(archive(0)).expect("remove");
        let mut buffer = vec![0; shards[0].1.len()];
        compare(&files[0], &shards[0].1, 0, buffer.len(), &mut buffer);
        // Truncated: every reader of the missing part gets an error, and soon.
        let len = archive(1).metadata().expect("stat").len();
        File::options().write(true).open(archive(1)).and_then(|f| f.set_len(len / 2)).expect("cut");
        drop_page_cache();
        let started = Instant::now();
        let failed = (0..buffer.len() as u64)
            .step_by(100_000)
            .filter(|&at| {
                let mut part = [0; 4096];
                let part = &mut part[..4096.min(buffer.len() - at as usize)];
                match files[1].read_exact_at(part, at) {
                    Ok(()) => assert!(*part == shards[1].1[at as usize..][..part.len()], "{at}"),
                    Err(e) => {
                        assert_eq!(
                            e.raw_os_error(),
                            Some(rustix::io::Errno::IO.raw_os_error()),
                            "{at}"
                        )
                    }
                }
                files[1].read_exact_at(part, at).is_err()
            })
            .count();
        assert!(failed > 10, "{failed} reads failed");
        assert!(started.elapsed() < Duration::from_secs(20));
        // The third archive is intact.
        assert!(std::fs::read(mount.path(&shards[2].0)).expect("read") == shards[2].1);
        assert!(mount.status()["cache"]["errors"].as_u64() >= Some(1));
    });
}

#[test]
fn readers_of_a_killed_daemon_get_errors_and_a_new_mount_works() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 1, 8_000_000);
        for round in 0..5 {
            let mount = rig.mount(&packed, &format!("view-{round}"), &["--cache-size", "1"]);
            drop_page_cache();
            let mut readers: Vec<_> =
                (0..4).map(|_| reader(&mount, &shards[0].0, Path::new("/dev/null"))).collect();
            thread::sleep(Duration::from_millis(3 * round));
            mount.signal(Signal::KILL);
            for reader in &mut readers {
                wait(reader);
            }
            bsz([Path::new("umount"), mount.root()]);
            assert!(!mount.is_mounted());
            let again = rig.mount(&packed, &format!("view-{round}"), &[]);
            let mut buffer = vec![0; 1 << 16];
            compare(&open(&again, &shards[0].0), &shards[0].1, 1 << 20, 1 << 16, &mut buffer);
        }
    });
}

#[test]
fn dropping_the_cache_repeatedly_disturbs_no_reader() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 1, 12_000_000);
        let mount = rig.mount(&packed, "view", &[]);
        drop_page_cache();
        let copy = rig.path("copy");
        let mut dd = reader(&mount, &shards[0].0, &copy);
        let mut drops = 0;
        while dd.try_wait().expect("wait").is_none() {
            bsz([Path::new("cache"), Path::new("drop"), mount.root()]);
            drops += 1;
        }
        assert!(wait(&mut dd) && drops > 0);
        assert!(std::fs::read(&copy).expect("the copy") == shards[0].1);
        bsz([Path::new("cache"), Path::new("drop"), mount.root()]);
        wait_for("an empty cache", || mount.status()["cache"]["held_bytes"] == 0);
    });
}

#[test]
fn ten_thousand_archives_are_walked_forgotten_and_walked_again() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 1, 3000);
        let archive = packed.join(&shards[0].0).with_extension("bsz");
        for directory in 0..100 {
            let directory = rig.mkdir(&format!("packed/{directory}"));
            for i in 0..100 {
                std::fs::hard_link(&archive, directory.join(format!("{i}.bsz"))).expect("link");
            }
        }
        let started = Instant::now();
        let mount = rig.mount(&packed, "view", &["--cache-size", "1MiB"]);
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "nothing is walked before it is asked for"
        );
        for round in 0..3 {
            thread::scope(|s| {
                for part in 0..4 {
                    let (mount, original) = (&mount, &shards[0].1);
                    s.spawn(move || {
                        for directory in (part..100).step_by(4) {
                            let path = mount.path(&directory.to_string());
                            let names = std::fs::read_dir(&path).expect("list");
                            assert_eq!(names.count(), 100);
                            for i in 0..100 {
                                let file = path.join(format!("{i}.safetensors"));
                                assert_eq!(
                                    file.metadata().expect("stat").len(),
                                    original.len() as u64
                                );
                                if i % 20 == round {
                                    assert!(std::fs::read(&file).expect("read") == *original);
                                }
                            }
                        }
                    });
                }
            });
            // The kernel forgets all of them at once.
            drop_page_cache();
        }
        let peak = peak_kib(&mount);
        assert!(peak < 96 << 10, "{peak} KiB resident");
    });
}

#[test]
fn ten_mounts_work_at_once() {
    mount_test(|rig| {
        let (packed, shards) = shards(rig, 2, 2_000_000);
        let mounts: Vec<_> = (0..10)
            .map(|i| rig.mount(&packed, &format!("view-{i}"), &["--cache-size", "1MiB"]))
            .collect();
        thread::scope(|s| {
            for mount in &mounts {
                s.spawn(|| {
                    for (name, original) in &shards {
                        assert!(std::fs::read(mount.path(name)).expect("read") == *original);
                    }
                });
            }
        });
        for mount in &mounts {
            mount.signal(Signal::TERM);
        }
        mounts.iter().for_each(|mount| assert_eq!(mount.exit_code(), Some(0)));
    });
}

/// A file system on a loop device whose disk can be cut off.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// `None` if loop devices cannot be used.
    fn new(rig: &Rig) -> Option<Self> {
        let disk = Self { image: rig.path("image"), at: rig.mkdir("disk") };
        File::create(&disk.image).and_then(|f| f.set_len(64 << 20)).expect("an image");
        let succeeds = |command: &mut Command| run(command).status.success();
        (succeeds(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&disk.image))
            && succeeds(Command::new("mount").args(["-o", "loop"]).args([&disk.image, &disk.at])))
        .then_some(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.at));
    }
}

#[test]
fn a_disk_error_is_an_io_error_and_the_daemon_survives() {
    mount_test(|rig| {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can make a disk that fails");
        }
        let Some(disk) = Disk::new(rig) else { return eprintln!("skipped: no loop devices here") };
        let (packed, shards) = shards(rig, 2, 4_000_000);
        for (name, _) in &shards {
            let archive = Path::new(name).with_extension("bsz");
            std::fs::copy(packed.join(&archive), disk.at.join(&archive)).expect("copy");
        }
        run(Command::new("sync").arg("-f").arg(&disk.at));
        drop_page_cache();
        let mount = rig.mount(&disk.at, "view", &["--cache-size", "1MiB"]);
        let file = open(&mount, &shards[1].0);
        let mut buffer = vec![0; 4096];
        compare(&file, &shards[1].1, 0, 4096, &mut buffer);
        // The disk is shortened behind the file system's back.
        File::options()
            .write(true)
            .open(&disk.image)
            .and_then(|f| f.set_len(1 << 20))
            .expect("cut");
        drop_page_cache();
        let last = shards[1].1.len() as u64 - 4096;
        let read = |at| file.read_exact_at(&mut [0; 4096], at);
        wait_for("the disk to fail", || (0..20).any(|i| read(last / 20 * i).is_err()));
        let errors = (0..40).filter(|i| read(last / 40 * i).is_err()).count();
        assert!(errors > 0);
        assert!(mount.status()["cache"]["errors"].as_u64() >= Some(1));
        assert!(!mount.has_exited());
        assert!(mount.log().contains("bsz"), "the log says which archive: {}", mount.log());
    });
}
