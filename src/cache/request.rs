//! A read: what was requested, and the state of one that waits for chunks.

use super::{buffer::Buffer, file::CachedFile};
use crate::error::{Error, Result};
use std::{
    ops::{Deref, Range},
    sync::{Arc, Mutex, PoisonError},
};

/// Called with the parts of a read, in order.
pub(super) type Completion = Box<dyn FnOnce(Result<Vec<Slice>>) + Send>;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A reader that may request the same bytes again, as with `O_DIRECT`.
    Direct,
    /// A reader whose data the kernel's page cache keeps. A chunk that has been read completely
    /// is dropped at once, and its memory is reused while the processor's caches still hold it.
    PageCached,
    /// The page-cache warmer. The page cache keeps the data, but no program waits for it yet.
    Warmer,
}

/// A read that has not been looked up yet.
pub(super) struct ReadRequest {
    pub(super) file: Arc<CachedFile>,
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) reader: Reader,
    pub(super) done: Completion,
}

/// A part of a decoded chunk, which it keeps alive.
pub struct Slice {
    pub(super) chunk: Arc<Buffer>,
    pub(super) range: Range<usize>,
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.chunk[self.range.clone()]
    }
}

/// A read that waits for some of its chunks.
pub(super) struct PendingRead(Mutex<Progress>);

struct Progress {
    slices: Vec<Option<Slice>>,
    missing: usize,
    error: Option<Error>,
    done: Option<Completion>,
}

impl PendingRead {
    /// A read that misses `missing` of its `slices`.
    pub(super) fn new(slices: Vec<Option<Slice>>, missing: usize, done: Completion) -> Self {
        Self(Mutex::new(Progress { slices, missing, error: None, done: Some(done) }))
    }

    /// Supply a missing part, or the reason why it is missing. The last part completes the read.
    pub(super) fn supply(&self, part: usize, range: Range<usize>, chunk: Result<Arc<Buffer>>) {
        let mut progress = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match chunk {
            Ok(chunk) => progress.slices[part] = Some(Slice { chunk, range }),
            Err(e) => progress.error = Some(e),
        }
        progress.missing -= 1;
        if progress.missing > 0 {
            return;
        }
        let result = match progress.error.take() {
            Some(e) => Err(e),
            None => Ok(std::mem::take(&mut progress.slices).into_iter().flatten().collect()),
        };
        let done = progress.done.take();
        drop(progress);
        if let Some(done) = done {
            done(result);
        }
    }
}
