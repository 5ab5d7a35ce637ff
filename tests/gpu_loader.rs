//! Parts of originals decoded into device memory that the caller allocated, with a stand-in for the
//! driver: see `tests/gpu/driver.cpp`.

#![cfg(feature = "cuda")]
#![allow(unsafe_code)]

mod common;

#[path = "gpu/fake.rs"]
mod fake;

use bszfs::{
    ErrorKind, codec,
    error::Result,
    gpu::{Gpu, Loader, MIN_STAGING, Part},
    read::{Archive, header},
};
use common::random::Random;
use common::samples::{Fill, pack_tensors};
use cudarc::driver::sys;
use fake::with_driver;
use std::path::Path;

#[test]
fn tensors_are_decoded_into_the_memory_of_the_caller() {
    with_driver("tensors_are_decoded", &[]);
}

#[test]
fn any_ranges_are_decoded() {
    with_driver("ranges_are_decoded", &[]);
}

#[test]
fn each_part_has_an_outcome_of_its_own() {
    with_driver("outcomes_are_separate", &[]);
}

#[test]
fn what_the_callers_stream_has_to_do_is_done_first() {
    with_driver("the_stream_comes_first", &[]);
}

#[test]
fn after_a_failure_nothing_writes_to_the_memory_of_the_caller() {
    for call in [
        "cuEventCreate:1",
        "cuEventRecord:2",
        "cuStreamWaitEvent:1",
        "cuEventDestroy_v2:2",
        "cuMemcpyHtoDAsync_v2:1",
        "cuLaunchKernel:2",
        "cuMemcpyDtoHAsync_v2:1",
        "cuMemcpyDtoDAsync_v2:1",
        // The two before clear the memory of the slots.
        "cuStreamSynchronize:3",
    ] {
        with_driver("a_failure_is_final", &[("BSZ_FAKE_FAIL", call)]);
    }
}

/// Memory of the first device, allocated as any program does.
struct Memory {
    at: u64,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> Self {
        let mut at = 0;
        // SAFETY: a context is current: see `caller`.
        unsafe { sys::cuMemAlloc_v2(&mut at, len.max(1)) }.result().expect("memory");
        Self { at, len }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        // SAFETY: both have this length.
        unsafe { sys::cuMemcpyDtoH_v2(out.as_mut_ptr().cast(), self.at, self.len) }
            .result()
            .expect("copied");
        out
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated in `new`.
        unsafe { sys::cuMemFree_v2(self.at) }.result().expect("freed");
    }
}

/// Makes the primary context of the first device current, as torch does. It stays so.
fn caller() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: the pointers are valid.
    unsafe {
        sys::cuInit(0).result().expect("a driver");
        sys::cuDevicePrimaryCtxRetain(&mut context, 0).result().expect("a context");
        sys::cuCtxPushCurrent_v2(context).result().expect("current");
    }
    context
}

fn sample(dir: &Path) -> (Vec<u8>, Archive) {
    let tensors = [
        ("a", "BF16", 150_000, Fill::Weights),
        ("b", "F16", 60_000, Fill::Columns),
        ("c", "F32", 90_000, Fill::Frozen),
        ("d", "F8_E4M3", 70_000, Fill::Columns),
        ("e", "U8", 6_000_000, Fill::Noise),
        ("f", "BOOL", 300_000, Fill::Rows),
        ("g", "BF16", 9001, Fill::Special),
    ];
    let bytes = pack_tensors(dir, 16 << 10, 3, &tensors);
    (bytes, Archive::open(&dir.join("out.bsz")).expect("opens"))
}

fn loader() -> Loader {
    let gpu = Gpu::open(0).expect("a driver");
    assert!(gpu.loader(MIN_STAGING - 1).is_err());
    gpu.loader(MIN_STAGING).expect("memory")
}

