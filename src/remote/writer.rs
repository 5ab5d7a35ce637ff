//! The thread that writes to the disk cache, so that the network's threads need not.

use super::{blocks::PartKey, disk::DiskCache};
use bytes::Bytes;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// Parts that may wait to be written.
const WAITING: usize = 64;

type Job = (PartKey, Bytes);

/// Writes parts.
pub struct Writer {
    disk: Arc<DiskCache>,
    running: Mutex<Option<(SyncSender<Job>, JoinHandle<()>)>>,
}

impl Writer {
    /// The thread is started when it is needed.
    pub fn new(disk: Arc<DiskCache>) -> Self {
        Self { disk, running: Mutex::new(None) }
    }

    /// Write a part soon; returns it if too many others wait to be written.
    pub fn write(&self, part: PartKey, bytes: Bytes) -> Result<(), Bytes> {
        let Some(sender) = self.sender() else { return Ok(()) };
        match sender.try_send((part, bytes)) {
            Err(TrySendError::Full((_, bytes))) => Err(bytes),
            _ => Ok(()),
        }
    }

    /// Write all that waits, and end the thread.
    pub fn close(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, thread)) = running {
            drop(sender);
            let _ = thread.join();
        }
    }

    fn sender(&self) -> Option<SyncSender<Job>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            let (sender, jobs) = sync_channel(WAITING);
            let disk = Arc::clone(&self.disk);
            let thread = thread::Builder::new().name("bsz-cache".into());
            let thread = thread.spawn(move || work(&disk, &jobs)).ok()?;
            *running = Some((sender, thread));
        }
        running.as_ref().map(|(sender, _)| sender.clone())
    }
}

/// Runs until the sender is dropped.
fn work(disk: &DiskCache, jobs: &Receiver<Job>) {
    while let Ok((part, bytes)) = jobs.recv() {
        disk.write(part, &bytes);
    }
}
