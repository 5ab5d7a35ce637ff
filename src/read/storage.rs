//! Where the stored bytes of an archive come from: a file, or an object on another machine.

use super::{local::LocalFile, scratch::Scratch};
#[cfg(feature = "remote")]
use crate::{
    error::Error,
    format::{FOOTER_LEN, HEADER_LEN, check_header},
    remote::{Object, Stored},
};
use crate::{
    error::Result,
    format::{Footer, peek},
};
#[cfg(feature = "remote")]
use std::sync::Arc;
use std::{borrow::Cow, fs::File, ops::Range};

/// The stored bytes of an archive. An enum: there are two kinds, and the local one must cost
/// nothing more.
pub(super) enum Storage {
    Local(LocalFile),
    #[cfg(feature = "remote")]
    Remote(Arc<Object>),
}

/// Stored bytes that were fetched for somebody who did not wait for them.
pub(crate) enum Fetched {
    Local(Vec<u8>),
    #[cfg(feature = "remote")]
    Remote(Stored),
}

impl Fetched {
    /// A range of them.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        match self {
            Self::Local(bytes) => (&bytes[range]).into(),
            #[cfg(feature = "remote")]
            Self::Remote(stored) => stored.bytes(range),
        }
    }
}

/// Whether somebody waits for what is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Somebody does.
    Demand,
    /// It is fetched ahead: after all that somebody waits for.
    Ahead,
}

impl Storage {
    pub(super) fn local(file: File) -> Self {
        Self::Local(LocalFile::new(file))
    }

    /// The footer, or `None` if this is no archive.
    ///
    /// # Errors
    /// As [`peek`].
    pub(super) fn footer(&self) -> Result<Option<Footer>> {
        match self {
            Self::Local(file) => peek(file.file()),
            #[cfg(feature = "remote")]
            Self::Remote(object) => remote_footer(object, Object::read),
        }
    }

    /// Whether reads wait for a network.
    pub(super) fn is_remote(&self) -> bool {
        match self {
            Self::Local(_) => false,
            #[cfg(feature = "remote")]
            Self::Remote(_) => true,
        }
    }

