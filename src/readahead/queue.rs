//! The queue of prefetch requests.

use crate::cache::{CachedFile, FileId};
use std::{
    collections::VecDeque,
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Bytes that will be read soon.
#[derive(Clone)]
pub struct PrefetchRequest {
    /// The file to prefetch from.
    pub file: Arc<CachedFile>,
    /// The path of the file below the mountpoint, if its data is to be warmed in the page cache.
    pub shown: Option<Arc<Path>>,
    /// Bytes of the original.
    pub range: Range<u64>,
}

/// Prefetch requests, the most urgent first.
#[derive(Default)]
pub(super) struct PrefetchQueue {
    requests: Mutex<VecDeque<PrefetchRequest>>,
    not_empty: Condvar,
}

impl PrefetchQueue {
    /// Replace all requests, and keep `limit` bytes of the new ones.
    pub(super) fn replace(&self, requests: impl IntoIterator<Item = PrefetchRequest>, limit: u64) {
        let mut left = limit;
        let mut new = VecDeque::new();
        for mut request in requests {
            if left == 0 {
                break;
            }
            let range = &mut request.range;
            range.end = range.end.min(range.start.saturating_add(left));
            left -= range.end.saturating_sub(range.start);
            if !range.is_empty() {
                new.push_back(request);
            }
        }
        // The last user of a file closes it: not while the queue is locked.
        let old = std::mem::replace(&mut *self.lock(), new);
        drop(old);
        self.not_empty.notify_one();
    }

    /// Remove the requests for a file.
    pub(super) fn cancel(&self, file: FileId) {
        self.lock().retain(|request| request.file.id() != file);
    }

    /// Remove all requests.
    pub(super) fn clear(&self) {
        let old = std::mem::take(&mut *self.lock());
        drop(old);
    }

    /// Wait for a request; `false` if there is none within `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let is_empty = |requests: &mut VecDeque<_>| requests.is_empty();
        let waited = self.not_empty.wait_timeout_while(self.lock(), timeout, is_empty);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    /// Take up to `bytes` from the first request.
    pub(super) fn pop(&self, bytes: u64) -> Option<PrefetchRequest> {
        let mut requests = self.lock();
        let first = requests.front_mut()?;
        let end = first.range.end.min(first.range.start + bytes);
        let taken = PrefetchRequest { range: first.range.start..end, ..first.clone() };
        first.range.start = end;
        if first.range.is_empty() {
            requests.pop_front();
        }
        Some(taken)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<PrefetchRequest>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::Archive;

    #[test]
    fn requests_are_limited_and_taken_in_pieces() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/bf16.bsz");
        let open = || CachedFile::new(Archive::open(&golden).expect("an archive"));
        let (file, other) = (open(), open());
        let request =
            |range: Range<u64>| PrefetchRequest { file: Arc::clone(&file), shown: None, range };
        let queue = PrefetchQueue::default();
        let ranges = [5..5, 10..50, 60..60, 60..90, 0..9];
        queue.replace(ranges.map(request), 55);
        let taken: Vec<_> =
            std::iter::from_fn(|| queue.pop(20)).map(|request| request.range).collect();
        assert_eq!(taken, [10..30, 30..50, 60..75]);
        queue.replace([request(0..9)], 0);
        assert!(queue.pop(20).is_none());
        queue.replace([request(0..9)], 9);
        queue.cancel(other.id());
        assert!(queue.pop(1).is_some());
        queue.cancel(file.id());
        assert!(queue.pop(1).is_none());
    }
}
