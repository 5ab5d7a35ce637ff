//! A damaged archive gives an error or the exact bytes: never a panic, never a wrong byte.

mod common;

use bszfs::codec::{self, ChunkDecoder};
use bszfs::read::Archive;
use common::random::Random;
use common::samples::{Fill, matrices, pack_bytes, safetensors, tensor, unpack_bytes};

/// An original with chunks of every coding and planes of every mode, and its archive of a few
/// kilobytes.
fn small(dir: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
    let bytes = safetensors(&[
        ("a", "BF16", tensor("BF16", 8200, Fill::Weights, 1)),
        ("b", "F32", tensor("F32", 8192, Fill::Widened, 2)),
        ("c", "U8", tensor("U8", 100, Fill::Noise, 3)),
    ]);
    let archive = pack_bytes(dir, "x.safetensors", &bytes, 64 << 10);
    (bytes, archive)
}

/// The same with blocks in classes, which need a larger original.
fn classes(dir: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
    let bytes = safetensors(&[("a", "F8_E4M3", tensor("F8_E4M3", 33_000, Fill::Scaled, 4))]);
    let archive = pack_bytes(dir, "x.safetensors", &bytes, 64 << 10);
    (bytes, archive)
}

/// The same with columns in classes and with sparse planes.
fn columns(dir: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
    let of =
        |name, dtype, bytes, fill: Fill| (name, dtype, fill.row(), tensor(dtype, bytes, fill, 5));
    let bytes = matrices(&[
        of("a", "F16", 150_000, Fill::Columns),
        of("b", "F32", 150_000, Fill::Frozen),
        of("c", "BF16", 20_000, Fill::Narrow),
    ]);
    let archive = pack_bytes(dir, "x.safetensors", &bytes, 64 << 10);
    (bytes, archive)
}

/// `Some` if the damage was detected or harmless; otherwise the test fails.
fn survives(
    dir: &std::path::Path,
    damaged: &[u8],
    original: &[u8],
    decoder: &dyn ChunkDecoder,
    what: &str,
) {
    if let Ok(back) = unpack_bytes(dir, damaged, decoder) {
        assert!(back == original, "{what}: wrong bytes from {}", decoder.name());
    }
}

#[test]
fn every_flipped_byte_is_detected_or_harmless() {
    let dir = tempfile::tempdir().expect("a directory");
    let (original, archive) = small(dir.path());
    for decoder in codec::decoders() {
        for at in 0..archive.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = archive.clone();
                damaged[at] ^= flip;
                survives(
                    dir.path(),
                    &damaged,
                    &original,
                    &*decoder,
                    &format!("byte {at} ^ {flip:#x}"),
                );
            }
        }
    }
}

#[test]
fn every_flipped_byte_is_detected_or_harmless_where_blocks_choose_tables() {
    let dir = tempfile::tempdir().expect("a directory");
    let (original, archive) = classes(dir.path());
    for at in 0..archive.len() {
        let mut damaged = archive.clone();
        damaged[at] ^= 1 << (at % 8);
        survives(dir.path(), &damaged, &original, &*codec::fastest(), &format!("byte {at}"));
    }
}

/// Damage that passes the quick check changes no restored byte.
#[test]
fn every_flipped_byte_is_detected_by_the_quick_check() {
    let dir = tempfile::tempdir().expect("a directory");
    let (original, archive) = small(dir.path());
    let path = dir.path().join("quick.bsz");
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        let decoder = codec::fastest();
        Archive::open(&path).and_then(|a| bszfs::read::verify_chunks(&a, &*decoder, &|_| ()))
    };
    check(&archive).expect("undamaged");
    for at in 0..archive.len() {
        let mut damaged = archive.clone();
        damaged[at] ^= 1 << (at % 8);
        // Some bits of a zstd frame have no meaning.
        if check(&damaged).is_ok() {
            let back = unpack_bytes(dir.path(), &damaged, &*codec::fastest());
            assert!(back.is_ok_and(|b| b == original), "byte {at}");
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, archive) = small(dir.path());
    for len in 0..archive.len() {
        assert!(
            unpack_bytes(dir.path(), &archive[..len], &*codec::fastest()).is_err(),
            "{len} bytes were enough"
        );
    }
}

#[test]
fn noise_behind_a_valid_checksum_is_detected() {
    // An attacker has covered up the damage: the index and the footer are sealed again after it.
    let dir = tempfile::tempdir().expect("a directory");
    let (original, archive) = small(dir.path());
    let footer = archive.len() - 128;
    let index =
        u64::from_le_bytes(archive[footer + 64..footer + 72].try_into().expect("eight")) as usize;
    let mut r = Random(17);
    for round in 0..20_000 {
        let mut damaged = archive.clone();
        for _ in 0..1 + r.next() % 3 {
            let at = index + r.next() as usize % (damaged.len() - index);
            damaged[at] = r.next() as u8;
        }
        let sum = codec::checksum(&damaged[index..footer]);
        damaged[footer + 80..footer + 88].copy_from_slice(&sum.to_le_bytes());
        let sum =
            codec::checksum(&[&damaged[footer..footer + 112], &damaged[footer + 120..]].concat());
        damaged[footer + 112..footer + 120].copy_from_slice(&sum.to_le_bytes());
        survives(dir.path(), &damaged, &original, &*codec::fastest(), &format!("round {round}"));
    }
}

#[test]
fn noise_in_the_streams_never_writes_out_of_bounds() {
    // This tests the chunk decoders themselves, behind the checksums that would detect the damage
    // first.
    let dir = tempfile::tempdir().expect("a directory");
    for (_, archive) in [small(dir.path()), classes(dir.path()), columns(dir.path())] {
        noise_in_streams(dir.path(), &archive);
    }
}

fn noise_in_streams(dir: &std::path::Path, archive: &[u8]) {
    let path = dir.join("a.bsz");
    std::fs::write(&path, archive).expect("written");
    let a = Archive::open(&path).expect("opens");
    let mut r = Random(23);
    let planes: Vec<_> = (0..a.index().len())
        .filter(|&id| a.index().chunk(id).expect("indexed").coding == codec::Coding::Planes)
        .collect();
    let model =
        |id: usize| a.index().model(a.index().chunk(id).expect("indexed").model).expect("a model");
    assert!(!planes.is_empty(), "the sample has nothing to damage");
    for id in planes {
        let (c, model) = (a.index().chunk(id).expect("indexed"), model(id));
        let stored = &archive[c.stored_at as usize..][..c.stored_len as usize];
        for _ in 0..1000 {
            let mut payload = stored.to_vec();
            for _ in 0..1 + r.next() % 4 {
                let at = r.next() as usize % payload.len();
                payload[at] = r.next() as u8;
            }
            payload.truncate(payload.len() - (r.next() % 3) as usize * (r.next() % 40) as usize);
            let mut results = codec::decoders().into_iter().map(|d| {
                let mut out = vec![0; c.len()];
                let decoded = d.decode(c.coding, Some(&model), &payload, &mut out);
                decoded.map(|()| out).map_err(|e| e.to_string())
            });
            let first = results.next().expect("a decoder");
            assert!(results.all(|r| r == first), "the decoders disagree");
        }
    }
}
