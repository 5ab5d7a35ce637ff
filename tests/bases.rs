//! Archives that are stored as differences from others: what is paired, what it saves, and that a
//! base is never lost by accident.

mod common;

use common::families::{file, holds, needs, tensors, tuned};
use common::program::{names, run};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A directory with a base, packed, and the model `tune.safetensors`.
fn family(base: &[u8], tune: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("base.safetensors"), base).expect("written");
    fs::write(dir.path().join("tune.safetensors"), tune).expect("written");
    run(dir.path(), &["pack", "base.safetensors"]).ok();
    dir
}

/// Pack the tune against the base, and alone. Returns the shares of the original.
#[track_caller]
fn packed(dir: &Path) -> (f64, f64) {
    let len = |name: &str| fs::metadata(dir.join(name)).expect("there").len() as f64;
    run(dir, &["pack", "tune.safetensors", "-o", "alone.bsz"]).ok();
    run(dir, &["pack", "tune.safetensors", "--base", "base.bsz"]).ok();
    let tune = fs::read(dir.join("tune.safetensors")).expect("read");
    holds(&dir.join("tune.bsz"), &tune);
    (len("tune.bsz") / tune.len() as f64, len("alone.bsz") / tune.len() as f64)
}

#[test]
fn equal_tensors_take_next_to_nothing_and_share_a_model() {
    let base = tensors(1, 5);
    let mut tune = base.clone();
    tune[4].2 = tuned(&base[4..], 7)[0].2.clone();
    tune.push(("new".into(), Some(256), tensors(2, 1)[0].2.clone()));
    let dir = family(&file(&base), &file(&tune));
    let (with, alone) = packed(dir.path());
    assert!(with < 0.25 && alone > 0.6, "{with} {alone}");
    let archive = bszfs::read::Archive::open(&dir.path().join("tune.bsz")).expect("opens");
    // One for equal tensors, one for the tuned one, one for the new one.
    assert!(archive.footer().model_count <= 4, "{}", archive.footer().model_count);
    assert_eq!(archive.index().bases()[0].name, "base.safetensors");
}

#[test]
fn tensors_are_paired_in_any_order_and_without_a_prefix() {
    let base = tensors(1, 4);
    let mut tune = tuned(&base, 3);
    tune.reverse();
    let dir = family(&file(&base), &file(&tune));
    let (with, alone) = packed(dir.path());
    assert!(with < 0.35 && alone > 0.6, "{with} {alone}");
    for tensor in &mut tune {
        tensor.0 = format!("model.{}", tensor.0);
    }
    let dir = family(&file(&base), &file(&tune));
    let (prefixed, _) = packed(dir.path());
    assert!((prefixed - with).abs() < 0.002, "{prefixed} {with}");
    // Names that say nothing: by what is in them.
    for (i, tensor) in tune.iter_mut().enumerate() {
        tensor.0 = format!("{i}");
    }
    let dir = family(&file(&base), &file(&tune));
    let (renamed, _) = packed(dir.path());
    assert!((renamed - with).abs() < 0.002, "{renamed} {with}");
}

#[test]
fn what_a_base_does_not_help_is_packed_as_without_it() {
    let base = tensors(1, 3);
    let unrelated = tensors(2, 3);
    // Other shapes: as many bytes, in other rows and another order of elements.
    let mut reshaped = base.clone();
    for tensor in &mut reshaped {
        tensor.1 = Some(128);
        tensor.2 = tensor.2.as_chunks::<2>().0.iter().rev().flatten().copied().collect();
    }
    for tune in [unrelated, reshaped] {
        let dir = family(&file(&base), &file(&tune));
        packed(dir.path());
        let read = |name: &str| fs::read(dir.path().join(name)).expect("read");
        assert!(read("tune.bsz")[..200] == read("alone.bsz")[..200]);
        assert_eq!(read("tune.bsz").len(), read("alone.bsz").len());
        assert_eq!(needs(&dir.path().join("tune.bsz")), (1, vec![]));
        assert!(!names(dir.path()).iter().any(|name| name.starts_with(".bsz-base")));
    }
}

