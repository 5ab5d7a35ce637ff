//! Which reads may wait for chunks at once: those that wait hold what has come for them, which cannot be dropped.

use super::{archive::Archive, cache::Reader, request::Done};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A read that was not begun.
pub(super) struct Ask {
    pub(super) archive: Arc<Archive>,
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) reader: Reader,
    pub(super) done: Done,
}

/// What a read holds while it waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Bytes of its chunks.
    pub(super) bytes: u64,
    /// How many these are.
    pub(super) chunks: usize,
}

/// See the module's documentation.
pub(super) struct Admission {
    most: Weight,
    state: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// What was admitted.
    now: Weight,
    waiting: VecDeque<(Weight, Ask)>,
}

impl Admission {
    /// What is admitted in any case, as far as it is not one read alone.
    const LEAST: Weight = Weight { bytes: 8 << 20, chunks: 1 << 13 };

    /// Into a cache that may take so many bytes: half of it at once.
    pub(super) fn new(capacity: u64) -> Self {
        let bytes = Self::LEAST.bytes.max(capacity / 2);
        Self { most: Weight { bytes, ..Self::LEAST }, state: Mutex::default() }
    }

    /// Admit a read, or keep it until others have [left](Admission::leave).
    pub(super) fn enter(&self, weight: Weight, ask: Ask) -> Option<Ask> {
        let mut queue = self.lock();
        if queue.waiting.is_empty() && queue.admits(weight, self.most) {
            return Some(ask);
        }
        queue.waiting.push_back((weight, ask));
        None
    }

    /// A read of this weight is over; returns those that are admitted by that.
    pub(super) fn leave(&self, weight: Weight) -> Vec<(Weight, Ask)> {
        let mut queue = self.lock();
        queue.now.bytes -= weight.bytes;
        queue.now.chunks -= weight.chunks;
        let mut admitted = Vec::new();
        while let Some((weight, _)) = queue.waiting.front() {
            let weight = *weight;
            if !queue.admits(weight, self.most) {
                break;
            }
            admitted.extend(queue.waiting.pop_front());
        }
        admitted
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Count a read, if it is the only one or there is room for it.
    fn admits(&mut self, weight: Weight, most: Weight) -> bool {
        let bytes = self.now.bytes + weight.bytes;
        let chunks = self.now.chunks + weight.chunks;
        let fits = self.now == Weight::default() || bytes <= most.bytes && chunks <= most.chunks;
        if fits {
            self.now = Weight { bytes, chunks };
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn reads_are_admitted_in_order_as_far_as_there_is_room_and_one_alone_in_any_case() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/bf16.bsz");
        let archive = Arc::new(Archive::open(&golden).expect("an archive"));
        let ask = |offset| Ask {
            archive: Arc::clone(&archive),
            offset,
            len: 1,
            reader: Reader::Passing,
            done: Box::new(drop),
        };
        let mib = |n: u64| Weight { bytes: n << 20, chunks: 1 };
        let admission = Admission::new(0);
        let leave =
            |n| admission.leave(mib(n)).iter().map(|(_, ask)| ask.offset).collect::<Vec<_>>();
        assert!(admission.enter(mib(99), ask(0)).is_some());
        assert!(admission.enter(mib(1), ask(1)).is_none());
        assert!(admission.enter(mib(7), ask(2)).is_none());
        assert!(admission.enter(mib(1), ask(3)).is_none());
        assert_eq!(leave(99), [1, 2]);
        assert_eq!(leave(1), [3]);
        assert_eq!((leave(7), leave(1)), (vec![], vec![]));
        let many = Weight { bytes: 1, chunks: Admission::LEAST.chunks };
        assert!(
            admission.enter(many, ask(4)).is_some() && admission.enter(mib(0), ask(5)).is_none()
        );
    }
}
