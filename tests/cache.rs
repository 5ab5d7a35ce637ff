//! The mount's cache: exact bytes, each chunk decoded once at a time, bounded memory, and errors
//! delivered to every waiting reader.

mod common;

use bszfs::cache::{CacheOptions, CachedFile, ChunkCache, PendingChunk, Reader, Slice};
use bszfs::codec::{self, ChunkDecoder, Coding, EntropyModel};
use bszfs::error::{Error, Result};
use bszfs::read::Archive;
use bszfs::readahead::{
    LOCAL_PIECE, OffloadDecoder, PrefetchRequest, Prefetcher, SequentialReadahead,
};
use common::crafted;
use common::random::Random;
use common::samples::{Fill, pack_bytes, safetensors, tensor};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Decodes like the reference decoder, but slowly, counting the calls; or fails.
struct Counting {
    calls: AtomicUsize,
    fail: bool,
}

impl ChunkDecoder for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn decode(
        &self,
        coding: Coding,
        model: Option<&EntropyModel>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(20));
        if self.fail {
            Err(Error::corrupt("as the test intends"))
        } else {
            codec::reference().decode(coding, model, payload, out)
        }
    }
}

/// A cache with readahead.
fn cache(capacity: u64, threads: usize, decoder: Arc<dyn ChunkDecoder>) -> Result<Arc<ChunkCache>> {
    let readahead = Some(Box::new(SequentialReadahead) as _);
    ChunkCache::new(CacheOptions { capacity, threads, decoder, readahead })
}

fn counting(fail: bool) -> Arc<Counting> {
    Arc::new(Counting { calls: AtomicUsize::new(0), fail })
}

/// An original of 600 kB and its archive in chunks of 64 KiB.
fn archive(dir: &std::path::Path) -> (Vec<u8>, Arc<CachedFile>) {
    let bytes = safetensors(&[("a", "BF16", tensor("BF16", 600_000, Fill::Weights, 1))]);
    let packed = pack_bytes(dir, "x.safetensors", &bytes, 64 << 10);
    std::fs::write(dir.join("a.bsz"), packed).expect("written");
    (bytes, open(&dir.join("a.bsz")))
}

fn open(path: &std::path::Path) -> Arc<CachedFile> {
    CachedFile::new(Archive::open(path).expect("opens"))
}

/// Read a range the way the kernel's page cache does.
fn read_kept(cache: &Arc<ChunkCache>, archive: &Arc<CachedFile>, at: u64, len: usize) -> Vec<u8> {
    let (send, receive) = mpsc::channel();
    cache.read(archive, at, len, Reader::PageCached, move |answer| {
        send.send(answer).expect("awaited")
    });
    let slices = receive.recv_timeout(Duration::from_secs(30)).expect("answered").expect("decodes");
    slices.iter().flat_map(|s| s.to_vec()).collect()
}

/// Bytes accounted for one page of memory, which holds several chunks.
const PAGE: u64 = (2 << 20) + (16 << 10);

#[track_caller]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Wait until the threads that delivered results have released them.
#[track_caller]
fn holds_nothing(cache: &ChunkCache) {
    wait_until("nothing is held", || cache.stats().held_bytes == 0);
}

#[test]
fn concurrent_readers_of_a_chunk_decode_it_once() {
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
fn random_reads_are_exact_and_respect_the_memory_bound() {
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
            // Memory is accounted in pages of several chunks; those of the header and the tail are
            // small.
            assert!(cache.stats().held_bytes <= capacity + PAGE + (1 << 20));
        }
        assert_eq!(cache.stats().evictions > 0, capacity < 600_000);
    }
}

#[test]
fn a_chunk_in_the_page_cache_is_not_held_once_it_was_read_completely() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = archive(dir.path());
    let cache = cache(8 << 20, 2, codec::fastest()).expect("a cache");
    for at in (0..bytes.len()).step_by(40_000) {
        let end = bytes.len().min(at + 40_000);
        assert!(read_kept(&cache, &archive, at as u64, 40_000) == bytes[at..end]);
        // One page for the chunk that was begun, and a small one for the tail of the file.
        assert!(cache.stats().held_bytes <= PAGE + (1 << 20), "only the chunk that was begun");
    }
    holds_nothing(&cache);
    let stats = cache.stats();
    assert_eq!(stats.evictions, 0);
    assert_eq!(
        stats.misses as usize,
        archive.archive().index().len(),
        "each chunk was decoded once"
    );
}

#[test]
fn every_reader_waiting_for_a_damaged_chunk_gets_the_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, archive) = archive(dir.path());
    let decoder = counting(true);
    let cache = cache(8 << 20, 2, decoder.clone()).expect("a cache");
    thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                let e = cache.read_blocking(&archive, 5000, 10).expect_err("the decoder fails");
                assert!(e.to_string().contains("as the test intends"), "{e}");
            });
        }
    });
    // Nothing of it stays in the cache.
    assert!(cache.read_blocking(&archive, 5000, 10).is_err());
    holds_nothing(&cache);
}

/// Decodes nothing until it is released, and everything afterwards; or ends with a panic.
struct Stuck {
    called: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
    done: mpsc::Sender<()>,
}

impl OffloadDecoder for Stuck {
    fn piece(&self) -> u64 {
        1 << 20
    }

