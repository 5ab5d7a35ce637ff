//! Bytes from file to file, keeping holes; comparing and hashing files.

use crate::{
    error::{Context, Result},
    sha256::Hasher,
};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read, Seek},
    os::unix::fs::FileExt,
    path::Path,
};

/// The smallest hole: a page, and a block of most file systems, in bytes.
const BLOCK: usize = 4096;
/// Bytes read at a time.
const STEP: usize = 1 << 20;

/// Copy all of `from` to the empty file `to`; returns the number of bytes. Holes are kept if the
/// file system reports them.
///
/// # Errors
/// Io.
pub fn copy(from: &File, to: &File) -> io::Result<u64> {
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data follows.
            Err(Errno::NXIO) => break,
            // Without support for holes, everything is data.
            Err(_) => at,
        };
        let end = match seek(from, SeekFrom::Hole(start)) {
            Ok(end) if end > start => Some(end),
            _ => None,
        };
        (&*from).seek(io::SeekFrom::Start(start))?;
        (&*to).seek(io::SeekFrom::Start(start))?;
        at = start + io::copy(&mut from.take(end.map_or(u64::MAX, |end| end - start)), &mut &*to)?;
        if end.is_none_or(|end| at < end) {
            break;
        }
    }
    // A hole at the end.
    let len = from.metadata()?.len().max(at);
    to.set_len(len)?;
    Ok(len)
}

/// Write `bytes` at `at` of a file whose length is set and which has no data there yet: blocks of
/// zeros stay holes.
///
/// # Errors
/// Io.
pub fn write_sparse(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let is_zero = |block: &[u8]| *block == [0; BLOCK][..block.len()];
    // Blocks are aligned to the file, not to `bytes`.
    let first = (BLOCK - (at % BLOCK as u64) as usize).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let mut start = 0;
    let mut end = 0;
    for block in std::iter::once(head).chain(rest.chunks(BLOCK)) {
        if is_zero(block) {
            if end > start {
                file.write_all_at(&bytes[start..end], at + start as u64)?;
            }
            start = end + block.len();
        }
        end += block.len();
    }
    if end > start {
        file.write_all_at(&bytes[start..end], at + start as u64)?;
    }
    Ok(())
}

/// Whether two files hold the same bytes.
///
/// # Errors
/// Io.
pub fn same_bytes(a: &File, b: &File) -> io::Result<bool> {
    let len = a.metadata()?.len();
    if b.metadata()?.len() != len {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; STEP], vec![0; STEP]);
    for at in (0..len).step_by(STEP) {
        let n = (len - at).min(STEP as u64) as usize;
        a.read_exact_at(&mut left[..n], at)?;
        b.read_exact_at(&mut right[..n], at)?;
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The SHA-256 of a file, which messages name `path`.
///
/// # Errors
/// Io.
pub fn sha256(file: &File, path: &Path) -> Result<[u8; 32]> {
    let mut hash = Hasher::default();
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    loop {
        let n = file.read_at(&mut buffer, at).about_path(path)?;
        if n == 0 {
            return Ok(hash.finish().0);
        }
        hash.update(&buffer[..n]);
        at += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_and_data_are_preserved() {
        let made = || tempfile::tempfile().expect("a file");
        let source = made();
        source.set_len(3 << 20).expect("long");
        source.write_all_at(b"in the middle", (1 << 20) + 77).expect("written");
        source.write_all_at(&[7; 10_000], (2 << 20) + 1).expect("written");
        let to = made();
        assert_eq!(copy(&source, &to).expect("copied"), 3 << 20);
        assert!(same_bytes(&source, &to).expect("compared"));
        let written = made();
        let mut bytes = vec![0; 3 << 20];
        source.read_exact_at(&mut bytes, 0).expect("read");
        written.set_len(3 << 20).expect("long");
        for (at, piece) in (0..).step_by(70_001).zip(bytes.chunks(70_001)) {
            write_sparse(&written, piece, at).expect("written");
        }
        assert!(same_bytes(&source, &written).expect("compared"));
        let blocks = |file: &File| file.metadata().expect("stat").blocks();
        for file in [&to, &written] {
            assert!(blocks(file) <= blocks(&source), "{} of {}", blocks(file), blocks(&source));
        }
        written.write_all_at(&[1], 99).expect("written");
        assert!(!same_bytes(&source, &written).expect("compared"));
        let path = Path::new("x");
        assert_ne!(sha256(&source, path).expect("hashed"), sha256(&written, path).expect("hashed"));
        assert_eq!(sha256(&source, path).expect("hashed"), sha256(&to, path).expect("hashed"));
    }

    #[test]
    fn an_empty_file_is_copied() {
        let (a, b) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        assert_eq!(copy(&a, &b).expect("copied"), 0);
        write_sparse(&b, &[], 0).expect("written");
        assert!(same_bytes(&a, &b).expect("compared"));
    }
}
