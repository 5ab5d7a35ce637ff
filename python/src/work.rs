//! Work without the GIL that a signal can end, and the threads that it may use.

use bszfs::codec::{self, ChunkDecoder, Interruptible};
use bszfs::read::{Permit, ThreadLimit};
use bszfs::{Error, ErrorKind};
use pyo3::prelude::*;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

/// How often the signals are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The limit of threads of this process: that of the environment variable, or of the machine.
static THREADS: LazyLock<ThreadLimit> = LazyLock::new(|| {
    let given = std::env::var("BSZFS_THREADS").ok().and_then(|text| text.parse().ok());
    match given {
        Some(n @ 1..) => ThreadLimit::new(n),
        _ => ThreadLimit::of_this_machine(),
    }
});

static DECODER: LazyLock<Arc<dyn ChunkDecoder>> = LazyLock::new(codec::fastest);

/// Initialise what is made once, while nobody can fork.
pub fn prepare() {
    LazyLock::force(&THREADS);
    LazyLock::force(&DECODER);
}

/// The limit of threads that all calls share.
pub fn threads() -> &'static ThreadLimit {
    &THREADS
}

/// The decoder of this machine.
pub fn decoder() -> &'static dyn ChunkDecoder {
    &**DECODER
}

/// How many threads decode at a time: BSZFS_THREADS when the package was imported, or the number
/// of processors that this process may use.
#[pyfunction]
pub fn thread_limit() -> usize {
    THREADS.limit()
}

/// What a signal handler has raised, if anything.
#[derive(Default)]
pub struct Raised(Option<PyErr>);

impl Raised {
    /// Run the handlers of signals that have arrived. An error ends the work.
    pub fn look(&mut self) -> bszfs::Result<()> {
        Python::attach(|py| py.check_signals()).map_err(|e| {
            self.0 = Some(e);
            interrupted()
        })
    }

    /// What was raised, or else the outcome of the work.
    pub fn or<T>(self, outcome: bszfs::Result<T>) -> PyResult<bszfs::Result<T>> {
        self.0.map_or(Ok(outcome), Err)
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Io, "interrupted")
}

/// Tells work that a signal has ended it.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether the work is to end.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// A decoder that fails once the work is to end.
    pub fn interrupts(
        &self,
        decoder: Arc<dyn ChunkDecoder>,
    ) -> Interruptible<impl Fn() -> bszfs::Result<()> + Send + Sync + use<>> {
        let stop = self.clone();
        let go_on = move || if stop.is_set() { Err(interrupted()) } else { Ok(()) };
        Interruptible::new(decoder, go_on)
    }
}

/// Do `work` with a pool of threads that ends with it: as many as are free, or as given. Meanwhile,
/// this thread looks at the signals.
///
/// # Errors
/// What a signal handler raises.
pub fn run<T: Send>(
    py: Python<'_>,
    given: Option<usize>,
    work: impl FnOnce(&Stop) -> bszfs::Result<T> + Send,
) -> PyResult<bszfs::Result<T>> {
    let mut raised = Raised::default();
    let outcome = py.detach(|| {
        let permits = permits(given);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(given.unwrap_or(permits.len()))
            .build()
            .map_err(|e| Error::invalid(e.to_string()).about("threads"))?;
        let stop = Stop::default();
        thread::scope(|scope| {
            let (ended, end) = mpsc::channel::<()>();
            let worker = scope.spawn(|| {
                let _ended = ended;
                pool.install(|| work(&stop))
            });
            while end.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                if !stop.is_set() && raised.look().is_err() {
                    stop.0.store(true, Ordering::Relaxed);
                }
            }
            worker.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        })
    });
    raised.or(outcome)
}

/// Permits for all threads that are free, and for the caller's own.
fn permits(given: Option<usize>) -> Vec<Permit<'static>> {
    let most = given.unwrap_or(usize::MAX);
    let more = std::iter::from_fn(|| THREADS.another());
    std::iter::once(THREADS.enter()).chain(more).take(most).collect()
}
