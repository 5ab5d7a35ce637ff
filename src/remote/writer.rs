//! The thread that writes to the disk cache, so that the network's threads need not.

use super::{blocks::PartKey, demand::Stored, disk::DiskCache};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// Parts that may wait to be written.
const WAITING: usize = 64;

type Job = (PartKey, Stored);

/// Writes parts, one after the other.
pub struct Writer {
    disk: Arc<DiskCache>,
    state: Mutex<State>,
}

enum State {
    /// The thread is started when it is needed.
    New,
    Running(SyncSender<Job>, JoinHandle<()>),
    /// What arrives after the end is not kept.
    Closed,
}

impl Writer {
    /// Nothing is started yet.
    pub fn new(disk: Arc<DiskCache>) -> Self {
        Self { disk, state: Mutex::new(State::New) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write a part soon; returns it if too many others wait to be written.
    pub fn write(&self, part: PartKey, bytes: Stored) -> Result<(), Stored> {
        let Some(sender) = self.sender() else { return Ok(()) };
        match sender.try_send((part, bytes)) {
            Err(TrySendError::Full((_, bytes))) => Err(bytes),
            _ => Ok(()),
        }
    }

    /// Write all that waits, and end the thread.
    pub fn close(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Closed);
        if let State::Running(sender, thread) = before {
            drop(sender);
            let _ = thread.join();
        }
    }

    fn sender(&self) -> Option<SyncSender<Job>> {
        let mut state = self.lock();
        if let State::New = *state {
            let (sender, jobs) = sync_channel(WAITING);
            let disk = Arc::clone(&self.disk);
            let thread = thread::Builder::new().name("bsz-cache".into());
            let thread = thread.spawn(move || work(&disk, &jobs)).ok()?;
            *state = State::Running(sender, thread);
        }
        match &*state {
            State::Running(sender, _) => Some(sender.clone()),
            State::New | State::Closed => None,
        }
    }
}

/// Runs until the sender is dropped.
fn work(disk: &DiskCache, jobs: &Receiver<Job>) {
    while let Ok((part, bytes)) = jobs.recv() {
        disk.write(part, &bytes.bytes(0..bytes.len()));
    }
}
