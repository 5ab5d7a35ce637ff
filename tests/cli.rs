//! The command line from outside: what it writes, prints and refuses, and its exit codes.

mod common;

use common::program::{bsz, model_directory, models, names, run, same_tree, with_model};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

/// More weights than fit in one chunk.
const MANY: usize = 400_000;

#[test]
fn a_file_is_packed_next_to_itself_and_restored_exactly() {
    let (dir, path, original) = with_model(MANY);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    let before = path.metadata().expect("the model");

    let packed = run(dir.path(), &["pack", "model.safetensors"]).ok();
    assert!(packed.stdout.starts_with("model.safetensors: packed, "), "{}", packed.stdout);
    assert_eq!(packed.stdout.lines().count(), 1);
    assert_eq!(names(dir.path()), ["model.bsz", "model.safetensors"]);
    assert_eq!(fs::read(&path).expect("the model"), original, "the original is left alone");

    fs::remove_file(&path).expect("rm");
    run(dir.path(), &["unpack", "model.bsz"]).ok();
    let after = path.metadata().expect("the model");
    assert_eq!(fs::read(&path).expect("the model"), original);
    assert_eq!(
        (after.mode(), after.mtime(), after.mtime_nsec()),
        (before.mode(), before.mtime(), before.mtime_nsec())
    );
    assert_eq!(names(dir.path()), ["model.bsz", "model.safetensors"]);
}

#[test]
fn the_output_is_a_path_or_a_directory() {
    let (dir, _, original) = with_model(100);
    fs::create_dir(dir.path().join("out")).expect("mkdir");
    run(dir.path(), &["pack", "model.safetensors", "-o", "other.bsz"]).ok();
    run(dir.path(), &["pack", "model.safetensors", "-o", "out"]).ok();
    run(dir.path(), &["pack", "model.safetensors", "-o", "nowhere"])
        .fails("bsz: nowhere: neither a .bsz path nor an existing directory");
    run(dir.path(), &["pack", "model.safetensors", "-o", "nowhere/x.bsz"])
        .fails_about("nowhere/x.bsz", "No such file");
    assert_eq!(names(dir.path()), ["model.safetensors", "other.bsz", "out"]);

    run(dir.path(), &["unpack", "other.bsz", "-o", "out"]).ok();
    run(dir.path(), &["unpack", "other.bsz", "-o", "copy"]).ok();
    assert_eq!(names(&dir.path().join("out")), ["model.bsz", "other.safetensors"]);
    for copy in ["copy", "out/other.safetensors"] {
        assert_eq!(fs::read(dir.path().join(copy)).expect("a copy"), original, "{copy}");
    }
}

#[test]
fn several_sources_go_into_a_new_directory() {
    let (dir, path, _) = with_model(100);
    fs::copy(&path, dir.path().join("blob")).expect("cp");
    model_directory(&dir.path().join("llama"));
    let packed = run(dir.path(), &["pack", "model.safetensors", "blob", "llama", "-o", "out"]).ok();
    assert_eq!(names(&dir.path().join("out")), ["blob.bsz", "llama", "model.bsz"]);
    assert!(
        packed.stdout.lines().last().is_some_and(|line| line.starts_with("total: 6 packed")),
        "{packed:?}"
    );

    run(dir.path(), &["unpack", "out", "-o", "back"]).ok();
    same_tree(&dir.path().join("llama"), &dir.path().join("back/llama"));
    assert_eq!(names(&dir.path().join("back")), ["blob", "llama", "model.safetensors"]);
}

#[test]
fn one_failing_source_does_not_stop_the_rest() {
    let (dir, _, _) = with_model(100);
    let ran = run(dir.path(), &["pack", "missing", "model.safetensors", "-o", "out"]);
    ran.fails("bsz: missing: No such file or directory (os error 2)\nbsz: pack: 1 of 2 failed");
    assert_eq!(names(&dir.path().join("out")), ["model.bsz"]);
}