    /// Fetch bytes, and call `done` with them. Does not wait for a network.
    pub(super) fn fetch(
        &self,
        range: Range<u64>,
        _priority: Priority,
        done: impl FnOnce(Result<Fetched>) + Send + 'static,
    ) {
        match self {
            Self::Local(file) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                done(file.read_to(range.start, &mut bytes).map(|()| Fetched::Local(bytes)));
            }
            #[cfg(feature = "remote")]
            Self::Remote(object) => {
                let done =
                    Box::new(move |stored: Result<Stored>| done(stored.map(Fetched::Remote)));
                match _priority {
                    Priority::Demand => object.fetch_in_order(range, done),
                    Priority::Ahead => object.fetch_ahead(range, done),
                }
            }
        }
    }

    /// Somebody waits for bytes that are being fetched ahead.
    pub(super) fn hurry(&self, _range: &Range<u64>) {
        #[cfg(feature = "remote")]
        if let Self::Remote(object) = self {
            object.hurry(_range);
        }
    }

    /// Run `job` on a thread that may wait for a network; returns it if there is none.
    pub(super) fn spawn<J: FnOnce() + Send + 'static>(&self, job: J) -> Option<J> {
        match self {
            Self::Local(_) => Some(job),
            #[cfg(feature = "remote")]
            Self::Remote(object) => {
                object.spawn(job);
                None
            }
        }
    }

    /// Check the start of an archive, which the footer of an object was found without.
    ///
    /// # Errors
    /// Io; corruption or compatibility, if it is not the start of an archive.
    pub(super) fn check_start(&self) -> Result<()> {
        match self {
            Self::Local(_) => Ok(()),
            #[cfg(feature = "remote")]
            Self::Remote(object) => match is_archive(object)? {
                true => Ok(()),
                false => Err(Error::corrupt("the archive's header is damaged")),
            },
        }
    }

    /// The file, if it is one.
    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Self::Local(file) => Some(file.file()),
            #[cfg(feature = "remote")]
            Self::Remote(_) => None,
        }
    }

    /// Bypass the page cache from now on, unless most of the file is in it.
    pub(super) fn prefer_direct(&self) {
        match self {
            Self::Local(file) => file.prefer_direct(),
            #[cfg(feature = "remote")]
            Self::Remote(_) => {}
        }
    }

    /// Read `len` bytes at `at` into `scratch`.
    pub(super) fn read<'s>(
        &self,
        at: u64,
        len: usize,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8]> {
        match self {
            Self::Local(file) => file.read(at, len, scratch),
            #[cfg(feature = "remote")]
            Self::Remote(object) => {
                let out = scratch.bytes(len)?;
                object.read(at, out)?;
                Ok(out)
            }
        }
    }

    /// Fill `out` with the bytes at `at`.
    pub(super) fn read_to(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match self {
            Self::Local(file) => file.read_to(at, out),
            #[cfg(feature = "remote")]
            Self::Remote(object) => object.read(at, out),
        }
    }

    /// The same with temporary memory, for infrequent reads: no [`Scratch`] is kept for them.
    pub(super) fn read_aside(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match self {
            Self::Local(file) => file.read_aside(at, out),
            #[cfg(feature = "remote")]
            Self::Remote(object) => object.read(at, out),
        }
    }

    /// Have the kernel start to read these bytes of a local file.
    pub(super) fn read_ahead(&self, range: &Range<u64>) {
        match self {
            Self::Local(file) => file.read_ahead(range),
            #[cfg(feature = "remote")]
            Self::Remote(_) => {}
        }
    }

    /// These bytes will be read soon.
    pub(super) fn will_read(&self, _range: Range<u64>) {
        #[cfg(feature = "remote")]
        if let Self::Remote(object) = self {
            object.ahead_in_order(_range);
        }
    }

    /// These bytes were found to be damaged. Returns whether they may be right when they are read
    /// again, because they came from a cache or a network.
    pub(super) fn forget(&self, _range: Range<u64>) -> bool {
        match self {
            Self::Local(_) => false,
            #[cfg(feature = "remote")]
            Self::Remote(object) => {
                object.forget(&_range);
                true
            }
        }
    }
}

/// The footer of an object, whose end is fetched without the rest of its index; `None` if it is no
/// archive. Waits for the network.
///
/// # Errors
/// Those of [`Object::read`]; truncation or compatibility, as [`peek`].
#[cfg(feature = "remote")]
pub fn peek_object(object: &Object) -> Result<Option<Footer>> {
    remote_footer(object, Object::read_exactly)
}

/// The footer of an object. Its end is read first, since it is needed anyway, and its start only to
/// tell what is no archive from what was cut short.
#[cfg(feature = "remote")]
fn remote_footer(
    object: &Object,
    read: impl Fn(&Object, u64, &mut [u8]) -> Result<()>,
) -> Result<Option<Footer>> {
    let size = object.size();
    if size < HEADER_LEN {
        return Ok(None);
    }
    let mut end = [0; FOOTER_LEN as usize];
    let Some(at) = size.checked_sub(FOOTER_LEN) else {
        return match is_archive(object)? {
            true => Err(Error::truncated("the archive was cut short or never finished")),
            false => Ok(None),
        };
    };
    read(object, at, &mut end)?;
    match Footer::from_bytes(&end, size) {
        Ok(footer) => Ok(Some(footer)),
        Err(e) if is_archive(object)? => Err(e),
        Err(_) => Ok(None),
    }
}

/// Whether an object starts as an archive does.
#[cfg(feature = "remote")]
fn is_archive(object: &Object) -> Result<bool> {
    let mut start = [0; HEADER_LEN as usize];
    object.read(0, &mut start)?;
    check_header(&start)
}
