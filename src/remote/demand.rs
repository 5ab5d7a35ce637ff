//! A read of stored bytes that waits for its parts. Whatever becomes of them, it gets a result.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stored bytes of a range, in one or several pieces.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    pieces: Vec<Bytes>,
}

impl Stored {
    /// The pieces in order.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A range of them, copied if it is not within one piece.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn bytes(&self, range: std::ops::Range<usize>) -> std::borrow::Cow<'_, [u8]> {
        let mut at = 0;
        let mut copy = Vec::new();
        for piece in &self.pieces {
            let (from, to) = (range.start.max(at), range.end.min(at + piece.len()));
            if from < to {
                let here = &piece[from - at..to - at];
                if here.len() == range.len() {
                    return here.into();
                }
                copy.extend_from_slice(here);
            }
            at += piece.len();
        }
        assert_eq!(copy.len(), range.len(), "the range is within the bytes");
        copy.into()
    }

    /// Copy them to `out`, which is as long.
    ///
    /// # Panics
    /// If `out` is not as long.
    pub fn copy_to(&self, out: &mut [u8]) {
        assert_eq!(self.len(), out.len(), "the length of the range");
        let mut rest = out;
        for piece in &self.pieces {
            let (here, behind) = rest.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            rest = behind;
        }
    }
}

/// Called once with the bytes, or with the reason why there are none: on the thread that asks if
/// all bytes are at hand, else on one that must not be held up.
pub type Done = Box<dyn FnOnce(Result<Stored>) + Send>;

/// A read that is waiting.
pub struct Demand(Mutex<State>);

struct State {
    parts: Vec<Part>,
    missing: usize,
    done: Option<Done>,
    timer: Option<tokio::task::AbortHandle>,
}

struct Part {
    /// The bytes of the part that are wanted.
    wanted: std::ops::Range<usize>,
    bytes: Option<Bytes>,
}

impl Demand {
    /// A read of these ranges, one in each of its parts.
    pub fn new(wanted: impl IntoIterator<Item = std::ops::Range<usize>>, done: Done) -> Self {
        let parts: Vec<Part> =
            wanted.into_iter().map(|wanted| Part { wanted, bytes: None }).collect();
        let missing = parts.len();
        Self(Mutex::new(State { parts, missing, done: Some(done), timer: None }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has not got a result yet.
    pub fn is_waiting(&self) -> bool {
        self.lock().done.is_some()
    }

    /// Part `number` has arrived, as a whole.
    pub fn supply(&self, number: usize, part: &Bytes) {
        let mut state = self.lock();
        let here = &mut state.parts[number];
        if here.bytes.is_some() {
            return;
        }
        here.bytes = Some(part.slice(here.wanted.clone()));
        state.missing -= 1;
        if state.missing == 0 {
            let pieces = state.parts.iter_mut().filter_map(|part| part.bytes.take()).collect();
            finish(state, Ok(Stored { pieces }));
        }
    }

    /// It cannot be had.
    pub fn fail(&self, e: &Error) {
        finish(self.lock(), Err(e.clone()));
    }

    /// Stop `timer` when there is a result.
    pub fn set_timer(&self, timer: tokio::task::AbortHandle) {
        let mut state = self.lock();
        match state.done {
            Some(_) => state.timer = Some(timer),
            None => timer.abort(),
        }
    }
}

/// Hand over the result without holding the lock.
fn finish(mut state: MutexGuard<'_, State>, result: Result<Stored>) {
    let (done, timer) = (state.done.take(), state.timer.take());
    drop(state);
    if let Some(timer) = timer {
        timer.abort();
    }
    if let Some(done) = done {
        done(result);
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.fail(&Error::os(libc::EIO, "the read was abandoned"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_read_is_answered_once_its_parts_are_there_and_only_once() {
        let (send, got) = mpsc::channel();
        let done = Box::new(move |result| send.send(result).expect("listened to"));
        let demand = Demand::new([1..3, 0..2], done);
        demand.supply(1, &Bytes::from_static(b"cde"));
        assert!(demand.is_waiting() && got.try_recv().is_err());
        demand.supply(0, &Bytes::from_static(b"xab"));
        demand.fail(&Error::invalid("too late"));
        let mut out = [0; 4];
        got.recv().expect("answered").expect("succeeded").copy_to(&mut out);
        assert_eq!(&out, b"abcd");
        drop(demand);
        assert!(got.recv().is_err(), "answered twice");
    }

    #[test]
    fn ranges_of_pieces_are_borrowed_or_copied() {
        let pieces = [&b"abc"[..], b"", b"def"].map(Bytes::from_static).to_vec();
        let stored = Stored { pieces };
        for (range, text) in [(0..3, "abc"), (1..2, "b"), (3..6, "def"), (2..5, "cde"), (6..6, "")]
        {
            assert_eq!(*stored.bytes(range), *text.as_bytes());
        }
        assert!(matches!(stored.bytes(3..5), std::borrow::Cow::Borrowed(_)));
    }

    #[test]
    fn a_read_that_is_dropped_is_answered_with_an_error() {
        let (send, got) = mpsc::channel();
        drop(Demand::new([0..1, 0..1], Box::new(move |r| drop(send.send(r)))));
        assert_eq!(got.recv().expect("answered").expect_err("failed").errno(), Some(libc::EIO));
    }
}
