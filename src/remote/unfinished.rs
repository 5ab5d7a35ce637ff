//! Uploads in parts that are not complete: their objects are not there, but what has arrived is
//! kept, and paid for, until they are aborted.

use futures_util::future::join_all;
use object_store::{MultipartId, multipart::MultipartStore, path::Path};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long a process that is about to end tries to abort its uploads.
const PATIENCE: Duration = Duration::from_secs(5);

/// An upload that has begun.
#[derive(Clone)]
pub struct Unfinished {
    /// The client that began it.
    pub store: Arc<dyn MultipartStore>,
    /// Its object.
    pub path: Path,
    /// The store's name for it.
    pub id: MultipartId,
}

/// The uploads of this process.
static UNFINISHED: Mutex<Vec<Unfinished>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<Unfinished>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unfinished {
    /// From now on, [`abandon`] aborts it.
    pub fn begun(&self) {
        unfinished().push(self.clone());
    }

    /// Before a request that continues it: does not return if [`abandon`] came first.
    pub fn continues(&self) {
        drop(unfinished());
    }

    /// It was completed, or aborted. Does not return if [`abandon`] came first.
    pub fn ends(&self) {
        unfinished().retain(|other| other.id != self.id || other.path != self.path);
    }

    /// Abort it, as far as the store answers soon.
    pub async fn abort(&self) {
        let abort = self.store.abort_multipart(&self.path, &self.id);
        match tokio::time::timeout(PATIENCE, abort).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => log::warn!("{}: its upload could not be aborted", self.path),
        }
    }
}

/// Abort the uploads of this process, which is about to end. None is begun or
/// continued afterwards.
pub fn abandon() {
    let unfinished = unfinished();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let (Ok(runtime), false) = (runtime, unfinished.is_empty()) {
        runtime.block_on(join_all(unfinished.iter().map(Unfinished::abort)));
    }
    std::mem::forget(unfinished);
}
