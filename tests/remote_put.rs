//! `pack -o URL` and `cp`, from outside: what arrives, what is refused, and what is left after
//! faults and signals.

mod common;

use common::bucket::{Bucket, parameter};
use common::program::{bsz, names, object_models, run, same_tree};
use common::web::{Act, Request};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Larger than what is uploaded at once, and no whole number of parts.
const LARGE: usize = (64 << 20) + 12_345;

fn large(dir: &Path) -> Vec<u8> {
    let bytes: Vec<u8> =
        (0..LARGE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(dir.join("large"), &bytes).expect("written");
    bytes
}

fn is(request: &Request, method: &str, parameters: &[&str]) -> bool {
    request.method == method && parameters.iter().all(|name| parameter(request, name).is_some())
}

fn completes(request: &Request) -> bool {
    is(request, "POST", &["uploadId"])
}

#[test]
fn a_directory_is_packed_to_a_bucket_and_unpacked_again() {
    let (dir, bucket) = (object_models(), Bucket::start());
    let temporary = TempDir::new().expect("a directory");
    let pack = ["pack", "--json", "s", "-o", "s3://bucket/p"];
    let command = &mut bucket.bsz(dir.path(), &pack);
    let ran = common::program::Ran::from(
        command.env("TMPDIR", temporary.path()).output().expect("bsz starts"),
    );
    assert_eq!(names(temporary.path()), Vec::<String>::new(), "nothing is left");
    let actions = |json: serde_json::Value| {
        let mut actions: Vec<String> = Vec::new();
        for file in json["files"].as_array().expect("files") {
            actions.push(file["action"].as_str().expect("an action").to_owned());
        }
        actions.sort();
        actions.dedup();
        actions
    };
    assert_eq!(actions(ran.ok().json()), ["copied", "packed"]);
    run(dir.path(), &["pack", "s", "-o", "p"]).ok();
    for key in bucket.keys() {
        let local = dir.path().join(&key);
        let same = fs::read(&local).expect("the same name") == bucket.bytes(&key).expect("there");
        assert!(same, "{key}");
    }
    assert_eq!(bucket.keys().len(), 7);
    let again = bucket.run(dir.path(), &pack).ok();
    assert_eq!(actions(again.json()), ["already done"]);
    bucket.run(dir.path(), &["unpack", "s3://bucket/p", "-o", "u"]).ok();
    same_tree(&dir.path().join("s"), &dir.path().join("u"));
}

#[test]
fn one_file_goes_to_the_name_or_the_directory_of_the_url() {
    let (dir, bucket) = (object_models(), Bucket::start());
    let one = "s/model-00001-of-00003.safetensors";
    bucket.run(dir.path(), &["pack", one, "-o", "s3://bucket/d/"]).ok();
    bucket.run(dir.path(), &["pack", one, "-o", "s3://bucket/other.bsz"]).ok();
    assert_eq!(bucket.keys(), ["d/model-00001-of-00003.bsz", "other.bsz"]);
    bucket.run(dir.path(), &["unpack", "s3://bucket/other.bsz"]).ok();
    let unpacked = fs::read(dir.path().join("other.safetensors")).expect("unpacked");
    assert!(unpacked == fs::read(dir.path().join(one)).expect("original"));
    let two = [one, "s/model-00002-of-00003.safetensors"];
    bucket.run(dir.path(), &["pack", two[0], two[1], "-o", "s3://bucket/two"]).ok();
    assert!(bucket.bytes("two/model-00002-of-00003.bsz").is_some());
    let before = bucket.keys();
    let fails = |args: &[&str], what: &str, why: &str| {
        bucket.run(dir.path(), args).fails_about(what, why);
        assert_eq!(bucket.keys(), before);
    };
    fails(&["pack", one, "-o", "s3://bucket/d"], "s3://bucket/d", "neither ends in .bsz");
    fails(&["pack", one, "-o", "https://host/m.bsz?HIDDEN"], "https://host/m.bsz", "only s3://");
    fails(&["pack", one, "-o", "hf://org/repo/"], "hf://org/repo/", "only s3://");
    fails(&["pack", one, "-o", "s3://b/../HIDDEN"], "URL", "component");
    fails(&["pack", "s/none", "-o", "s3://bucket/d/"], "s/none", "No such file");
    fails(&["pack", one, one, "-o", "s3://bucket/d/"], one, "would have the same name");
    let shard = "s3://bucket/other.bsz";
    let why = "is not the archive of this file";
    fails(&["pack", two[1], "-o", shard], shard, why);
    bucket.run(dir.path(), &["pack", two[1], "-o", shard, "--force"]).ok();
    bucket.store.put("/bucket/e/m.safetensors", b"plain".to_vec(), "plain".into());
    fs::copy(dir.path().join(one), dir.path().join("m.safetensors")).expect("copied");
    let plain = "s3://bucket/e/m.safetensors";
    bucket
        .run(dir.path(), &["pack", "m.safetensors", "-o", "s3://bucket/e/"])
        .fails_about(plain, "a mount would show it instead");
}

#[test]
fn links_are_left_out_of_buckets_with_a_warning() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    fs::create_dir(dir.path().join("s")).expect("mkdir");
    fs::write(dir.path().join("s/a"), "a").expect("written");
    std::os::unix::fs::symlink("a", dir.path().join("s/link")).expect("a link");
    let ran = bucket.run(dir.path(), &["cp", "s", "s3://bucket/c"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stderr.contains("s/link: is a link"), "{ran:?}");
    assert_eq!(bucket.keys(), ["c/a"]);
}

#[test]
fn files_are_copied_as_they_are_in_every_direction() {
    let (dir, bucket) = (object_models(), Bucket::start());
    let at = |path: &str| dir.path().join(path);
    run(dir.path(), &["pack", "s", "-o", "p"]).ok();
    bucket.run(dir.path(), &["cp", "p", "s3://bucket/p"]).ok();
    bucket.run(dir.path(), &["cp", "s3://bucket/p/", "s3://bucket/q/r"]).ok();
    bucket.run(dir.path(), &["cp", "s3://bucket/q/r", "back"]).ok();
    same_tree(&at("p"), &at("back"));
    let again = bucket.run(dir.path(), &["cp", "--json", "p", "s3://bucket/p"]).ok().json();
    let files = again["files"].as_array().expect("files");
    assert!(files.iter().all(|file| file["action"] == "already done"), "{again}");
    bucket.run(dir.path(), &["cp", "p/tokenizer.json", "s3://bucket/one/"]).ok();
    bucket.run(dir.path(), &["cp", "s3://bucket/one/tokenizer.json", "s3://bucket/two.json"]).ok();
    bucket.run(dir.path(), &["cp", "s3://bucket/two.json", "three.json"]).ok();
    bucket.run(dir.path(), &["cp", "s3://bucket/two.json", "back/"]).ok();
    assert_eq!(fs::read(at("three.json")).expect("copied"), b"{}");
    assert_eq!(fs::read(at("back/two.json")).expect("copied"), b"{}");
    let fails = |args: &[&str], what: &str, why: &str| {
        bucket.run(dir.path(), args).fails_about(what, why);
    };
    fs::write(at("other"), "other").expect("written");
    let two = "s3://bucket/two.json";
    fails(&["cp", "other", two], two, "exists and differs");
    assert_eq!(bucket.bytes("two.json").as_deref(), Some(&b"{}"[..]));
    fails(&["cp", two, "other"], "other", "exists and differs");
    fails(&["cp", "other", "three.json"], "cp", "neither is a URL");
    bucket.run(dir.path(), &["cp", "other", "s3://bucket"]).ok();
    assert!(bucket.bytes("other").is_some());
}

#[test]
fn what_exists_is_replaced_only_by_force_however_it_is_uploaded() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    let bytes = large(dir.path());
    fs::write(dir.path().join("small"), "small").expect("written");
    fs::write(dir.path().join("empty"), "").expect("written");
    for name in ["large", "small", "empty"] {
        let url = format!("s3://bucket/{name}");
        bucket.run(dir.path(), &["cp", name, &url]).ok();
        let copied = bucket.bytes(name).expect("there");
        assert!(copied == fs::read(dir.path().join(name)).expect("there"), "{name}");
    }
    let requests = bucket.server.requests();
    let parts = requests.iter().filter(|r| is(r, "PUT", &["partNumber"])).count();
    assert_eq!(parts, LARGE.div_ceil(8 << 20));
    assert!(
        requests
            .iter()
            .filter(|r| is(r, "PUT", &[]))
            .all(|r| { r.header("x-amz-checksum-sha256").is_some() })
    );
    let conditions = |r: &&Request| r.header("if-none-match") == Some("*");
    assert_eq!(requests.iter().filter(conditions).count(), 3, "two at once, one completion");
    // Another object appears after the upload looked for one.
    for (name, url) in [("large", "s3://bucket/late-large"), ("small", "s3://bucket/late-small")] {
        let store = bucket.store.clone();
        let path = url.replace("s3://", "/");
        let (mut looked, own) = (false, path.clone());
        bucket.script(move |request| {
            let comes = match name {
                "large" => completes(request),
                _ => request.method == "PUT",
            };
            if comes && !looked {
                looked = true;
                store.put(&own, b"theirs".to_vec(), "theirs".into());
            }
            Act::Serve
        });
        bucket.run(dir.path(), &["cp", name, url]).fails_about(url, "exists and differs");
        let there = bucket.store.get(&path).expect("theirs");
        assert_eq!((there.bytes.as_slice(), bucket.unfinished()), (&b"theirs"[..], 0));
    }
    bucket.run(dir.path(), &["cp", "--force", "large", "s3://bucket/late-small"]).ok();
    assert!(bucket.bytes("late-small").expect("replaced") == bytes);
}

