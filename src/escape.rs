//! Names made fit to be shown. A name from a directory, an archive or a mount may hold anything: bytes that are not
//! UTF-8, and characters that steer a terminal, begin a line of a log, or turn the order of what is read.
//!
//! For people, such a byte is `\xNN` and such a character `\u{NN}`, `\n`, `\r` or `\t`; everything else stands for
//! itself. In JSON a path is that text, and beside it, where the path is not UTF-8 and nowhere else, stand its bytes in
//! hexadecimal: `"path": "caf\\xe9", "path_bytes": "636166e9"`.

use serde::ser::{SerializeMap, Serializer};
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Whether a character is to be escaped: controls, what ends a line, and what changes the direction of text.
fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text for people, on a terminal or in a log. What has been escaped stays as it is.
pub fn text(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unfit) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    push(&mut shown, text);
    Cow::Owned(shown)
}

fn push(shown: &mut String, text: &str) {
    for c in text.chars() {
        if is_unfit(c) {
            // `\n`, `\r` and `\t` have names.
            let short = matches!(c, '\n' | '\r' | '\t');
            shown.extend(c.escape_default().filter(|_| short));
            shown.extend(c.escape_unicode().filter(|_| !short));
        } else {
            shown.push(c);
        }
    }
}

/// A path, or a name, for people.
pub fn path<P: AsRef<Path> + ?Sized>(path: &P) -> Cow<'_, str> {
    let path = path.as_ref();
    if let Some(whole) = path.to_str() {
        return text(whole);
    }
    let mut shown = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        push(&mut shown, chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    Cow::Owned(shown)
}

/// A JSON document for a terminal: the same document, with `\uNNNN` for what JSON lets stand.
pub fn json(document: &str) -> Cow<'_, str> {
    // Outside of strings there is nothing of the kind but the ends of lines.
    let unfit = |c: char| c != '\n' && is_unfit(c);
    if !document.chars().any(unfit) {
        return Cow::Borrowed(document);
    }
    let mut shown = String::with_capacity(document.len() + 8);
    for c in document.chars() {
        match unfit(c) {
            true => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Write `path` into a map of JSON, under `key` and, where it is not UTF-8, `bytes_key`.
fn entries<M: SerializeMap>(
    map: &mut M,
    key: &str,
    bytes_key: &str,
    path: &Path,
) -> Result<(), M::Error> {
    if let Some(whole) = path.to_str() {
        return map.serialize_entry(key, whole);
    }
    let hex = path.as_os_str().as_bytes().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    map.serialize_entry(key, &*self::path(path))?;
    map.serialize_entry(bytes_key, &hex)
}

/// The path of a JSON object's two fields, as [`field`] writes them.
pub fn parse(text: String, hex: Option<&str>) -> PathBuf {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex.and_then(|hex| hex.as_bytes().chunks(2).map(byte).collect());
    bytes.map_or_else(|| text.into(), |bytes| OsString::from_vec(bytes).into())
}

/// For `#[serde(flatten, serialize_with = "escape::field::source")]` on a field of that name: every path in JSON is
/// written by these.
pub mod field {
    use super::{Path, SerializeMap, Serializer, entries};

    macro_rules! fields {
        ($($key:ident),*) => {$(
            /// A path in the field of this name.
            ///
            /// # Errors
            /// The serializer's.
            pub fn $key<P: OptionalPath, S: Serializer>(path: &P, s: S) -> Result<S::Ok, S::Error> {
                let mut map = s.serialize_map(None)?;
                if let Some(path) = path.path() {
                    entries(&mut map, stringify!($key), concat!(stringify!($key), "_bytes"), path)?;
                }
                map.end()
            }
        )*};
    }
    fields!(path, output, source, mountpoint, file);

    /// A path, or an optional one, of which nothing is written where there is none.
    pub trait OptionalPath {
        /// The path.
        fn path(&self) -> Option<&Path>;
    }

    impl OptionalPath for std::path::PathBuf {
        fn path(&self) -> Option<&Path> {
            Some(self)
        }
    }

    impl OptionalPath for Option<std::path::PathBuf> {
        fn path(&self) -> Option<&Path> {
            self.as_deref()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn what_steers_a_terminal_or_a_log_is_escaped_and_the_rest_stands() {
        for (name, shown) in [
            (&b"a\x1b[2Jb\n"[..], r"a\u{1b}[2Jb\n"),
            ("é layers.0 \\xff 日本 👩‍💻".as_bytes(), "é layers.0 \\xff 日本 👩‍💻"),
            ("gpj\u{202e}.exe\u{2066}\u{85}\u{9b}1m\u{2028}".as_bytes(), {
                r"gpj\u{202e}.exe\u{2066}\u{85}\u{9b}1m\u{2028}"
            }),
            (b"d\xe9j\xe0\x07\xff", r"d\xe9j\xe0\u{7}\xff"),
        ] {
            let said = path(OsStr::from_bytes(name)).into_owned();
            assert_eq!(said, shown);
            assert_eq!(text(&said), said, "twice is as once");
        }
    }

    #[test]
    fn json_has_every_path_and_nothing_that_steers_a_terminal() {
        #[derive(serde::Serialize)]
        struct Row {
            #[serde(flatten, serialize_with = "field::path")]
            path: PathBuf,
            #[serde(flatten, serialize_with = "field::output")]
            output: Option<PathBuf>,
            n: u32,
        }
        let bytes = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        for (given, there) in
            [(&b"caf\xe9\x1b"[..], true), ("caf\u{9b}\u{202e}\u{7f}\\xe9".as_bytes(), false)]
        {
            let row = Row { path: bytes(given), output: None, n: 1 };
            let document = json(&serde_json::to_string_pretty(&row).expect("JSON")).into_owned();
            assert!(!document.chars().any(|c| c != '\n' && is_unfit(c)), "{document}");
            let read: serde_json::Value = serde_json::from_str(&document).expect("JSON");
            assert_eq!(
                (read["path_bytes"].is_string(), read.get("output")),
                (there, None),
                "{document}"
            );
            let text = read["path"].as_str().expect("a text").to_owned();
            assert_eq!(parse(text, read["path_bytes"].as_str()), row.path);
        }
        let row = Row { path: "a".into(), output: Some(bytes(b"\xff")), n: 1 };
        let document = serde_json::to_string(&row).expect("JSON");
        assert_eq!(document, r#"{"path":"a","output":"\\xff","output_bytes":"ff","n":1}"#);
    }

    #[test]
    fn bytes_that_are_none_leave_the_text() {
        for wrong in ["x", "zz", "é1", "ffé"] {
            assert_eq!(parse("text".into(), Some(wrong)), Path::new("text"), "{wrong}");
        }
    }
}
