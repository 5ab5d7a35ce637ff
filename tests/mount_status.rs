//! What a mount reports about itself and its files, and what it decodes ahead of reads.

mod common;

use common::cxx;
use common::mounts::{BSZ, Mount, Rig, bsz, bsz_fails, mount_test, run, wait_for};
use common::random::Random;
use rustix::process::Signal;
use safetensors::tensor::{Dtype, TensorView};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of a layer's part in a shard: far more than the kernel reads ahead.
const PART: usize = 3_000_000;

/// A model of twelve layers in two shards, each shard with a part of each layer, in the order of
/// the tensors' names.
fn model(rig: &Rig) -> (PathBuf, Vec<(PathBuf, Vec<u8>)>) {
    let (plain, packed) = (rig.mkdir("plain"), rig.path("packed"));
    let mut random = Random(1);
    let mut write = |shard: usize| {
        let parts: Vec<(String, Vec<u8>)> = (0..12)
            .map(|layer| {
                let weight = |_| [random.next() as u8, 0x3c + (random.next() % 3) as u8];
                (
                    format!("model.layers.{layer}.part.{shard}"),
                    (0..PART / 2).flat_map(weight).collect(),
                )
            })
            .collect();
        let tensors = parts.iter().map(|(name, data)| {
            (name, TensorView::new(Dtype::BF16, vec![PART / 2 / 500, 500], data).expect("a tensor"))
        });
        let name = format!("model-{shard:05}-of-00002.safetensors");
        let bytes = safetensors::serialize(tensors, None).expect("a model");
        std::fs::write(plain.join(&name), &bytes).expect("write");
        (name.into(), bytes)
    };
    let files = vec![write(1), write(2)];
    bsz([Path::new("pack"), &plain, Path::new("-o"), &packed]);
    (packed, files)
}

/// The offset and length of a tensor in its shard.
fn place(file: &[u8], tensor: &str) -> (u64, usize) {
    let (header_len, metadata) = safetensors::SafeTensors::read_metadata(file).expect("a header");
    let info = metadata.info(tensor).expect("the tensor");
    (8 + header_len as u64 + info.data_offsets.0 as u64, info.data_offsets.1 - info.data_offsets.0)
}

fn figure(mount: &Mount, name: &str) -> u64 {
    mount.status()["cache"][name].as_u64().expect("a number")
}

/// Read the layers in order, each once the next one is decoded.
fn read_layers_in_order(mount: &Mount, files: &[(PathBuf, Vec<u8>)]) {
    let opened: Vec<_> = files
        .iter()
        .map(|(name, _)| std::fs::File::open(mount.path(name.to_str().expect("UTF-8"))))
        .collect();
    let read_layer = |layer: usize| {
        for (shard, (_, bytes)) in files.iter().enumerate() {
            let (at, len) = place(bytes, &format!("model.layers.{layer}.part.{}", shard + 1));
            let mut out = vec![0; len];
            opened[shard].as_ref().expect("open").read_exact_at(&mut out, at).expect("read");
            assert!(out == bytes[at as usize..][..len]);
        }
    };
    // The first read makes the daemon look for layers.
    opened[0].as_ref().expect("open").read_exact_at(&mut [0; 100], 0).expect("read");
    wait_for("the layers to be known", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        read_layer(0);
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
        figure(mount, "ahead") > 0
    });
    for layer in 1..8 {
        // Without a pause, the readahead of sequential streams alone would pass the test.
        std::thread::sleep(std::time::Duration::from_millis(30));
        wait_for("the next layer to be decoded", || {
            // Two parts of twelve chunks each, less what the kernel reads together with them.
            figure(mount, "ahead") >= 12 * layer as u64
        });
        read_layer(layer);
    }
    assert!(figure(mount, "ahead_used") > 40, "{}", mount.status());
}

#[test]
fn layers_are_decoded_ahead_in_order_and_in_every_shard() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        let mount = rig.mount(&packed, "view", &["--cache-size", "512MiB"]);
        read_layers_in_order(&mount, &files);
    });
}