/// Decode these ranges of the original, each to memory of its own.
fn decode(loader: &mut Loader, archive: &Archive, ranges: &[(u64, u64)]) -> Vec<Result<Vec<u8>>> {
    let memory: Vec<_> = ranges.iter().map(|&(_, len)| Memory::new(len as usize)).collect();
    let part = |(&(start, len), memory): (_, &Memory)| Part { start, len, address: memory.at };
    let parts: Vec<_> = ranges.iter().zip(&memory).map(part).collect();
    let decoder = codec::fastest();
    // SAFETY: the memory is ours, and nothing else uses it.
    let outcomes = unsafe { loader.decode(archive, &*decoder, &parts, None) }.expect("CUDA works");
    outcomes.into_iter().zip(memory).map(|(ok, memory)| ok.map(|()| memory.bytes())).collect()
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn tensors_are_decoded() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = sample(dir.path());
    let context = caller();
    let mut loader = loader();
    let tensors = header(&archive, &*codec::fastest()).expect("a header").tensors;
    let ranges: Vec<_> = tensors.iter().map(|t| (t.start, t.end - t.start)).collect();
    for _ in 0..2 {
        let decoded = decode(&mut loader, &archive, &ranges);
        for (tensor, decoded) in tensors.iter().zip(decoded) {
            let expected = &bytes[tensor.start as usize..tensor.end as usize];
            assert!(decoded.expect("decodes") == expected, "{} differs", tensor.name);
        }
    }
    let mut current = std::ptr::null_mut();
    // SAFETY: the pointer is valid.
    unsafe { sys::cuCtxGetCurrent(&mut current) }.result().expect("a context");
    assert_eq!(current, context, "the caller's context is not current any more");
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn ranges_are_decoded() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = sample(dir.path());
    caller();
    let (mut loader, mut r) = (loader(), Random(5));
    let len = bytes.len() as u64;
    let mut ranges = vec![(0, len), (0, 1), (len - 1, 1), (len, 0), (7, 0)];
    for _ in 0..30 {
        // Many share chunks, and some are within one.
        let start = r.next() % len;
        let most = (len - start).min(1 << (r.next() % 20));
        ranges.push((start, 1 + r.next() % most));
    }
    for (range, decoded) in ranges.iter().zip(decode(&mut loader, &archive, &ranges)) {
        let expected = &bytes[range.0 as usize..][..range.1 as usize];
        assert!(decoded.expect("decodes") == expected, "{range:?} differs");
    }
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn outcomes_are_separate() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = sample(dir.path());
    caller();
    let mut loader = loader();
    let chunk = |id| archive.index().chunk(id).expect("indexed");
    let planes = (0..archive.index().len())
        .find(|&id| chunk(id).coding == codec::Coding::Planes)
        .expect("a chunk with planes");
    let path = dir.path().join("out.bsz");
    let mut stored = std::fs::read(&path).expect("read");
    let damaged = chunk(planes);
    stored[(damaged.stored_at + u64::from(damaged.stored_len)) as usize - 1] ^= 0x10;
    std::fs::write(&path, stored).expect("written");
    let archive = Archive::open(&path).expect("opens");
    let len = bytes.len() as u64;
    let ranges = [
        (0, len),
        (0, damaged.original.start),
        (damaged.original.start + 5, 10),
        (damaged.original.end, len - damaged.original.end),
        (len - 1, 2),
        (u64::MAX, 2),
    ];
    let outcomes = decode(&mut loader, &archive, &ranges[..4]);
    let mut far = Vec::new();
    for &(start, len) in &ranges[4..] {
        let memory = Memory::new(2);
        let part = Part { start, len, address: memory.at };
        // SAFETY: the memory is ours, and nothing else uses it.
        let decoded = unsafe { loader.decode(&archive, &*codec::fastest(), &[part], Some(0)) };
        far.extend(decoded.expect("CUDA works"));
    }
    assert!(far.iter().all(|o| o.as_ref().is_err_and(|e| e.kind() == ErrorKind::InvalidArgument)));
    for (i, outcome) in outcomes.into_iter().enumerate() {
        let (start, len) = ranges[i];
        match (i, outcome) {
            (0 | 2, outcome) => {
                let e = outcome.expect_err("damaged");
                assert_eq!(e.kind(), ErrorKind::Corruption);
                assert!(e.to_string().contains(&format!("chunk {planes}")), "{e}");
            }
            (_, outcome) => {
                let expected = &bytes[start as usize..][..len as usize];
                assert!(outcome.expect("undamaged") == expected, "part {i} differs");
            }
        }
    }
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn the_stream_comes_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = sample(dir.path());
    caller();
    let mut loader = loader();
    let mut streams = vec![std::ptr::null_mut()];
    let mut own = std::ptr::null_mut();
    // SAFETY: the pointer is valid.
    unsafe { sys::cuStreamCreate(&mut own, 1) }.result().expect("a stream");
    streams.push(own);
    for stream in streams {
        let memory = Memory::new(bytes.len());
        // The stand-in does this when somebody waits for it, which would be after decoding.
        // SAFETY: the memory has this length.
        unsafe { sys::cuMemsetD8Async(memory.at, 7, memory.len, stream) }.result().expect("works");
        let part = Part { start: 0, len: bytes.len() as u64, address: memory.at };
        // SAFETY: only the stream uses the memory.
        let decoded =
            unsafe { loader.decode(&archive, &*codec::fastest(), &[part], Some(stream as u64)) };
        assert!(decoded.expect("CUDA works").iter().all(Result::is_ok));
        // SAFETY: the stream exists.
        unsafe { sys::cuStreamSynchronize(stream) }.result().expect("works");
        assert!(memory.bytes() == bytes, "the stream has overwritten what was decoded");
    }
    // SAFETY: it was created above.
    unsafe { sys::cuStreamDestroy_v2(own) }.result().expect("destroyed");
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn a_failure_is_final() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = sample(dir.path());
    caller();
    let mut loader = loader();
    let memory = Memory::new(bytes.len());
    // Without its first byte, the first chunk takes a copy on the device.
    let part = Part { start: 1, len: bytes.len() as u64 - 1, address: memory.at };
    // SAFETY: the memory is ours, and nothing else uses it.
    let decoded = unsafe { loader.decode(&archive, &*codec::fastest(), &[part], Some(0)) };
    assert_eq!(decoded.expect_err("the device fails").kind(), ErrorKind::Io);
    let before = memory.bytes();
    // This waits for the streams, and would do what they still have to do.
    drop(loader);
    assert!(memory.bytes() == before, "something was still in flight");
}
