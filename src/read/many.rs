//! Many parts of an archive at once, decoded by several threads into memory of the caller.
//!
//! A chunk that is wanted as a whole is decoded straight into its place. The calling thread decodes
//! like the others, and meanwhile asks its caller whether to go on.

use super::{
    archive::Archive,
    parts::{Memory, Part, Plan, Reader, Run},
    threads::ThreadLimit,
};
use crate::{
    codec::ChunkDecoder,
    error::{Error, Result},
};
use std::{
    collections::VecDeque,
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

/// Runs whose stored bytes the kernel reads while earlier ones are decoded: those of 16 MiB. By
/// itself it would read 128 KiB ahead, and the disk would wait for the cores.
const RUNS_AHEAD: usize = 32;

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
        reader: Reader { archive, decoder },
        runs: Mutex::new(Runs { plan: Plan::new(archive, parts)?, ahead: VecDeque::new() }),
        has_failed: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    Memory::with_own(|memory| {
        thread::scope(|scope| {
            let _own = limit.enter();
            let mut helpers = Helpers { job: &job, limit, wanted: bytes / BYTES_PER_HELPER };
            loop {
                helpers.start(scope);
                let asked = Instant::now();
                while asked.elapsed() < ASK_EVERY {
                    if !job.step(memory) {
                        return;
                    }
                }
                if let Err(e) = go_on() {
                    job.fail(e);
                }
            }
        })
    });
    job.error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Starts the other threads.
struct Helpers<'s, 'a, 'm> {
    job: &'s Job<'a, 'm>,
    limit: &'s ThreadLimit,
    /// How many more there is work for.
    wanted: usize,
}

impl<'s> Helpers<'s, '_, '_> {
    /// Start as many as are wanted and free. Later, more may be: other calls end.
    fn start<'scope>(&mut self, scope: &'scope thread::Scope<'scope, '_>)
    where
        's: 'scope,
    {
        let (job, limit) = (self.job, self.limit);
        while self.wanted > 0
            && let Some(permit) = limit.another()
        {
            let help = move || {
                let _permit = permit;
                let mut memory = Memory::default();
                while job.step(&mut memory) {}
            };
            self.wanted -= 1;
            if let Err(e) = thread::Builder::new().name("bsz".into()).spawn_scoped(scope, help) {
                log::debug!("decoding with fewer threads: {e}");
                self.wanted = 0;
            }
        }
    }
}

/// The runs that nobody has begun to decode.
struct Runs<'a, 'm> {
    plan: Plan<'a, 'm>,
    /// Those that the kernel has been told of.
    ahead: VecDeque<Run<'m>>,
}

impl<'m> Runs<'_, 'm> {
    fn next(&mut self, archive: &Archive) -> Result<Option<Run<'m>>> {
        while self.ahead.len() <= RUNS_AHEAD
            && let Some(run) = self.plan.next_run()?
        {
            if !self.ahead.is_empty() {
                archive.read_ahead(&run.stored());
            }
            self.ahead.push_back(run);
        }
        Ok(self.ahead.pop_front())
    }
}

/// What all threads share.
struct Job<'a, 'm> {
    reader: Reader<'a>,
    runs: Mutex<Runs<'a, 'm>>,
    has_failed: AtomicBool,
    /// The first error.
    error: Mutex<Option<Error>>,
}

impl Job<'_, '_> {
    /// Read the next run of chunks. Returns whether there may be more.
    fn step(&self, memory: &mut Memory) -> bool {
        if self.has_failed.load(Ordering::Relaxed) {
            return false;
        }
        let next =
            self.runs.lock().unwrap_or_else(PoisonError::into_inner).next(self.reader.archive);
        let read = next.and_then(|run| match run {
            Some(run) => self.reader.read(run, memory).map(|()| true),
            None => Ok(false),
        });
        read.unwrap_or_else(|e| {
            self.fail(e);
            false
        })
    }

    /// End the work of all threads.
    fn fail(&self, e: Error) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        self.has_failed.store(true, Ordering::Relaxed);
    }
}
