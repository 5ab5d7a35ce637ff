//! How much time and memory remote sources may take.

use std::{path::PathBuf, time::Duration};

/// Deadlines. Nothing above or below this room has deadlines of its own.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// To connect, the handshake of TLS included.
    pub connect: Duration,
    /// Between two parts of an answer, and before the first.
    pub silence: Duration,
    /// For each read that somebody waits for, with all attempts.
    pub total: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::within(Duration::from_secs(60))
    }
}

impl Deadlines {
    /// Those of a total: 5 s to connect and 10 s of silence, or less if the total is short.
    pub fn within(total: Duration) -> Self {
        let connect = Duration::from_secs(5).min(total / 3);
        Self { connect, silence: Duration::from_secs(10).min(total / 3), total }
    }
}

/// A directory for stored bytes.
#[derive(Clone, Debug)]
pub struct DiskCacheOptions {
    /// The directory, which several processes may share.
    pub dir: PathBuf,
    /// The most bytes in it.
    pub size: u64,
}

/// How remote sources are read.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// When to give up.
    pub deadlines: Deadlines,
    /// The most bytes that are on their way at once, readahead included.
    pub in_flight: u64,
    /// The most bytes that are kept in memory after they have arrived.
    pub memory: u64,
    /// Where bytes are kept on disk.
    pub disk: Option<DiskCacheOptions>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        let (in_flight, memory) = (256 << 20, 128 << 20);
        Self { deadlines: Deadlines::default(), in_flight, memory, disk: None }
    }
}
