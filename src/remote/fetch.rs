//! Fetches parts of objects: looks for them in memory and on disk, asks for the rest in as many
//! requests at once as help, and for what somebody waits for first.
//!
//! No thread waits here. The network is served by two threads, which are started when they are
//! needed first, and which neither decode nor touch a disk: a third one writes to the disk cache.

use super::{
    blocks::{Blocks, Lookup, PartKey, Request, Source, Waiter},
    counters::{Counters, RemoteStats},
    demand::{Demand, Done, Stored},
    disk::DiskCache,
    failure::Failure,
    options::{Deadlines, RemoteOptions},
    parts::{self, Pattern, Priority},
    queue::Queue,
    request::{self, Progress},
    threads::Threads,
    writer::Writer,
};
use crate::error::{Error, Result};
use std::{
    collections::HashMap,
    future::Future,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep, sleep_until},
};

/// How long a disk that is slower than the network holds up what is fetched ahead.
const PATIENCE: Duration = Duration::from_secs(1);

/// Fetches for a whole process. Dropping it ends its threads, and all reads that wait, by an error.
pub struct Fetcher {
    shared: Arc<Shared>,
    threads: Threads,
    /// How often each object is open.
    open: Mutex<HashMap<u128, usize>>,
}

struct Shared {
    blocks: Blocks,
    queue: Queue,
    deadlines: Deadlines,
    disk: Option<Arc<DiskCache>>,
    writer: Option<Writer>,
    counters: Counters,
}

impl Fetcher {
    /// Nothing is started yet.
    ///
    /// # Errors
    /// Those of the disk cache's directory.
    pub fn new(options: &RemoteOptions) -> Result<Self> {
        let disk = options.disk.as_ref().map(DiskCache::open).transpose()?.map(Arc::new);
        let writer = disk.as_ref().map(|disk| Writer::new(Arc::clone(disk)));
        let shared = Arc::new(Shared {
            blocks: Blocks::new(options.memory),
            queue: Queue::new(options.in_flight),
            deadlines: options.deadlines,
            disk,
            writer,
            counters: Counters::default(),
        });
        Ok(Self { shared, threads: Threads::default(), open: Mutex::default() })
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.threads.network()
    }

