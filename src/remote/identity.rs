//! Which object an answer is about: what is cached and what is joined together must be of one.

use super::failure::Failure;
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::SystemTime};

/// What a server says about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its entity tag, as in the header but without quotes.
    pub etag: Option<String>,
    /// Its version, where the store keeps versions.
    pub version: Option<String>,
    /// When it was last modified.
    pub modified: Option<SystemTime>,
    /// Its size in bytes.
    pub size: u64,
}

impl Facts {
    /// Whether the entity tag stands for the bytes, also after a restart.
    pub fn is_strong(&self) -> bool {
        self.etag.as_ref().is_some_and(|tag| !tag.is_empty() && !tag.starts_with("W/"))
    }

    /// Whether an answer with these facts is about the object of `self`.
    ///
    /// # Errors
    /// `Replaced` if it is not; `Fatal` if it does not say so.
    pub fn check(&self, answer: &Self) -> Result<(), Failure> {
        let replaced = |what: &str| {
            Err(Failure::Replaced(format!("it was replaced since it was opened: other {what}")))
        };
        if answer.size != self.size {
            return replaced("size");
        }
        match (&self.etag, &answer.etag) {
            (Some(expected), Some(tag)) if expected != tag => return replaced("ETag"),
            (Some(_), None) => {
                return Err(Failure::Fatal("the server answers without the ETag".into()));
            }
            _ => {}
        }
        if self.version.is_some() && answer.version.is_some() && self.version != answer.version {
            return replaced("version");
        }
        if !self.is_strong() && self.modified != answer.modified {
            return replaced("time");
        }
        Ok(())
    }
}

/// An object: where it is, and which of those that were there over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The URL, without secrets.
    pub url: Arc<str>,
    /// The object.
    pub facts: Facts,
}

impl Identity {
    /// A name of the object among all others, for caches. `scope` tells endpoints and accounts
    /// apart that see different objects under one URL.
    pub fn key(&self, scope: &str) -> u128 {
        let Facts { etag, version, modified, size } = &self.facts;
        let text = format!("{scope}\n{}\n{etag:?}\n{version:?}\n{size}\n", self.url);
        let mut hash = Sha256::new_with_prefix(text);
        if !self.facts.is_strong() {
            hash.update(format!("{modified:?}"));
        }
        let hash: [u8; 32] = hash.finalize().into();
        u128::from_be_bytes(std::array::from_fn(|i| hash[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn facts(etag: Option<&str>, size: u64, seconds: u64) -> Facts {
        let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        Facts { etag: etag.map(String::from), version: None, modified, size }
    }

    #[test]
    fn an_answer_must_be_about_the_same_object() {
        let strong = facts(Some("a"), 5, 1);
        assert_eq!(strong.check(&facts(Some("a"), 5, 2)), Ok(()));
        for (other, errno) in [
            (facts(Some("b"), 5, 1), libc::ESTALE),
            (facts(Some("a"), 6, 1), libc::ESTALE),
            (facts(None, 5, 1), libc::EIO),
        ] {
            assert_eq!(strong.check(&other).expect_err("another").errno(), errno);
        }
        for tag in [None, Some("W/\"a\"")] {
            let weak = facts(tag, 5, 1);
            assert_eq!(weak.check(&facts(tag, 5, 1)), Ok(()));
            assert!(weak.check(&facts(tag, 5, 2)).is_err(), "only the time tells");
        }
        let versioned = |v: &str| Facts { version: Some(v.into()), ..facts(Some("a"), 5, 1) };
        assert!(versioned("1").check(&versioned("2")).is_err());
    }

    #[test]
    fn keys_tell_objects_apart() {
        let key = |url: &str, etag, size, scope: &str| {
            Identity { url: url.into(), facts: facts(etag, size, 1) }.key(scope)
        };
        let one = key("s3://b/x", Some("a"), 5, "e");
        assert_eq!(one, key("s3://b/x", Some("a"), 5, "e"));
        for other in [
            key("s3://b/y", Some("a"), 5, "e"),
            key("s3://b/x", Some("b"), 5, "e"),
            key("s3://b/x", Some("a"), 6, "e"),
            key("s3://b/x", Some("a"), 5, "f"),
            key("s3://b/x", None, 5, "e"),
        ] {
            assert_ne!(one, other);
        }
    }
}
