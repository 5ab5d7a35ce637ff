//! The mount table, `/proc/self/mountinfo` (proc(5)). Reading it never touches a mount, so it
//! cannot hang.

use crate::error::{Context, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub id: u64,
    /// `major:minor` of the device.
    pub device: String,
    pub mountpoint: PathBuf,
    pub fs_type: String,
    pub source: PathBuf,
}

/// The topmost mount at exactly this path, which must be canonical.
pub(super) fn topmost_at(mountpoint: &Path) -> Result<Option<Mount>> {
    // A mount is listed after the one that it covers.
    Ok(all()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

/// All mounts.
pub(super) fn all() -> Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo").about("/proc/self/mountinfo")?;
    Ok(parse(&table).collect())
}

fn parse(table: &[u8]) -> impl Iterator<Item = Mount> {
    table.split(|&b| b == b'\n').filter_map(parse_line)
}

/// `36 35 98:0 /root /mountpoint options optional-fields... - type source super-options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let id = text(fields.next()?).parse().ok()?;
    let device = text(fields.nth(1)?);
    let mountpoint = unescape(fields.nth(1)?);
    fields.find(|&field| field == b"-")?;
    let fs_type = text(fields.next()?);
    let source = unescape(fields.next()?);
    Some(Mount { id, device, mountpoint, fs_type, source })
}

/// Undo the kernel's octal escapes of space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..3).filter(|_| first == b'\\').and_then(octal);
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits =
        std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_and_unescaped() {
        let line = br"1091 27 0:62 / /mnt/a\040b\134c\011\012 ro s:1 m:2 - fuse.bszfs /src\040x ro";
        let expected = Mount {
            id: 1091,
            device: "0:62".into(),
            mountpoint: "/mnt/a b\\c\t\n".into(),
            fs_type: "fuse.bszfs".into(),
            source: "/src x".into(),
        };
        assert_eq!(parse(line).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let table = b"\nrubbish\n1 2\n22 27 0:21 / /proc rw - proc proc rw\n23 27 0:22 / /sys rw\n";
        assert_eq!(parse(table).map(|m| m.id).collect::<Vec<_>>(), [22]);
    }

    #[test]
    fn a_backslash_without_an_octal_number_is_kept() {
        for path in [r"a\", r"a\04", r"a\999", r"a\x20"] {
            assert_eq!(unescape(path.as_bytes()), Path::new(path));
        }
    }

    #[test]
    fn the_mount_table_of_this_machine_has_a_root() {
        assert!(topmost_at(Path::new("/")).expect("readable").is_some());
    }
}