#[test]
fn faults_are_repeated_until_every_byte_is_there() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    let bytes = large(dir.path());
    let mut n = 0;
    // Every third request fails in one of these ways, before or after it was served.
    bucket.script(move |request| {
        n += 1;
        match n % 6 {
            0 if request.method == "GET" => Act::Cut(100_000),
            0 => Act::Status(503, None),
            3 if !completes(request) => Act::Reset,
            _ => Act::Serve,
        }
    });
    bucket.run(dir.path(), &["cp", "large", "s3://bucket/large"]).ok();
    assert!(bucket.bytes("large").expect("there") == bytes);
    assert_eq!(bucket.unfinished(), 0);
}

#[test]
fn a_completion_whose_answer_is_lost_counts() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    let bytes = large(dir.path());
    // The store has completed it, says so by an error, and knows no such upload any more.
    let (store, mut first) = (bucket.store.clone(), true);
    let kept = bytes.clone();
    bucket.script(move |request| match completes(request) && std::mem::take(&mut first) {
        true => {
            store.put("/bucket/large", kept.clone(), "tag".into());
            Act::Reset
        }
        false => Act::Serve,
    });
    bucket.run(dir.path(), &["cp", "large", "s3://bucket/large"]).ok();
    assert!(bucket.bytes("large").expect("there") == bytes);
}

