//! Whatever goes wrong while packing leaves the original or a complete archive, never a part of
//! one.

mod common;

use common::models::write_model;
use common::program::{bsz, names, run, with_model};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Large enough for a kill to land in the middle.
const BIG: usize = 6_000_000;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Start packing, and kill the process after `pause`, as a power cut would.
fn pack_and_kill(dir: &Path, args: &[&str], pause: Duration) {
    let mut child = bsz()
        .args(["pack", "--quiet"])
        .args(args)
        .current_dir(dir)
        .stderr(Stdio::null())
        .spawn()
        .expect("bsz starts");
    std::thread::sleep(pause);
    child.kill().expect("SIGKILL");
    child.wait().expect("it ended");
}

#[test]
fn a_killed_in_place_pack_loses_nothing_and_a_rerun_completes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (work, back) = (dir.path().join("work"), dir.path().join("back"));
    let plain = work.join("model.safetensors");
    let fresh = || {
        let _ = fs::remove_dir_all(&work);
        fs::create_dir(&work).expect("mkdir");
        write_model(&plain, 5, BIG)
    };
    let original = fresh();
    let begun = Instant::now();
    run(&work, &["pack", "--in-place", "model.safetensors"]).ok();
    let whole = begun.elapsed();

    for step in 1..=10 {
        fresh();
        pack_and_kill(&work, &["--in-place", "."], whole * step / 10);
        if plain.exists() {
            assert!(
                fs::read(&plain).expect("the model") == original,
                "step {step}: the original is damaged"
            );
        } else {
            run(&work, &["verify", "model.bsz"]).ok();
        }
        let archives: Vec<_> =
            names(&work).into_iter().filter(|name| name.ends_with(".bsz")).collect();
        for archive in &archives {
            run(&work, &["verify", archive]).ok();
        }
        let rerun = run(&work, &["pack", "--in-place", "."]);
        assert_eq!(rerun.code, Some(0), "step {step}: {rerun:?}");
        assert_eq!(names(&work), ["model.bsz"], "step {step}: {rerun:?}");
        run(&work, &["unpack", "model.bsz", "-o", "../back", "--force"]).ok();
        assert!(fs::read(&back).expect("the copy") == original, "step {step}: not what it was");
    }
}

#[test]
fn a_killed_unpack_leaves_no_partial_file() {
    let (dir, path, original) = with_model(BIG);
    run(dir.path(), &["pack", "--in-place", "model.safetensors"]).ok();
    for milliseconds in [1, 5, 20, 50] {
        let mut child = bsz()
            .args(["-q", "unpack", "model.bsz"])
            .current_dir(dir.path())
            .spawn()
            .expect("bsz starts");
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().expect("SIGKILL");
        child.wait().expect("it ended");
        if path.exists() {
            assert!(fs::read(&path).expect("the model") == original, "after {milliseconds} ms");
            fs::remove_file(&path).expect("rm");
        }
    }
    run(dir.path(), &["unpack", "model.bsz"]).ok();
    assert!(fs::read(&path).expect("the model") == original);
}

#[test]
fn an_interrupted_command_removes_its_partial_file() {
    let (dir, _, original) = with_model(BIG);
    let interrupt = |args: &[&str], milliseconds, signal: Signal| {
        let mut command = bsz();
        let command = command.arg("-q").args(args).current_dir(dir.path()).env_remove("TMPDIR");
        let mut child = command.spawn().expect("bsz starts");
        std::thread::sleep(Duration::from_millis(milliseconds));
        // The child was not waited for yet, so its process id cannot have been reused.
        kill_process(Pid::from_child(&child), signal).expect("a child");
        let status = child.wait().expect("it ended");
        assert!(status.success() || status.signal() == Some(signal.as_raw()), "{status}");
        let left: Vec<_> =
            names(dir.path()).into_iter().filter(|name| name.starts_with('.')).collect();
        assert!(left.is_empty(), "after {milliseconds} ms: {left:?}");
    };
    for milliseconds in [20, 60, 150, 300] {
        interrupt(&["pack", "model.safetensors", "--force"], milliseconds, Signal::INT);
        interrupt(&["bench", "model.safetensors"], milliseconds, Signal::INT);
    }
    run(dir.path(), &["pack", "model.safetensors"]).ok();
    for milliseconds in [10, 20, 40] {
        interrupt(&["unpack", "model.bsz", "--force"], milliseconds, Signal::TERM);
    }
    assert!(fs::read(dir.path().join("model.safetensors")).expect("the model") == original);
}

/// A small file system, unmounted when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn new(on: &'a Path, options: &str) -> Option<Self> {
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(on).output();
        mount.is_ok_and(|m| m.status.success()).then_some(Self(on))
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_a_clean_error() {
    let (dir, _, _) = with_model(1_000_000);
    let small = dir.path().join("small");
    fs::create_dir(&small).expect("mkdir");
    let Some(_mounted) = is_root().then(|| Tmpfs::new(&small, "size=1m")).flatten() else {
        eprintln!("skipped: only root can mount the small file system that this fills");
        return;
    };
    let full = "No space left on device";
    run(dir.path(), &["pack", "model.safetensors", "-o", "small"])
        .fails_about("small/model.bsz", full);
    assert!(names(&small).is_empty(), "{:?}", names(&small));
    assert_eq!(names(dir.path()), ["model.safetensors", "small"]);

    run(dir.path(), &["pack", "model.safetensors"]).ok();
    let ran = run(dir.path(), &["unpack", "model.bsz", "-o", "small"]);
    assert!(ran.code == Some(1) && ran.stderr.contains(full), "{ran:?}");
    assert!(names(&small).is_empty(), "{:?}", names(&small));
}

#[test]
fn a_full_disk_keeps_the_original_of_an_in_place_pack() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(_mounted) = is_root().then(|| Tmpfs::new(dir.path(), "size=3m")).flatten() else {
        eprintln!("skipped: only root can mount the small file system that this fills");
        return;
    };
    let path = dir.path().join("model.safetensors");
    let original = write_model(&path, 3, 1_000_000);
    let ran = run(dir.path(), &["pack", "--in-place", "."]);
    assert!(ran.stderr.contains("No space left on device"), "{ran:?}");
    assert_eq!(ran.code, Some(1));
    assert_eq!(names(dir.path()), ["model.safetensors"]);
    assert!(fs::read(&path).expect("the model") == original);
}

#[test]
fn a_read_only_directory_is_a_clean_error() {
    let (dir, path, original) = with_model(1_000);
    let fixed = dir.path().join("fixed");
    fs::create_dir(&fixed).expect("mkdir");
    let Some(_mounted) = is_root().then(|| Tmpfs::new(&fixed, "size=1m,ro")).flatten() else {
        eprintln!("skipped: only root can mount a read-only file system");
        return;
    };
    run(dir.path(), &["pack", "model.safetensors", "-o", "fixed"])
        .fails_about("fixed/model.bsz", "Read-only");
    run(dir.path(), &["pack", "model.safetensors"]).ok();
    let ran = run(dir.path(), &["unpack", "model.bsz", "-o", "fixed/copy"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("Read-only"), "{ran:?}");
    assert_eq!(fs::read(path).expect("the model"), original);
}
