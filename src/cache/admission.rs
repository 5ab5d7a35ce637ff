//! Limits how many reads wait for chunks at once: a waiting read holds the chunks that have arrived
//! for it, and these cannot be evicted.

use super::request::ReadRequest;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What a read holds while it waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Bytes of its chunks.
    pub(super) bytes: u64,
    /// Number of its chunks.
    pub(super) chunks: usize,
}

/// Admission control for reads.
pub(super) struct Admission {
    limit: Weight,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// The weight of all admitted reads.
    admitted: Weight,
    waiting: VecDeque<(Weight, ReadRequest)>,
}

impl Admission {
    /// The smallest limit. A single read is admitted whatever its weight.
    const MIN_LIMIT: Weight = Weight { bytes: 8 << 20, chunks: 1 << 13 };

    /// Admission to a cache of `capacity` bytes: reads may hold half of it.
    pub(super) fn new(capacity: u64) -> Self {
        let bytes = Self::MIN_LIMIT.bytes.max(capacity / 2);
        Self { limit: Weight { bytes, ..Self::MIN_LIMIT }, queue: Mutex::default() }
    }

    /// Admit a read and return it, or queue it until others have [finished](Admission::leave).
    pub(super) fn enter(&self, weight: Weight, request: ReadRequest) -> Option<ReadRequest> {
        let mut queue = self.lock();
        if queue.waiting.is_empty() && queue.admits(weight, self.limit) {
            return Some(request);
        }
        queue.waiting.push_back((weight, request));
        None
    }

    /// An admitted read of this weight has finished. Returns the queued reads that are admitted
    /// instead.
    pub(super) fn leave(&self, weight: Weight) -> Vec<(Weight, ReadRequest)> {
        let mut queue = self.lock();
        queue.admitted.bytes -= weight.bytes;
        queue.admitted.chunks -= weight.chunks;
        let mut admitted = Vec::new();
        while let Some((weight, _)) = queue.waiting.front() {
            let weight = *weight;
            if !queue.admits(weight, self.limit) {
                break;
            }
            admitted.extend(queue.waiting.pop_front());
        }
        admitted
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Count a read if it is within the limit, or the only one.
    fn admits(&mut self, weight: Weight, limit: Weight) -> bool {
        let bytes = self.admitted.bytes + weight.bytes;
        let chunks = self.admitted.chunks + weight.chunks;
        let fits =
            self.admitted == Weight::default() || bytes <= limit.bytes && chunks <= limit.chunks;
        if fits {
            self.admitted = Weight { bytes, chunks };
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::super::{file::CachedFile, request::Reader};
    use super::*;
    use crate::read::Archive;
    use std::{path::Path, sync::Arc};

    #[test]
    fn reads_are_admitted_in_order_within_the_limit_and_a_single_one_always() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/bf16.bsz");
        let file = CachedFile::new(Archive::open(&golden).expect("an archive"));
        let read = |offset| ReadRequest {
            file: Arc::clone(&file),
            offset,
            len: 1,
            reader: Reader::Direct,
            done: Box::new(drop),
        };
        let mib = |n: u64| Weight { bytes: n << 20, chunks: 1 };
        let admission = Admission::new(0);
        let leave =
            |n| admission.leave(mib(n)).iter().map(|(_, read)| read.offset).collect::<Vec<_>>();
        assert!(admission.enter(mib(99), read(0)).is_some());
        assert!(admission.enter(mib(1), read(1)).is_none());
        assert!(admission.enter(mib(7), read(2)).is_none());
        assert!(admission.enter(mib(1), read(3)).is_none());
        assert_eq!(leave(99), [1, 2]);
        assert_eq!(leave(1), [3]);
        assert_eq!((leave(7), leave(1)), (vec![], vec![]));
        let many = Weight { bytes: 1, chunks: Admission::MIN_LIMIT.chunks };
        assert!(
            admission.enter(many, read(4)).is_some() && admission.enter(mib(0), read(5)).is_none()
        );
    }
}
