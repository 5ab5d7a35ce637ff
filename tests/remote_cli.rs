//! `info`, `verify` and `unpack` of URLs, from outside: results, messages, and what is never shown.

mod common;

use common::program::{Ran, bsz, names, packed_objects as packed, run, same_tree};
use common::web::{Act, Request, Server};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files below a directory, by their paths.
fn files(dir: &Path, below: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true => files(&entry.path(), &format!("{name}/"), found),
            false => drop(found.insert(name, fs::read(entry.path()).expect("read"))),
        }
    }
}

fn all_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    files(dir, "", &mut found);
    found
}

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

/// Serve a directory as nginx does with `autoindex_format json`.
fn autoindex(server: &Server, tree: &BTreeMap<String, Vec<u8>>) {
    let mut lists: BTreeMap<String, BTreeMap<String, serde_json::Value>> = BTreeMap::new();
    for (path, bytes) in tree {
        server.put(&format!("/d/{path}"), bytes, Some(path));
        let mut dir = "/d/".to_owned();
        let mut parts = path.split('/').peekable();
        while let Some(name) = parts.next() {
            let entry = match parts.peek() {
                Some(_) => serde_json::json!({ "name": name, "type": "directory" }),
                None => {
                    serde_json::json!({ "name": name, "type": "file", "size": bytes.len() })
                }
            };
            lists.entry(dir.clone()).or_default().insert(name.to_owned(), entry);
            dir = format!("{dir}{name}/");
        }
    }
    server.script(move |request| match lists.get(&request.path) {
        Some(list) => {
            let list: Vec<_> = list.values().collect();
            Act::Reply(200, Vec::new(), serde_json::to_vec(&list).expect("JSON"))
        }
        None => Act::Serve,
    });
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

/// A hub, which redirects to another host.
struct Hub {
    front: Server,
    back: Arc<Server>,
    /// The token that it accepts, and the signature that the other host accepts.
    accepts: Arc<Mutex<(String, u32)>>,
}

fn hub(tree: BTreeMap<String, Vec<u8>>) -> Hub {
    let (front, back) = (Server::start(), Arc::new(Server::start()));
    let accepts = Arc::new(Mutex::new(("good".to_owned(), 1)));
    for (path, bytes) in &tree {
        back.put(&format!("/cdn/{path}"), bytes, Some("the CDN's own"));
    }
    let accepted = Arc::clone(&accepts);
    back.script(move |request| {
        assert_eq!(request.header("authorization"), None, "a token went to another host");
        let (_, signature) = *accepted.lock().expect("accepted");
        match request.path.ends_with(&format!("?signature={signature}")) {
            true => Act::Serve,
            false => Act::Status(403, None),
        }
    });
    let (accepted, cdn, own) = (Arc::clone(&accepts), back.url("/cdn/"), front.url(""));
    front.script(move |request| {
        let (token, signature) = accepted.lock().expect("accepted").clone();
        if request.header("authorization") != Some(&format!("Bearer {token}")) {
            return Act::Status(401, None);
        }
        answer_as_hub(request, &tree, &cdn, &own, signature)
    });
    Hub { front, back, accepts }
}

fn answer_as_hub(
    request: &Request,
    tree: &BTreeMap<String, Vec<u8>>,
    cdn: &str,
    own: &str,
    signature: u32,
) -> Act {
    let reply = |headers: Vec<(String, String)>, json: serde_json::Value| {
        Act::Reply(200, headers, serde_json::to_vec(&json).expect("JSON"))
    };
    let path = request.path.as_str();
    if path == "/api/models/org/repo/revision/main" {
        return reply(Vec::new(), serde_json::json!({ "sha": SHA, "id": "org/repo" }));
    }
    let list = format!("/api/models/org/repo/tree/{SHA}?recursive=true");
    if let Some(page) = path.strip_prefix(&list) {
        // Two entries a page.
        let skip: usize = page.strip_prefix("&cursor=").map_or(0, |n| n.parse().expect("cursor"));
        let nodes: Vec<_> = tree.iter().skip(skip).take(2).map(node).collect();
        let next = format!("<{own}{list}&cursor={}>; rel=\"next\"", skip + 2);
        let more = skip + 2 < tree.len();
        let headers = if more { vec![("link".into(), next)] } else { Vec::new() };
        return reply(headers, nodes.into());
    }
    match path.strip_prefix(&format!("/org/repo/resolve/{SHA}/")) {
        Some(file) if tree.contains_key(file) => {
            let header = |name: &str, value: String| (name.to_owned(), value);
            let headers = vec![
                header("location", format!("{cdn}{file}?signature={signature}")),
                header("x-linked-size", tree[file].len().to_string()),
                header("x-linked-etag", format!("\"{}\"", oid(file))),
            ];
            Act::Reply(302, headers, Vec::new())
        }
        _ => Act::Status(404, None),
    }
}

fn oid(path: &str) -> String {
    path.bytes().map(|b| format!("{b:02x}")).collect()
}

fn node((path, bytes): (&String, &Vec<u8>)) -> serde_json::Value {
    let lfs = serde_json::json!({ "oid": oid(path), "size": bytes.len() });
    serde_json::json!({ "type": "file", "path": path, "size": 130, "oid": "pointer", "lfs": lfs })
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
