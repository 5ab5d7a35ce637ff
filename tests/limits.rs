//! Signals and resource limits: no file is left behind, and no command hangs.
#![allow(clippy::unwrap_used)]

mod common;

use common::models::write_model;
use common::mounts::{BSZ, mount_line, mount_test, run, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Run `bsz` in `dir` from a shell that sets a limit.
fn limited(dir: &Path, limit: &str, args: &[&str]) -> Output {
    let line = format!(r#"ulimit {limit}; exec "$0" "$@""#);
    run(Command::new("sh").args(["-c", &line, BSZ]).args(args).current_dir(dir))
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn exceeding_the_file_size_limit_is_an_error_and_leaves_no_files_behind() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("m.safetensors"), 1, 400_000);
    let large = "File too large";
    for args in [
        &["pack", "m.safetensors"][..],
        &["pack", "--in-place", "m.safetensors"],
        &["bench", "m.safetensors"],
    ] {
        let output = limited(dir.path(), "-f 64", args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(large), "{args:?}: {said}");
        assert_eq!(names(dir.path()), ["m.safetensors"], "{args:?}");
    }
    let pack =
        Command::new(BSZ).args(["-q", "pack", "m.safetensors"]).current_dir(dir.path()).status();
    assert!(pack.unwrap().success());
    let output = limited(dir.path(), "-f 64", &["unpack", "m.bsz", "-o", "back"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains(large));
    assert_eq!(names(dir.path()), ["m.bsz", "m.safetensors"]);
}

#[test]
fn a_terminating_signal_removes_the_partial_file_unless_it_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("m.safetensors"), 1, 6_000_000);
    let end = |prefix: &[&str], signal: Signal| {
        let mut command = Command::new(prefix.first().copied().unwrap_or(BSZ));
        command.args(prefix.get(1..).unwrap_or_default()).args([
            "-q",
            "pack",
            "-j1",
            "m.safetensors",
        ]);
        // The slowest command there is.
        command
            .env("BSZ_DECODER", "scalar")
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(80));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        let left = names(dir.path());
        let _ = fs::remove_file(dir.path().join("m.bsz"));
        (status, left)
    };
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::XCPU] {
        let (status, left) = end(&[], signal);
        assert!(
            status.success() || status.signal() == Some(signal.as_raw()),
            "{signal:?}: {status}"
        );
        assert!(left.iter().all(|name| !name.starts_with('.')), "{signal:?}: {left:?}");
    }
    let (status, left) = end(&["nohup", BSZ], Signal::HUP);
    assert!(status.success(), "{status}");
    assert_eq!(left, ["m.bsz", "m.safetensors"]);
}

#[test]
fn every_command_works_with_few_descriptors_or_says_why_not() {
    mount_test(|rig| {
        let (source, view) = (rig.mkdir("source"), rig.mkdir("view"));
        for i in 0..30 {
            write_model(&source.join(format!("m{i}.safetensors")), i, 2_000);
        }
        let dir = rig.path("");
        for n in [6, 8, 10, 16, 24, 64] {
            for args in [
                &["pack", "source", "-o", "packed", "--force"][..],
                &["verify", "packed"],
                &["info", "packed"],
                &["unpack", "packed", "-o", "back", "--force"],
                &["bench", "--seconds=0.01", "packed/m1.bsz"],
                &["doctor"],
                &["mount", "packed", "view"],
                // Other mounts of this machine, even dead ones, do not affect this test while its
                // own mount exists.
                &["status"],
                &["status", "view"],
                &["warm", "view"],
                &["cache", "drop", "view"],
                &["umount", "view"],
            ] {
                let output = limited(&dir, &format!("-n {n}"), args);
                let said = String::from_utf8(output.stderr).unwrap();
                let code = output.status.code();
                assert!(!said.contains("panicked"), "{n}: {args:?}: {said}");
                // The dynamic loader itself needs some descriptors.
                let few = code == Some(1) && said.contains("bsz: ") || n < 10 && code != Some(0);
                assert!(code == Some(0) || few && n < 24, "{n}: {args:?}: {code:?}: {said}");
            }
            assert_eq!(mount_line(&view), None, "{n}");
        }
    });
}

#[test]
fn a_mount_out_of_descriptors_returns_errors_and_recovers() {
    mount_test(|rig| {
        let (plain, view) = (rig.mkdir("plain"), rig.mkdir("view"));
        for i in 0..60 {
            write_model(&plain.join(format!("m{i}.safetensors")), i, 2_000);
        }
        let dir = rig.path("");
        assert!(
            run(Command::new(BSZ).args(["-q", "pack", "--in-place"]).arg(&plain)).status.success()
        );
        let output = limited(&dir, "-n 32", &["mount", "plain", "view"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let open = |i: u32| File::open(view.join(format!("m{i}.safetensors")));
        let mut opened: Vec<File> = (0..60).filter_map(|i| open(i).ok()).collect();
        assert!(!opened.is_empty() && opened.len() < 60, "{}", opened.len());
        let mut start = [0; 100];
        opened[0].read_exact(&mut start).unwrap();
        opened.clear();
        // The kernel forgets within a second the errors it got in the meantime.
        wait_for("all files to open again", || (0..60).all(|i| open(i).is_ok()));
        assert!(run(Command::new(BSZ).arg("umount").arg(&view)).status.success());
    });
}
