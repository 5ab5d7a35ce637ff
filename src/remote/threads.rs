//! The threads of a fetcher: two that serve the network, and others that may wait for it.

use crate::error::{Context, Error, Result};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};
use tokio::runtime::{Builder, Runtime};

/// Most threads that may wait for the network at once. Each begins when it is needed.
const MAX_WAITING: usize = 256;

/// Both are started when they are needed first.
#[derive(Default)]
pub struct Threads {
    network: OnceLock<Result<Runtime>>,
    /// Not those of `network`, which resolves names on them: all of these may wait.
    waiting: OnceLock<Result<Runtime>>,
}

impl Threads {
    /// Those that serve the network.
    ///
    /// # Errors
    /// Io, if they cannot be started.
    pub fn network(&self) -> Result<&Runtime> {
        let start = || {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(2).max_blocking_threads(16).thread_name("bsz-net");
            builder.enable_all().build().about("network threads")
        };
        self.network.get_or_init(start).as_ref().map_err(Clone::clone)
    }

    /// Run `job` on a thread that may wait for the network.
    ///
    /// # Errors
    /// Io, if none can be started.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let start = || {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(1).max_blocking_threads(MAX_WAITING).thread_name("bsz-wait");
            builder.build().about("network threads")
        };
        let waiting = self.waiting.get_or_init(start).as_ref().map_err(Clone::clone)?;
        // It panics if no thread can be started.
        let started = catch_unwind(AssertUnwindSafe(|| drop(waiting.spawn_blocking(job))));
        started.map_err(|_| Error::os(libc::EAGAIN, "no thread can be started"))
    }

    /// End all of them. Requests are dropped; nothing waits for the network.
    pub fn end(&mut self) {
        for runtime in [self.network.take(), self.waiting.take()].into_iter().flatten().flatten() {
            runtime.shutdown_background();
        }
    }
}
