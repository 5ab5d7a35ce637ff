//! Many parts of an archive at once, decoded by several threads into memory of the caller.
//!
//! A chunk that is wanted as a whole is decoded straight into its place. The calling thread decodes
//! like the others, and meanwhile asks its caller whether to go on.

use super::{
    archive::Archive,
    parts::{Part, Plan, Reader},
    scratch::Scratch,
    threads::ThreadLimit,
};
use crate::{
    codec::ChunkDecoder,
    error::{Error, Result},
};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How often the caller is asked whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// So many bytes are worth a thread more: decoding them takes several times as long as starting it.
const BYTES_PER_HELPER: usize = 1 << 20;

/// Read all `parts`, which may be in any order. Every chunk is verified after decoding.
///
/// Threads are taken from `limit` as they become free. `go_on` is called on the calling thread
/// every 50 ms; if it fails, everything ends with its error.
///
/// # Errors
/// Invalid argument, if a part is not within the original; as [`Archive::read_chunk`]: the first
/// error of all threads; that of `go_on`. The content of all targets must not be used then.
pub fn read_many(
    archive: &Archive,
    parts: Vec<Part<'_>>,
    decoder: &dyn ChunkDecoder,
    limit: &ThreadLimit,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let bytes: usize = parts.iter().map(|part| part.target.len()).sum();
    let job = Job {
        archive,
        decoder,
        plan: Mutex::new(Plan::new(archive, parts)?),
        has_failed: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    thread::scope(|scope| {
        let _own = limit.enter();
        let mut helpers = 0;
        let mut worker = job.worker();
        loop {
            // Other calls may have ended since.
            while helpers < bytes / BYTES_PER_HELPER
                && let Some(permit) = limit.another()
            {
                let help = || {
                    let _permit = permit;
                    let mut worker = job.worker();
                    while worker.step() {}
                };
                let started = thread::Builder::new().name("bsz".into()).spawn_scoped(scope, help);
                if let Err(e) = started {
                    log::debug!("decoding with {} threads: {e}", helpers + 1);
                    helpers = usize::MAX;
                    break;
                }
                helpers += 1;
            }
            let asked = Instant::now();
            while asked.elapsed() < ASK_EVERY {
                if !worker.step() {
                    return;
                }
            }
            if let Err(e) = go_on() {
                job.fail(e);
            }
        }
    });
    job.error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// What all threads share.
struct Job<'a, 'm> {
    archive: &'a Archive,
    decoder: &'a dyn ChunkDecoder,
    plan: Mutex<Plan<'a, 'm>>,
    has_failed: AtomicBool,
    /// The first error.
    error: Mutex<Option<Error>>,
}

impl<'a, 'm> Job<'a, 'm> {
    fn worker(&self) -> Worker<'_, 'a, 'm> {
        let reader = Reader::new(self.archive, self.decoder);
        Worker { job: self, reader, scratch: Scratch::default() }
    }

    /// End the work of all threads.
    fn fail(&self, e: Error) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        self.has_failed.store(true, Ordering::Relaxed);
    }
}

/// What a thread has for itself.
struct Worker<'j, 'a, 'm> {
    job: &'j Job<'a, 'm>,
    reader: Reader<'a>,
    scratch: Scratch,
}

impl Worker<'_, '_, '_> {
    /// Read the next run of chunks. Returns whether there may be more.
    fn step(&mut self) -> bool {
        if self.job.has_failed.load(Ordering::Relaxed) {
            return false;
        }
        let next = self.job.plan.lock().unwrap_or_else(PoisonError::into_inner).next_run();
        let run = match next {
            Ok(None) => return false,
            Ok(Some(run)) => run,
            Err(e) => {
                self.job.fail(e);
                return false;
            }
        };
        self.reader.read(run, &mut self.scratch).map_err(|e| self.job.fail(e)).is_ok()
    }
}
