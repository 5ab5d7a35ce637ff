//! `bsz bench` from outside: what it measures, prints and refuses.

mod common;

use common::program::{Ran, bsz, names, run, with_model};
use serde_json::Value;
use std::fs;

/// More weights than fit in one chunk.
const MANY: usize = 400_000;

#[test]
fn bench_measures_and_leaves_no_files_behind() {
    let (dir, _, original) = with_model(MANY);
    let bench = |args: &[&str], tmpdir: Option<&str>| {
        let mut command = bsz();
        command
            .args(["bench", "--seconds", "0.01", "--threads", "2"])
            .args(args)
            .current_dir(dir.path());
        match tmpdir {
            Some(tmpdir) => command.env("TMPDIR", tmpdir),
            None => command.env_remove("TMPDIR"),
        };
        let ran = Ran::from(command.output().expect("bsz starts")).ok();
        assert_eq!(names(dir.path()), ["model.safetensors"]);
        ran
    };
    let json = bench(&["model.safetensors", "--json"], None).json();
    let number =
        |json: &Value| json.as_f64().filter(|n| *n > 0.0).unwrap_or_else(|| panic!("{json}"));
    assert_eq!(json["file"], "model.safetensors");
    assert_eq!(json["bytes"], original.len());
    let (stored, ratio) = (number(&json["stored"]), number(&json["ratio"]));
    assert_eq!(ratio, stored / original.len() as f64);
    assert!(ratio < 0.8, "{ratio}");
    for rate in [&json["pack_gbs"], &json["verify_gbs"]] {
        number(rate);
    }
    for field in ["reads_per_s", "median_us", "p99_us"] {
        number(&json["random"][field]);
    }
    let rows = |list: &str| -> Vec<(Option<String>, u64)> {
        let rows = json[list].as_array().expect("a list").iter();
        let row = |row: &Value| {
            number(&row["gbs"]);
            (row["name"].as_str().map(str::to_owned), row["threads"].as_u64().expect("threads"))
        };
        rows.map(row).collect()
    };
    assert_eq!(rows("memcpy"), [(None, 1), (None, 2)]);
    let fastest = bszfs::codec::fastest().name();
    let decoders = bszfs::codec::decoders();
    let others =
        decoders.iter().map(|d| d.name()).filter(|name| *name != fastest).map(|name| (name, 1));
    let expected: Vec<_> = [(fastest, 1), (fastest, 2)].into_iter().chain(others).collect();
    let expected: Vec<_> =
        expected.into_iter().map(|(name, n)| (Some(name.to_owned()), n)).collect();
    assert_eq!(rows("decoders"), expected);

    // The human-readable output, with another directory for temporary files.
    let other = tempfile::tempdir().expect("a temporary directory");
    let said = bench(&["model.safetensors"], other.path().to_str()).stdout;
    for row in
        ["model.safetensors: ", "pack and verify", "decode, scalar", "memcpy", "random reads"]
    {
        assert!(said.contains(row), "{row}: {said}");
    }
    assert!(fs::read_dir(other.path()).expect("a directory").next().is_none());
}

#[test]
fn bench_accepts_archives_and_refuses_everything_else() {
    let (dir, _, _) = with_model(MANY);
    run(dir.path(), &["pack", "model.safetensors", "--in-place"]).ok();
    let json = run(dir.path(), &["bench", "model.bsz", "--seconds", "0.01", "--json"]).ok().json();
    assert_eq!(json["pack_gbs"], Value::Null);
    assert_eq!(json["stored"], dir.path().join("model.bsz").metadata().expect("the archive").len());

    let archive = fs::read(dir.path().join("model.bsz")).expect("the archive");
    let mut damaged = archive.clone();
    damaged[50_000] ^= 1;
    for (name, bytes) in [
        ("damaged.bsz", &damaged[..]),
        ("other.bsz", b"no archive"),
        ("empty", b""),
        ("renamed", &archive),
    ] {
        fs::write(dir.path().join(name), bytes).expect("write");
    }
    for (name, why) in [
        ("damaged.bsz", ""),
        ("other.bsz", "not a .bsz archive"),
        ("empty", "empty: there is nothing to measure"),
        ("renamed", "already a .bsz archive"),
        ("missing", "No such file"),
        (".", "not a regular file"),
    ] {
        run(dir.path(), &["bench", name]).fails_about(name, why);
    }
    assert_eq!(names(dir.path()), ["damaged.bsz", "empty", "model.bsz", "other.bsz", "renamed"]);
}
