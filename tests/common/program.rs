//! The `bsz` program as a user runs it, and directories of models to run it on.

use super::models::write_model;
use super::places;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A new command whose output does not depend on the caller's environment.
pub fn bsz() -> Command {
    let mut command = Command::new(places::program());
    command.env_remove("BSZ_LOG").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// The outcome of one run.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Run `bsz` in `dir`.
pub fn run<A: AsRef<OsStr>>(dir: &Path, args: &[A]) -> Ran {
    bsz().args(args).current_dir(dir).output().expect("bsz starts").into()
}

impl From<Output> for Ran {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("bsz prints UTF-8");
        Self { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }
}

impl Ran {
    /// Assert that it succeeded without complaints.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "stdout: {}", self.stdout);
        self
    }

    /// Assert that it failed with exit code 1 and exactly this text on standard error.
    #[track_caller]
    pub fn fails(self, stderr: &str) -> Self {
        assert_eq!(
            (self.code, self.stderr.trim_end()),
            (Some(1), stderr),
            "stdout: {}",
            self.stdout
        );
        self
    }

    /// Assert that it failed with exit code 1 and one line `bsz: what: why`, where `why` is
    /// contained in the rest.
    #[track_caller]
    pub fn fails_about(self, what: &str, why: &str) -> Self {
        assert_eq!(self.code, Some(1), "{self:?}");
        let rest = self.stderr.strip_prefix(&format!("bsz: {what}: "));
        assert!(
            rest.is_some_and(|rest| rest.contains(why)),
            "not `bsz: {what}: ...{why}`: {self:?}"
        );
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }
}

/// A model directory of what can be objects, `s`, and packed, `p`.
pub fn packed_objects() -> TempDir {
    let dir = object_models();
    run(dir.path(), &["pack", "s", "-o", "p"]).ok();
    dir
}

/// A directory `s` of models with what object stores can hold.
pub fn object_models() -> TempDir {
    let dir = TempDir::new().expect("a directory");
    let source = dir.path().join("s");
    fs::create_dir(&source).expect("mkdir");
    model_directory(&source);
    // Links and empty directories are no objects.
    for link in ["link.json", "link-to-directory", "dangling"] {
        fs::remove_file(source.join(link)).expect("removed");
    }
    fs::remove_dir(source.join("sub/empty")).expect("removed");
    dir
}

/// A model directory in the layout of hubs: three shards with their index, a tokenizer, a
/// directory, links.
pub fn model_directory(dir: &Path) {
    let write =
        |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect("a writable directory");
    fs::create_dir_all(dir.join("sub/empty")).expect("a writable directory");
    for shard in 1..=3 {
        write_model(&dir.join(format!("model-0000{shard}-of-00003.safetensors")), shard, 40_000);
    }
    write(
        "model.safetensors.index.json",
        br#"{"weight_map": {"a": "model-00001-of-00003.safetensors"}}"#,
    );
    write("tokenizer.json", b"{}");
    write_model(&dir.join("sub/adapter.safetensors"), 9, 5_000);
    write("sub/empty.txt", b"");
    let link =
        |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.join(name)).expect("a link");
    link("tokenizer.json", "link.json");
    link("sub", "link-to-directory");
    link("nowhere", "dangling");
}

/// Weights of a small model.
pub const SOME: usize = 60_000;

/// A temporary directory that contains a directory `s` with small models of these names.
pub fn models(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(dir.path().join("s")).expect("mkdir");
    for (seed, name) in (1..).zip(names) {
        write_model(&dir.path().join("s").join(name), seed, SOME);
    }
    dir
}

/// The names in `dir`, sorted, including any temporary file left behind.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> = entries.map(|e| name(e).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Copy a directory with all its contents.
pub fn copy_tree(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().expect("cp").success());
}

/// Assert that both directories have the same contents, by `diff -r` without following links.
#[track_caller]
pub fn same_tree(a: &Path, b: &Path) {
    let diff =
        Command::new("diff").args(["-r", "--no-dereference"]).args([a, b]).output().expect("diff");
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

/// A temporary directory that contains `model.safetensors`, the path of the model, and its bytes.
pub fn with_model(weights: usize) -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("model.safetensors");
    let bytes = write_model(&path, 1, weights);
    (dir, path, bytes)
}