    /// Run `job` on a thread that may wait for the network.
    ///
    /// # Errors
    /// Io, if no threads can be started.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        self.threads.spawn(job)
    }

    /// What was fetched so far.
    pub fn stats(&self) -> RemoteStats {
        self.shared.counters.stats(self.shared.queue.running())
    }

    /// Forget all that is kept in memory.
    pub fn clear(&self) {
        self.shared.blocks.clear();
    }

    /// Whether stored bytes are kept on disk.
    pub fn has_disk(&self) -> bool {
        self.shared.disk.is_some()
    }

    /// The deadlines.
    pub fn deadlines(&self) -> Deadlines {
        self.shared.deadlines
    }

    /// How many bytes are worth asking for ahead of a stream.
    pub fn window(&self) -> u64 {
        self.shared.queue.window().min(self.shared.blocks.capacity() / 2)
    }

    /// Wait for a request that is no read: the state of an object, a listing. Not to be called by
    /// threads that serve others.
    ///
    /// # Errors
    /// Those of the request.
    pub fn wait<T>(&self, future: impl Future<Output = Result<T, Failure>>) -> Result<T> {
        Ok(self.runtime()?.block_on(future)?)
    }

    /// A request is about to be sent by another way.
    pub fn asking(&self) {
        self.shared.counters.asking();
    }

    /// A request that is no read has failed.
    pub fn failed(&self, url: &str, e: &Error) {
        self.shared.counters.failed(url, &e.detail());
    }

    /// Keep a part that arrived by another way.
    pub fn keep(&self, source: &Source, part: PartKey, bytes: Stored) {
        self.shared.counters.fetched(part.len as usize);
        self.shared.blocks.complete(part, &bytes);
        if let Some(writer) = self.shared.writer_for(source) {
            let _ = writer.write(part, bytes);
        }
    }

    /// Read `range` of an object, and call `done` with it before the deadline. The calling thread
    /// reads what is on disk, and never waits for the network.
    pub fn fetch(
        &self,
        source: &Arc<Source>,
        range: Range<u64>,
        (pattern, priority): (Pattern, Priority),
        done: Done,
    ) {
        if range.is_empty() {
            return done(Ok(Stored::default()));
        }
        let size = source.identity.facts.size;
        let keys = parts::blocks(source.id, &range, size);
        let exact = pattern == Pattern::Random && !keys.iter().all(|key| self.shared.is_near(*key));
        let keys = if exact { parts::exact(source.id, &range) } else { keys };
        let wanted = keys.iter().map(|key| (*key, parts::within(key, &range))).collect();
        self.demand(source, wanted, priority, done);
    }

    /// Read bytes `wanted` of a part of an object, and call `done` with them as [`Fetcher::fetch`].
    pub fn fetch_part(
        &self,
        source: &Arc<Source>,
        (part, wanted): (PartKey, Range<usize>),
        priority: Priority,
        done: Done,
    ) {
        self.demand(source, vec![(part, wanted)], priority, done);
    }

    fn demand(
        &self,
        source: &Arc<Source>,
        parts: Vec<(PartKey, Range<usize>)>,
        priority: Priority,
        done: Done,
    ) {
        let demand = Demand::new(parts.iter().map(|(_, wanted)| wanted.clone()), done);
        let demand = Arc::new(demand);
        let wanted = parts.iter().enumerate();
        let wanted = wanted.map(|(i, (key, _))| (*key, Some((Arc::clone(&demand), i)))).collect();
        if let Err(e) = self.want(source, wanted, priority) {
            demand.fail(&e);
        }
        // What is fetched ahead may wait for its turn; its request has a deadline once it begins.
        if priority == Priority::Demand && demand.is_waiting() {
            self.start_timer(&demand);
        }
    }

    /// Somebody waits for `range` of an object now, which was to be fetched ahead.
    pub fn hurry(&self, source: &Source, range: &Range<u64>) {
        let requests = self.shared.blocks.on_their_way(source.id, range);
        requests.iter().for_each(|request| self.promote(request));
    }

    /// Fetch `range` of an object before it is read.
    pub fn ahead(&self, source: &Arc<Source>, range: Range<u64>) {
        let keys = parts::blocks(source.id, &range, source.identity.facts.size);
        let on_disk = |key: &PartKey| self.shared.disk.as_ref().is_some_and(|d| d.has(*key));
        let absent = keys.into_iter().filter(|key| !self.shared.blocks.has(*key) && !on_disk(key));
        let wanted = absent.map(|key| (key, None)).collect();
        if let Err(e) = self.want(source, wanted, Priority::Ahead) {
            log::debug!("nothing is fetched ahead: {e}");
        }
    }

    /// Forget what overlaps `range` of an object, because it was found to be damaged.
    pub fn forget(&self, source: &Source, range: &Range<u64>) {
        self.shared.blocks.forget(source.id, range);
        if let Some(disk) = &self.shared.disk {
            disk.forget(source.id, range);
        }
    }

    /// An object is open, perhaps once more.
    pub fn opened(&self, source: &Source) {
        *self.open_objects().entry(source.id).or_default() += 1;
    }

    /// An object is closed. If it is open nowhere else, requests for it are dropped that have not
    /// begun and that nobody waits for.
    pub fn closed(&self, source: &Source) {
        let mut open = self.open_objects();
        let left = open.get_mut(&source.id).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            open.remove(&source.id);
            let shared = &self.shared;
            shared.queue.cancel(source.id, |request| shared.blocks.withdraw(request));
        }
    }

    fn open_objects(&self) -> MutexGuard<'_, HashMap<u128, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Supply parts to those who want them, from memory or disk, or request them.
    fn want(
        &self,
        source: &Arc<Source>,
        wanted: Vec<(PartKey, Option<Waiter>)>,
        priority: Priority,
    ) -> Result<()> {
        let mut absent = Vec::new();
        for (key, waiter) in wanted {
            let mut found = self.shared.blocks.find(key, waiter.as_ref());
            if let (Lookup::Absent, Some(_)) = (&found, &waiter)
                && let Some(bytes) = self.shared.disk.as_ref().and_then(|disk| disk.read(key))
            {
                self.shared.counters.found_on_disk(bytes.len());
                let bytes = bytes.into();
                self.shared.blocks.complete(key, &bytes);
                found = Lookup::Kept(bytes);
            }
            match found {
                Lookup::Absent => absent.push((key, waiter)),
                found => self.supply(found, waiter, priority),
            }
        }
        if absent.is_empty() {
            return Ok(());
        }
        let runtime = self.runtime()?;
        let urgent = priority == Priority::Demand;
        let deadline = Instant::now() + self.shared.deadlines.total;
        let group = |keys| {
            let runs = parts::runs(keys).into_iter();
            runs.map(|run| Request::new(source, run, urgent, deadline)).collect()
        };
        let (requests, others) = self.shared.blocks.claim(absent, group);
        for (found, waiter) in others {
            self.supply(found, waiter, priority);
        }
        requests.into_iter().for_each(|request| self.shared.queue.push(request));
        dispatch(&self.shared, runtime.handle());
        Ok(())
    }

    /// A part was found: hand it over, or see to it that it arrives soon.
    fn supply(&self, found: Lookup, waiter: Option<Waiter>, priority: Priority) {
        match (found, waiter) {
            (Lookup::Kept(bytes), Some((demand, number))) => demand.supply(number, &bytes),
            (Lookup::Joined(request), Some(_)) if priority == Priority::Demand => {
                self.promote(&request);
            }
            _ => {}
        }
    }

    fn promote(&self, request: &Arc<Request>) {
        let total = self.shared.deadlines.total;
        request.extend(Instant::now() + total);
        let Ok(runtime) = self.runtime() else { return };
        if request.hurry() {
            self.shared.queue.promote(request);
            dispatch(&self.shared, runtime.handle());
            // Those who have waited for it before have no timer of their own.
            let (shared, request) = (Arc::downgrade(&self.shared), Arc::clone(request));
            runtime.spawn(async move {
                while request.deadline() + total / 16 > Instant::now() {
                    sleep_until(request.deadline() + total / 16).await;
                }
                if let Some(shared) = shared.upgrade() {
                    let failure = Failure::TimedOut("timed out".into());
                    shared.blocks.fail(&request, &failure.into());
                }
            });
        }
    }

    /// Have `demand` fail at its deadline, whatever it waits for.
    fn start_timer(&self, demand: &Arc<Demand>) {
        let Ok(runtime) = self.runtime() else { return };
        let (total, waiting) = (self.shared.deadlines.total, Arc::downgrade(demand));
        // A little later than the request, whose reason is the better one.
        let total = total + total / 16;
        let timer = runtime.spawn(async move {
            sleep(total).await;
            if let Some(demand) = waiting.upgrade() {
                demand.fail(&Failure::TimedOut("timed out".into()).into());
            }
        });
        demand.set_timer(timer.abort_handle());
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.threads.end();
        self.shared.blocks.close();
        if let Some(writer) = &self.shared.writer {
            writer.close();
        }
    }
}

