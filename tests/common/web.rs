//! An HTTP server that misbehaves on script: one thread for each connection, nothing between the
//! script and the socket.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    /// By names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What to do with a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Act {
    /// Answer it.
    #[default]
    Serve,
    /// Answer, but break the connection after so many bytes of the body.
    Cut(usize),
    /// Answer, but fall silent after so many bytes of the body.
    Silence(usize),
    /// Say nothing at all.
    Mute,
    /// Answer in so many pieces, with pauses of so many milliseconds.
    Trickle(usize, u64),
    /// Break the connection without an answer.
    Reset,
    /// Answer with this status, and this `Retry-After`.
    Status(u16, Option<u64>),
    /// Answer a range with 200 and everything.
    Whole,
    /// Claim that the object has another size.
    OtherSize,
    /// Send the range that starts so many bytes later, and say so.
    OtherRange(u64),
    /// Send fewer bytes than the length says, and end properly by that.
    Shorter(usize),
    /// Send more bytes than were asked for.
    Longer(usize),
    /// Answer with another ETag, or none.
    Tag(Option<String>),
    /// Flip a bit of the body.
    Flip(usize),
    /// Redirect to a URL.
    Redirect(u16, String),
    /// Answer with this status, these headers and this body.
    Reply(u16, Vec<(String, String)>, Vec<u8>),
    /// Answer after so many milliseconds.
    Late(u64),
}

#[derive(Clone)]
pub struct Object {
    pub bytes: Arc<Vec<u8>>,
    pub etag: Option<String>,
}

pub type Script = Box<dyn FnMut(&Request) -> Act + Send>;

#[derive(Default)]
struct State {
    objects: Mutex<HashMap<String, Object>>,
    script: Mutex<Option<Script>>,
    requests: Mutex<Vec<Request>>,
    sent: AtomicUsize,
    ignores_if_match: AtomicBool,
    stopped: AtomicBool,
}

/// The objects of a server.
#[derive(Clone)]
pub struct Store(Arc<State>);

impl Store {
    pub fn get(&self, path: &str) -> Option<Object> {
        self.0.objects.lock().expect("the objects").get(path).cloned()
    }

    pub fn put(&self, path: &str, bytes: Vec<u8>, etag: String) {
        let object = Object { bytes: Arc::new(bytes), etag: Some(etag) };
        self.0.objects.lock().expect("the objects").insert(path.into(), object);
    }

    pub fn remove(&self, path: &str) {
        self.0.objects.lock().expect("the objects").remove(path);
    }

    /// The paths of all objects, sorted.
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<_> =
            self.0.objects.lock().expect("the objects").keys().cloned().collect();
        paths.sort();
        paths
    }
}

pub struct Server {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let acceptor = thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming().flatten() {
                if shared.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let shared = Arc::clone(&shared);
                connections.push(thread::spawn(move || {
                    let _ = serve(&stream, &shared);
                    let _ = stream.shutdown(Shutdown::Both);
                }));
                connections.retain(|connection| !connection.is_finished());
            }
            connections.into_iter().for_each(|connection| drop(connection.join()));
        });
        Self { address, state, acceptor: Some(acceptor) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Put an object, or replace it.
    pub fn put(&self, path: &str, bytes: &[u8], etag: Option<&str>) {
        let object = Object { bytes: Arc::new(bytes.to_vec()), etag: etag.map(String::from) };
        self.state.objects.lock().expect("the objects").insert(path.into(), object);
    }

    /// What puts and removes objects, for scripts.
    pub fn store(&self) -> Store {
        Store(Arc::clone(&self.state))
    }

    pub fn remove(&self, path: &str) {
        self.state.objects.lock().expect("the objects").remove(path);
    }

    /// Decide about each request from now on.
    pub fn script(&self, script: impl FnMut(&Request) -> Act + Send + 'static) {
        *self.state.script.lock().expect("the script") = Some(Box::new(script));
    }

    /// Do these things in turn, then serve.
    pub fn acts(&self, acts: Vec<Act>) {
        let mut acts = acts.into_iter();
        self.script(move |_| acts.next().unwrap_or_default());
    }

    pub fn ignore_if_match(&self) {
        self.state.ignores_if_match.store(true, Ordering::Relaxed);
    }

    /// The requests since the last time.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.state.requests.lock().expect("the requests"))
    }

    /// The bytes of bodies that were sent so far.
    pub fn sent(&self) -> usize {
        self.state.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        self.acceptor.take().map(JoinHandle::join);
    }
}

const POLL: Duration = Duration::from_millis(20);

fn serve(mut stream: &TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(POLL))?;
    let mut buffer = Vec::new();
    loop {
        let Some(request) = next_request(stream, &mut buffer, state)? else { return Ok(()) };
        state.requests.lock().expect("the requests").push(request.clone());
        let act = state.script.lock().expect("the script").as_mut().map(|script| script(&request));
        let act = act.unwrap_or_default();
        match act {
            Act::Reset => return Ok(()),
            Act::Mute => return hang(stream, state),
            Act::Late(pause) => thread::sleep(Duration::from_millis(pause)),
            _ => {}
        }
        let (head, body, cut) = answer(&request, &act, state);
        stream.write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            // First, since the client may look as soon as it has them.
            state.sent.fetch_add(body.len(), Ordering::Relaxed);
            match act {
                Act::Trickle(pieces, pause) => {
                    for piece in body.chunks(body.len().div_ceil(pieces).max(1)) {
                        stream.write_all(piece)?;
                        thread::sleep(Duration::from_millis(pause));
                        if state.stopped.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                    }
                }
                _ => stream.write_all(&body[..cut.unwrap_or(body.len())])?,
            }
        }
        match (act, cut) {
            (Act::Silence(_), _) => return hang(stream, state),
            (_, Some(_)) => return Ok(()),
            _ => {}
        }
    }
}