#[test]
fn layers_ahead_reach_the_page_cache_and_do_not_delay_the_unmount() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        for round in 0..8 {
            let mount = rig.mount(&packed, &format!("view{round}"), &["--cache-size", "512MiB"]);
            read_layers_in_order(&mount, &files);
            if round == 0 {
                // All but the one page of each part that is left out so that its reader is
                // noticed, and what a busy machine has not done yet.
                wait_for("layers to be found in the page cache", || {
                    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
                    let before = figure(&mount, "reads");
                    read_layers_in_order(&mount, &files);
                    figure(&mount, "reads") - before < 2 * 8 * (PART as u64 >> 20)
                });
                wait_for("the warmer to exit", || warmers(&mount) == 0);
            }
            // The page-cache warmer opens files of the mount now and then, but not after their
            // readers have closed them. The status probes of another test keep it busy briefly.
            wait_for("the mount to be unmounted", || {
                rustix::mount::unmount(mount.root(), rustix::mount::UnmountFlags::empty()).is_ok()
            });
        }
    });
}

/// The number of processes that warm the page cache of this mount.
fn warmers(mount: &Mount) -> usize {
    let of_ours = |process: std::io::Result<std::fs::DirEntry>| {
        let arguments = std::fs::read(process.ok()?.path().join("cmdline")).ok()?;
        let arguments: Vec<_> = arguments.split(|&byte| byte == 0).collect();
        let root = mount.root().as_os_str().as_bytes();
        Some(arguments.contains(&&b"--requests"[..]) && arguments.contains(&root))
    };
    Path::new("/proc").read_dir().expect("/proc").filter_map(of_ours).filter(|ours| *ours).count()
}

#[test]
fn a_daemon_killed_while_warming_layers_leaves_no_process_and_no_blocked_reader() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        for round in 0..8 {
            let mount = rig.mount(&packed, &format!("view{round}"), &[]);
            let (name, bytes) = files[0].clone();
            let shown = mount.path(name.to_str().expect("UTF-8"));
            let reader = std::thread::spawn(move || {
                let file = std::fs::File::open(shown)?;
                // Read in circles until the daemon is gone.
                for layer in (0..12).cycle() {
                    let (at, len) = place(&bytes, &format!("model.layers.{layer}.part.1"));
                    let mut out = vec![0; len];
                    file.read_exact_at(&mut out, at)?;
                    assert!(out == bytes[at as usize..][..len]);
                    std::thread::sleep(std::time::Duration::from_millis(12));
                    if layer == 11 {
                        let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
                    }
                }
                std::io::Result::Ok(())
            });
            wait_for("a warmer", || warmers(&mount) > 0);
            std::thread::sleep(std::time::Duration::from_millis(7 * round));
            mount.signal(Signal::KILL);
            wait_for("the reader to get an error", || reader.is_finished());
            assert!(reader.join().expect("no wrong byte").is_err());
            wait_for("the warmer to exit", || warmers(&mount) == 0);
            bsz([Path::new("umount"), mount.root()]);
        }
    });
}

#[test]
fn cached_chunks_survive_a_reopening_of_the_file_but_not_its_replacement() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        let mount = rig.mount(&packed, "view", &["--prefetch", "off"]);
        let [(name, first), (_, second)] = &files[..] else { panic!("two shards") };
        let shown = mount.path(name.to_str().expect("UTF-8"));
        // Read past the kernel's cache.
        let read = |expected: &[u8]| {
            let file =
                std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(&shown);
            let mut out = vec![0; 100_000];
            file.expect("opens").read_exact_at(&mut out, 2_000_000).expect("read");
            assert!(out == expected[2_000_000..][..out.len()]);
            figure(&mount, "misses")
        };
        let decoded = read(first);
        assert_eq!((read(first), read(first)), (decoded, decoded));
        let archive = |name: &Path| packed.join(name).with_extension("bsz");
        std::fs::copy(archive(&files[1].0), packed.join("new")).expect("a copy");
        std::fs::rename(packed.join("new"), archive(name)).expect("in its place");
        // The kernel trusts a name for one second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(read(second) > decoded);
    });
}

#[test]
fn without_a_gpu_prefetch_cuda_warns_and_does_without() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        let mount = rig.mount(&packed, "view", &["--cache-size", "512MiB", "--prefetch", "cuda"]);
        if mount.log().is_empty() {
            return eprintln!("skipped: there is a GPU here");
        }
        assert!(mount.log().contains("CUDA: "), "{}", mount.log());
        read_layers_in_order(&mount, &files);
    });
}