impl Shared {
    /// Whether a block is in memory, on its way, or on disk.
    fn is_near(&self, key: PartKey) -> bool {
        self.blocks.has(key) || self.disk.as_ref().is_some_and(|disk| disk.has(key))
    }

    /// The writer to the disk cache, if an object may be kept there: without a strong tag, that of
    /// today could be taken for that of tomorrow.
    fn writer_for(&self, source: &Source) -> Option<&Writer> {
        self.writer.as_ref().filter(|_| source.identity.facts.is_strong())
    }
}

impl Progress for Shared {
    async fn arrived(&self, request: &Request, part: PartKey, bytes: Stored) {
        self.counters.fetched(bytes.len());
        self.queue.arrived(bytes.len() as u64);
        self.blocks.complete(part, &bytes);
        let Some(writer) = self.writer_for(&request.source) else { return };
        let begun = Instant::now();
        let mut left = Some(bytes);
        while let Some(bytes) = left.take() {
            left = writer.write(part, bytes).err();
            if left.is_some() && (request.is_urgent() || begun.elapsed() > PATIENCE) {
                return;
            }
            if left.is_some() {
                sleep(Duration::from_millis(2)).await;
            }
        }
    }

    fn asking(&self) {
        self.counters.asking();
    }

    fn failed(&self, request: &Request, failure: &Failure) {
        self.counters.failed(&request.source.identity.url, failure.why());
        if matches!(failure, Failure::Transient { throttled: true, .. }) {
            self.queue.throttled();
        }
    }
}

/// Start as many requests as may run at once.
fn dispatch(shared: &Arc<Shared>, runtime: &tokio::runtime::Handle) {
    while let Some(request) = shared.queue.pop() {
        let (shared, handle) = (Arc::clone(shared), runtime.clone());
        runtime.spawn(async move {
            if !request.is_urgent() {
                // It may have waited for long.
                request.extend(Instant::now() + shared.deadlines.total);
            }
            let outcome = request::run(&request, shared.deadlines, &*shared).await;
            shared.queue.finished(&request);
            if let Err(failure) = outcome {
                log::debug!("{}: {}", request.source.identity.url, failure.why());
                shared.blocks.fail(&request, &failure.into());
            }
            dispatch(&shared, &handle);
        });
    }
}
