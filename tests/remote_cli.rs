//! `info`, `verify` and `unpack` of URLs, from outside: results, messages, and what is never shown.

mod common;

use common::objects::{all_files, autoindex, hub};
use common::program::{Ran, bsz, names, packed_objects as packed, run, same_tree};
use common::web::{Act, Server};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

fn at(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = bsz();
    for variable in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(variable);
    }
    command.envs(env.iter().copied()).args(args).current_dir(dir).output().expect("bsz").into()
}

#[test]
fn an_archive_is_described_verified_and_unpacked_by_its_url() {
    let (dir, server) = (packed(), Server::start());
    let name = "model-00001-of-00003";
    let stored = fs::read(dir.path().join(format!("p/{name}.bsz"))).expect("packed");
    server.put(&format!("/{name}.bsz"), &stored, Some("tag"));
    let url = server.url(&format!("/{name}.bsz?signature=SECRET"));
    let shown = server.url(&format!("/{name}.bsz"));
    let local = run(dir.path(), &["info", &format!("p/{name}.bsz")]).ok().stdout;
    let remote = run(dir.path(), &["info", &url]).ok().stdout;
    assert_eq!(remote, local.replace(&format!("p/{name}.bsz"), &shown));
    let verified = run(dir.path(), &["verify", &url]).ok().stdout;
    assert!(verified.starts_with(&format!("{shown}: verified, ")), "{verified}");
    run(dir.path(), &["unpack", &url]).ok();
    run(dir.path(), &["unpack", &url, "-o", "other"]).ok();
    let original = fs::read(dir.path().join(format!("s/{name}.safetensors"))).expect("original");
    for out in ["other", &format!("{name}.safetensors")] {
        assert!(fs::read(dir.path().join(out)).expect("unpacked") == original, "{out}");
    }
    let again = run(dir.path(), &["unpack", "--json", &url]).ok();
    assert_eq!(again.json()["files"][0]["action"], "already done");
    assert!(!again.stdout.contains("SECRET") && !verified.contains("SECRET"));
}

#[test]
fn errors_say_what_and_why_and_leave_no_file() {
    let (dir, server) = (packed(), Server::start());
    let stored = fs::read(dir.path().join("p/model-00002-of-00003.bsz")).expect("packed");
    server.put("/m.bsz", &stored, Some("tag"));
    server.put("/text", b"text", Some("text"));
    let url = |path: &str| server.url(path);
    let empty = TempDir::new().expect("a directory");
    let fails = |args: &[&str], what: &str, why: &str| {
        let ran = at(empty.path(), &[], args);
        assert!(!ran.stderr.contains("SECRET"), "{ran:?}");
        ran.fails_about(what, why);
        assert_eq!(names(empty.path()), Vec::<String>::new());
    };
    fails(&["info", &url("/none?SECRET")], &url("/none"), "no such object");
    fails(&["verify", &url("/text?SECRET")], &url("/text"), "not a .bsz archive");
    fails(&["unpack", &url("/text")], &url("/text"), "not a .bsz archive");
    fails(&["info", "http://me:SECRET@host/x"], "URL", "must not hold credentials");
    fails(&["unpack", "s3://b/../SECRET"], "URL", "component");
    fails(&["unpack", &url("/d/")], &url("/d/"), "no such object");
    // After the index was read, the server refuses everything.
    let mut left = 1;
    server.script(move |_| {
        left -= 1;
        if left < 0 { Act::Status(403, None) } else { Act::Serve }
    });
    let large = vec![0; 3 << 20];
    let prefixed = [&stored[..16], &large].concat();
    server.put("/cut.bsz", &prefixed, Some("cut"));
    fails(&["unpack", &url("/cut.bsz?SECRET")], &url("/cut.bsz"), "403 Forbidden");
    server.script(|_| Act::Mute);
    let slow = ["unpack", &url("/m.bsz"), "-o", "out", "--remote-timeout", "1"];
    fails(&slow, &url("/m.bsz"), "timed out");
}

