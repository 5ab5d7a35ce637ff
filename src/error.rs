//! The error type of the library: a kind, what the error is about, and the reason.

use crate::escape;
use std::{fmt, io, path::Path, sync::Arc};

/// What went wrong, coarse enough to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The archive needs a newer reader: an unknown version or coding.
    Compatibility,
    /// The bytes contradict themselves or their checksum.
    Corruption,
    /// The bytes end too early: a torn archive, a truncated file.
    Truncated,
    /// The caller asked for something that cannot be done.
    InvalidArgument,
    /// The operating system refused.
    Io,
}

/// An error: the file it is about, the thing in question (a chunk, a system call), and the reason.
///
/// Errors are cheap to clone, since one failed chunk may answer several readers.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    path: Option<Arc<Path>>,
    what: Option<Arc<str>>,
    why: Arc<str>,
    source: Option<Arc<io::Error>>,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`, because of `why`.
    pub fn new(kind: ErrorKind, why: impl Into<Arc<str>>) -> Self {
        Self { kind, path: None, what: None, why: why.into(), source: None }
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

    /// [`ErrorKind::Io`] with an error number of the operating system, because of `why`.
    pub fn os(errno: i32, why: impl Into<Arc<str>>) -> Self {
        let source = Some(Arc::new(io::Error::from_raw_os_error(errno)));
        Self { source, ..Self::new(ErrorKind::Io, why) }
    }

    /// Name the thing that the error is about, unless the error already names one.
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        if self.path.is_none() {
            self.what.get_or_insert_with(|| what.to_string().into());
        }
        self
    }

    /// Name the file that the error is about, unless the error already names one.
    pub fn about_path(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.into());
        self
    }

    /// The file that the error is about, if it names one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The error without the name of the file, for those who show that in their own way.
    pub fn detail(&self) -> String {
        match &self.what {
            Some(what) => format!("{what}: {}", self.why),
            None => self.why.to_string(),
        }
    }

    /// The reason alone.
    pub fn reason(&self) -> &str {
        &self.why
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operating system's error number, if it reported one.
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(|e| e.raw_os_error())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", escape::path(&**path))?;
        }
        f.write_str(&self.detail())
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
        let why = e.to_string().into();
        Self { kind, path: None, what: None, why, source: Some(Arc::new(e)) }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        io::Error::from(e).into()
    }
}

/// Adds context to the error of a result.
pub trait Context<T> {
    /// Name the thing, as [`Error::about`]: `std::io::pipe().about("pipe")?`.
    fn about(self, what: impl fmt::Display) -> Result<T>;

    /// Name the file, as [`Error::about_path`]: `std::fs::read(path).about_path(path)?`.
    fn about_path(self, path: &Path) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn about(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().about(what))
    }

    fn about_path(self, path: &Path) -> Result<T> {
        self.map_err(|e| e.into().about_path(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_first_file_and_the_first_thing_in_it() {
        let e = || Error::invalid("why");
        assert_eq!(e().to_string(), "why");
        assert_eq!(e().about("a").about("b").to_string(), "a: why");
        let in_file = e().about("chunk 7").about_path(Path::new("x")).about_path(Path::new("y"));
        assert_eq!(in_file.to_string(), "x: chunk 7: why");
        assert_eq!(in_file.path(), Some(Path::new("x")));
        assert_eq!(in_file.detail(), "chunk 7: why");
        assert_eq!(e().about_path(Path::new("x")).about("later").to_string(), "x: why");
        assert_eq!(e().about_path(Path::new("a\n")).to_string(), r"a\n: why");
    }
}
