//! Metrics of a mount for Prometheus: its text format over HTTP, on a Unix or a loopback socket.

use super::status::Status;
use crate::error::{Context, Error, Result};
use crate::escape;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

/// How long a client may take to send its request, and to receive the response.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes of a request.
const MAX_REQUEST: usize = 8 << 10;

/// How long to wait after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// The path of a socket.
    Unix(PathBuf),
    /// A loopback address, which only this machine can reach.
    Loopback(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = Error;

    /// `unix:PATH`, `127.0.0.1:PORT` or `[::1]:PORT`.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            Ok(_) => Err(Error::invalid(
                "is reachable from other machines: use 127.0.0.1:PORT and a proxy",
            )),
            Err(_) => Err(Error::invalid("is neither unix:PATH nor 127.0.0.1:PORT")),
        }
    }
}

/// The socket on which metrics are served. A Unix socket is deleted when this is dropped.
pub(super) struct MetricsSocket(Option<PathBuf>);

impl Drop for MetricsSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Serve `status` at `address` on a thread of its own, one client at a time, until the process
/// exits.
///
/// # Errors
/// Io, if the address cannot be bound.
pub(super) fn serve(
    address: &MetricsAddress,
    status: impl Fn() -> Status + Send + 'static,
) -> Result<MetricsSocket> {
    match address {
        MetricsAddress::Loopback(address) => {
            let listener = TcpListener::bind(address).about(address)?;
            let set_timeouts = |s: &TcpStream| {
                s.set_read_timeout(Some(TIMEOUT)).and_then(|()| s.set_write_timeout(Some(TIMEOUT)))
            };
            start(move || listener.accept().map(|(stream, _)| stream), set_timeouts, status)?;
            Ok(MetricsSocket(None))
        }
        MetricsAddress::Unix(path) => {
            let listener = bind(path).about_path(path)?;
            let socket = MetricsSocket(Some(path.clone()));
            let set_timeouts = |s: &UnixStream| {
                s.set_read_timeout(Some(TIMEOUT)).and_then(|()| s.set_write_timeout(Some(TIMEOUT)))
            };
            start(move || listener.accept().map(|(stream, _)| stream), set_timeouts, status)?;
            Ok(socket)
        }
    }
}

/// Bind a Unix socket that only its user may connect to. Replaces a socket that nobody listens on.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let is_abandoned = || {
        path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket()) && is_refused(path)
    };
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_abandoned() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether nobody listens on the socket at `path`. Does not wait for a listener that does not
/// accept.
fn is_refused(path: &Path) -> bool {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let connected = socket.and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    connected == Err(rustix::io::Errno::CONNREFUSED)
}

/// Start the thread that serves all clients.
fn start<S: Read + Write>(
    accept: impl Fn() -> io::Result<S> + Send + 'static,
    set_timeouts: impl Fn(&S) -> io::Result<()> + Send + 'static,
    status: impl Fn() -> Status + Send + 'static,
) -> Result<()> {
    let serve_all = move || {
        loop {
            let outcome = accept().and_then(|mut stream| {
                set_timeouts(&stream)?;
                respond(&mut stream, &status())
            });
            if let Err(e) = outcome {
                log::debug!("metrics: {e}");
                // An immediate retry would not help if, for example, too many files are open.
                thread::sleep(ERROR_PAUSE);
            }
        }
    };
    thread::Builder::new().name("metrics".into()).spawn(serve_all).map(drop).about("metrics")
}

fn respond(stream: &mut (impl Read + Write), status: &Status) -> io::Result<()> {
    let started = Instant::now();
    let mut request = Vec::new();
    let mut block = [0; 1 << 10];
    // Read up to the empty line. A GET request has no body.
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut block)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&block[..n]),
        }
        if request.len() > MAX_REQUEST || started.elapsed() > TIMEOUT {
            return Ok(());
        }
    }
    let (code, body) = match request.starts_with(b"GET /metrics ") {
        true => ("200 OK", text(status)),
        false => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.0 {code}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.flush()
}

/// The metrics in Prometheus's text format.
fn text(status: &Status) -> String {
    let c = &status.cache;
    let metrics = [
        ("reads_total", "counter", "Completed reads", c.reads),
        ("read_errors_total", "counter", "Failed reads", c.errors),
        ("served_bytes_total", "counter", "Bytes returned to readers", c.served_bytes),
        ("decoded_bytes_total", "counter", "Bytes decoded", c.decoded_bytes),
        ("stored_bytes_total", "counter", "Bytes read from archives", c.stored_bytes),
        ("chunk_hits_total", "counter", "Requested chunks that were cached", c.hits),
        ("chunk_joins_total", "counter", "Requested chunks that were in flight", c.joined),
        ("chunk_misses_total", "counter", "Requested chunks that had to be decoded", c.misses),
        ("chunk_evictions_total", "counter", "Chunks evicted from the cache", c.evictions),
        ("ahead_chunks_total", "counter", "Chunks decoded by readahead", c.ahead),
        ("ahead_used_chunks_total", "counter", "Readahead chunks later requested", c.ahead_used),
        ("cache_bytes", "gauge", "Bytes of decoded chunks in the cache", c.held_bytes),
        ("cache_capacity_bytes", "gauge", "Most bytes in the cache", c.capacity_bytes),
        ("start_time_seconds", "gauge", "Time of mounting, since the epoch", status.since),
    ];
    let mountpoint = escape::path(&status.mountpoint);
    let mountpoint = mountpoint.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    metrics.iter().fold(String::new(), |text, (name, kind, help, value)| {
        format!(
            "{text}# HELP bszfs_{name} {help}\n# TYPE bszfs_{name} {kind}\n\
             bszfs_{name}{{mountpoint=\"{mountpoint}\"}} {value}\n"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_other_machines_reach_are_refused() {
        for wrong in [
            "",
            "unix:",
            "0.0.0.0:9000",
            "192.168.0.1:9000",
            "[::]:9000",
            "localhost",
            "9000",
            "127.0.0.1",
        ] {
            assert!(wrong.parse::<MetricsAddress>().is_err(), "{wrong}");
        }
        assert_eq!("unix:a b".parse().ok(), Some(MetricsAddress::Unix("a b".into())));
        for right in ["127.0.0.1:9000", "[::1]:0"] {
            assert!(matches!(right.parse(), Ok(MetricsAddress::Loopback(_))), "{right}");
        }
    }
}