/// A stand-in driver decodes on the CPU, so that all of the host's code runs and layers come from
/// it.
#[test]
fn a_gpu_decodes_layers_ahead_until_it_fails() {
    mount_test(|rig| {
        let flags = ["-O2", "-shared", "-fPIC"];
        let Some(driver) = cxx::build("tests/gpu/driver.cpp", "libcuda.so", &flags) else { return };
        let library = driver.path.parent().expect("a directory");
        let (packed, files) = model(rig);
        for (name, prefetch, launches, said) in [
            ("view", "cuda", "1000000", "decodes layers ahead"),
            // At once: how many launches there would be depends on the machine.
            ("failing", "cuda", "0", "layers are decoded by the cores from now on"),
            ("auto", "auto", "1000000", ""),
        ] {
            let mount = rig.mount_with(
                &packed,
                name,
                &["--cache-size", "512MiB", "--prefetch", prefetch, "--verbose"],
                &[("LD_LIBRARY_PATH", library), ("BSZ_FAKE_LAUNCHES", Path::new(launches))],
            );
            read_layers_in_order(&mount, &files);
            // The cores decode until the GPU is ready, which may be after all of these reads.
            wait_for(said, || {
                if mount.log().contains(said) {
                    return true;
                }
                bsz([Path::new("cache"), Path::new("drop"), mount.root()]);
                let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
                read_layers_in_order(&mount, &files);
                mount.log().contains(said)
            });
            assert_eq!(figure(&mount, "errors"), 0);
        }
    });
}

#[test]
fn with_prefetch_off_nothing_is_decoded_ahead() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        let mount = rig.mount(&packed, "view", &["--prefetch", "off"]);
        for (name, bytes) in &files {
            assert!(
                std::fs::read(mount.path(name.to_str().expect("UTF-8"))).expect("read") == *bytes
            );
        }
        assert_eq!(figure(&mount, "ahead"), 0);
        let all: u64 = files.iter().map(|(_, b)| b.len() as u64).sum();
        wait_for("all to be counted", || figure(&mount, "served_bytes") >= all);
    });
}

#[test]
fn watching_a_mount_shows_rates_until_it_is_gone() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        let mount = rig.mount(&packed, "view", &[]);
        let watch = |flags: &[&str]| {
            let mut command = Command::new(BSZ);
            command
                .arg("status")
                .args(flags)
                .arg(mount.root())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = command.spawn().expect("bsz");
            let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            (child, lines.map(|line| line.expect("UTF-8")))
        };
        let (mut for_programs, mut json) = watch(&["--watch=0.2", "--json"]);
        let (mut for_people, mut table) = watch(&["--watch=0.2"]);
        let mut rate = || {
            let line: serde_json::Value =
                serde_json::from_str(&json.next().expect("a line")).expect("JSON");
            line[0]["rates"]["served_bytes"].as_u64().expect("a rate")
        };
        assert_eq!(rate(), 0);
        std::fs::read(mount.path(files[0].0.to_str().expect("UTF-8"))).expect("read");
        wait_for("a rate", || rate() > 0);
        assert!(table.next().expect("a head").starts_with("MOUNTPOINT"));
        assert!(table.next().expect("a line").contains("/s"));
        bsz([Path::new("umount"), mount.root()]);
        for child in [&mut for_programs, &mut for_people] {
            assert_eq!(child.wait().expect("ends").code(), Some(1));
        }
        for wrong in ["--watch=0", "--watch=-1", "--watch=x", "--watch=1e30"] {
            assert!(!run(Command::new(BSZ).args(["status", wrong])).status.success(), "{wrong}");
        }
    });
}

#[test]
fn prometheus_can_scrape_a_mount_and_the_socket_is_removed_with_it() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        let socket = rig.path("metrics");
        // A killed daemon has left its socket.
        drop(UnixListener::bind(&socket).expect("a socket"));
        let flag = format!("--metrics=unix:{}", socket.display());
        let mount = rig.mount(&packed, "view", &[&flag]);
        std::fs::read(mount.path(files[0].0.to_str().expect("UTF-8"))).expect("read");
        let ask = |request: &str| {
            let mut stream = UnixStream::connect(&socket).expect("connected");
            stream.write_all(request.as_bytes()).expect("asked");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answered");
            answer
        };
        let served = || {
            let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
            let line = answer
                .lines()
                .find(|l| l.starts_with("bszfs_served_bytes_total{"))
                .expect("a line");
            line.rsplit(' ').next().expect("a value").parse::<usize>().expect("a number")
        };
        wait_for("all to be counted", || served() >= files[0].1.len());
        assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 404 "));
        assert_eq!(ask(&"x".repeat(9 << 10)), "");
        // A socket of somebody else is not replaced.
        let other = rig.mkdir("other");
        let refused = bsz_fails([Path::new("mount"), Path::new(&flag), &packed, &other]);
        assert!(refused.contains("metrics: "), "{refused}");
        bsz([Path::new("umount"), mount.root()]);
        wait_for("the socket to be gone", || !socket.exists());
        let open =
            run(Command::new(BSZ).args(["mount", "--metrics=0.0.0.0:1"]).arg(&packed).arg(&other));
        assert!(!open.status.success());
    });
}

