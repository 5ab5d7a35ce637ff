//! Whether and when a request that failed is repeated. Only the fetcher repeats requests, so that
//! one deadline holds for all attempts.

use super::{cloud::Cloud, failure::Failure, store::Store};
use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Reads credentials again.
pub trait Renew {
    /// Read them.
    fn renew(&self);
}

impl Renew for Store {
    fn renew(&self) {
        Self::renew(self);
    }
}

impl<R: Renew> Renew for Arc<R> {
    fn renew(&self) {
        (**self).renew();
    }
}

impl Renew for Cloud {
    fn renew(&self) {
        Self::renew(self);
    }
}

/// The attempts of one request.
pub struct Retry {
    attempts: u32,
    renewed: bool,
}

impl Retry {
    /// None so far.
    pub fn new() -> Self {
        Self { attempts: 0, renewed: false }
    }

    /// The last attempt made progress: the next pause is short again.
    pub fn progressed(&mut self) {
        self.attempts = 0;
    }

    /// Wait before the next attempt.
    ///
    /// # Errors
    /// The failure, if another attempt is of no use or would come after the deadline.
    pub async fn wait(
        &mut self,
        failure: Failure,
        store: &impl Renew,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let after = match failure {
            // Once: a token may have expired and been renewed.
            Failure::Denied(_) if !self.renewed => {
                self.renewed = true;
                store.renew();
                return Ok(());
            }
            Failure::Transient { after, .. } => after,
            other => return Err(other),
        };
        let pause = FIRST.saturating_mul(1 << self.attempts.min(10)).min(LONGEST);
        // Between half and all of it, so that readers do not come back together.
        let jitter = RandomState::new().hash_one(self.attempts) % 512 + 512;
        let pause = (pause * jitter as u32 / 1024).max(after.unwrap_or_default());
        self.attempts += 1;
        if Instant::now() + pause >= deadline {
            return Err(Failure::TimedOut(format!("timed out: {}", failure.why())));
        }
        sleep(pause).await;
        Ok(())
    }
}

/// `future` within the time that may pass without a byte, and before the deadline.
///
/// # Errors
/// Its failure, or that of the deadline that passed first.
pub async fn within<T>(
    silence: Duration,
    deadline: Instant,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    match timeout(silence.min(left), future).await {
        Ok(result) => result,
        Err(_) if left <= silence => Err(Failure::TimedOut("timed out".into())),
        Err(_) => {
            Err(Failure::transient(format!("no byte for {:.0} s", silence.as_secs_f64().ceil())))
        }
    }
}

/// Repeat `attempt` until it succeeds, or the deadline has passed.
///
/// # Errors
/// The last failure.
pub async fn repeat<T, F: Future<Output = Result<T, Failure>>>(
    store: &impl Renew,
    silence: Duration,
    deadline: Instant,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Failure> {
    let mut retry = Retry::new();
    loop {
        match within(silence, deadline, attempt()).await {
            Ok(done) => return Ok(done),
            Err(failure) => retry.wait(failure, store, deadline).await?,
        }
    }
}
