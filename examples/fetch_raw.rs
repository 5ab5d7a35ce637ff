//! How fast the HTTP client alone fetches a file:  fetch_raw URL [PARALLEL [PART_MIB]]
//! And how fast the library does, without a mount and without decoding:  fetch_raw --library URL
//!
//! The client requests ranges of PART_MIB (8), PARALLEL (8) at once, over HTTP/1 and with the
//! runtime that the library has. The library reads in order, 1 MiB at a time and 16 at once. Both
//! throw the bytes away, and print their number and the seconds.

use bszfs::remote::{Found, Place, RemoteOptions, Stored};
use reqwest::{
    Client, StatusCode,
    header::{CONTENT_LENGTH, RANGE},
};
use std::{
    env,
    error::Error,
    io::{Write, stdout},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Instant,
};
use tokio::runtime::Builder;

type Failure = Box<dyn Error + Send + Sync>;

/// The parts of one file, which several tasks fetch.
struct Parts {
    client: Client,
    url: String,
    size: u64,
    part: u64,
    next: AtomicU64,
}

impl Parts {
    /// Fetch parts until there are none left.
    async fn fetch(&self) -> Result<(), Failure> {
        loop {
            let begin = self.next.fetch_add(self.part, Ordering::Relaxed);
            if begin >= self.size {
                return Ok(());
            }
            let end = self.size.min(begin + self.part);
            let range = format!("bytes={begin}-{}", end - 1);
            let mut answer = self.client.get(&self.url).header(RANGE, range).send().await?;
            if answer.status() != StatusCode::PARTIAL_CONTENT {
                return Err(format!("{}: {}", self.url, answer.status()).into());
            }
            let mut length = 0;
            while let Some(bytes) = answer.chunk().await? {
                length += bytes.len() as u64;
            }
            if length != end - begin {
                return Err(format!("{}: {length} bytes at {begin}", self.url).into());
            }
        }
    }
}

async fn fetch(url: &str, parallel: u64, part: u64) -> Result<u64, Failure> {
    let client = Client::builder().http1_only().build()?;
    let head = client.head(url).send().await?.error_for_status()?;
    let size = head.headers().get(CONTENT_LENGTH).ok_or("the server does not tell the size")?;
    let size = size.to_str()?.parse()?;
    let next = AtomicU64::new(0);
    let parts = Arc::new(Parts { client, url: url.into(), size, part, next });
    let tasks: Vec<_> = (0..parallel)
        .map(|_| {
            let parts = Arc::clone(&parts);
            tokio::spawn(async move { parts.fetch().await })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(size)
}

/// Read an object in order.
fn read(url: &str) -> Result<u64, Failure> {
    const READ: u64 = 1 << 20;
    const AT_ONCE: usize = 16;
    let place = Place::new(url, &RemoteOptions { memory: 512 << 20, ..Default::default() })?;
    let Found::Object(object) = place.find()? else {
        return Err(format!("{url}: no object").into());
    };
    let (done, arrived) = mpsc::channel();
    let mut ranges = (0..object.size()).step_by(READ as usize);
    let mut begin = || {
        let (Some(at), done) = (ranges.next(), done.clone()) else { return };
        let range = at..object.size().min(at + READ);
        let done = move |stored: bszfs::Result<Stored>| drop(done.send(stored.map(|s| s.len())));
        object.fetch_in_order(range, Box::new(done));
    };
    (0..AT_ONCE).for_each(|_| begin());
    let mut length = 0;
    while length < object.size() {
        length += arrived.recv()?? as u64;
        begin();
    }
    Ok(length)
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [option, url] = &args[..]
        && option == "--library"
    {
        return timed(|| read(url));
    }
    let [url, numbers @ ..] = &args[..] else {
        return Err("fetch_raw URL [PARALLEL [MIB]], or --library URL".into());
    };
    let number = |i: usize| numbers.get(i).map_or(Ok(8), |text| text.parse::<u64>());
    let (parallel, part) = (number(0)?, number(1)?.max(1) << 20);
    // Another library may have installed one already; then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    timed(|| runtime.block_on(fetch(url, parallel, part)))
}

fn timed(fetch: impl FnOnce() -> Result<u64, Failure>) -> Result<(), Failure> {
    let start = Instant::now();
    let size = fetch()?;
    writeln!(stdout(), "{size} bytes {:.6} s", start.elapsed().as_secs_f64())?;
    Ok(())
}