#[test]
fn a_directory_round_trips_with_everything_in_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let source = dir.path().join("llama");
    model_directory(&source);
    run(dir.path(), &["pack", "llama", "-o", "packed"]).ok();
    let packed = dir.path().join("packed");
    let expected = [
        "dangling",
        "link-to-directory",
        "link.json",
        "model-00001-of-00003.bsz",
        "model-00002-of-00003.bsz",
        "model-00003-of-00003.bsz",
        "model.safetensors.index.json",
        "sub",
        "tokenizer.json",
    ];
    assert_eq!(names(&packed), expected);
    assert_eq!(names(&packed.join("sub")), ["adapter.bsz", "empty", "empty.txt"]);
    assert_eq!(
        fs::read_link(packed.join("link.json")).expect("a link"),
        Path::new("tokenizer.json")
    );

    let verified = run(dir.path(), &["verify", "packed"]).ok();
    run(dir.path(), &["verify", "--quick", "packed"]).ok();
    assert!(verified.stdout.contains("total: 4 verified"), "{}", verified.stdout);
    run(dir.path(), &["unpack", "packed", "-o", "back"]).ok();
    same_tree(&source, &dir.path().join("back"));
}

#[test]
fn a_file_that_is_an_archive_only_by_name_is_copied() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    model_directory(&dir.path().join("llama"));
    fs::write(dir.path().join("llama/notes.bsz"), "no archive").expect("write");
    run(dir.path(), &["pack", "llama", "-o", "packed"]).ok();
    run(dir.path(), &["unpack", "packed", "-o", "back"]).ok();
    same_tree(&dir.path().join("llama"), &dir.path().join("back"));
}

#[test]
fn packing_in_place_replaces_the_files_and_a_second_run_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, copy) = (dir.path().join("llama"), dir.path().join("copy"));
    model_directory(&source);
    model_directory(&copy);
    run(dir.path(), &["pack", "--in-place", "llama"]).ok();
    let packed = names(&source);
    assert!(!packed.iter().any(|name| name.ends_with(".safetensors")), "{packed:?}");
    let inodes = |dir: &Path| -> Vec<u64> {
        names(dir).iter().map(|n| dir.join(n).symlink_metadata().expect("an entry").ino()).collect()
    };
    let before = inodes(&source);
    run(dir.path(), &["pack", "--in-place", "llama"]).ok();
    assert_eq!((names(&source), inodes(&source)), (packed, before), "untouched");

    run(dir.path(), &["unpack", "llama", "-o", "back"]).ok();
    same_tree(&copy, &dir.path().join("back"));
}

#[test]
fn existing_files_are_not_overwritten_without_force() {
    let (dir, path, original) = with_model(100);
    fs::write(dir.path().join("model.bsz"), "precious").expect("write");
    run(dir.path(), &["pack", "model.safetensors"]).fails(
        "bsz: model.bsz: exists and is not the archive of this file; remove it or use --force",
    );
    assert_eq!(fs::read(dir.path().join("model.bsz")).expect("read"), b"precious");
    run(dir.path(), &["pack", "model.safetensors", "--force"]).ok();
    run(dir.path(), &["verify", "model.bsz"]).ok();

    fs::write(&path, "newer").expect("write");
    run(dir.path(), &["unpack", "model.bsz"])
        .fails("bsz: model.safetensors: exists and differs; remove it or use --force");
    assert_eq!(fs::read(&path).expect("read"), b"newer");
    run(dir.path(), &["unpack", "model.bsz", "--force"]).ok();
    assert_eq!(fs::read(&path).expect("the model"), original);
}

#[test]
fn a_second_run_resumes_where_the_first_one_stopped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    model_directory(&dir.path().join("llama"));
    for verb in [["pack", "llama", "-o", "packed"], ["unpack", "packed", "-o", "back"]] {
        run(dir.path(), &verb).ok();
        let again = run(dir.path(), &verb).ok().stdout;
        assert!(
            again.contains("model-00001-of-00003") && again.contains(": already done"),
            "{again}"
        );
    }
    fs::remove_file(dir.path().join("back/model-00002-of-00003.safetensors")).expect("rm");
    fs::write(dir.path().join("back/tokenizer.json"), "changed").expect("write");
    run(dir.path(), &["unpack", "packed", "-o", "back"]).fails(
        "bsz: back/tokenizer.json: exists and differs; remove it or use --force\n\
             bsz: unpack: 1 of 10 failed",
    );
    assert_eq!(fs::read(dir.path().join("back/tokenizer.json")).expect("read"), b"changed");
    run(dir.path(), &["unpack", "packed", "-o", "back", "--force"]).ok();
    same_tree(&dir.path().join("llama"), &dir.path().join("back"));
}