#[test]
fn extended_attributes_describe_the_archives() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        std::fs::write(packed.join("plain"), "x").expect("write");
        let mount = rig.mount(&packed, "view", &[]);
        let get = |file: &str, name: &str| {
            let mut value = vec![0; 4096];
            rustix::fs::getxattr(mount.path(file), name, value.as_mut_slice()).map(|n| {
                value.truncate(n);
                String::from_utf8(value).expect("UTF-8")
            })
        };
        let (name, bytes) = &files[0];
        let name = name.to_str().expect("UTF-8");
        let sum = run(Command::new("sha256sum").arg(rig.path("plain").join(name))).stdout;
        assert_eq!(get(name, "user.bsz.sha256").expect("a hash").as_bytes(), &sum[..64]);
        let stored = packed.join(name).with_extension("bsz").metadata().expect("stat").len();
        assert_eq!(get(name, "user.bsz.stored"), Ok(stored.to_string()));
        assert_eq!(
            get(name, "user.bsz.ratio"),
            Ok(format!("{:.4}", stored as f64 / bytes.len() as f64))
        );
        assert!(get(name, "user.bsz.coding").expect("codings").contains("planes "));
        // Otherwise a copy with its attributes would keep claiming them.
        for listed in [mount.path(name), mount.root().into()] {
            assert_eq!(
                rustix::fs::listxattr(&listed, &mut [0u8; 4096]),
                Ok(0),
                "{}",
                listed.display()
            );
        }
        let none = Err(rustix::io::Errno::NODATA);
        assert_eq!(get("plain", "user.bsz.sha256"), none);
        assert_eq!(get(name, "user.other"), none);
        assert_eq!(get(name, "security.capability"), none);
    });
}

#[test]
fn status_shows_the_mounts_and_their_activity() {
    mount_test(|rig| {
        let (packed, files) = model(rig);
        let mount = rig.mount(&packed, "view", &["--cache-size", "64MiB"]);
        bsz([Path::new("warm"), mount.root()]);
        let status = mount.status();
        assert_eq!(
            status["mountpoint"],
            mount.root().canonicalize().expect("path").to_str().expect("UTF-8")
        );
        assert_eq!(status["cache"]["capacity_bytes"], 64 << 20);
        let all: u64 = files.iter().map(|(_, b)| b.len() as u64).sum();
        // Other tests may make the kernel drop its pages in the meantime.
        wait_for("all to be counted", || figure(&mount, "served_bytes") >= all);
        assert_eq!(status["cache"]["errors"], 0);
        let said = |args: &[&str]| {
            let output = run(Command::new(BSZ).args(args));
            assert!(output.status.success());
            String::from_utf8(output.stdout).expect("UTF-8")
        };
        assert!(said(&["status"]).contains("view"));
        let view = mount.root().to_str().expect("UTF-8");
        let figures = said(&["status", view]);
        assert!(figures.contains("99 % below") && figures.contains("archives: 2"), "{figures}");
        let json: serde_json::Value =
            serde_json::from_str(&said(&["status", "--json", view])).expect("JSON");
        let blocks = |(name, _): &(PathBuf, Vec<u8>)| {
            std::fs::metadata(packed.join(name).with_extension("bsz")).expect("stat").blocks()
        };
        let stored = files.iter().map(blocks).sum::<u64>() * 512;
        let space =
            serde_json::json!({"archives": 2, "original_bytes": all, "stored_bytes": stored});
        assert_eq!(json[0]["space"], space);
        assert!(bsz_fails([Path::new("status"), &packed]).contains("is not a bszfs mount"));
        assert!(
            bsz_fails([Path::new("cache"), Path::new("drop"), &packed])
                .contains("is not a bszfs mount")
        );
        assert!(bsz_fails([Path::new("warm"), &rig.path("none")]).contains("none"));
    });
}
