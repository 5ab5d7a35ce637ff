//! Several runs on the same files at once: all of them succeed, and nothing is lost.

mod common;

use common::program::{self, models, names, run};
use std::fs;
use std::path::Path;
use std::process::Stdio;

#[test]
fn concurrent_packers_of_one_tree_all_succeed() {
    let names_of: Vec<String> = (0..10).map(|i| format!("m{i}.safetensors")).collect();
    let dir = models(&names_of.iter().map(String::as_str).collect::<Vec<_>>());
    let keep = dir.path().join("keep");
    program::copy_tree(&dir.path().join("s"), &keep);
    for round in 0..4 {
        let _ = fs::remove_dir_all(dir.path().join("s"));
        program::copy_tree(&keep, &dir.path().join("s"));
        let packers: Vec<_> = (0..3)
            .map(|_| {
                let mut command = program::bsz();
                command.args(["-q", "pack", "--in-place", "-j1", "s"]).current_dir(dir.path());
                command.stderr(Stdio::piped()).spawn().expect("bsz starts")
            })
            .collect();
        for packer in packers {
            let ran: program::Ran = packer.wait_with_output().expect("it ends").into();
            ran.ok();
        }
        let left = names(&dir.path().join("s"));
        assert!(
            left.iter().all(|name| name.ends_with(".bsz")) && left.len() == 10,
            "round {round}: {left:?}"
        );
        let _ = fs::remove_dir_all(dir.path().join("back"));
        run(dir.path(), &["unpack", "s", "-o", "back"]).ok();
        program::same_tree(&keep, &dir.path().join("back"));
    }
}

#[test]
fn concurrent_packers_of_hard_links_all_succeed() {
    let dir = models(&["a0.safetensors", "b0.safetensors", "c0.safetensors"]);
    let s = dir.path().join("s");
    for file in ["a", "b", "c"] {
        for other in 1..3 {
            let name = |n: usize| s.join(format!("{file}{n}.safetensors"));
            fs::hard_link(name(0), name(other)).expect("link");
        }
    }
    let keep = dir.path().join("keep");
    program::copy_tree(&s, &keep);
    for round in 0..3 {
        fs::remove_dir_all(&s).expect("rm");
        program::copy_tree(&keep, &s);
        together(dir.path(), &["-q", "pack", "--in-place", "s"]);
        let left = names(&s);
        assert!(
            left.iter().all(|name| name.ends_with(".bsz")) && left.len() == 9,
            "round {round}: {left:?}"
        );
        let _ = fs::remove_dir_all(dir.path().join("back"));
        run(dir.path(), &["unpack", "s", "-o", "back"]).ok();
        program::same_tree(&keep, &dir.path().join("back"));
    }
}

/// Run a command three times at once; all three must succeed.
fn together(dir: &Path, args: &[&str]) {
    let start = |_| {
        let mut command = program::bsz();
        command.args(args).current_dir(dir).stderr(Stdio::piped()).stdout(Stdio::null());
        command.spawn().expect("bsz starts")
    };
    let running: Vec<_> = (0..3).map(start).collect();
    for child in running {
        let ran: program::Ran = child.wait_with_output().expect("it ends").into();
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[test]
fn concurrent_runs_into_one_directory_all_succeed() {
    let dir = models(&["a.safetensors", "b.safetensors", "c.safetensors"]);
    let s = dir.path().join("s");
    for name in ["d.json", "e.json", "f.json"] {
        fs::write(s.join(name), vec![7; 100_000]).expect("written");
    }
    std::os::unix::fs::symlink("d.json", s.join("link")).expect("a link");
    for round in 0..3 {
        for made in ["out", "back"] {
            let _ = fs::remove_dir_all(dir.path().join(made));
        }
        together(dir.path(), &["-q", "pack", "s", "-o", "out"]);
        together(dir.path(), &["-q", "unpack", "out", "-o", "back"]);
        assert_eq!(names(&dir.path().join("out")).len(), 7, "round {round}");
        program::same_tree(&s, &dir.path().join("back"));
    }
}