#[test]
fn directories_require_an_output() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    run(dir.path(), &["pack", "."])
        .fails("bsz: .: is a directory, which needs -o OUT, or --in-place to replace its files");
    run(dir.path(), &["unpack", "."]).fails("bsz: .: is a directory, which needs -o OUT");
    run(dir.path(), &["verify", "."]).fails("bsz: .: contains no archives");
}

#[test]
fn a_directory_is_not_packed_into_itself() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    model_directory(&dir.path().join("llama"));
    for out in ["llama", "llama/sub/deeper"] {
        run(dir.path(), &["pack", "llama", "-o", out, "--force"]).fails_about(out, "inside");
    }
    run(dir.path(), &["pack", "llama", "-o", "packed"]).ok();
    run(dir.path(), &["unpack", "packed", "-o", "packed/sub/deeper"])
        .fails_about("packed/sub/deeper", "inside");
    run(dir.path(), &["unpack", "packed", "-o", "back"]).ok();
    same_tree(&dir.path().join("llama"), &dir.path().join("back"));
}

#[test]
fn files_other_than_safetensors_can_be_packed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let odd: [(&str, &[u8]); 4] = [
        ("empty.safetensors", b""),
        ("short.safetensors", b"\x10"),
        ("text", b"just some text\n"),
        ("lies.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
    ];
    for (name, bytes) in odd {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("write");
        // A file that only claims to be a model is packed when named explicitly, with a warning.
        let ran = run(dir.path(), &["pack", name, "-o", "x.bsz"]);
        assert_eq!((ran.code, ran.stderr.is_empty()), (Some(0), name == "text"), "{ran:?}");
        run(dir.path(), &["verify", "x.bsz"]).ok();
        run(dir.path(), &["info", "x.bsz"]).ok();
        run(dir.path(), &["unpack", "x.bsz", "-o", "back"]).ok();
        assert_eq!(fs::read(dir.path().join("back")).expect("back"), bytes, "{name}");
        fs::remove_file(dir.path().join("x.bsz")).expect("rm");
        fs::remove_file(dir.path().join("back")).expect("rm");
    }
}

