//! A TCP proxy that makes a server seem far away:  delay_proxy LISTEN SERVER MILLISECONDS
//!
//! Every byte arrives half the round trip of MILLISECONDS late, in each direction, and the first
//! ones of a connection a round trip later, for its handshake. As on a long line, this limits no
//! rate: what is on its way waits in memory, 32 MiB in each direction of a connection at most. The
//! ends of both directions and broken connections arrive late, too. Prints the address on which it
//! listens, and serves until it is killed. For `benches/remote.py`, where the kernel has no netem.

use std::{
    collections::VecDeque,
    env,
    error::Error,
    io::{self, Read, Write, stdout},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The most bytes on their way in one direction of a connection.
const WINDOW: usize = 32 << 20;
/// How much is read at once.
const READ: usize = 256 << 10;

/// One direction of a connection: bytes, and when each piece is due. An empty piece is the end.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// Nobody takes pieces any more.
    broken: bool,
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Add a piece once there is room for it; false if nobody takes it.
    fn put(&self, due: Instant, piece: Vec<u8>) -> bool {
        let full = |state: &mut State| state.bytes >= WINDOW && !state.broken;
        let waited = self.changed.wait_while(self.state(), full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.bytes += piece.len();
        state.pieces.push_back((due, piece));
        self.changed.notify_all();
        !state.broken
    }

    /// The next piece, once it is due.
    fn take(&self) -> Vec<u8> {
        let none = |state: &mut State| state.pieces.is_empty();
        let waited = self.changed.wait_while(self.state(), none);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let Some((due, piece)) = state.pieces.pop_front() else { return Vec::new() };
        state.bytes -= piece.len();
        self.changed.notify_all();
        drop(state);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        piece
    }

    fn hang_up(&self) {
        self.state().broken = true;
        self.changed.notify_all();
    }
}

/// Read until the end, and note when each piece is due.
fn read(mut from: &TcpStream, line: &Line, start: Instant, delay: Duration) {
    let mut buffer = vec![0; READ];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let due = Instant::now().max(start) + delay;
        if !line.put(due, buffer[..length].to_vec()) || length == 0 {
            return;
        }
    }
}

/// Write what is due. If the receiver is gone, the sender gets to know by a broken connection.
fn write(mut to: &TcpStream, line: &Line, from: &TcpStream) {
    loop {
        let piece = line.take();
        if piece.is_empty() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&piece).is_err() {
            line.hang_up();
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Carry one connection until both of its directions have ended.
fn carry(client: TcpStream, server: &str, round_trip: Duration) -> io::Result<()> {
    let accepted = Instant::now();
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let pair = Arc::new((client, server));
    let lines = Arc::new((Line::default(), Line::default()));
    let (delay, start) = (round_trip / 2, accepted + round_trip);
    let (ends, queues) = (Arc::clone(&pair), Arc::clone(&lines));
    thread::spawn(move || read(&ends.0, &queues.0, start, delay));
    let (ends, queues) = (Arc::clone(&pair), Arc::clone(&lines));
    thread::spawn(move || read(&ends.1, &queues.1, accepted, delay));
    let (ends, queues) = (Arc::clone(&pair), Arc::clone(&lines));
    thread::spawn(move || write(&ends.1, &queues.0, &ends.0));
    write(&pair.0, &lines.1, &pair.1);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [listen, server, ms] = &args[..] else {
        return Err("delay_proxy LISTEN SERVER MILLISECONDS".into());
    };
    let round_trip = Duration::from_secs_f64(ms.parse::<f64>()? / 1e3);
    let listener = TcpListener::bind(listen)?;
    writeln!(stdout(), "{}", listener.local_addr()?)?;
    for client in listener.incoming() {
        let (client, server) = (client?, server.clone());
        thread::spawn(move || {
            if let Err(e) = carry(client, &server, round_trip) {
                let _ = writeln!(io::stderr(), "delay_proxy: {server}: {e}");
            }
        });
    }
    Ok(())
}
