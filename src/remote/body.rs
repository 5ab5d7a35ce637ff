//! What is uploaded: bytes that can be read at any place.

use super::object::Object;
use crate::error::{Error, Result};
use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
};

/// The bytes of an object that is to be.
pub trait Body: Sync {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fill `out` with those at `at`.
    ///
    /// # Errors
    /// Io.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()>;

    /// Check that they are the same as at the beginning.
    ///
    /// # Errors
    /// Io; invalid argument if they have changed.
    fn check(&self) -> Result<()>;
}

/// Bytes of another object, which stays the same one or cannot be read.
impl Body for Object {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        Self::read(self, at, out)
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// The bytes of a file.
pub struct FileBody<'a> {
    file: &'a File,
    begun: State,
}

/// What changes when a file is written to.
#[derive(PartialEq, Eq)]
struct State {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    fn of(file: &File) -> Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl<'a> FileBody<'a> {
    /// The bytes that `file` has now.
    ///
    /// # Errors
    /// Io.
    pub fn new(file: &'a File) -> Result<Self> {
        Ok(Self { file, begun: State::of(file)? })
    }
}

impl Body for FileBody<'_> {
    fn size(&self) -> u64 {
        self.begun.size
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(out, at)?)
    }

    fn check(&self) -> Result<()> {
        match State::of(self.file)? == self.begun {
            true => Ok(()),
            false => Err(Error::invalid("changed while it was being uploaded")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_that_is_written_to_is_noticed() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"0123456789").expect("written");
        let body = FileBody::new(&file).expect("opens");
        let mut out = [0; 3];
        body.read(4, &mut out).expect("reads");
        assert_eq!((&out, body.size()), (b"456", 10));
        assert!(body.read(9, &mut out).is_err());
        body.check().expect("unchanged");
        file.write_all_at(b"!", 0).and_then(|()| file.set_len(11)).expect("written");
        let e = body.check().expect_err("changed").to_string();
        assert_eq!(e, "changed while it was being uploaded");
    }
}
