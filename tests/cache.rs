//! The mount's cache: right bytes, each chunk decoded once at a time, memory bounded, errors to everyone who waits.

use bszfs::codec::{self, ChunkDecoder, Coding, Model};
use bszfs::error::{Error, Result};
use bszfs::read::{Archive, CacheOptions, ChunkCache, Reader};
use samples::{Fill, Random, pack_bytes, safetensors, tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[path = "common/samples.rs"]
mod samples;

/// Decodes as the reference does, slowly, and counts; or fails.
struct Counting {
    calls: AtomicUsize,
    fail: bool,
}

impl ChunkDecoder for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn decode(&self, coding: Coding, model: Option<&Model>, payload: &[u8], out: &mut [u8]) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(20));
        if self.fail {
            Err(Error::corrupt("as the test wants it"))
        } else {
            codec::reference().decode(coding, model, payload, out)
        }
    }
}

/// A cache that decodes ahead.
fn cache(capacity: u64, threads: usize, decoder: Arc<dyn ChunkDecoder>) -> Result<Arc<ChunkCache>> {
    ChunkCache::new(CacheOptions { capacity, threads, decoder, ahead: true })
}

fn counting(fail: bool) -> Arc<Counting> {
    Arc::new(Counting { calls: AtomicUsize::new(0), fail })
}

/// An original of 600 kB in chunks of 64 KiB, and its archive.
fn archive(dir: &std::path::Path) -> (Vec<u8>, Arc<Archive>) {
    let bytes = safetensors(&[("a", "BF16", tensor("BF16", 600_000, Fill::Weights, 1))]);
    let packed = pack_bytes(dir, "x.safetensors", &bytes, 64 << 10);
    std::fs::write(dir.join("a.bsz"), packed).expect("written");
    (bytes, Arc::new(Archive::open(&dir.join("a.bsz")).expect("opens")))
}

/// The bytes of a range, read as the kernel's page cache reads.
fn read_kept(cache: &Arc<ChunkCache>, archive: &Arc<Archive>, at: u64, len: usize) -> Vec<u8> {
    let (send, receive) = mpsc::channel();
    cache.read(archive, at, len, Reader::Keeping, move |answer| send.send(answer).expect("awaited"));
    let slices = receive.recv_timeout(Duration::from_secs(30)).expect("answered").expect("decodes");
    slices.iter().flat_map(|s| s.to_vec()).collect()
}

#[test]
fn readers_of_one_chunk_at_once_have_it_decoded_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = archive(dir.path());
    let decoder = counting(false);
    let cache = cache(8 << 20, 4, decoder.clone()).expect("a cache");
    thread::scope(|s| {
        for i in 0..16 {
            let (cache, archive, bytes) = (&cache, &archive, &bytes);
            s.spawn(move || {
                let at = 1000 + i * 100;
                let got = cache.read_blocking(archive, at as u64, 100).expect("decodes");
                assert!(got == bytes[at..at + 100]);
            });
        }
    });
    assert_eq!(decoder.calls.load(Ordering::SeqCst), 1);
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.hits + stats.joined), (1, 15));
}

#[test]
fn random_reads_are_exact_and_stay_within_the_bound() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = archive(dir.path());
    for capacity in [0, 100 << 10, 200 << 10, 8 << 20] {
        let cache = cache(capacity, 2, codec::fastest()).expect("a cache");
        let mut r = Random(capacity);
        for _ in 0..300 {
            let at = r.next() as usize % (bytes.len() + 100);
            let len = r.next() as usize % 150_000;
            let end = bytes.len().min(at + len);
            let got = cache.read_blocking(&archive, at as u64, len).expect("decodes");
            assert!(got == bytes[at.min(end)..end], "{len} bytes at {at}");
            assert!(cache.stats().held_bytes <= capacity);
        }
        assert_eq!(cache.stats().evictions > 0, capacity < 600_000);
    }
}

#[test]
fn a_chunk_that_its_reader_keeps_is_not_held_once_it_was_read_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = archive(dir.path());
    let cache = cache(8 << 20, 2, codec::fastest()).expect("a cache");
    for at in (0..bytes.len()).step_by(40_000) {
        let end = bytes.len().min(at + 40_000);
        assert!(read_kept(&cache, &archive, at as u64, 40_000) == bytes[at..end]);
        // A chunk of 64 KiB, anywhere in a page, takes 68 KiB of memory.
        assert!(cache.stats().held_bytes <= 68 << 10, "only the chunk that was begun");
    }
    let stats = cache.stats();
    assert_eq!((stats.held_bytes, stats.evictions), (0, 0));
    assert_eq!(stats.misses as usize, archive.index().len(), "each chunk was decoded once");
}

#[test]
fn everyone_who_waits_for_a_damaged_chunk_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, archive) = archive(dir.path());
    let decoder = counting(true);
    let cache = cache(8 << 20, 2, decoder.clone()).expect("a cache");
    thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                let e = cache.read_blocking(&archive, 5000, 10).expect_err("the decoder fails");
                assert!(e.to_string().contains("as the test wants it"), "{e}");
            });
        }
    });
    // And nothing of it is kept.
    assert!(cache.read_blocking(&archive, 5000, 10).is_err());
    assert_eq!(cache.stats().held_bytes, 0);
}
