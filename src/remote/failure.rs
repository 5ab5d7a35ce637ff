//! What goes wrong with a request, by what is to be done about it, and as an error of the library.

use crate::error::Error;
use std::{error::Error as StdError, io, time::Duration};

/// Why a request failed. No message holds a URL: that may be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The object is another one than when it was opened: `ESTALE`.
    Replaced(String),
    /// Credentials are missing, expired or insufficient: `EACCES`.
    Denied(String),
    /// There is no such object: `ENOENT`.
    Missing,
    /// It may succeed when it is repeated: `EIO` after the deadline.
    Transient {
        /// The reason.
        why: String,
        /// Whether the server asks for fewer requests.
        throttled: bool,
        /// How long the server asks to wait.
        after: Option<Duration>,
    },
    /// The deadline has passed, for this reason: `EIO`.
    TimedOut(String),
    /// The server does not offer it: `EOPNOTSUPP`.
    Unsupported(&'static str),
    /// Repeating it is of no use: `EIO`.
    Fatal(String),
}

impl Failure {
    /// A failure of the connection, which may be repeated.
    pub fn transient(why: impl Into<String>) -> Self {
        Self::Transient { why: why.into(), throttled: false, after: None }
    }

    /// What an HTTP status other than success means; `after` is the time in `Retry-After`.
    pub fn of_status(status: u16, after: Option<Duration>) -> Self {
        let why = || format!("the server answers {}", named(status));
        match status {
            401 | 403 | 407 => Self::Denied(why()),
            404 | 410 => Self::Missing,
            412 => Self::Replaced("it was replaced since it was opened".into()),
            408 | 425 | 429 | 500..=599 if status != 501 && status != 505 => {
                let throttled = matches!(status, 429 | 503);
                Self::Transient { why: why(), throttled, after }
            }
            _ => Self::Fatal(why()),
        }
    }

    /// The reason.
    pub fn why(&self) -> &str {
        match self {
            Self::Replaced(why) | Self::Denied(why) | Self::TimedOut(why) | Self::Fatal(why) => why,
            Self::Transient { why, .. } => why,
            Self::Unsupported(why) => why,
            Self::Missing => "no such object",
        }
    }

    /// The error number that a program gets.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Replaced(_) => libc::ESTALE,
            Self::Denied(_) => libc::EACCES,
            Self::Missing => libc::ENOENT,
            Self::Unsupported(_) => libc::EOPNOTSUPP,
            Self::Transient { .. } | Self::TimedOut(_) | Self::Fatal(_) => libc::EIO,
        }
    }

    /// The same while an object is open: that it is gone means that it has changed.
    pub fn while_open(self) -> Self {
        match self {
            Self::Missing => Self::Replaced("it was deleted since it was opened".into()),
            other => other,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::os(failure.errno(), failure.why())
    }
}

impl From<&reqwest::Error> for Failure {
    fn from(e: &reqwest::Error) -> Self {
        if e.is_builder() {
            return Self::Fatal(innermost(e));
        }
        match innermost(e) {
            _ if e.is_timeout() => Self::transient("the connection timed out"),
            why if why.contains("certificate") => Self::Fatal(why),
            why => Self::transient(why),
        }
    }
}

/// The text of the last cause, which names the reason but no URL.
pub fn innermost(e: &(dyn StdError + 'static)) -> String {
    let mut last = e;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => inner.to_string(),
        None => last.to_string(),
    }
}

fn named(status: u16) -> String {
    let reason = reqwest::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    reason.map_or_else(|| status.to_string(), |reason| format!("{status} {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_the_error_numbers_of_files() {
        let errno = |status| Failure::of_status(status, None).errno();
        for (status, number) in [
            (401, libc::EACCES),
            (403, libc::EACCES),
            (404, libc::ENOENT),
            (412, libc::ESTALE),
            (416, libc::EIO),
            (429, libc::EIO),
            (500, libc::EIO),
            (301, libc::EIO),
        ] {
            assert_eq!(errno(status), number, "{status}");
        }
        let gone = Failure::Missing.while_open();
        let e = Error::from(gone);
        assert_eq!(e.errno(), Some(libc::ESTALE));
        assert_eq!(e.to_string(), "it was deleted since it was opened");
    }
}