#[test]
fn patterns_say_which_models_of_a_directory_are_packed() {
    let dir = models(&["a.safetensors", "b.safetensors"]);
    fs::write(dir.path().join("s/notes.md"), "none").expect("written");
    let pack = |out: &str, more: &[&str]| {
        let ran = run(dir.path(), &[&["pack", "s", "-o", out][..], more].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        (names(&dir.path().join(out)), ran.stdout + &ran.stderr)
    };
    let (packed, said) = pack("only", &["--only", "a.*"]);
    assert_eq!(packed, ["a.bsz", "b.safetensors", "notes.md"]);
    let left = "s: left as they are: 1 .md, 1 .safetensors (is not selected)";
    assert!(said.contains(left), "{said}");
    let (packed, said) = pack("none", &["--exclude", "?.safetensors", "--exclude", "x/*"]);
    assert_eq!(packed, ["a.safetensors", "b.safetensors", "notes.md"]);
    assert!(said.contains("s: holds no model to pack; it has 1 .md (holds no weights)"), "{said}");
    let (packed, said) = pack("all", &[]);
    assert_eq!(packed, ["a.bsz", "b.bsz", "notes.md"]);
    assert!(said.contains("left as they are: 1 .md (holds no weights)"), "{said}");
}

#[test]
fn files_that_are_not_archives_are_refused() {
    let (dir, path, _) = with_model(MANY);
    for verb in ["unpack", "verify", "info"] {
        run(dir.path(), &[verb, "model.safetensors"])
            .fails_about("model.safetensors", "not a .bsz archive");
        run(dir.path(), &[verb, "missing.bsz"])
            .fails("bsz: missing.bsz: No such file or directory (os error 2)");
    }
    run(dir.path(), &["pack", "missing"])
        .fails("bsz: missing: No such file or directory (os error 2)");

    // A damaged archive is named, and nothing is written.
    run(dir.path(), &["pack", "model.safetensors"]).ok();
    fs::remove_file(path).expect("rm");
    let archive = dir.path().join("model.bsz");
    let mut bytes = fs::read(&archive).expect("the archive");
    bytes[50_000] ^= 1;
    fs::write(&archive, bytes).expect("write");
    for verb in ["verify", "unpack"] {
        run(dir.path(), &[verb, "model.bsz"]).fails_about("model.bsz", "");
    }
    assert_eq!(names(dir.path()), ["model.bsz"]);
}

#[test]
fn a_damaged_archive_does_not_stop_the_others() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    model_directory(&dir.path().join("llama"));
    run(dir.path(), &["pack", "llama", "--in-place"]).ok();
    let torn =
        fs::File::options().write(true).open(dir.path().join("llama/model-00002-of-00003.bsz"));
    torn.and_then(|file| file.set_len(1000)).expect("truncate");

    let ran = run(dir.path(), &["verify", "llama", "--json"]);
    assert_eq!(ran.code, Some(1));
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(lines[0].starts_with("bsz: llama/model-00002-of-00003.bsz: "), "{ran:?}");
    assert_eq!(lines[1..], ["bsz: verify: 1 of 4 failed"]);
    let json = ran.json();
    let files = json["files"].as_array().expect("a list");
    let actions: Vec<_> = files.iter().map(|f| f["action"].as_str().unwrap_or_default()).collect();
    assert_eq!(actions, ["verified", "damaged", "verified", "verified"]);
    assert!(files[1]["why"].is_string());

    let ran = run(dir.path(), &["unpack", "llama", "-o", "back"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.ends_with("bsz: unpack: 1 of 10 failed\n"), "{ran:?}");
    assert!(dir.path().join("back/model-00003-of-00003.safetensors").exists());
    assert!(!dir.path().join("back/model-00002-of-00003.safetensors").exists());
}

#[test]
fn json_output_reports_what_was_done() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    model_directory(&dir.path().join("llama"));
    let packed = run(dir.path(), &["pack", "llama", "-o", "packed", "--json"]).ok().json();
    let files = packed["files"].as_array().expect("a list");
    let first = files.iter().find(|f| f["action"] == "packed").expect("a packed file");
    assert_eq!(first["path"], "llama/model-00001-of-00003.safetensors");
    assert_eq!(first["output"], "packed/model-00001-of-00003.bsz");
    let size = |path: &str| dir.path().join(path).metadata().expect("a file").len();
    assert_eq!(first["original"], size("llama/model-00001-of-00003.safetensors"));
    assert_eq!(first["stored"], size("packed/model-00001-of-00003.bsz"));
    assert!(packed["seconds"].is_number() && packed["warnings"].is_array());

    let info = run(dir.path(), &["info", "packed/model-00001-of-00003.bsz", "--json"]).ok().json();
    let tensors = info["tensors"].as_array().expect("a list");
    let weight = tensors.iter().find(|t| t["name"] == "model.layers.0.weight").expect("the tensor");
    assert_eq!((&weight["dtype"], &weight["bytes"]), (&"BF16".into(), &80_000.into()));
    assert_eq!(weight["shape"], serde_json::json!([40_000]));
    assert!(weight["stored"].as_u64().is_some_and(|stored| stored <= 80_100), "{weight}");

    let all = run(dir.path(), &["info", "packed", "--json"]).ok().json();
    assert_eq!(all["archives"].as_array().map(Vec::len), Some(4));
    run(dir.path(), &["unpack", "packed", "-o", "back", "--json"]).ok().json();
}

#[test]
fn info_shows_tensors_and_archives() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    model_directory(&dir.path().join("llama"));
    run(dir.path(), &["pack", "llama", "--in-place", "--chunk-size", "64KiB", "-j1"]).ok();
    let one = run(dir.path(), &["info", "llama/sub/adapter.bsz"]).ok().stdout;
    assert!(
        one.contains("3 tensors") && one.contains("model.norm.weight") && one.contains("50x100"),
        "{one}"
    );
    let all = run(dir.path(), &["info", "llama"]).ok().stdout;
    assert_eq!(all.lines().count(), 1 + 4, "{all}");
    assert!(all.contains("sub/adapter.bsz"), "{all}");
}

