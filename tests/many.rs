//! Reading many parts of an archive at once: any parts, in any order, on any number of threads. The
//! result is the bytes of the original, or an error.

mod common;

use bszfs::codec;
use bszfs::error::{Error, ErrorKind, Result};
use bszfs::read::{Archive, Part, ThreadLimit, read_many};
use common::random::Random;
use common::samples::{Fill, pack_bytes, safetensors, samples, tensor};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A model with a few large tensors and many small ones.
fn model() -> Vec<u8> {
    let large = tensor("BF16", 3 << 20, Fill::Weights, 1);
    let small: Vec<(String, Vec<u8>)> = (0..40)
        .map(|i| (format!("small.{i}"), tensor("BF16", 200 + 40 * i, Fill::Weights, i as u64)))
        .collect();
    let mut tensors: Vec<(&str, &str, Vec<u8>)> =
        small.iter().map(|(name, bytes)| (name.as_str(), "BF16", bytes.clone())).collect();
    tensors.push(("a", "BF16", large));
    tensors.push(("b", "F32", tensor("F32", 1 << 20, Fill::Weights, 2)));
    safetensors(&tensors)
}

fn archive(dir: &Path, bytes: &[u8]) -> Archive {
    fs::write(dir.join("a.bsz"), pack_bytes(dir, "a", bytes, 256 << 10)).expect("written");
    Archive::open(&dir.join("a.bsz")).expect("opens")
}

/// Read these parts, given as offset and length, into memory that holds something else.
fn read(archive: &Archive, parts: &[(u64, usize)], threads: usize) -> Result<Vec<Vec<u8>>> {
    let mut targets: Vec<Vec<u8>> = parts.iter().map(|(_, len)| vec![0xa5; *len]).collect();
    let parts = parts.iter().zip(&mut targets);
    let parts = parts.map(|((offset, _), target)| Part { offset: *offset, target }).collect();
    let limit = ThreadLimit::new(threads);
    read_many(archive, parts, &*codec::fastest(), &limit, &mut || Ok(()))?;
    Ok(targets)
}

#[track_caller]
fn are_exact(archive: &Archive, bytes: &[u8], parts: &[(u64, usize)], threads: usize) {
    let got = read(archive, parts, threads).expect("reads");
    for ((offset, len), got) in parts.iter().zip(got) {
        let wanted = &bytes[*offset as usize..*offset as usize + len];
        assert!(got == wanted, "{len} bytes at {offset} with {threads} threads");
    }
}

#[test]
fn any_parts_in_any_order_have_the_bytes_of_the_original() {
    let dir = TempDir::new().expect("a directory");
    let bytes = model();
    let archive = archive(dir.path(), &bytes);
    let len = bytes.len() as u64;
    let mut random = Random(7);
    for round in 0..40 {
        // Parts overlap, repeat, are empty, and end at the end.
        let mut parts = vec![(0, bytes.len()), (len, 0), (len - 1, 1)];
        for _ in 0..random.below(30) {
            let offset = random.below(len);
            let most = if random.below(2) == 0 { 3000 } else { 2 << 20 };
            parts.push((offset, random.below(most.min(len - offset) + 1) as usize));
        }
        parts.rotate_left(random.below(3) as usize);
        are_exact(&archive, &bytes, &parts, 1 + round % 4);
    }
}

#[test]
fn every_kind_of_file_is_read_as_a_whole_and_in_halves() {
    let dir = TempDir::new().expect("a directory");
    for (name, bytes) in samples() {
        let archive = archive(dir.path(), &bytes);
        let half = bytes.len() / 2;
        are_exact(&archive, &bytes, &[(0, bytes.len())], 2);
        are_exact(&archive, &bytes, &[(half as u64, bytes.len() - half), (0, half)], 2);
        assert!(read(&archive, &[(1, bytes.len())], 2).is_err(), "{name}: beyond its end");
    }
    let archive = archive(dir.path(), b"x");
    assert!(read(&archive, &[(u64::MAX, 2)], 1).is_err());
}

#[test]
fn tensors_that_share_chunks_are_both_read() {
    const LEN: usize = 17 << 20;
    let dir = TempDir::new().expect("a directory");
    let weights = tensor("BF16", LEN, Fill::Weights, 1);
    let bytes = safetensors(&[("a", "BF16", weights.clone()), ("b", "BF16", weights)]);
    let archive = archive(dir.path(), &bytes);
    assert!(archive.stored_len() < LEN as u64, "they are stored once");
    let start = (bytes.len() - 2 * LEN) as u64;
    are_exact(&archive, &bytes, &[(start + LEN as u64, LEN), (start, LEN)], 3);
}

#[test]
fn a_damaged_chunk_is_named_and_ends_the_whole_call() {
    let dir = TempDir::new().expect("a directory");
    let bytes = model();
    let mut packed = pack_bytes(dir.path(), "a", &bytes, 256 << 10);
    let id = Archive::open(&dir.path().join("a.bsz")).map_or(9, |a| a.index().len() / 2);
    fs::write(dir.path().join("a.bsz"), &packed).expect("written");
    let whole = Archive::open(&dir.path().join("a.bsz")).expect("opens");
    let chunk = whole.index().chunk(id).expect("a chunk");
    packed[chunk.stored_at as usize + chunk.stored_len as usize / 2] ^= 0x10;
    fs::write(dir.path().join("a.bsz"), &packed).expect("written");
    let damaged = Archive::open(&dir.path().join("a.bsz")).expect("opens");
    for threads in 1..4 {
        let e = read(&damaged, &[(0, bytes.len())], threads).expect_err("damaged");
        assert_eq!(e.kind(), ErrorKind::Corruption);
        assert!(e.to_string().starts_with(&format!("chunk {id} ")), "{e}");
    }
    let before = (0, chunk.original.start as usize);
    let after = (chunk.original.end, bytes.len() - chunk.original.end as usize);
    are_exact(&damaged, &bytes, &[after, before], 2);
}

#[test]
fn an_archive_that_was_truncated_meanwhile_is_an_error_that_names_a_chunk() {
    let dir = TempDir::new().expect("a directory");
    let bytes = model();
    let archive = archive(dir.path(), &bytes);
    let file = fs::OpenOptions::new().write(true).open(dir.path().join("a.bsz")).expect("opens");
    file.set_len(1 << 20).expect("truncated");
    let e = read(&archive, &[(0, bytes.len())], 2).expect_err("truncated");
    assert_eq!(e.kind(), ErrorKind::Truncated);
    assert!(e.to_string().starts_with("chunk "), "{e}");
}

#[test]
fn the_caller_can_end_a_call_that_takes_long() {
    let dir = TempDir::new().expect("a directory");
    let bytes = model();
    let archive = archive(dir.path(), &bytes);
    let mut target = vec![0; bytes.len()];
    // The same bytes a thousand times: seconds of work, of which the caller sees 50 ms.
    let mut small = vec![[0u8; 64]; 200_000];
    let mut parts: Vec<Part> =
        small.iter_mut().map(|target| Part { offset: 1 << 20, target }).collect();
    parts.push(Part { offset: 0, target: &mut target });
    let mut asked = 0;
    let e = read_many(&archive, parts, &*codec::reference(), &ThreadLimit::new(3), &mut || {
        asked += 1;
        if asked == 2 { Err(Error::invalid("enough")) } else { Ok(()) }
    });
    assert_eq!(e.expect_err("ended").to_string(), "enough");
    assert_eq!(asked, 2);
    assert!(small.iter().filter(|bytes| **bytes != [0; 64]).count() < 200_000);
}
