//! Directories of objects on servers of tests: a web server with listings, and a hub.

use super::web::{Act, Request, Server};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

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

pub fn all_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    files(dir, "", &mut found);
    found
}

/// Serve a directory as nginx does with `autoindex_format json`.
pub fn autoindex(server: &Server, tree: &BTreeMap<String, Vec<u8>>) {
    let list = listed(server, tree);
    server.script(move |request| list(request).unwrap_or_default());
}

/// Put the files of a directory below `/d/`. Returns what answers the requests for listings.
pub fn listed(
    server: &Server,
    tree: &BTreeMap<String, Vec<u8>>,
) -> impl Fn(&Request) -> Option<Act> + Send + use<> {
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
    move |request| {
        let list: Vec<_> = lists.get(&request.path)?.values().collect();
        Some(Act::Reply(200, Vec::new(), serde_json::to_vec(&list).expect("JSON")))
    }
}

/// A hub, which redirects to another host.
pub struct Hub {
    pub front: Server,
    pub back: Arc<Server>,
    /// The token that it accepts, and the signature that the other host accepts.
    pub accepts: Arc<Mutex<(String, u32)>>,
}

pub fn hub(tree: BTreeMap<String, Vec<u8>>) -> Hub {
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
