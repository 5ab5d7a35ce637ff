//! Reads an untrusted header forwards, within a budget of bytes.

use crate::error::{Error, Result as IoResult};
use std::{cell::Cell, ops::Range};

/// Reads exactly as many bytes as there are in the buffer, from an offset of the file.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> IoResult<()>;

/// The most bytes that are read of one file, in all. A tokenizer or a graph takes a few MiB.
const BUDGET: u64 = 128 << 20;
/// Bytes that are read at first, and at most, at a time: what follows is often skipped.
const BUFFER: Range<usize> = 4 << 10..256 << 10;

/// Why a header is not read any further.
#[derive(Debug)]
pub(super) enum Stop {
    /// It contradicts its format, or is longer than a reader's bounds.
    Malformed,
    /// It declares data that ends at this offset, which is behind the end of the file.
    Cut(u64),
    /// The file cannot be read.
    Io(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Io(e)
    }
}

pub(super) type Result<T> = std::result::Result<T, Stop>;

/// An untrusted file.
pub(super) struct Input<'a> {
    read: ReadAt<'a>,
    len: u64,
    budget: Cell<u64>,
}

impl<'a> Input<'a> {
    pub(super) fn new(read: ReadAt<'a>, len: u64) -> Self {
        Self { read, len, budget: Cell::new(BUDGET) }
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A cursor over this part of the file.
    pub(super) fn cursor(&self, part: Range<u64>) -> Cursor<'_> {
        let end = part.end.min(self.len);
        Cursor { input: self, at: part.start.min(end), end, buffer: Vec::new(), buffer_at: 0 }
    }

    /// The first bytes of the file, or all of it if it is shorter.
    pub(super) fn start(&self) -> Result<Vec<u8>> {
        let mut start = vec![0; self.len.min(16) as usize];
        self.fetch(0, &mut start)?;
        Ok(start)
    }

    fn fetch(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let left = self.budget.get().checked_sub(out.len() as u64).ok_or(Stop::Malformed)?;
        self.budget.set(left);
        Ok((self.read)(at, out)?)
    }
}

/// A position in an untrusted file.
pub(super) struct Cursor<'a> {
    input: &'a Input<'a>,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl Cursor<'_> {
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> u64 {
        self.end - self.at
    }

    /// Skip so many bytes.
    pub(super) fn skip(&mut self, n: u64) -> Result<()> {
        let to = self.at.checked_add(n).ok_or(Stop::Malformed)?;
        if to > self.end {
            return Err(if self.end == self.input.len { Stop::Cut(to) } else { Stop::Malformed });
        }
        self.at = to;
        Ok(())
    }

    /// The next bytes, of which there must be so many.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let start = self.at;
        self.skip(N as u64)?;
        if start < self.buffer_at || self.at > self.buffer_at + self.buffer.len() as u64 {
            self.fill(start)?;
        }
        let from = (start - self.buffer_at) as usize;
        Ok(std::array::from_fn(|i| self.buffer[from + i]))
    }

    /// The next bytes; more than `most` are malformed.
    pub(super) fn bytes(&mut self, n: u64, most: usize) -> Result<Vec<u8>> {
        let start = self.at;
        if n > most as u64 {
            return Err(Stop::Malformed);
        }
        self.skip(n)?;
        let mut out = vec![0; n as usize];
        let from = start.checked_sub(self.buffer_at).map(|from| from as usize);
        match from.and_then(|from| self.buffer.get(from..from + out.len())) {
            Some(bytes) => out.copy_from_slice(bytes),
            None if out.len() < BUFFER.start => {
                self.fill(start)?;
                out.copy_from_slice(&self.buffer[..n as usize]);
            }
            None => self.input.fetch(start, &mut out)?,
        }
        Ok(out)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Read into the buffer from `start` on: more each time while the header is read in one go.
    fn fill(&mut self, start: u64) -> Result<()> {
        let follows = (self.buffer_at..=self.buffer_at + self.buffer.len() as u64).contains(&start);
        let want = if follows { 2 * self.buffer.len() } else { 0 };
        let want = want.clamp(BUFFER.start, BUFFER.end) as u64;
        self.buffer.resize(want.min(self.end - start) as usize, 0);
        self.buffer_at = start;
        self.input.fetch(start, &mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_in_order_whatever_is_skipped() {
        let file: Vec<u8> = (0..600_000u32).map(|i| (i * 7 / 3) as u8).collect();
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&file[at as usize..][..out.len()]);
            Ok(())
        };
        let input = Input::new(&read, file.len() as u64);
        let mut cursor = input.cursor(3..file.len() as u64);
        let mut at = 3;
        for i in 0..2000u64 {
            assert_eq!(cursor.position(), at as u64);
            assert_eq!(cursor.array::<5>().expect("left"), file[at..at + 5]);
            let n = i * i % 97;
            assert_eq!(cursor.bytes(n, 97).expect("left"), file[at + 5..at + 5 + n as usize]);
            at += 5 + n as usize;
            let skipped = if i % 50 == 0 { 5000 } else { i % 3 };
            cursor.skip(skipped).expect("left");
            at += skipped as usize;
        }
        assert!(matches!(cursor.skip(600_000), Err(Stop::Cut(_))));
        assert!(matches!(cursor.skip(u64::MAX), Err(Stop::Malformed)));
        assert!(matches!(cursor.bytes(9, 8), Err(Stop::Malformed)));
        assert!(matches!(input.cursor(0..3).u32(), Err(Stop::Malformed)));
        assert!(input.start().expect("read") == file[..16]);
    }

    #[test]
    fn the_budget_ends() {
        let read = |_: u64, out: &mut [u8]| {
            out.fill(0);
            Ok(())
        };
        let input = Input::new(&read, u64::MAX);
        let mut cursor = input.cursor(0..u64::MAX);
        let mut reads = 0u64;
        while cursor.u8().is_ok() {
            cursor.skip(1 << 20).expect("left");
            reads += 1;
        }
        assert_eq!(reads, BUDGET / BUFFER.start as u64);
    }
}
