//! A bucket of S3 that misbehaves on script: conditional writes, uploads in parts, listings.

use super::program::{Ran, bsz};
use super::web::{Act, Request, Server, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

type Script = Box<dyn FnMut(&Request) -> Act + Send>;

/// The parts of an upload, by their numbers.
type Parts = BTreeMap<u32, Vec<u8>>;

#[derive(Default)]
struct State {
    /// By the key and the id of the upload.
    uploads: BTreeMap<(String, u32), Parts>,
    begun: u32,
    written: u32,
    /// Asked first; whatever it lets serve is answered by the bucket.
    script: Option<Script>,
}

/// The bucket `bucket` of a server.
pub struct Bucket {
    pub server: Server,
    pub store: Store,
    state: Arc<Mutex<State>>,
}

impl Bucket {
    pub fn start() -> Self {
        let server = Server::start();
        let (store, state) = (server.store(), Arc::new(Mutex::new(State::default())));
        let (objects, shared) = (store.clone(), Arc::clone(&state));
        server.script(move |request| {
            let mut state = shared.lock().expect("the state");
            match state.script.as_mut().map(|script| script(request)) {
                None | Some(Act::Serve) => answer(request, &mut state, &objects),
                Some(act) => act,
            }
        });
        Self { server, store, state }
    }

    /// Decide about each request first: what is served is answered by the bucket.
    pub fn script(&self, script: impl FnMut(&Request) -> Act + Send + 'static) {
        self.state.lock().expect("the state").script = Some(Box::new(script));
    }

    /// How many uploads have begun and were neither completed nor aborted.
    pub fn unfinished(&self) -> usize {
        self.state.lock().expect("the state").uploads.len()
    }

    /// The bytes of an object.
    pub fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.store.get(&format!("/bucket/{key}")).map(|object| object.bytes.to_vec())
    }

    pub fn keys(&self) -> Vec<String> {
        let paths = self.store.paths();
        paths.iter().filter_map(|path| path.strip_prefix("/bucket/")).map(String::from).collect()
    }

    /// `bsz` with the bucket in its environment.
    pub fn bsz(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = bsz();
        for variable in ["HTTP_PROXY", "http_proxy"] {
            command.env_remove(variable);
        }
        command
            .env("AWS_ENDPOINT", self.server.url(""))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "HIDDEN")
            .env("AWS_REGION", "us-east-1")
            .args(args)
            .current_dir(dir);
        command
    }

    /// Run `bsz`, which must not show secrets.
    #[track_caller]
    pub fn run(&self, dir: &Path, args: &[&str]) -> Ran {
        let ran = Ran::from(self.bsz(dir, args).output().expect("bsz starts"));
        assert!(!ran.stdout.contains("HIDDEN") && !ran.stderr.contains("HIDDEN"), "{ran:?}");
        ran
    }
}

/// The value of a parameter of a query; the empty text for one without a value.
pub fn parameter<'r>(request: &'r Request, name: &str) -> Option<&'r str> {
    let (_, query) = request.path.split_once('?')?;
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (pair == name).then_some(""),
    })
}

fn ok(headers: Vec<(&str, String)>, body: String) -> Act {
    let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Act::Reply(200, headers, body.into_bytes())
}

fn answer(request: &Request, state: &mut State, store: &Store) -> Act {
    let path = request.path.split('?').next().unwrap_or_default().to_owned();
    let exists = request.header("if-none-match") == Some("*") && store.get(&path).is_some();
    let upload = parameter(request, "uploadId").map(|id| (path.clone(), id.parse().unwrap_or(0)));
    match (request.method.as_str(), upload) {
        ("POST", None) if parameter(request, "uploads").is_some() => {
            state.begun += 1;
            let id = state.begun;
            state.uploads.insert((path, id), Parts::new());
            let tag = "InitiateMultipartUploadResult";
            ok(Vec::new(), format!("<{tag}><UploadId>{id}</UploadId></{tag}>"))
        }
        ("PUT", Some(upload)) => match state.uploads.get_mut(&upload) {
            Some(parts) => {
                let number = parameter(request, "partNumber").and_then(|n| n.parse().ok());
                parts.insert(number.expect("a number"), request.body.clone());
                ok(vec![("etag", "\"part\"".into())], String::new())
            }
            None => Act::Status(404, None),
        },
        ("POST", Some(_)) if exists => Act::Status(412, None),
        ("POST", Some(upload)) => match state.uploads.remove(&upload) {
            Some(parts) => {
                let tag = write(state, store, &path, parts.into_values().flatten().collect());
                let name = "CompleteMultipartUploadResult";
                ok(Vec::new(), format!("<{name}><ETag>\"{tag}\"</ETag></{name}>"))
            }
            None => Act::Status(404, None),
        },
        ("DELETE", Some(upload)) => {
            state.uploads.remove(&upload);
            Act::Reply(204, Vec::new(), Vec::new())
        }
        ("DELETE", None) => match store.get(&path).and_then(|object| object.etag) {
            Some(tag) if request.header("if-match") == Some(&format!("\"{tag}\"")) => {
                store.remove(&path);
                Act::Reply(204, Vec::new(), Vec::new())
            }
            _ => Act::Status(412, None),
        },
        ("POST", None) if parameter(request, "delete").is_some() => delete(request, store, &path),
        ("PUT", None) if exists => Act::Status(412, None),
        ("PUT", None) => {
            let tag = write(state, store, &path, request.body.clone());
            ok(vec![("etag", format!("\"{tag}\""))], String::new())
        }
        ("GET", None) if parameter(request, "list-type").is_some() => list(request, store),
        _ => Act::Serve,
    }
}

/// Put an object; returns its entity tag.
fn write(state: &mut State, store: &Store, path: &str, bytes: Vec<u8>) -> String {
    state.written += 1;
    let tag = format!("tag-{}", state.written);
    store.put(path, bytes, tag.clone());
    tag
}

fn delete(request: &Request, store: &Store, bucket: &str) -> Act {
    let body = String::from_utf8_lossy(&request.body);
    let mut deleted = String::new();
    for key in body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
        store.remove(&format!("{}/{key}", bucket.trim_end_matches('/')));
        deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
    }
    ok(Vec::new(), format!("<DeleteResult>{deleted}</DeleteResult>"))
}

/// The objects and the common prefixes below a prefix.
fn list(request: &Request, store: &Store) -> Act {
    let prefix = parameter(request, "prefix").unwrap_or_default().replace("%2F", "/");
    let (mut objects, mut prefixes) = (String::new(), BTreeSet::new());
    for path in store.paths() {
        let Some(key) = path.strip_prefix("/bucket/") else { continue };
        let Some(rest) = key.strip_prefix(&prefix) else { continue };
        if let Some((dir, _)) = rest.split_once('/') {
            prefixes.insert(format!("{prefix}{dir}/"));
            continue;
        }
        let Some(object) = store.get(&path) else { continue };
        objects += &format!(
            "<Contents><Key>{key}</Key><LastModified>2026-08-01T10:00:00.000Z</LastModified>\
             <ETag>\"{}\"</ETag><Size>{}</Size></Contents>",
            object.etag.unwrap_or_default(),
            object.bytes.len()
        );
    }
    let prefixes: String = prefixes
        .iter()
        .map(|p| format!("<CommonPrefixes><Prefix>{p}</Prefix></CommonPrefixes>"))
        .collect();
    let name = "ListBucketResult";
    ok(Vec::new(), format!("<{name}>{objects}{prefixes}<IsTruncated>false</IsTruncated></{name}>"))
}
