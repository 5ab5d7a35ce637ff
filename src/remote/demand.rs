//! A read of stored bytes that waits for its parts. Whatever becomes of them, it gets a result.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

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

    /// A range of them, without a copy.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let (mut at, mut pieces) = (0, Vec::new());
        for piece in &self.pieces {
            let (from, to) = (range.start.max(at), range.end.min(at + piece.len()));
            if from < to {
                pieces.push(piece.slice(from - at..to - at));
            }
            at += piece.len();
        }
        assert!(range.end <= at, "the range is within the bytes");
        Self { pieces }
    }

    /// A range of them, copied if it is not within one piece.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn bytes(&self, range: Range<usize>) -> std::borrow::Cow<'_, [u8]> {
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

impl From<Vec<Bytes>> for Stored {
    fn from(pieces: Vec<Bytes>) -> Self {
        Self { pieces }
    }
}

impl From<Bytes> for Stored {
    fn from(piece: Bytes) -> Self {
        vec![piece].into()
    }
}

/// Called once with the bytes, or with the reason why there are none: on the thread that asks if
/// all bytes are at hand, else on one that must not be held up.
pub type Done = Box<dyn FnOnce(Result<Stored>) + Send>;

/// A read that is waiting.
pub struct Demand {
    /// The bytes of each of its parts that are wanted.
    wanted: Vec<Range<usize>>,
    state: Mutex<State>,
}

struct State {
    /// What is here, by part.
    parts: Vec<Option<Stored>>,
    missing: usize,
    done: Option<Done>,
    timer: Option<tokio::task::AbortHandle>,
}

impl Demand {
    /// A read of these ranges, one in each of its parts.
    pub fn new(wanted: impl IntoIterator<Item = Range<usize>>, done: Done) -> Self {
        let wanted: Vec<_> = wanted.into_iter().collect();
        let (parts, missing) = (vec![None; wanted.len()], wanted.len());
        let state = Mutex::new(State { parts, missing, done: Some(done), timer: None });
        Self { wanted, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of part `number` are wanted.
    pub fn wanted(&self, number: usize) -> usize {
        self.wanted[number].len()
    }

    /// Whether it has not got a result yet.
    pub fn is_waiting(&self) -> bool {
        self.lock().done.is_some()
    }

    /// Part `number` has arrived, as a whole.
    pub fn supply(&self, number: usize, part: &Stored) {
        let mut state = self.lock();
        let here = &mut state.parts[number];
        if here.is_some() {
            return;
        }
        *here = Some(part.slice(self.wanted[number].clone()));
        state.missing -= 1;
        if state.missing == 0 {
            let parts = state.parts.iter_mut().filter_map(Option::take);
            let pieces = parts.flat_map(|part| part.pieces).collect();
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
        demand.supply(1, &Bytes::from_static(b"cde").into());
        assert!(demand.is_waiting() && got.try_recv().is_err());
        demand.supply(0, &[&b"xa"[..], b"b"].map(Bytes::from_static).to_vec().into());
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
        let slice = stored.slice(2..5);
        assert_eq!(
            (slice.pieces(), slice.len()),
            (&[&b"c"[..], b"de"].map(Bytes::from_static)[..], 3)
        );
    }

    #[test]
    fn a_read_that_is_dropped_is_answered_with_an_error() {
        let (send, got) = mpsc::channel();
        drop(Demand::new([0..1, 0..1], Box::new(move |r| drop(send.send(r)))));
        assert_eq!(got.recv().expect("answered").expect_err("failed").errno(), Some(libc::EIO));
    }
}
