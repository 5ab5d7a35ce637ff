//! The URLs of remote sources. They never hold credentials, and are shown without their queries,
//! which may be signatures.

use crate::error::{Error, Result};
use std::{fmt, path::PathBuf};
use url::Url;

/// Where the objects of a URL are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// S3 or a compatible store.
    S3 {
        /// The bucket.
        bucket: String,
    },
    /// Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
    },
    /// Azure Blob Storage; the account is configured in the environment.
    Azure {
        /// The container.
        container: String,
    },
    /// A web server.
    Web {
        /// The whole URL, with the query.
        url: Url,
    },
    /// A repository of the Hugging Face hub.
    Hub {
        /// `organisation/name`.
        repository: String,
        /// A branch, a tag or a commit.
        revision: String,
    },
}

/// A parsed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteUrl {
    /// Where its objects are.
    pub service: Service,
    /// The key of an object or the prefix of a directory, without slashes around it.
    pub path: String,
    /// Whether it ends in a slash, and so is a directory.
    pub is_directory: bool,
}

/// The schemes of remote sources.
const SCHEMES: [&str; 6] = ["s3", "gs", "az", "http", "https", "hf"];

/// Whether a source named on a command line is a URL rather than a local path.
pub fn is_remote(source: &str) -> bool {
    source
        .split_once("://")
        .is_some_and(|(scheme, _)| SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)))
}

/// What a URL is called in messages and in the mount table: without what may be a secret.
///
/// # Errors
/// Invalid argument, if it is malformed.
pub fn shown(url: &str) -> Result<PathBuf> {
    Ok(RemoteUrl::parse(url)?.name(""))
}

impl RemoteUrl {
    /// What messages call an entry below this place.
    pub fn name(&self, path: &str) -> PathBuf {
        let url = self.to_string();
        match path {
            "" => url.into(),
            _ if url.ends_with('/') => format!("{url}{path}").into(),
            _ => format!("{url}/{path}").into(),
        }
    }

    /// The key of an entry below this place.
    pub fn key(&self, path: &str) -> String {
        if path.is_empty() { self.path.clone() } else { join(&self.path, path) }
    }

    /// Parse a URL.
    ///
    /// # Errors
    /// Invalid argument, in words that do not repeat what may be a secret.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text
            .split_once("://")
            .filter(|_| is_remote(text))
            .ok_or_else(|| Error::invalid("not a URL of s3, gs, az, http, https or hf"))?;
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Self::web(text),
            "hf" => Self::hub(rest),
            scheme => Self::bucket(scheme, rest),
        }
    }

    fn web(text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|e| Error::invalid(format!("not a URL: {e}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(credentials());
        }
        if url.fragment().is_some() {
            return Err(Error::invalid("a URL of a source has no fragment (#)"));
        }
        let is_directory = url.path().ends_with('/');
        Ok(Self { service: Service::Web { url }, path: String::new(), is_directory })
    }

    fn bucket(scheme: &str, rest: &str) -> Result<Self> {
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains('@') {
            return Err(credentials());
        }
        if bucket.is_empty() || bucket.contains(|c: char| c.is_control() || "?#:\\ ".contains(c)) {
            return Err(Error::invalid("the URL has no valid bucket: scheme://bucket/path"));
        }
        let bucket = bucket.to_owned();
        let service = match scheme {
            "s3" => Service::S3 { bucket },
            "gs" => Service::Gcs { bucket },
            _ => Service::Azure { container: bucket },
        };
        Ok(Self { service, path: key(path)?, is_directory: path.is_empty() || path.ends_with('/') })
    }

    fn hub(rest: &str) -> Result<Self> {
        let usage = || Error::invalid("not hf://organisation/name[@revision][/path]");
        let mut parts = rest.splitn(3, '/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else { return Err(usage()) };
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let is_plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if !is_plain(owner) || !is_plain(name) {
            return Err(usage());
        }
        // As in the hub's own URLs: refs%2Fpr%2F1.
        let revision = revision.replace("%2F", "/").replace("%2f", "/");
        let is_reference = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if revision.is_empty() || revision.contains("..") || !revision.chars().all(is_reference) {
            return Err(Error::invalid("not a revision of a repository"));
        }
        let path = parts.next().unwrap_or("");
        let repository = format!("{owner}/{name}");
        Ok(Self {
            service: Service::Hub { repository, revision },
            path: key(path)?,
            is_directory: path.is_empty() || path.ends_with('/'),
        })
    }
}

/// A key without the slashes around it.
fn key(path: &str) -> Result<String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let is_bad = |part: &str| matches!(part, "" | "." | "..") || part.contains(char::is_control);
    if !path.is_empty() && path.split('/').any(is_bad) {
        return Err(Error::invalid("the URL's path has an empty, `.` or `..` component"));
    }
    Ok(path.to_owned())
}

fn credentials() -> Error {
    Error::invalid(
        "a URL must not hold credentials, which others would see; set them in the environment",
    )
}

/// What may be shown to anybody, in `/proc/mounts` too: no query.
/// The path of an entry of the directory `dir`.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Service::S3 { bucket } => write!(f, "s3://{bucket}/{}", self.path)?,
            Service::Gcs { bucket } => write!(f, "gs://{bucket}/{}", self.path)?,
            Service::Azure { container } => write!(f, "az://{container}/{}", self.path)?,
            Service::Web { url } => return f.write_str(&url[..url::Position::AfterPath]),
            Service::Hub { repository, revision } => {
                write!(f, "hf://{repository}")?;
                if revision != "main" {
                    write!(f, "@{}", revision.replace('/', "%2F"))?;
                }
                write!(f, "/{}", self.path)?;
            }
        }
        if self.is_directory && !self.path.is_empty() { f.write_str("/") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_as_they_were_given_without_queries() {
        for (given, shown) in [
            ("s3://b/a/m.bsz", "s3://b/a/m.bsz"),
            ("S3://b", "s3://b/"),
            ("gs://b/x y/", "gs://b/x y/"),
            ("az://c/m.bsz", "az://c/m.bsz"),
            ("https://host/m.bsz?X-Amz-Signature=secret", "https://host/m.bsz"),
            ("http://host:8080/d/", "http://host:8080/d/"),
            ("hf://org/repo", "hf://org/repo/"),
            ("hf://org/repo@refs%2Fpr%2F1/m.bsz", "hf://org/repo@refs%2Fpr%2F1/m.bsz"),
        ] {
            assert_eq!(RemoteUrl::parse(given).expect(given).to_string(), shown);
        }
    }

    #[test]
    fn credentials_and_what_is_no_source_are_refused_without_being_repeated() {
        for url in [
            "http://me:secret@host/m.bsz",
            "https://secret@host/",
            "s3://key:secret@bucket/m.bsz",
            "s3:///secret",
            "s3://b/../secret",
            "s3://b//secret",
            "hf://secret",
            "hf://org/repo@../secret",
            "hf://org/re?po=secret",
            "http://host/m#secret",
            "http://",
            "ftp://host/secret",
        ] {
            let why = RemoteUrl::parse(url).expect_err(url).to_string();
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn paths_are_no_urls() {
        for path in ["m.bsz", "/a/b", "s3:/b", "s3", "file:///x", "./s3://b/x", "c://x"] {
            assert!(!is_remote(path), "{path}");
        }
        assert!(is_remote("HTTPS://host/x") && is_remote("hf://org/repo"));
    }
}