#[test]
fn other_bytes_than_were_sent_are_noticed_and_removed() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    large(dir.path());
    fs::write(dir.path().join("small"), "small").expect("written");
    for name in ["small", "large"] {
        bucket.script(|request| match request.method == "GET" {
            true => Act::Flip(1234),
            false => Act::Serve,
        });
        let url = format!("s3://bucket/{name}");
        bucket.run(dir.path(), &["cp", name, &url]).fails_about(&url, "gives back other bytes");
        assert_eq!(bucket.keys(), Vec::<String>::new());
    }
}

#[test]
fn what_another_upload_has_put_there_is_not_removed() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    fs::write(dir.path().join("f"), "mine").expect("written");
    let store = bucket.store.clone();
    bucket.script(move |request| match request.method.as_str() {
        "GET" => Act::Flip(1),
        "DELETE" => {
            store.put("/bucket/f", b"theirs".to_vec(), "another".into());
            Act::Serve
        }
        _ => Act::Serve,
    });
    let url = "s3://bucket/f";
    bucket.run(dir.path(), &["cp", "f", url]).fails_about(url, "another upload has replaced it");
    assert_eq!(bucket.bytes("f"), Some(b"theirs".to_vec()));
}

#[test]
fn failures_leave_no_object_and_no_upload() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    large(dir.path());
    let url = "s3://bucket/large";
    let fails = |status: u16, parameters: &'static [&'static str], why: &str| {
        bucket.script(move |request| match is(request, "PUT", parameters) {
            true => Act::Status(status, None),
            false => Act::Serve,
        });
        let copy = ["cp", "large", url, "--remote-timeout", "1"];
        bucket.run(dir.path(), &copy).fails_about(url, why);
        assert_eq!((bucket.keys().len(), bucket.unfinished()), (0, 0), "{status}");
    };
    fails(403, &["partNumber"], "403 Forbidden");
    fails(404, &["partNumber"], "no such bucket");
    bucket.script(|request| match completes(request) {
        true => Act::Status(501, None),
        false => Act::Serve,
    });
    bucket.run(dir.path(), &["cp", "large", url]).fails_about(url, "does not support uploads");
    assert_eq!((bucket.keys().len(), bucket.unfinished()), (0, 0));
    // Who may write but neither look nor read.
    bucket.script(|request| match request.method.as_str() {
        "HEAD" | "GET" => Act::Status(403, None),
        _ => Act::Serve,
    });
    bucket.run(dir.path(), &["cp", "large", url]).fails_about(url, "could not be read back");
    assert_eq!((bucket.keys().len(), bucket.unfinished()), (1, 0), "it was uploaded");
}

