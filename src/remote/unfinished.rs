//! Uploads in parts that are not complete: their objects are not there, but what has arrived is
//! kept, and paid for, until they are aborted.

use futures_util::future::join_all;
use object_store::{MultipartId, multipart::MultipartStore, path::Path};
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
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
static UPLOADS: Mutex<Uploads> = Mutex::new(Uploads { beginning: 0, unfinished: Vec::new() });

/// One of them has begun, or could not.
static BEGUN: Condvar = Condvar::new();

struct Uploads {
    /// How many are being begun: the store may know them already, but not by which name.
    beginning: usize,
    unfinished: Vec<Unfinished>,
}

fn uploads() -> MutexGuard<'static, Uploads> {
    UPLOADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An upload that is being begun.
struct Beginning;

impl Beginning {
    fn new() -> Self {
        uploads().beginning += 1;
        Self
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        uploads().beginning -= 1;
        BEGUN.notify_all();
    }
}

impl Unfinished {
    /// Begin the upload of an object. From then on, [`abandon`] aborts it.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn begin(store: &Arc<dyn MultipartStore>, path: &Path) -> object_store::Result<Self> {
        // Does not return if `abandon` came first.
        let _beginning = Beginning::new();
        let id = store.create_multipart(path).await?;
        let begun = Self { store: Arc::clone(store), path: path.clone(), id };
        uploads().unfinished.push(begun.clone());
        Ok(begun)
    }

    /// Before a request that continues it: does not return if [`abandon`] came first.
    pub fn continues(&self) {
        drop(uploads());
    }

    /// It was completed, or aborted. Does not return if [`abandon`] came first.
    pub fn ends(&self) {
        uploads().unfinished.retain(|other| other.id != self.id || other.path != self.path);
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
    // What is being begun is waited for: other threads go on until they know it.
    let uploads = BEGUN
        .wait_timeout_while(uploads(), PATIENCE, |uploads| uploads.beginning > 0)
        .map_or_else(|e| e.into_inner().0, |(uploads, _)| uploads);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let (Ok(runtime), false) = (runtime, uploads.unfinished.is_empty()) {
        runtime.block_on(join_all(uploads.unfinished.iter().map(Unfinished::abort)));
    }
    std::mem::forget(uploads);
}