    fn decode(&self, chunks: &[PendingChunk]) {
        self.called.send(()).expect("listened to");
        assert!(self.go.lock().expect("alone").recv().is_ok(), "as the test intends");
        for chunk in chunks {
            let mut bytes = vec![0; chunk.chunk().len()];
            let read = chunk.archive().read_at(
                chunk.chunk().original.start,
                &mut bytes,
                &*codec::reference(),
            );
            read.expect("decodes");
            chunk.supply(&bytes);
        }
        self.done.send(()).expect("listened to");
    }

    fn release(&self) {}
}

#[test]
fn pending_chunks_are_reclaimed_from_a_stuck_decoder_and_late_ones_are_ignored() {
    let dir = tempfile::tempdir().expect("a directory");
    for ends in [false, true] {
        let (bytes, archive) = archive(dir.path());
        let cache = cache(64 << 20, 2, codec::fastest()).expect("a cache");
        let ((called, calls), (go, going), (done, over)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let stuck = Stuck { called, go: Mutex::new(going), done };
        let prefetcher = Prefetcher::start(&cache, LOCAL_PIECE).expect("a thread");
        prefetcher.offload_to(Box::new(stuck)).expect("a thread");
        let whole = |file: &Arc<CachedFile>| {
            let (file, range) = (Arc::clone(file), 0..bytes.len() as u64);
            prefetcher.request([PrefetchRequest { file, shown: None, range }]);
        };
        whole(&archive);
        calls.recv_timeout(Duration::from_secs(30)).expect("called");
        if ends {
            // A panic takes its thread with it.
            drop(go);
            assert!(read_kept(&cache, &archive, 0, bytes.len()) == bytes);
            continue;
        }
        let read =
            cache.read_blocking(&archive, 0, bytes.len()).expect("decoded by the cache's threads");
        assert!(read == bytes);
        let before = cache.stats();
        go.send(()).expect("it waits");
        over.recv_timeout(Duration::from_secs(30)).expect("supplies");
        let after = cache.stats();
        assert_eq!(
            (before.decoded_bytes, before.held_bytes),
            (after.decoded_bytes, after.held_bytes)
        );
        assert_eq!(
            after.decoded_bytes,
            bytes.len() as u64,
            "each chunk was decoded once for the cache"
        );
        assert!(cache.read_blocking(&archive, 0, bytes.len()).expect("held") == bytes);
        // It is not used again: the cache decodes the next request.
        whole(&open(&dir.path().join("a.bsz")));
        let twice = 2 * bytes.len() as u64;
        wait_until("all is decoded again", || {
            let stats = cache.stats();
            assert!(stats.decoded_bytes <= twice, "{stats:?}");
            stats.decoded_bytes == twice
        });
        assert!(calls.try_recv().is_err());
    }
}

#[test]
fn tiny_chunks_count_for_the_memory_they_occupy() {
    let dir = tempfile::tempdir().expect("a directory");
    let blob = crafted::blob(3);
    let path = dir.path().join("tiny.bsz");
    let len = crafted::archive(&path, &[], &blob, (0..60_000).map(|i| 1 + i % 3)) as usize;
    let archive = open(&path);
    let all: Vec<u8> = (0..60_000).flat_map(|i| blob[..1 + i % 3].to_vec()).collect();
    let capacity = 4 << 20;
    let cache = cache(capacity, 2, codec::fastest()).expect("a cache");
    for at in (0..len).step_by(100) {
        let read = cache.read_blocking(&archive, at as u64, 100).expect("decodes");
        assert!(read == all[at..len.min(at + 100)], "at {at}");
        assert!(cache.stats().held_bytes <= capacity);
    }
    let stats = cache.stats();
    assert!(stats.evictions > 50_000, "no more than a few thousand of them are held: {stats:?}");
    // The chunks of so large a read are not held, so they evict little.
    let evicted = stats.evictions;
    assert!(cache.read_blocking(&archive, 0, len).expect("decodes") == all);
    assert!(cache.stats().evictions - evicted < 2000);
}

#[test]
fn readers_beyond_the_admission_limit_are_all_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let blob = crafted::blob(4 << 20);
    let path = dir.path().join("large.bsz");
    crafted::archive(&path, &[], &blob, (0..40).map(|_| blob.len()));
    let archive = open(&path);
    // A chunk of 4 MiB is half of what is admitted.
    let cache = cache(0, 4, codec::fastest()).expect("a cache");
    thread::scope(|scope| {
        for thread in 0..40 {
            let (cache, archive, blob) = (&cache, &archive, &blob);
            scope.spawn(move || {
                let at = (thread * blob.len() + 77) as u64;
                let (send, receive) = mpsc::channel();
                // The slices are released when the callback returns.
                let copy = |slices: Vec<Slice>| {
                    slices.iter().flat_map(|s| s.to_vec()).collect::<Vec<u8>>()
                };
                let done = move |answer: Result<_>| send.send(answer.map(copy)).expect("awaited");
                cache.read(archive, at, 1000, Reader::Direct, done);
                let read = receive.recv_timeout(Duration::from_secs(30)).expect("answered");
                assert!(read.expect("decodes") == blob[77..1077]);
                assert!(cache.stats().held_bytes <= 20 << 20);
            });
        }
    });
    holds_nothing(&cache);
}
