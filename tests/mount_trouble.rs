//! Commands in trouble: daemons that do not answer, processes that pretend to be one, programs that
//! were replaced.
#![allow(clippy::unwrap_used)]

mod common;

use common::mounts::{BSZ, Mount, Rig, bsz, bsz_fails, mount_line, mount_test, run, wait_for};
use common::random::Random;
use common::users::{as_nobody, ordinary_user, sample};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Everything `bsz` prints with these arguments, and its exit code.
fn said(args: &[&Path]) -> (Option<i32>, String) {
    // The pipe must end with the command, whatever processes it leaves behind.
    let line = r#"{ "$0" "$@"; echo "exit $?"; } 2>&1 | cat"#;
    let output = run(Command::new("sh").args(["-c", line, BSZ]).args(args));
    let said = String::from_utf8(output.stdout).unwrap();
    let code = said.trim_end().rsplit(' ').next().and_then(|code| code.parse().ok());
    (code, said)
}

/// Run all of these at once; each must exit with its code and print its text.
fn each_ends(commands: &[(&[&Path], i32, &str)]) {
    thread::scope(|s| {
        for (args, code, text) in commands {
            s.spawn(move || {
                let (found, said) = said(args);
                assert!(found == Some(*code) && said.contains(text), "{args:?}: {said}");
            });
        }
    });
}

/// Processes that wait for the mount, and end with it.
fn readers(mount: &Mount) -> Vec<Child> {
    let read = |i: usize| {
        let mut command = Command::new("stat");
        command.arg(mount.path(&format!("absent-{i}"))).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    (0..8).map(read).collect()
}

#[test]
fn no_command_hangs_on_a_stopped_daemon() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let (stopped, other) =
            (rig.mount(&source, "stopped", &[]), rig.mount(&source, "other", &[]));
        let free = rig.mkdir("free");
        stopped.signal(Signal::STOP);
        // The kernel caches names and attributes for a second.
        thread::sleep(Duration::from_millis(1100));
        let (view, silent) = (stopped.root(), "daemon does not answer");
        let p = Path::new;
        each_ends(&[
            (&[p("status")], 0, silent),
            (&[p("status"), view], 1, silent),
            (&[p("status"), p("--json"), view, other.root()], 1, "\"mountpoint\""),
            (&[p("status"), p("--watch=0.1"), view], 1, silent),
            (&[p("doctor")], 0, "bsz umount --lazy"),
            (&[p("cache"), p("drop"), view], 1, silent),
            (&[p("umount"), p("--stale"), rig.path("").as_path()], 0, silent),
            (&[p("mount"), &source, view], 1, silent),
            (&[p("mount"), view, other.root()], 1, "does not answer"),
            (&[p("mount"), &source, &free], 0, ""),
        ]);
        assert!(stopped.is_mounted() && other.is_mounted());
        assert!(fs::read(free.join("model.safetensors")).unwrap() == model);
        bsz([p("umount"), &free]);
        bsz([p("umount"), view]);
        assert!(!stopped.is_mounted());
        stopped.signal(Signal::CONT);
        assert_eq!(stopped.exit_code(), Some(0));
    });
}

/// The daemon has taken requests that it cannot answer, since its source is gone. No signal ends
/// the processes that wait for them.
#[test]
fn no_command_hangs_on_a_daemon_whose_source_is_gone() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let disk = rig.mount(&source, "disk", &[]);
        let mount = rig.mount(disk.root(), "view", &[]);
        disk.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(1100));
        let mut waiting = readers(&mount);
        thread::sleep(Duration::from_millis(300));
        let (view, p) = (mount.root(), Path::new);
        each_ends(&[
            (&[p("status"), view], 1, "daemon does not answer"),
            (&[p("umount"), p("--stale"), view], 0, "daemon does not answer"),
            (&[p("umount"), view], 1, "--lazy"),
            (&[p("mount"), view, &rig.mkdir("free")], 1, "does not answer"),
        ]);
        bsz([p("umount"), p("--lazy"), view]);
        assert!(!mount.is_mounted());
        disk.signal(Signal::CONT);
        for reader in &mut waiting {
            wait_for("the readers to be answered", || reader.try_wait().unwrap().is_some());
        }
    });
}

#[test]
fn a_forged_attribute_passes_neither_for_a_mount_nor_for_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let mut innocent = Command::new("sleep").arg("60").spawn().unwrap();
    let status = format!(
        r#"{{"source":"/","mountpoint":"/","pid":{},"version":"x","since":0,"cache":{{}}}}"#,
        innocent.id()
    );
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(e) = rustix::fs::setxattr(dir.path(), "user.bsz.status", status.as_bytes(), flags) {
        eprintln!("skipped: no extended attributes here: {e}");
    } else {
        for command in [&["cache", "drop"][..], &["status"]] {
            let said = bsz_fails(command.iter().map(Path::new).chain([dir.path()]));
            assert!(said.contains("is not a bszfs mount"), "{said}");
        }
    }
    assert!(innocent.try_wait().unwrap().is_none());
    innocent.kill().unwrap();
    innocent.wait().unwrap();
}

