//! A mount's figures for Prometheus: its text format over HTTP, on a Unix or a loopback socket.

use super::Status;
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

/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of a request.
const LONGEST: usize = 8 << 10;

/// How long to wait after an error.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// The path of a socket.
    Unix(PathBuf),
    /// A port of this machine that only this machine reaches.
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
            Ok(_) => {
                Err(Error::invalid("is not of this machine alone: take 127.0.0.1:PORT and a proxy"))
            }
            Err(_) => Err(Error::invalid("is neither unix:PATH nor 127.0.0.1:PORT")),
        }
    }
}

/// A socket on which figures can be asked for; a Unix one is removed when this is dropped.
pub(super) struct Listening(Option<PathBuf>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Answer everybody who asks at `address` with `status`, one after another, as long as the process lives.
///
/// # Errors
/// Io, where the address cannot be had.
pub(super) fn listen(
    address: &MetricsAddress,
    status: impl Fn() -> Status + Send + 'static,
) -> Result<Listening> {
    match address {
        MetricsAddress::Loopback(address) => {
            let listener = TcpListener::bind(address).about(address)?;
            let limit = |s: &TcpStream| {
                s.set_read_timeout(Some(PATIENCE))
                    .and_then(|()| s.set_write_timeout(Some(PATIENCE)))
            };
            serve(move || listener.accept().map(|(stream, _)| stream), limit, status)?;
            Ok(Listening(None))
        }
        MetricsAddress::Unix(path) => {
            let listener = bind(path).about_path(path)?;
            let listening = Listening(Some(path.clone()));
            let limit = |s: &UnixStream| {
                s.set_read_timeout(Some(PATIENCE))
                    .and_then(|()| s.set_write_timeout(Some(PATIENCE)))
            };
            serve(move || listener.accept().map(|(stream, _)| stream), limit, status)?;
            Ok(listening)
        }
    }
}

/// A Unix socket at `path`, in place of one that nobody listens on any more; for its user alone.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let left_behind = || {
        path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket()) && is_refused(path)
    };
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && left_behind() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether nobody listens on the socket at `path`. Who listens and does not answer is not waited for.
fn is_refused(path: &Path) -> bool {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let connected = socket.and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    connected == Err(rustix::io::Errno::CONNREFUSED)
}

/// Start the thread that answers.
fn serve<S: Read + Write>(
    accept: impl Fn() -> io::Result<S> + Send + 'static,
    limit: impl Fn(&S) -> io::Result<()> + Send + 'static,
    status: impl Fn() -> Status + Send + 'static,
) -> Result<()> {
    let answer_all = move || {
        loop {
            let outcome = accept().and_then(|mut stream| {
                limit(&stream)?;
                answer(&mut stream, &status())
            });
            if let Err(e) = outcome {
                log::debug!("metrics: {e}");
                // Such as too many open files, which another attempt at once would not change.
                thread::sleep(PAUSE);
            }
        }
    };
    thread::Builder::new().name("metrics".into()).spawn(answer_all).map(drop).about("metrics")
}

fn answer(stream: &mut (impl Read + Write), status: &Status) -> io::Result<()> {
    let begun = Instant::now();
    let mut request = Vec::new();
    let mut block = [0; 1 << 10];
    // Up to the empty line; nothing that is asked for has a body.
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut block)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&block[..n]),
        }
        if request.len() > LONGEST || begun.elapsed() > PATIENCE {
            return Ok(());
        }
    }
    let (code, body) = match request.starts_with(b"GET /metrics ") {
        true => ("200 OK", text(status)),
        false => ("404 Not Found", "ask for /metrics\n".to_owned()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.0 {code}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.flush()
}

/// The figures in Prometheus's text format.
fn text(status: &Status) -> String {
    let c = &status.cache;
    let figures = [
        ("reads_total", "counter", "Reads that were answered", c.reads),
        ("read_errors_total", "counter", "Reads that failed", c.errors),
        ("served_bytes_total", "counter", "Bytes given to readers", c.served_bytes),
        ("decoded_bytes_total", "counter", "Bytes decoded", c.decoded_bytes),
        ("stored_bytes_total", "counter", "Bytes of archives read for that", c.stored_bytes),
        ("chunk_hits_total", "counter", "Chunks that were present when asked for", c.hits),
        ("chunk_joins_total", "counter", "Chunks that were on their way when asked for", c.joined),
        ("chunk_misses_total", "counter", "Chunks that were decoded when asked for", c.misses),
        ("chunk_evictions_total", "counter", "Chunks dropped for room", c.evictions),
        ("ahead_chunks_total", "counter", "Chunks decoded ahead", c.ahead),
        (
            "ahead_used_chunks_total",
            "counter",
            "Chunks decoded ahead and asked for since",
            c.ahead_used,
        ),
        ("cache_bytes", "gauge", "Bytes of decoded chunks that are held", c.held_bytes),
        ("cache_capacity_bytes", "gauge", "Most bytes of decoded chunks to hold", c.capacity_bytes),
        ("start_time_seconds", "gauge", "When it was mounted, since the epoch", status.since),
    ];
    let mountpoint = escape::path(&status.mountpoint);
    let mountpoint = mountpoint.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    figures.iter().fold(String::new(), |text, (name, kind, help, value)| {
        format!(
            "{text}# HELP bszfs_{name} {help}\n# TYPE bszfs_{name} {kind}\nbszfs_{name}{{mountpoint=\"{mountpoint}\"}} {value}\n"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_ask() {
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
