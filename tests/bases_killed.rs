//! However a run that packs against a base, detaches or rebases is killed, the original or a whole
//! archive is there, with what it needs.

mod common;

use common::families::{file, holds, needs, tensors, tuned};
use common::program::{bsz, run};
use common::random::Random;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

/// How often each command is killed. `BSZ_TEST_KILLS` sets another number.
const KILLS: u64 = 8;

/// Assert that `bytes` are there, plain or in an archive whose bases are pinned.
#[track_caller]
fn is_whole(dir: &Path, bytes: &[u8]) {
    let (plain, archive) = (dir.join("tune.safetensors"), dir.join("tune.bsz"));
    let is_plain = fs::read(&plain).is_ok_and(|plain| plain == bytes);
    assert!(is_plain || !plain.exists(), "the plain file is cut");
    assert!(is_plain || archive.exists(), "nothing is there");
    if archive.exists() {
        for pin in needs(&archive).1 {
            assert!(dir.join(&pin).exists(), "the pin is missing");
        }
        holds(&archive, bytes);
    }
}

#[test]
fn a_killed_run_leaves_the_original_or_an_archive_with_its_pin() {
    let base = tensors(1, 6);
    let tune = tuned(&base, 1);
    let bytes = file(&tune);
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    for (name, tensors) in [("one", &base), ("two", &tuned(&tune, 2))] {
        fs::create_dir(at(name)).expect("mkdir");
        fs::write(at(name).join("model.safetensors"), file(tensors)).expect("written");
        run(dir.path(), &["pack", name, "--in-place"]).ok();
    }
    let kills = std::env::var("BSZ_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let mut random = Random(7);
    let steps: [&[&str]; 4] = [
        &["pack", "tune.safetensors", "--in-place", "--base", "one"],
        &["rebase", "tune.bsz", "--base", "two"],
        &["detach", "tune.bsz"],
        &["rebase", "tune.bsz", "--base", "one"],
    ];
    fs::write(at("tune.safetensors"), &bytes).expect("written");
    for args in steps {
        // As long as it takes, about.
        let mut longest = 400;
        for _ in 0..kills {
            let mut command = bsz();
            command.args(args).current_dir(dir.path());
            let mut child =
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
            sleep(Duration::from_millis(random.next() % longest));
            if child.try_wait().expect("waited").is_some() {
                longest = (longest * 3 / 4).max(20);
            }
            let _ = child.kill();
            child.wait().expect("it ends");
            is_whole(dir.path(), &bytes);
            if args[0] == "pack" && !at("tune.safetensors").exists() {
                fs::remove_file(at("tune.bsz")).expect("removed");
                fs::write(at("tune.safetensors"), &bytes).expect("written");
            }
        }
        run(dir.path(), args).ok();
        is_whole(dir.path(), &bytes);
        assert!(!at("tune.safetensors").exists());
    }
    run(dir.path(), &["detach", "tune.bsz"]).ok();
    let pins = |name: &String| name.starts_with(".bsz-base");
    assert!(!common::program::names(dir.path()).iter().any(pins), "a pin that nobody needs");
}
