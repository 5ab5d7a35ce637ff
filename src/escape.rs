//! Escaping of names. A name from a directory, an archive or a mount may contain anything: bytes
//! that are not UTF-8, and characters that control a terminal, start a new line in a log, or
//! reverse the direction of text.
//!
//! For people, such a byte is shown as `\xNN` and such a character as `\u{NN}`, `\n`, `\r` or `\t`;
//! everything else is unchanged. JSON contains the same text. If the path is not UTF-8, its bytes
//! follow in hexadecimal: `"path": "caf\\xe9", "path_bytes": "636166e9"`.

use serde::ser::{SerializeMap, Serializer};
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Whether a character must be escaped: control characters, line separators, and those that change
/// the direction of text.
fn needs_escape(c: char) -> bool {
    const OTHERS: [std::ops::RangeInclusive<char>; 4] = [
        '\u{61c}'..='\u{61c}',
        '\u{200e}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2066}'..='\u{2069}',
    ];
    c.is_control() || OTHERS.iter().any(|range| range.contains(&c))
}

/// Escape a text for people, on a terminal or in a log. Escaping twice changes nothing.
pub fn text(text: &str) -> Cow<'_, str> {
    if !text.chars().any(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    push(&mut shown, text);
    Cow::Owned(shown)
}

fn push(shown: &mut String, text: &str) {
    for c in text.chars() {
        if needs_escape(c) {
            // `\n`, `\r` and `\t` have short escapes.
            let short = matches!(c, '\n' | '\r' | '\t');
            shown.extend(c.escape_default().filter(|_| short));
            shown.extend(c.escape_unicode().filter(|_| !short));
        } else {
            shown.push(c);
        }
    }
}

/// Escape a path, or a name, for people.
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

/// Escape a JSON document for a terminal. It stays the same document, with `\uNNNN` for characters
/// that JSON allows unescaped.
pub fn json(document: &str) -> Cow<'_, str> {
    // Outside strings, a line feed is the only such character.
    let special = |c: char| c != '\n' && needs_escape(c);
    if !document.chars().any(special) {
        return Cow::Borrowed(document);
    }
    let mut shown = String::with_capacity(document.len() + 8);
    for c in document.chars() {
        match special(c) {
            true => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Write `path` into a JSON map under `key`, and under `bytes_key` if it is not UTF-8.
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

/// The path from the two fields of a JSON object that [`field`] writes.
pub fn parse(text: String, hex: Option<&str>) -> PathBuf {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex.and_then(|hex| hex.as_bytes().chunks(2).map(byte).collect());
    bytes.map_or_else(|| text.into(), |bytes| OsString::from_vec(bytes).into())
}

/// Serializers for all paths in JSON, as in
/// `#[serde(flatten, serialize_with = "escape::field::source")]` on a field of that name.
pub mod field {
    use super::{Path, SerializeMap, Serializer, entries};

    macro_rules! fields {
        ($($key:ident),*) => {$(
            /// Serialize a path as the field of this name.
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

    /// A path or an optional path; `None` writes no field.
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
    fn only_what_controls_a_terminal_or_a_log_is_escaped() {
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
            assert_eq!(text(&said), said, "escaping twice changes nothing");
        }
    }

    #[test]
    fn json_has_every_path_and_nothing_that_controls_a_terminal() {
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
            assert!(!document.chars().any(|c| c != '\n' && needs_escape(c)), "{document}");
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
    fn invalid_hexadecimal_leaves_the_text() {
        for wrong in ["x", "zz", "é1", "ffé"] {
            assert_eq!(parse("text".into(), Some(wrong)), Path::new("text"), "{wrong}");
        }
    }
}