#[test]
fn quiet_commands_print_nothing() {
    let (dir, _, _) = with_model(100);
    for args in [["-q", "pack", "model.safetensors"], ["verify", "-q", "model.bsz"]] {
        assert_eq!(run(dir.path(), &args).ok().stdout, "");
    }
}

#[test]
fn a_symlink_to_a_model_is_packed_as_the_model() {
    let (dir, _, original) = with_model(100);
    symlink("model.safetensors", dir.path().join("link.safetensors")).expect("a link");
    run(dir.path(), &["pack", "link.safetensors"]).ok();
    run(dir.path(), &["unpack", "link.bsz", "-o", "back"]).ok();
    assert_eq!(fs::read(dir.path().join("back")).expect("back"), original);
}

#[test]
fn wrong_usage_exits_with_status_2() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let wrong: [&[&str]; 10] = [
        &[],
        &["frobnicate"],
        &["pack"],
        &["pack", "x", "--chunk-size", "big"],
        &["pack", "x", "-j", "0"],
        &["pack", "x", "-o", "y", "--in-place"],
        &["unpack"],
        &["info", "a", "b"],
        &["bench", "x", "--threads", "1,0"],
        &["bench", "x", "--seconds", "nan"],
    ];
    for args in wrong {
        let ran = run(dir.path(), args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(
            ran.stderr.contains("Usage:") || ran.stderr.starts_with("error: "),
            "{args:?}: {ran:?}"
        );
    }
}

#[test]
fn the_help_of_every_command_has_examples() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = bszfs::cli::command();
    for verb in program.get_subcommands().filter(|v| !v.is_hide_set()).map(|v| v.get_name()) {
        let help = run(dir.path(), &[verb, "--help"]).ok().stdout;
        let examples =
            help.split_once("Examples:\n").map(|(_, examples)| examples).unwrap_or_default();
        assert!(examples.contains(&format!("  bsz {verb} ")), "{verb}: {help}");
    }
    let help = run(dir.path(), &["--help"]).ok().stdout;
    assert!(help.contains("Examples:\n  bsz pack "), "{help}");
}

#[test]
fn doctor_checks_everything_and_suggests_fixes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ran = run(dir.path(), &["doctor", "--json"]);
    let findings: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let findings = findings.as_array().expect("a list");
    assert_eq!(findings.len(), 11);
    let bad = findings.iter().any(|f| f["state"] == "bad");
    assert_eq!(ran.code, Some(if bad { 1 } else { 0 }), "{ran:?}");
    assert!(findings.iter().all(|f| f["state"] != "bad" || f["mend"].is_string()), "{ran:?}");
    let said = run(dir.path(), &["doctor"]).stdout;
    for what in ["kernel", "FUSE", "processor", "CUDA"] {
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    model_directory(&dir.path().join("llama"));
    run(dir.path(), &["pack", "llama", "-o", "packed"]).ok();
    for args in [
        &["info", "packed/sub/adapter.bsz"][..],
        &["verify", "packed"],
        &["pack", "llama", "-o", "again"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let child =
            bsz().args(args).current_dir(dir.path()).stdout(writer).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("bsz starts");
        let mut stderr = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("UTF-8");
        assert_eq!(
            (child.wait().expect("it ends").code(), stderr.as_str()),
            (Some(0), ""),
            "{args:?}"
        );
    }
    run(dir.path(), &["verify", "again"]).ok();
}

#[test]
fn standard_output_on_a_full_device_is_an_error() {
    let (dir, _, _) = with_model(100);
    run(dir.path(), &["pack", "model.safetensors"]).ok();
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let ran = bsz()
        .args(["info", "model.bsz"])
        .current_dir(dir.path())
        .stdout(full)
        .output()
        .expect("bsz starts");
    assert_eq!(ran.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&ran.stderr),
        "bsz: standard output: No space left on device (os error 28)\n"
    );
}
