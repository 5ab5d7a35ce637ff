//! Errors of reading, as the error numbers that programs get.

use crate::error::{Error, ErrorKind};
use rustix::io::Errno;
use std::path::Path;

/// Log why a file could not be opened, and return the error number for the program.
pub(super) fn open_failed(path: &Path, e: &Error) -> Errno {
    log::error!("{}", e.clone().about_path(path));
    errno_of(e)
}

/// The error number of an error of reading.
pub(super) fn errno_of(e: &Error) -> Errno {
    match (e.kind(), e.errno()) {
        (ErrorKind::Io, Some(errno)) => Errno::from_raw_os_error(errno),
        _ => Errno::IO,
    }
}