#[test]
fn the_cache_is_empty_when_drop_cache_returns_and_not_everybody_may_drop_it() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let mount = rig.mount(&source, "view", &["--allow-other", "--prefetch", "off"]);
        let held = || mount.status()["cache"]["held_bytes"].as_u64().unwrap();
        // With O_DIRECT, what is read stays in the daemon's cache.
        let read = || {
            use std::os::unix::fs::OpenOptionsExt;
            let mut options = File::options();
            let file = options
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(mount.path("model.safetensors"));
            file.unwrap().read_exact_at(&mut [0; 4096], 0).unwrap();
        };
        read();
        assert!(held() > 0);
        if let Some((program, _)) = ordinary_user(rig) {
            let output =
                as_nobody(&program, &[Path::new("cache"), Path::new("drop"), mount.root()]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("only root and the user who mounted it"), "{said}");
            assert!(held() > 0);
        }
        bsz([Path::new("cache"), Path::new("drop"), mount.root()]);
        assert_eq!(held(), 0);
    });
}

/// A daemon started by a program that has been removed since, and the program's path.
fn orphan(rig: &Rig, source: &Path, view: &Path, log: &Path) {
    let program = rig.path("program");
    fs::copy(BSZ, &program).unwrap();
    let mut command = Command::new(&program);
    command.arg("mount").arg("--log").arg(log).args([source, view]).env("BSZ_LOG", "bszfs=trace");
    let output = run(&mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(&program).unwrap();
}

#[test]
fn a_removed_program_can_still_start_its_helpers() {
    mount_test(|rig| {
        let packed = layers(rig);
        let (view, log) = (rig.mkdir("view"), rig.path("log"));
        orphan(rig, &packed, &view, &log);
        let file = File::open(view.join("model.safetensors")).unwrap();
        let said = || fs::read_to_string(&log).unwrap();
        let started = Instant::now();
        let mut layer = vec![0; LAYER];
        while !said().contains("warmed ") && started.elapsed() < Duration::from_secs(60) {
            let _ = fs::write("/proc/sys/vm/drop_caches", "3");
            for i in 0..LAYERS {
                file.read_exact_at(&mut layer, (i * LAYER) as u64).unwrap();
                thread::sleep(Duration::from_millis(30));
            }
        }
        assert!(said().contains("warmed ") && !said().contains("is not warmed"), "{}", said());
        drop(file);
        bsz([Path::new("umount"), &view]);
    });
}

const LAYERS: usize = 12;
const LAYER: usize = 3_000_000;

/// The archive of a model with layers.
fn layers(rig: &Rig) -> std::path::PathBuf {
    use safetensors::tensor::{Dtype, TensorView};
    let (plain, packed) = (rig.mkdir("plain"), rig.path("packed"));
    let mut random = Random(3);
    let mut layer = |i: usize| {
        let weight = |_| [random.next() as u8, 0x3c + (random.next() % 3) as u8];
        (format!("model.layers.{i}.w"), (0..LAYER / 2).flat_map(weight).collect::<Vec<u8>>())
    };
    let layers: Vec<_> = (0..LAYERS).map(&mut layer).collect();
    let tensors = layers.iter().map(|(name, data)| {
        (name, TensorView::new(Dtype::BF16, vec![LAYER / 2 / 500, 500], data).unwrap())
    });
    fs::write(plain.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap())
        .unwrap();
    bsz([Path::new("pack"), &plain, Path::new("-o"), &packed]);
    packed
}

#[test]
fn an_abandoned_mount_is_not_left_behind() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let view = rig.mkdir("view");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        // The state that `bsz mount` leaves if it is killed before the mount is ready.
        let mut daemon = Command::new(BSZ)
            .args(["mount", "--daemon"])
            .args([&source, &view])
            .stdout(writer)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the daemon to end", || daemon.try_wait().unwrap().is_some());
        assert_eq!(mount_line(&view), None);
    });
}

#[test]
fn a_daemon_keeps_no_descriptor_of_the_shell_that_started_it() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let view = rig.mkdir("view");
        let line = r#"exec 7>"$3"; "$0" mount "$1" "$2""#;
        let held = rig.path("held");
        let output = run(Command::new("sh").args(["-c", line, BSZ]).args([&source, &view, &held]));
        assert!(output.status.success());
        let status = run(Command::new(BSZ).args(["status", "--json"]).arg(&view)).stdout;
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        let pid = Pid::from_raw(status[0]["pid"].as_i64().unwrap() as i32).unwrap();
        test_kill_process(pid).unwrap();
        let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
        assert!(!open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == held)));
        kill_process(pid, Signal::TERM).unwrap();
        wait_for("the mount to go", || mount_line(&view).is_none());
    });
}
