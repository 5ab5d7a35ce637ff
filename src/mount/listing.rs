//! Listings of directories on other machines, and what was found where they do not tell objects
//! apart: with the same size and the same second, one object may have taken the place of another.

use super::source::is_name;
use crate::remote::{Entry, Facts};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Mutex;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// The names in a directory, and what is known of those that are files.
pub(super) struct Listing {
    pub at: Instant,
    /// How long it took to fetch it.
    pub took: Duration,
    pub entries: Mutex<BTreeMap<String, Option<Facts>>>,
    /// Whether all names are known. There are servers without listings.
    pub is_complete: bool,
}

impl Listing {
    /// A listing that was fetched just now.
    pub fn new(entries: Vec<Entry>, is_complete: bool) -> Self {
        // Of two entries with the same name, the directory counts.
        let mut known = BTreeMap::new();
        for Entry { name, file } in entries {
            if is_name(OsStr::new(&name)) && (file.is_none() || !known.contains_key(&name)) {
                known.insert(name, file);
            }
        }
        let (at, took) = (Instant::now(), Duration::ZERO);
        Self { at, took, entries: Mutex::new(known), is_complete }
    }
}

/// Whether an object is the one that was listed, as far as a listing tells.
pub(super) fn is_same(listed: &Facts, opened: &Facts) -> bool {
    let seconds = |facts: &Facts| {
        let modified = facts.modified?.duration_since(UNIX_EPOCH).ok()?;
        Some(modified.as_secs())
    };
    let differ = |a: Option<u64>, b: Option<u64>| a.zip(b).is_some_and(|(a, b)| a != b);
    listed.size == opened.size
        && match (&listed.etag, &opened.etag) {
            (Some(listed), Some(opened)) => listed == opened,
            _ => !differ(seconds(listed), seconds(opened)),
        }
}

/// What an entry of a listing stood for when it was opened at last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The entry, without a strong entity tag.
    listed: Facts,
    /// The object.
    opened: Facts,
    /// Whether another one was found before: the entry alone is not its identity.
    is_other: bool,
}

impl Seen {
    /// What is known after an entry was opened, and what was known before.
    pub fn after(before: Option<&Self>, listed: &Facts, opened: &Facts) -> Self {
        let is_other = before.is_some_and(|before| {
            before.listed == *listed && (before.is_other || before.opened.check(opened).is_err())
        });
        Self { listed: listed.clone(), opened: opened.clone(), is_other }
    }

    /// Whether the entry stood for another object before.
    pub fn is_other_than(&self, before: Option<&Self>) -> bool {
        before.is_some_and(|before| {
            before.listed == self.listed && before.opened.check(&self.opened).is_err()
        })
    }

    /// What identifies the object of an entry, if that is not the entry.
    pub fn other_than(&self, listed: &Facts) -> Option<Facts> {
        (self.is_other && self.listed == *listed).then(|| self.opened.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_a_listing_does_not_tell_apart_have_identities_of_their_own() {
        let listed = Facts { size: 5, ..Facts::default() };
        let tagged = |tag: &str| Facts { etag: Some(tag.into()), ..listed.clone() };
        let first = Seen::after(None, &listed, &tagged("a"));
        assert_eq!((first.is_other_than(None), first.other_than(&listed)), (false, None));
        let again = Seen::after(Some(&first), &listed, &tagged("a"));
        assert!(!again.is_other_than(Some(&first)) && again.other_than(&listed).is_none());
        let second = Seen::after(Some(&again), &listed, &tagged("b"));
        assert!(second.is_other_than(Some(&again)));
        assert_eq!(second.other_than(&listed), Some(tagged("b")));
        let kept = Seen::after(Some(&second), &listed, &tagged("b"));
        assert!(!kept.is_other_than(Some(&second)));
        assert_eq!(kept.other_than(&listed), Some(tagged("b")), "as long as it is listed so");
        let longer = Facts { size: 6, ..Facts::default() };
        assert_eq!(kept.other_than(&longer), None);
        assert!(!Seen::after(Some(&kept), &longer, &longer).is_other_than(Some(&kept)));
    }

    #[test]
    fn an_entry_is_compared_as_far_as_it_goes() {
        let at = |seconds: f64, etag: Option<&str>| Facts {
            etag: etag.map(String::from),
            modified: Some(UNIX_EPOCH + Duration::from_secs_f64(seconds)),
            ..Facts::default()
        };
        assert!(is_same(&at(7.0, None), &at(7.5, Some("a"))), "listings have whole seconds");
        assert!(!is_same(&at(7.0, None), &at(8.0, None)));
        assert!(is_same(&at(7.0, Some("a")), &at(8.0, Some("a"))));
        assert!(!is_same(&at(7.0, Some("a")), &at(7.0, Some("b"))));
        assert!(!is_same(&Facts { size: 1, ..at(7.0, None) }, &at(7.0, None)));
    }
}
