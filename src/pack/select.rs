//! Which files of a directory may be packed, by patterns of their names.

use std::{
    ffi::OsStr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

/// A shell pattern: `*` stands for any characters, `?` for one, `[a-z]` for one of these, and
/// `[!a-z]` for one of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<u8>);

impl Pattern {
    /// The pattern that is written like this.
    pub fn new(text: impl Into<std::ffi::OsString>) -> Self {
        Self(text.into().into_vec())
    }

    /// Whether a file matches that is at this path below the directory: by its name, or by its
    /// path, if the pattern has a `/`.
    pub fn matches(&self, path: &Path) -> bool {
        let name = path.file_name().map_or(&[][..], OsStr::as_bytes);
        let has_slash = self.0.contains(&b'/');
        matches(&self.0, if has_slash { path.as_os_str().as_bytes() } else { name })
    }
}

/// Which files may be packed; by default, all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only files that match one of these, unless there are none.
    pub only: Vec<Pattern>,
    /// No files that match one of these.
    pub exclude: Vec<Pattern>,
}

impl Selection {
    /// Whether the file at this path below the directory may be packed.
    pub fn has(&self, path: &Path) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(path));
        (self.only.is_empty() || any(&self.only)) && !any(&self.exclude)
    }
}

fn matches(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // Where to go on if the last `*` has to take one more byte.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            (pattern, retry) = (rest, Some((rest, text)));
            continue;
        }
        if let ([first, left @ ..], Some((one, rest))) = (text, next(pattern))
            && one.takes(*first)
        {
            (pattern, text) = (rest, left);
            continue;
        }
        if pattern.is_empty() && text.is_empty() {
            return true;
        }
        let Some((after, [_, taken @ ..])) = retry else { return false };
        (pattern, text, retry) = (after, taken, Some((after, taken)));
    }
}

/// What a character of a pattern stands for.
enum One<'a> {
    Any,
    Byte(u8),
    /// One of these characters and ranges, or one of the others.
    Set(&'a [u8], bool),
}

impl One<'_> {
    fn takes(&self, byte: u8) -> bool {
        match *self {
            Self::Any => true,
            Self::Byte(one) => one == byte,
            Self::Set(set, negated) => has(set, byte) != negated,
        }
    }
}

/// The next character of a pattern, and the rest of the pattern.
fn next(pattern: &[u8]) -> Option<(One<'_>, &[u8])> {
    let (&first, rest) = pattern.split_first()?;
    Some(match first {
        b'?' => (One::Any, rest),
        b'[' => set(rest).unwrap_or((One::Byte(b'['), rest)),
        _ => (One::Byte(first), rest),
    })
}

/// A set of characters whose `[` was read; `None` if it does not end.
fn set(pattern: &[u8]) -> Option<(One<'_>, &[u8])> {
    let (negated, body) = match pattern {
        [b'!' | b'^', body @ ..] => (true, body),
        body => (false, body),
    };
    // A `]` that comes first is one of the characters.
    let end = body.iter().skip(1).position(|&byte| byte == b']')? + 1;
    Some((One::Set(&body[..end], negated), &body[end + 1..]))
}

/// Whether a byte is one of the characters and ranges of a set.
fn has(mut set: &[u8], byte: u8) -> bool {
    while let [first, rest @ ..] = set {
        let (last, rest) = match rest {
            [b'-', last, rest @ ..] => (last, rest),
            _ => (first, rest),
        };
        if (*first..=*last).contains(&byte) {
            return true;
        }
        set = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_or_paths() {
        for (pattern, path, expected) in [
            ("*.gguf", "a/b/model.gguf", true),
            ("*.gguf", "model.gguf.part", false),
            ("model-?????.bin", "model-00001.bin", true),
            ("model-?????.bin", "model-1.bin", false),
            ("[a-c]*[!0-9]", "b12x", true),
            ("[a-c]*[!0-9]", "b123", false),
            ("[]x]", "]", true),
            ("a[", "a[", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("", "", true),
            ("onnx/*", "onnx/deep/model.onnx", true),
            ("onnx/*", "x/onnx/model.onnx", false),
            ("*", "any", true),
        ] {
            assert_eq!(
                Pattern::new(pattern).matches(Path::new(path)),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn exclusions_win() {
        let patterns = |all: &[&str]| all.iter().map(Pattern::new).collect();
        let only = Selection { only: patterns(&["*.pt", "*.bin"]), exclude: patterns(&["opt*"]) };
        assert!(only.has(Path::new("x/model.bin")) && !only.has(Path::new("x/optimizer.pt")));
        assert!(!only.has(Path::new("model.gguf")) && Selection::default().has(Path::new("any")));
    }

    #[test]
    fn patterns_with_many_stars_take_no_long_time() {
        let pattern = Pattern::new("*a".repeat(50) + "b");
        assert!(!pattern.matches(Path::new(&"a".repeat(200))));
    }
}