/// Keep the connection open until the client closes it, or the server ends.
fn hang(mut stream: &TcpStream, state: &State) -> std::io::Result<()> {
    let mut sink = [0; 1024];
    while !state.stopped.load(Ordering::Relaxed) {
        match stream.read(&mut sink) {
            Ok(0) => break,
            Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            _ => {}
        }
    }
    Ok(())
}

fn next_request(
    mut stream: &TcpStream,
    buffer: &mut Vec<u8>,
    state: &State,
) -> std::io::Result<Option<Request>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let mut request = parse(&String::from_utf8_lossy(&buffer[..end]));
            let length = request.header("content-length").and_then(|n| n.parse().ok());
            let whole = end + 4 + length.unwrap_or(0);
            if buffer.len() >= whole {
                request.body = buffer[end + 4..whole].to_vec();
                buffer.drain(..whole);
                return Ok(Some(request));
            }
        }
        let mut piece = [0; 64 << 10];
        match stream.read(&mut piece) {
            Ok(0) => return Ok(None),
            Ok(n) => buffer.extend_from_slice(&piece[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if state.stopped.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
            Err(e) => return Err(e),
        }
    }
}

fn parse(head: &str) -> Request {
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(String::from);
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    Request { method, path, headers: lines.filter_map(header).collect(), body: Vec::new() }
}

/// The head and the body of an answer, and after how many bytes the connection breaks.
fn answer(request: &Request, act: &Act, state: &State) -> (String, Vec<u8>, Option<usize>) {
    let simple = |status: u16, headers: &str, body: &[u8]| {
        let head =
            format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        (head, body.to_vec(), None)
    };
    match act {
        Act::Status(status, after) => {
            let after = after.map_or(String::new(), |s| format!("retry-after: {s}\r\n"));
            return simple(*status, &after, b"busy");
        }
        Act::Redirect(status, to) => return simple(*status, &format!("location: {to}\r\n"), b""),
        Act::Reply(status, headers, body) => {
            let headers: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
            return simple(*status, &headers, body);
        }
        _ => {}
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let Some(object) = state.objects.lock().expect("the objects").get(path).cloned() else {
        return simple(404, "", b"no such object");
    };
    if let (Some(wanted), Some(etag)) = (request.header("if-match"), &object.etag)
        && wanted != format!("\"{etag}\"")
        && !state.ignores_if_match.load(Ordering::Relaxed)
    {
        return simple(412, "", b"");
    }
    serve_object(request, act, &object)
}

fn serve_object(request: &Request, act: &Act, object: &Object) -> (String, Vec<u8>, Option<usize>) {
    let size = object.bytes.len() as u64;
    let range = request.header("range").and_then(|text| wanted(text, size));
    let tag = match act {
        Act::Tag(tag) => tag.clone(),
        _ => object.etag.clone(),
    };
    let tag = match tag {
        Some(tag) if tag.starts_with("W/") => format!("etag: {tag}\r\n"),
        Some(tag) => format!("etag: \"{tag}\"\r\n"),
        None => String::new(),
    };
    let modified = "last-modified: Sat, 01 Aug 2026 10:00:00 GMT\r\n";
    let (mut first, mut end) = range.unwrap_or((0, size));
    let is_whole = range.is_none() || *act == Act::Whole;
    if is_whole {
        (first, end) = (0, size);
    }
    if let Act::OtherRange(by) = act {
        first = (first + by).min(end - 1);
    }
    let mut body = object.bytes[first as usize..end as usize].to_vec();
    let total = if *act == Act::OtherSize { size + 1 } else { size };
    let mut cut = None;
    let mut length = body.len();
    match act {
        Act::Cut(n) | Act::Silence(n) => cut = Some((*n).min(body.len().saturating_sub(1))),
        Act::Shorter(n) => {
            body.truncate(body.len().saturating_sub(*n).max(1));
            length = body.len();
        }
        Act::Longer(n) => {
            body.extend(vec![7; *n]);
            length = body.len();
        }
        Act::Flip(at) if !body.is_empty() => {
            let at = at % body.len();
            body[at] ^= 1 << (at % 8);
        }
        _ => {}
    }
    let (status, range) = match is_whole {
        true => (200, String::new()),
        false => (206, format!("content-range: bytes {first}-{}/{total}\r\n", end.max(1) - 1)),
    };
    let head =
        format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{range}{tag}{modified}\r\n");
    (head, body, cut)
}

/// `bytes=0-9` or `bytes=-10`, as start and end.
fn wanted(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        return Some((size.saturating_sub(last.parse().ok()?), size));
    }
    let last: u64 = last.parse().ok()?;
    Some((first.parse().ok()?, (last + 1).min(size)))
}

/// The threads and descriptors of this process.
pub fn threads_and_descriptors() -> (usize, usize) {
    let count = |dir| std::fs::read_dir(dir).map_or(0, Iterator::count);
    (count("/proc/self/task"), count("/proc/self/fd"))
}
