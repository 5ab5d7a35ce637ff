//! How fast the HTTP client alone fetches a file:  fetch_raw URL [PARALLEL [PART_MIB]]
//!
//! Requests ranges of PART_MIB (8), PARALLEL (8) at once, over HTTP/1 and with the runtime that the
//! library has, and throws the bytes away. Prints the bytes and the seconds.

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

fn main() -> Result<(), Failure> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [url, numbers @ ..] = &args[..] else {
        return Err("fetch_raw URL [PARALLEL [MIB]]".into());
    };
    let number = |i: usize| numbers.get(i).map_or(Ok(8), |text| text.parse::<u64>());
    let (parallel, part) = (number(0)?, number(1)?.max(1) << 20);
    // Another library may have installed one already; then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let start = Instant::now();
    let size = runtime.block_on(fetch(url, parallel, part))?;
    writeln!(stdout(), "{size} bytes {:.6} s", start.elapsed().as_secs_f64())?;
    Ok(())
}
