//! A read that waits for some of its chunks.

use super::buffer::Buffer;
use crate::error::{Error, Result};
use std::{
    ops::{Deref, Range},
    sync::{Arc, Mutex, PoisonError},
};

/// Called with the parts of a read, in order.
pub(super) type Done = Box<dyn FnOnce(Result<Vec<Slice>>) + Send>;

/// A part of a decoded chunk; the chunk lives as long.
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

pub(super) struct Request(Mutex<Waiting>);

struct Waiting {
    slices: Vec<Option<Slice>>,
    missing: usize,
    error: Option<Error>,
    done: Option<Done>,
}

impl Request {
    /// A request that lacks `missing` of its `slices`.
    pub(super) fn new(slices: Vec<Option<Slice>>, missing: usize, done: Done) -> Self {
        Self(Mutex::new(Waiting { slices, missing, error: None, done: Some(done) }))
    }

    /// One of the missing parts, or why it cannot be had. The last one ends the wait.
    pub(super) fn supply(&self, place: usize, range: Range<usize>, chunk: Result<Arc<Buffer>>) {
        let mut w = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match chunk {
            Ok(chunk) => w.slices[place] = Some(Slice { chunk, range }),
            Err(e) => w.error = Some(e),
        }
        w.missing -= 1;
        if w.missing > 0 {
            return;
        }
        let answer = match w.error.take() {
            Some(e) => Err(e),
            None => Ok(std::mem::take(&mut w.slices).into_iter().flatten().collect()),
        };
        let done = w.done.take();
        drop(w);
        if let Some(done) = done {
            done(answer);
        }
    }
}
