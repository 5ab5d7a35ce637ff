//! One request for bytes, and one answer.

use super::{failure::Failure, identity::Facts};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::ops::Range;

/// The bytes that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// These of the object.
    Range(Range<u64>),
    /// So many at its end, or all of it if it is shorter.
    Suffix(u64),
}

/// An answer whose head has arrived.
pub struct Answer {
    /// The object that it is about.
    pub facts: Facts,
    /// Where in the object its bytes are.
    pub range: Range<u64>,
    /// The bytes as they arrive. They may end early.
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
}

impl Answer {
    /// Whether it holds what was asked for.
    ///
    /// # Errors
    /// [`Failure::Fatal`] if it does not.
    pub fn check(&self, wanted: &Wanted) -> Result<(), Failure> {
        let expected = match wanted {
            Wanted::Range(range) => range.clone(),
            Wanted::Suffix(len) => self.facts.size.saturating_sub(*len)..self.facts.size,
        };
        if self.range == expected {
            return Ok(());
        }
        Err(Failure::Fatal("the server answers with other bytes than it was asked for".into()))
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the directory.
    pub name: String,
    /// What is known of a file; `None` for a directory.
    pub file: Option<Facts>,
}

/// Whether a name can be one of a file system. Others are hidden.
pub fn is_usable(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}