#[test]
fn a_base_may_be_in_shards() {
    let base = tensors(1, 6);
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("base")).expect("mkdir");
    for (i, shard) in base.chunks(2).enumerate() {
        let name = format!("base/model-{i}.safetensors");
        fs::write(at(&name), file(shard)).expect("written");
        run(dir.path(), &["pack", &name, "--in-place"]).ok();
    }
    let tune = file(&tuned(&base, 5));
    fs::write(at("tune.safetensors"), &tune).expect("written");
    run(dir.path(), &["pack", "tune.safetensors", "--base", "base"]).ok();
    let (version, pins) = needs(&at("tune.bsz"));
    assert_eq!((version, pins.len()), (2, 3));
    holds(&at("tune.bsz"), &tune);
    assert!(fs::metadata(at("tune.bsz")).expect("there").len() < tune.len() as u64 * 35 / 100);
}

#[test]
fn a_directory_is_packed_against_its_first_of_each_kind() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = tensors(1, 3);
    let mut models: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for step in 1..=4u64 {
        let path = dir.path().join(format!("run/checkpoint-{step}/model.safetensors"));
        fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        models.push((path, file(&tuned(&base, step))));
    }
    let path = dir.path().join("run/other.safetensors");
    models.push((path, file(&tensors(9, 3))));
    for (path, bytes) in &models {
        fs::write(path, bytes).expect("written");
    }
    let ran = run(dir.path(), &["pack", "run", "--in-place", "--base", "auto", "--json"]).ok();
    let found = ran.json();
    let with_base = |row: &&serde_json::Value| row["bases"].is_array();
    assert_eq!(found["files"].as_array().expect("rows").iter().filter(with_base).count(), 3);
    let first = needs(&models[0].0.with_extension("bsz"));
    assert_eq!(first, (1, vec![]));
    for (path, bytes) in &models {
        assert!(!path.exists(), "in place");
        holds(&path.with_extension("bsz"), bytes);
    }
    // Each against the first one: never a chain.
    let pins: Vec<_> = models[1..4].iter().map(|m| needs(&m.0.with_extension("bsz")).1).collect();
    assert!(pins.iter().all(|pin| *pin == pins[0] && pin.len() == 1), "{pins:?}");
    assert_eq!(needs(&models[4].0.with_extension("bsz")), (1, vec![]));
    // All of them can be unpacked as a directory, without the pins.
    run(dir.path(), &["unpack", "run", "-o", "back"]).ok();
    assert_eq!(names(&dir.path().join("back/checkpoint-2")), ["model.safetensors"]);
    let back = fs::read(dir.path().join("back/checkpoint-2/model.safetensors")).expect("read");
    assert!(back == models[1].1);
}

#[test]
fn a_card_names_the_base() {
    // Both are equally near, and the named one is the later one.
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let base = tensors(1, 3);
    for (name, seed) in [("aaa", 1), ("Base-1B", 2), ("tune", 3)] {
        fs::create_dir(at(name)).expect("mkdir");
        let bytes = file(&tuned(&base, seed));
        fs::write(at(&format!("{name}/model.safetensors")), bytes).expect("written");
    }
    run(dir.path(), &["pack", "aaa", "--in-place"]).ok();
    run(dir.path(), &["pack", "Base-1B", "--in-place"]).ok();
    fs::write(at("tune/README.md"), "---\nbase_model: org/base-1b\n---\n").expect("written");
    let ran = run(dir.path(), &["pack", "tune/model.safetensors", "--base", "auto"]).ok();
    assert!(ran.stdout.contains("Base-1B/model.bsz"), "{ran:?}");
}

#[test]
fn a_removed_base_stays_readable_and_its_pin_goes_with_the_last_dependant() {
    let base = tensors(1, 3);
    let (one, two) = (file(&tuned(&base, 1)), file(&tuned(&base, 2)));
    let dir = family(&file(&base), &one);
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).expect("mkdir");
    fs::write(at("sub/two.safetensors"), &two).expect("written");
    fs::write(at("sub/one.safetensors"), &one).expect("written");
    run(dir.path(), &["pack", "sub", "--in-place", "--base", "base.safetensors"]).ok();
    let (_, pins) = needs(&at("sub/two.bsz"));
    assert_eq!(names(&at("sub")), [&*pins[0], "one.bsz", "two.bsz"]);
    assert_eq!(fs::metadata(at("base.bsz")).expect("there").nlink(), 2);
    fs::remove_file(at("base.bsz")).expect("removed");
    fs::remove_file(at("base.safetensors")).expect("removed");
    holds(&at("sub/two.bsz"), &two);
    // The pin stays while the other archive needs it.
    let mtime = fs::metadata(at("sub/two.bsz")).expect("there").mtime();
    run(dir.path(), &["detach", "sub/two.bsz"]).ok();
    assert_eq!(names(&at("sub")), [&*pins[0], "one.bsz", "two.bsz"]);
    assert_eq!(needs(&at("sub/two.bsz")), (1, vec![]));
    assert_eq!(fs::metadata(at("sub/two.bsz")).expect("there").mtime(), mtime);
    run(dir.path(), &["detach", "sub/one.bsz", "sub/two.bsz"]).ok();
    assert_eq!(names(&at("sub")), ["one.bsz", "two.bsz"]);
    holds(&at("sub/one.bsz"), &one);
    holds(&at("sub/two.bsz"), &two);
}

