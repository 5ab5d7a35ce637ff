//! The one error type of the library: a kind, what was being worked on, and the cause.

use crate::escape;
use std::{fmt, io, path::Path, sync::Arc};

/// What went wrong, coarse enough to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The archive needs a newer reader: an unknown version or coding.
    Compatibility,
    /// The bytes contradict themselves or their checksum.
    Corruption,
    /// The bytes end too early: a torn archive, a shrunken file.
    Truncated,
    /// The caller asked for something that cannot be done.
    InvalidArgument,
    /// The operating system refused.
    Io,
}

/// An error with the thing it is about (`what`) and the reason (`why`).
///
/// Errors are cheap to clone, since one failed chunk may answer several readers.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    what: Option<Arc<str>>,
    why: Arc<str>,
    source: Option<Arc<io::Error>>,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`, because of `why`.
    pub fn new(kind: ErrorKind, why: impl Into<Arc<str>>) -> Self {
        Self { kind, what: None, why: why.into(), source: None }
    }

    /// [`ErrorKind::Corruption`].
    pub fn corrupt(why: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Corruption, why)
    }

    /// [`ErrorKind::Compatibility`].
    pub fn unsupported(why: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Compatibility, why)
    }

    /// [`ErrorKind::Truncated`].
    pub fn truncated(why: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Truncated, why)
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(why: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, why)
    }

    /// The same error, said of `what` (a path, a chunk) unless it already names something.
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        self.what.get_or_insert_with(|| what.to_string().into());
        self
    }

    /// The same, said of the file at `path`.
    pub fn about_path(self, path: &Path) -> Self {
        self.about(escape::path(path))
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operating system's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(|e| e.raw_os_error())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(what) = &self.what {
            write!(f, "{what}: ")?;
        }
        f.write_str(&self.why)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        let kind = match e.kind() {
            io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
            _ => ErrorKind::Io,
        };
        Self { kind, what: None, why: e.to_string().into(), source: Some(Arc::new(e)) }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        io::Error::from(e).into()
    }
}

/// Say what a failed operation was about.
pub trait Context<T> {
    /// Name the thing: `std::fs::read(p).about("config")?`.
    fn about(self, what: impl fmt::Display) -> Result<T>;

    /// Name the file.
    fn about_path(self, path: &Path) -> Result<T>
    where
        Self: Sized,
    {
        self.about(escape::path(path))
    }
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn about(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().about(what))
    }
}
