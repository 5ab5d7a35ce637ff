//! `bsz demo` runs to its end, and leaves nothing behind however it ends.

mod common;

use common::program::{bsz, names, with_model};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Start the demo with `dir` as the directory for temporary files.
fn demo(dir: &Path, file: Option<&Path>) -> Child {
    let mut command: Command = bsz();
    command.arg("demo").args(file).env("TMPDIR", dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("bsz starts")
}

/// Assert that neither files nor mounts are left in `dir`.
#[track_caller]
fn nothing_is_left(dir: &Path) {
    assert!(names(dir).is_empty(), "{:?}", names(dir));
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
    assert!(!mounts.contains(dir.to_str().expect("UTF-8")), "{mounts}");
}

#[test]
fn the_demo_runs_to_its_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = demo(dir.path(), None).wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("$ bsz pack model -o packed"), "{said}");
    assert!(said.ends_with("identical to the last bit; nothing is left behind\n"), "{said}");
    nothing_is_left(dir.path());
}

#[test]
fn a_given_model_is_only_read() {
    let (home, path, original) = with_model(100_000);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = demo(dir.path(), Some(&path)).wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(home.path()), ["model.safetensors"]);
    assert_eq!(fs::read(&path).expect("the model"), original);
    nothing_is_left(dir.path());
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = demo(dir.path(), Some(Path::new("missing"))).wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "bsz: missing: No such file or directory (os error 2)\n");
    nothing_is_left(dir.path());
}

#[test]
fn a_signal_ends_the_demo_cleanly_at_any_moment() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (milliseconds, signal) in [
        (100, Signal::INT),
        (700, Signal::TERM),
        (1500, Signal::INT),
        (2500, Signal::HUP),
        (4000, Signal::INT),
    ] {
        let child = demo(dir.path(), None);
        std::thread::sleep(Duration::from_millis(milliseconds));
        // The process may have exited by itself. Then it gets no signal, but must have cleaned up
        // all the same.
        let _ = kill_process(Pid::from_child(&child), signal);
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("bsz: demo: interrupted"), "{output:?}");
        nothing_is_left(dir.path());
    }
}