#[test]
fn a_signal_aborts_the_upload() {
    for signal in ["TERM", "INT"] {
        is_aborted(signal, |request| match parameter(request, "partNumber") {
            Some("3") => Act::Mute,
            _ => Act::Serve,
        });
    }
}

#[test]
fn a_signal_aborts_an_upload_that_the_store_has_not_named_yet() {
    is_aborted("TERM", |request| {
        if is(request, "POST", &["uploads"]) {
            thread::sleep(Duration::from_secs(1));
        }
        Act::Serve
    });
}

/// The same command, whose signals are not ignored, as SIGINT is behind the `&` of a shell.
fn heeding_signals(command: &Command) -> Command {
    let mut heeding = Command::new("env");
    heeding.arg("--default-signal").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => heeding.env(name, value),
            None => heeding.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        heeding.current_dir(dir);
    }
    heeding
}

/// Send a signal once the bucket has got the first request that `script` holds up.
fn is_aborted(signal: &str, mut script: impl FnMut(&Request) -> Act + Send + 'static) {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    large(dir.path());
    let (send, held_up) = mpsc::channel();
    bucket.script(move |request| {
        let is_part = parameter(request, "partNumber") == Some("3");
        if is_part || is(request, "POST", &["uploads"]) {
            let _ = send.send(());
        }
        script(request)
    });
    let command = bucket.bsz(dir.path(), &["cp", "large", "s3://bucket/large"]);
    let mut command = heeding_signals(&command);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("bsz starts");
    let begun = Duration::from_secs(60);
    held_up.recv_timeout(begun).expect("an upload begins");
    // If it is this request that is held up, no part is sent before the signal.
    let _ = held_up.recv_timeout(Duration::from_millis(500));
    let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
    assert!(kill.expect("kill").success());
    let ended = child.wait().expect("it ends");
    assert!(!ended.success(), "{ended:?}");
    // The answer may come later than the end.
    thread::sleep(Duration::from_secs(1));
    assert_eq!((bucket.keys().len(), bucket.unfinished()), (0, 0), "{signal}");
}

#[test]
fn urls_need_no_bucket_to_be_refused() {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join("f"), "f").expect("written");
    let plain = bsz()
        .env("AWS_ENDPOINT", "http://127.0.0.1:1")
        .env_remove("AWS_ALLOW_HTTP")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "HIDDEN")
        .args(["cp", "f", "s3://bucket/f"])
        .current_dir(dir.path())
        .output();
    let ran = common::program::Ran::from(plain.expect("bsz starts"));
    assert!(!ran.stderr.contains("HIDDEN"), "{ran:?}");
    ran.fails_about("s3://bucket/f", "AWS_ALLOW_HTTP");
}
