//! An index too large to be kept in memory is read in parts, exactly or not at all.

#![allow(clippy::unwrap_used, reason = "a test fails where it has no value")]

mod common;

use bszfs::cache::{CacheOptions, CachedFile, ChunkCache, Reader};
use bszfs::codec;
use bszfs::error::ErrorKind;
use bszfs::format::Footer;
use bszfs::read::{Archive, ArchiveMemory, describe, verify};
use bszfs::readahead::SequentialReadahead;
use common::crafted;
use common::random::Random;
use common::samples::{self, pack_bytes, samples};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Open with memory for an index in parts, but not for a complete one.
fn open_in_parts(path: &Path) -> Archive {
    let memory = Arc::new(ArchiveMemory::new(17 << 10));
    let archive =
        Archive::from_file_within(File::open(path).expect("opens"), &memory).expect("sound");
    assert!(archive.index().is_in_parts() && memory.index_bytes() > 0);
    archive
}

/// Index memory in which a resident index leaves just enough for an index in parts, and the archive
/// of the resident one.
fn full_memory(dir: &Path) -> (Arc<ArchiveMemory>, Archive) {
    let (path, _) = large(dir, 9000);
    let (len, chunks) = {
        let archive = Archive::open(&path).expect("sound");
        (archive.footer().index_len, archive.index().len() as u64)
    };
    let memory = Arc::new(ArchiveMemory::new((len + 8 * chunks) * 8 / 7 + 8));
    let archive =
        Archive::from_file_within(File::open(&path).expect("opens"), &memory).expect("sound");
    assert!(!archive.index().is_in_parts());
    (memory, archive)
}

#[test]
fn every_sample_reads_the_same_with_its_index_in_parts_and_is_refused_without_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.bsz");
    let (memory, _kept) = full_memory(dir.path());
    for (name, original) in samples() {
        std::fs::write(&path, pack_bytes(dir.path(), "x.safetensors", &original, 64 << 10))
            .expect("written");
        let file = || File::open(&path).expect("opens");
        let archive = Archive::from_file_within(file(), &memory).expect("sound");
        assert!(archive.index().is_in_parts() || archive.footer().index_len < 8, "{name}");
        let mut read = vec![0; original.len()];
        archive.read_at(0, &mut read, &*codec::fastest()).expect("read");
        assert!(read == original, "{name}");
        verify(&archive, &*codec::fastest(), &|_| ()).expect("right");
        let Err(e) = Archive::from_file_within(file(), &Arc::new(ArchiveMemory::new(0))) else {
            assert_eq!(archive.footer().index_len, 0, "{name}: opened without memory");
            continue;
        };
        assert!(e.to_string().contains("a larger cache allows more"), "{e}");
    }
}

/// An archive whose index has several parts, and its path.
fn large(dir: &Path, chunks: usize) -> (std::path::PathBuf, Vec<u8>) {
    let path = dir.join("large.bsz");
    let blob = crafted::blob(1000);
    crafted::archive(&path, b"some other bytes", &blob, (0..chunks).map(|i| 1 + i % 999));
    (path, blob)
}

#[test]
fn any_range_reads_the_same_with_the_index_in_parts() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = large(dir.path(), 9000);
    let (whole, parts) = (Archive::open(&path).expect("sound"), open_in_parts(&path));
    let len = whole.footer().original_len as usize;
    let decoder = &*codec::fastest();
    let read = |archive: &Archive, at: usize, n: usize| {
        let mut out = vec![0; n];
        let n = archive.read_at(at as u64, &mut out, decoder).expect("read");
        out.truncate(n);
        out
    };
    let all = read(&whole, 0, len);
    assert!(all.len() == len && all == read(&parts, 0, len + 9));
    let mut random = Random(3);
    for _ in 0..300 {
        let (at, n) = (random.next() as usize % (len + 5), random.next() as usize % 5000);
        assert!(read(&parts, at, n) == all[at.min(len)..(at + n).min(len)], "{n} bytes at {at}");
    }
    let ids = 0..whole.index().len();
    assert!(
        ids.clone().all(|id| whole.index().chunk(id).unwrap() == parts.index().chunk(id).unwrap())
    );
    for at in ids.map(|id| whole.index().chunk(id).unwrap().original.start) {
        assert_eq!(whole.index().find(at).unwrap(), parts.index().find(at).unwrap());
    }
    assert_eq!(parts.index().find(len as u64).unwrap(), whole.index().len());
    let described =
        |archive| serde_json::to_value(describe(archive, decoder).expect("read")).expect("JSON");
    assert_eq!(described(&whole), described(&parts));
    // The hash of a crafted archive is wrong, whichever way it is read.
    assert!(verify(&whole, decoder, &|_| ()).is_err() && verify(&parts, decoder, &|_| ()).is_err());
}