#[test]
fn directories_of_web_servers_are_unpacked_if_they_are_listed() {
    let (dir, server) = (packed(), Server::start());
    autoindex(&server, &all_files(&dir.path().join("p")));
    let url = server.url("/d/");
    run(dir.path(), &["unpack", &url, "-o", "u"]).ok();
    same_tree(&dir.path().join("s"), &dir.path().join("u"));
    let again = run(dir.path(), &["unpack", "--json", &url, "-o", "u"]).ok().json();
    let files = again["files"].as_array().expect("files");
    assert!(files.iter().all(|file| file["action"] == "already done"), "{again}");
    let info = run(dir.path(), &["info", "--json", &url]).ok().json();
    assert_eq!(info["archives"].as_array().expect("archives").len(), 4);
    run(dir.path(), &["verify", &url]).ok();
    let e = run(dir.path(), &["unpack", &url]);
    e.fails_about(&url, "is a directory, which needs -o OUT");
}

#[test]
fn a_repository_of_a_hub_is_unpacked_and_its_token_stays_there() {
    let dir = packed();
    let hub = hub(all_files(&dir.path().join("p")));
    let endpoint = hub.front.url("");
    let env = [("HF_ENDPOINT", endpoint.as_str()), ("HF_TOKEN", "good")];
    at(dir.path(), &env, &["unpack", "hf://org/repo", "-o", "u"]).ok();
    same_tree(&dir.path().join("s"), &dir.path().join("u"));
    let one = "hf://org/repo/sub/adapter.bsz";
    let info = at(dir.path(), &env, &["info", one]).ok();
    assert!(info.stdout.starts_with(&format!("{one}: ")), "{}", info.stdout);
    let all = at(dir.path(), &env, &["info", "hf://org/repo/sub"]).ok();
    assert!(all.stdout.contains("adapter.bsz"), "{}", all.stdout);
    at(dir.path(), &env, &["verify", "hf://org/repo"]).ok();
    at(dir.path(), &env, &["info", "hf://org/repo/none.bsz"])
        .fails_about("hf://org/repo/none.bsz", "no such object");
    let wrong = [env[0], ("HF_TOKEN", "bad-SECRET")];
    let ran = at(dir.path(), &wrong, &["verify", "hf://org/repo"]);
    assert!(!ran.stderr.contains("SECRET"), "{ran:?}");
    ran.fails_about("hf://org/repo/", "401 Unauthorized");
}

#[test]
fn signatures_and_tokens_that_expire_are_renewed() {
    let dir = packed();
    let hub = hub(all_files(&dir.path().join("p")));
    let token = dir.path().join("token");
    fs::write(&token, "good\n").expect("written");
    let endpoint = hub.front.url("");
    let path = token.to_string_lossy().into_owned();
    let env = [("HF_ENDPOINT", endpoint.as_str()), ("HF_TOKEN_PATH", path.as_str())];
    // After each third answer of the other host, signatures and the token are new ones.
    let (accepts, mut answers) = (Arc::clone(&hub.accepts), 0u32);
    hub.back.script(move |request| {
        let (known, signature) = &mut *accepts.lock().expect("accepted");
        if !request.path.ends_with(&format!("?signature={signature}")) {
            return Act::Status(403, None);
        }
        answers += 1;
        if answers.is_multiple_of(3) {
            *signature += 1;
            *known = format!("token-{signature}");
            fs::write(&token, known.as_str()).expect("written");
        }
        Act::Serve
    });
    at(dir.path(), &env, &["unpack", "hf://org/repo", "-o", "u"]).ok();
    same_tree(&dir.path().join("s"), &dir.path().join("u"));
}

#[test]
fn a_disk_cache_serves_the_next_command() {
    let (dir, server) = (packed(), Server::start());
    let stored = fs::read(dir.path().join("p/model-00003-of-00003.bsz")).expect("packed");
    server.put("/m.bsz", &stored, Some("tag"));
    let url = server.url("/m.bsz");
    let verify = ["verify", &url, "--disk-cache", "cache", "--disk-cache-size", "1GiB"];
    run(dir.path(), &verify).ok();
    server.requests();
    run(dir.path(), &verify).ok();
    assert_eq!(server.requests().len(), 1, "only what the object is");
    run(dir.path(), &["info", &url, "--disk-cache", "cache"]).ok();
    assert_eq!(server.requests().len(), 1);
}
