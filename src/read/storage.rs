//! Where the stored bytes of an archive come from: a file, or an object on another machine.

use super::{local::LocalFile, scratch::Scratch};
#[cfg(feature = "remote")]
use crate::{
    error::Error,
    format::{FOOTER_LEN, HEADER_LEN, check_header},
    remote::Object,
};
use crate::{
    error::Result,
    format::{Footer, peek},
};
#[cfg(feature = "remote")]
use std::sync::Arc;
use std::{fs::File, ops::Range};

/// The stored bytes of an archive. An enum: there are two kinds, and the local one must cost
/// nothing more.
pub(super) enum Storage {
    Local(LocalFile),
    #[cfg(feature = "remote")]
    Remote(Arc<Object>),
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
            Self::Remote(object) => remote_footer(object),
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

    /// These bytes will be read soon.
    pub(super) fn will_read(&self, _range: Range<u64>) {
        #[cfg(feature = "remote")]
        if let Self::Remote(object) = self {
            object.ahead(_range);
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

/// The footer of an object. Its end is read first, since it is needed anyway, and its start only to
/// tell what is no archive from what was cut short.
#[cfg(feature = "remote")]
fn remote_footer(object: &Object) -> Result<Option<Footer>> {
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
    object.read(at, &mut end)?;
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