#[test]
fn models_and_hashes_are_read_from_an_index_in_parts() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.bsz");
    let tensors: Vec<_> = (0..60)
        .map(|i| samples::tensor("BF16", 90_000, samples::FILLS[i % 11], i as u64))
        .collect();
    let names: Vec<String> = (0..60).map(|i| format!("t{i}")).collect();
    let named: Vec<_> = names.iter().zip(tensors).map(|(n, t)| (n.as_str(), "BF16", t)).collect();
    let original = samples::safetensors(&named);
    std::fs::write(&path, pack_bytes(dir.path(), "x.safetensors", &original, 64 << 10))
        .expect("written");
    let (memory, kept) = full_memory(dir.path());
    let archive =
        Archive::from_file_within(File::open(&path).expect("opens"), &memory).expect("sound");
    let footer = archive.footer();
    assert!(archive.index().is_in_parts() && footer.model_count > 20, "{footer:?}");
    verify(&archive, &*codec::fastest(), &|_| ()).expect("right");
    let mut out = vec![0; original.len()];
    archive.read_at(0, &mut out, &*codec::reference()).expect("read");
    assert!(out == original);
    drop((archive, kept));
    assert_eq!(memory.index_bytes(), 0, "given back");
}

#[test]
fn an_index_part_that_changed_after_its_check_is_an_error_and_never_a_wrong_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = large(dir.path(), 9000);
    let sound = std::fs::read(&path).expect("read");
    let whole = Archive::open(&path).expect("sound");
    let footer: Footer = whole.footer().clone();
    let original = {
        let mut out = vec![0; footer.original_len as usize];
        whole.read_at(0, &mut out, &*codec::reference()).expect("read");
        out
    };
    // A byte of a start, an offset, a length, a coding and a checksum, in the first part and in the
    // last.
    for at in [0, 9, 24, 31, 16].into_iter().flat_map(|at| [at, at + 32 * 8000]) {
        std::fs::write(&path, &sound).expect("written");
        let archive = open_in_parts(&path);
        let file = File::options().write(true).open(&path).expect("opens");
        let place = footer.index_offset + at;
        file.write_all_at(&[sound[place as usize] ^ 0x40], place).expect("written");
        let chunk = at as usize / 32;
        let e = archive.index().chunk(chunk).expect_err("changed");
        assert_eq!(e.kind(), ErrorKind::Corruption, "{e}");
        let cache = cache();
        let mut read = vec![0; 500];
        for from in (0..original.len()).step_by(100_003) {
            let n = read.len().min(original.len() - from);
            if archive.read_at(from as u64, &mut read, &*codec::reference()).is_ok() {
                assert!(read[..n] == original[from..from + n], "{at}: wrong bytes at {from}");
            }
        }
        // Readers that wait in a cache get the error, too.
        let start = whole.index().chunk(chunk).unwrap().original.start;
        let (send, answered) = mpsc::channel();
        let archive = CachedFile::new(archive);
        cache.read(&archive, start, 10, Reader::PageCached, move |answer| {
            send.send(answer.is_err()).unwrap()
        });
        assert_eq!(answered.recv_timeout(Duration::from_secs(30)), Ok(true));
    }
    // A truncated index is an error, too.
    std::fs::write(&path, &sound).expect("written");
    let archive = open_in_parts(&path);
    File::options()
        .write(true)
        .open(&path)
        .expect("opens")
        .set_len(footer.index_offset)
        .expect("shorter");
    assert!(archive.index().chunk(0).is_err() && archive.index().find(5).is_err());
}

fn cache() -> Arc<ChunkCache> {
    let options = CacheOptions {
        capacity: 8 << 20,
        threads: 2,
        decoder: codec::fastest(),
        readahead: Some(Box::new(SequentialReadahead)),
    };
    ChunkCache::new(options).expect("a cache")
}

#[test]
fn a_cache_reads_the_same_with_the_index_in_parts() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = large(dir.path(), 9000);
    let whole = Archive::open(&path).expect("sound");
    let len = whole.footer().original_len as usize;
    let mut all = vec![0; len];
    whole.read_at(0, &mut all, &*codec::reference()).expect("read");
    let (parts, cache) = (CachedFile::new(open_in_parts(&path)), cache());
    for at in (0..len).step_by(50_000) {
        let read = cache.read_blocking(&parts, at as u64, 60_000).expect("read");
        assert!(read == all[at..len.min(at + 60_000)], "at {at}");
    }
}

#[test]
fn an_index_is_no_longer_than_its_counts_allow() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.bsz");
    crafted::sparse(&path, &crafted::blob(100), 3);
    let sound =
        bszfs::read::peek(&File::open(&path).expect("opens")).expect("sound").expect("an archive");
    let judge = |change: &dyn Fn(&mut Footer)| {
        let mut footer = sound.clone();
        change(&mut footer);
        let len = footer.index_offset + footer.index_len + 128;
        Footer::from_bytes(&footer.to_bytes(), len).is_ok()
    };
    assert!(judge(&|_| ()));
    Archive::open(&path).expect("sound");
    assert!(!judge(&|f| f.index_len += 1), "more bytes than the largest models have");
    assert!(judge(&|f| f.index_len -= 1));
    assert!(!judge(&|f| f.model_count = 4), "more models than chunks");
    assert!(!judge(&|f| f.original_len = 2), "more chunks than bytes");
}
