//! Every type, size, value and malformed header round-trips through every decoder.

mod common;

use bszfs::{codec, read::Archive};
use common::random::Random;
use common::samples::{
    self, DTYPES, FILLS, matrices, pack_bytes, safetensors, samples, tensor, unpack_bytes,
};
use proptest::prelude::*;

#[test]
fn every_sample_round_trips_through_every_decoder() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, bytes) in samples() {
        let archive = pack_bytes(dir.path(), "x.safetensors", &bytes, 256 << 10);
        for decoder in codec::decoders() {
            let back = unpack_bytes(dir.path(), &archive, &*decoder).expect(&name);
            assert!(back == bytes, "{name}, {}", decoder.name());
        }
    }
}

#[test]
fn nothing_grows_by_more_than_its_descriptors() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, bytes) in samples() {
        let archive = pack_bytes(dir.path(), "x.safetensors", &bytes, 256 << 10);
        std::fs::write(dir.path().join("a.bsz"), &archive).expect("written");
        let a = Archive::open(&dir.path().join("a.bsz")).expect("opens");
        let stored = a.footer().index_offset - 16;
        assert!(stored <= bytes.len() as u64, "{name}: {stored} of {}", bytes.len());
    }
}

#[test]
fn one_outlier_costs_little() {
    let dir = tempfile::tempdir().expect("a directory");
    for (dtype, most, tiny) in [
        ("BF16", 0.72, 0x0001u16.to_le_bytes().to_vec()),
        ("F32", 0.88, 1e-40f32.to_le_bytes().to_vec()),
        ("F64", 0.99, 1e-300f64.to_le_bytes().to_vec()),
    ] {
        let mut data = tensor(dtype, 400_000, samples::Fill::Weights, 7);
        data[8000..8000 + tiny.len()].copy_from_slice(&tiny);
        let bytes = safetensors(&[("a", dtype, data)]);
        let archive = pack_bytes(dir.path(), "x.safetensors", &bytes, 256 << 10);
        let ratio = archive.len() as f64 / bytes.len() as f64;
        assert!(ratio < most, "{dtype}: {ratio}");
        assert!(
            unpack_bytes(dir.path(), &archive, &*codec::fastest()).expect("decodes") == bytes,
            "{dtype}"
        );
    }
}

#[test]
fn equal_tensors_are_stored_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = tensor("BF16", 17 << 20, samples::Fill::Noise, 11);
    // Equal at the start, but not everywhere.
    let mut other = data.clone();
    other[16 << 20] ^= 1;
    let bytes =
        safetensors(&[("a", "BF16", data.clone()), ("b", "BF16", data), ("c", "BF16", other)]);
    let archive = pack_bytes(dir.path(), "x.safetensors", &bytes, 256 << 10);
    assert!(archive.len() < 18 << 20, "{} bytes", archive.len());
    std::fs::write(dir.path().join("a.bsz"), &archive).expect("written");
    let archive = Archive::open(&dir.path().join("a.bsz")).expect("opens");
    let mut back = vec![0; bytes.len()];
    assert_eq!(archive.read_at(0, &mut back, &*codec::fastest()).expect("decodes"), bytes.len());
    assert!(back == bytes);
}

#[test]
fn any_range_reads_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let bytes = safetensors(&[
        ("a", "BF16", tensor("BF16", 700_000, samples::Fill::Weights, 5)),
        ("b", "F32", tensor("F32", 300_004, samples::Fill::Weights, 6)),
    ]);
    std::fs::write(dir.path().join("a.bsz"), pack_bytes(dir.path(), "x", &bytes, 64 << 10))
        .expect("written");
    let archive = Archive::open(&dir.path().join("a.bsz")).expect("opens");
    let mut r = Random(3);
    for _ in 0..300 {
        let at = r.next() as usize % (bytes.len() + 1000);
        let mut out = vec![0xaa; r.next() as usize % 200_000];
        let n = archive.read_at(at as u64, &mut out, &*codec::fastest()).expect("reads");
        let end = bytes.len().min(at + out.len());
        assert!(out[..n] == bytes[at.min(end)..end], "{n} bytes at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn tensors_of_any_type_size_and_content_round_trip(
        tensors in prop::collection::vec(
            (0..DTYPES.len(), 0..FILLS.len(), 0..150_000usize, any::<u64>()),
            1..4,
        ),
        row in prop::option::of(1..2000usize),
        chunk in 1..5u32,
        tail in 0..9usize,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let tensors: Vec<_> = tensors
            .iter()
            .zip(["a", "b", "c", "d"])
            .map(|(&(dtype, fill, bytes, seed), name)| {
                let ((dtype, _), fill) = (DTYPES[dtype], FILLS[fill]);
                (name, dtype, fill.row().or(row), tensor(dtype, bytes, fill, seed))
            })
            .collect();
        let mut bytes = matrices(&tensors);
        bytes.resize(bytes.len() + tail, 0x5a);
        let archive = pack_bytes(dir.path(), "x.safetensors", &bytes, chunk * (64 << 10));
        for decoder in codec::decoders() {
            let back = unpack_bytes(dir.path(), &archive, &*decoder).expect("decodes");
            prop_assert!(back == bytes, "{}", decoder.name());
        }
    }
}