#[test]
fn an_archive_is_rebased() {
    let base = tensors(1, 3);
    let tune = tuned(&base, 1);
    let near = file(&tuned(&tune, 2));
    let dir = family(&file(&base), &near);
    let at = |name: &str| dir.path().join(name);
    fs::write(at("nearer.safetensors"), file(&tune)).expect("written");
    run(dir.path(), &["pack", "nearer.safetensors"]).ok();
    run(dir.path(), &["pack", "tune.safetensors", "--in-place", "--base", "base.bsz"]).ok();
    let (before, first) =
        (fs::metadata(at("tune.bsz")).expect("there").len(), needs(&at("tune.bsz")));
    let ran = run(dir.path(), &["rebase", "tune.bsz", "--base", "nearer.bsz", "--json"]).ok();
    assert_eq!(ran.json()["files"][0]["bases"][0], "nearer.bsz");
    let second = needs(&at("tune.bsz"));
    assert!(first.1 != second.1 && second.1.len() == 1);
    assert!(fs::metadata(at("tune.bsz")).expect("there").len() < before);
    let pins = |name: &String| name.starts_with(".bsz-base");
    let pins: Vec<String> = names(dir.path()).into_iter().filter(pins).collect();
    assert_eq!(pins, second.1, "the other one is gone");
    holds(&at("tune.bsz"), &near);
}

#[test]
fn what_cannot_be_a_base_is_refused() {
    let base = tensors(1, 3);
    let dir = family(&file(&base), &file(&tuned(&base, 1)));
    let pack = |base: &str| run(dir.path(), &["pack", "tune.safetensors", "--base", base]);
    fs::write(dir.path().join("plain.safetensors"), file(&base)).expect("written");
    pack("plain.safetensors").fails_about("plain.safetensors", "pack it first");
    pack("none.bsz").fails_about("none.bsz", "No such file");
    fs::create_dir(dir.path().join("empty")).expect("mkdir");
    pack("empty").fails_about("empty", "no archive that stands alone");
    let args = ["pack", "tune.safetensors", "--base", "base.bsz", "-o", "s3://bucket/x.bsz"];
    run(dir.path(), &args).fails_about("s3://bucket/x.bsz", "could not find its base");
    pack("base.bsz").ok();
    let args = ["pack", "plain.safetensors", "--base", "tune.bsz"];
    run(dir.path(), &args).fails_about("tune.bsz", "use its own: base.safetensors");
    assert!(!dir.path().join("plain.bsz").exists());
    // A copy of the base is no dependant of it.
    run(dir.path(), &["pack", "plain.safetensors", "--base", "base.bsz"]).ok();
    assert_eq!(needs(&dir.path().join("plain.bsz")), (1, vec![]));
}

#[test]
fn a_base_that_cannot_be_pinned_is_refused_unless_it_is_said_so() {
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm");
        return;
    };
    let base = tensors(1, 3);
    let dir = family(&file(&base), &file(&tuned(&base, 1)));
    let out = other.path().join("tune.bsz");
    if fs::metadata(other.path()).expect("there").dev() == fs::metadata(&dir).expect("there").dev()
    {
        eprintln!("skipped: /dev/shm is on the same file system");
        return;
    }
    let mut args = vec!["pack", "tune.safetensors", "--base", "base.bsz", "-o"];
    args.push(out.to_str().expect("UTF-8"));
    run(dir.path(), &args).fails_about("base.bsz", "is on another file system");
    assert!(names(other.path()).is_empty());
    args.push("--unpinned");
    let ran = run(dir.path(), &args);
    assert!(ran.code == Some(0) && ran.stderr.contains("another file system"), "{ran:?}");
    assert_eq!((names(other.path()), needs(&out).0), (vec!["tune.bsz".to_owned()], 2));
}
