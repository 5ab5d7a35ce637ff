//! The host side of GPU decoding, run with a stand-in for the driver: see `tests/gpu/driver.cpp`.

mod common;

#[path = "gpu/fake.rs"]
mod fake;

use bszfs::{
    ErrorKind,
    codec::{self, checksum},
    error::{Error, Result},
    gpu::{self, Gpu, MIN_MEMORY, Piece, Resident, Session},
    read::{Archive, StoredChunk},
};
use common::places;
use common::samples::{Fill, matrices, pack_bytes, pack_tensors, tensor};
use fake::{driver, with_driver};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Mutex,
};

#[test]
fn archives_are_decoded_into_device_memory() {
    with_driver("an_archive_is_resident", &[]);
}

#[test]
fn golden_archives_are_decoded_to_their_originals() {
    with_driver("files_are_their_originals", &[]);
}

#[test]
fn chunks_decoded_to_the_host_have_outcomes_of_their_own() {
    with_driver("a_session_decodes", &[]);
}

#[test]
fn a_failing_device_gives_errors() {
    for launches in [0, 3, 7] {
        let launches = launches.to_string();
        with_driver("the_device_fails", &[("BSZ_FAKE_LAUNCHES", &launches)]);
    }
}

/// Every function of the driver that bsz calls.
const CALLS: [&str; 24] = [
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuLaunchKernel",
];

#[test]
fn whatever_call_fails_gives_an_error_or_the_right_bytes() {
    for call in CALLS {
        for first in [1, 2, 7] {
            with_driver("a_call_fails", &[("BSZ_FAKE_FAIL", &format!("{call}:{first}"))]);
        }
    }
}

#[test]
fn any_device_can_be_chosen() {
    with_driver("the_second_device_is_used", &[]);
}

#[test]
fn a_damaged_bit_that_only_a_checksum_reveals_is_found_on_the_device() {
    with_driver("damage_is_found", &[]);
}

#[test]
fn the_benchmark_measures_the_gpu() {
    let Some(dir) = driver() else { return };
    let bench = |file: &Path, library: &Path| -> Output {
        let mut command = Command::new(places::program());
        command.args(["bench", "--cuda", "--json", "--seconds", "0.01"]).arg(file);
        command.env("LD_LIBRARY_PATH", library).output().expect("runs")
    };
    let work = tempfile::tempdir().expect("a directory");
    let file = work.path().join("x.safetensors");
    std::fs::write(
        &file,
        matrices(&[("a", "BF16", None, tensor("BF16", 20_000, Fill::Weights, 1))]),
    )
    .expect("written");
    let out = bench(&file, dir);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let figures: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(figures["device"], "no GPU at all");
    for rate in ["upload", "download", "device_copy", "resident", "checked", "to_device", "to_host"]
    {
        assert!(figures[format!("{rate}_gbs")].as_f64().is_some_and(|gbs| gbs > 0.0), "{rate}");
    }
    if let Err(why) = Gpu::open(0) {
        // This process runs without the stand-in driver.
        let out = bench(&file, work.path());
        assert_eq!(out.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&out.stderr), format!("bsz: {why}\n"));
    }
}

#[test]
fn tensors_are_exported_as_dlpack() {
    let Some(dir) = driver() else { return };
    let library = places::dlpack();
    let python = std::env::var_os("BSZ_PYTHON").unwrap_or_else(|| "python3".into());
    let there = Command::new(&python).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there || !library.exists() {
        let required = std::env::var_os("BSZ_REQUIRE_PYTHON").is_some_and(|v| v == "1");
        assert!(!required, "no Python, or no {}", library.display());
        eprintln!(
            "\n*** SKIPPED: DLPack is not tested, without Python or without examples/dlpack.rs\n"
        );
        return;
    }
    let work = tempfile::tempdir().expect("a directory");
    let of = |name, dtype, bytes, fill: Fill| (name, dtype, None, tensor(dtype, bytes, fill, 3));
    let bytes = matrices(&[
        of("a", "BF16", 20_000, Fill::Weights),
        of("b", "F8_E4M3", 7000, Fill::Weights),
        of("c", "F8_E5M2", 7000, Fill::Weights),
        of("d", "U8", 3000, Fill::Noise),
        of("e", "BOOL", 3000, Fill::Rows),
        of("f", "F4", 3000, Fill::Noise),
        of("g", "I64", 800, Fill::Noise),
        of("h", "F64", 800, Fill::Noise),
    ]);
    pack_bytes(work.path(), "x.safetensors", &bytes, 4 << 10);
    let plain = work.path().join("plain");
    std::fs::write(&plain, bytes).expect("written");
    let script = places::root().join("tests/python/dlpack.py");
    let mut command = Command::new(python);
    command.arg("-B").arg(script).arg(work.path().join("out.bsz")).arg(plain);
    let ran =
        command.env("BSZ_DLPACK", library).env("LD_LIBRARY_PATH", dir).output().expect("runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "8 tensors are the same\n");
}

/// An original with chunks of every coding, and its archive.
fn sample(dir: &Path) -> (Vec<u8>, Archive) {
    let tensors = [
        ("a", "BF16", 200_000, Fill::Weights),
        ("b", "F16", 150_000, Fill::Columns),
        ("c", "F32", 90_000, Fill::Frozen),
        ("d", "F64", 40_000, Fill::Weights),
        ("e", "F8_E4M3", 70_000, Fill::Columns),
        ("f", "U8", 2_000_000, Fill::Noise),
        ("g", "BOOL", 300_000, Fill::Rows),
        ("h", "BF16", 9001, Fill::Special),
    ];
    let bytes = pack_tensors(dir, 64 << 10, 3, &tensors);
    (bytes, Archive::open(&dir.join("out.bsz")).expect("opens"))
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn an_archive_is_resident() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = sample(dir.path());
    let gpu = Gpu::open(0).expect("a driver");
    let resident = gpu.load(&archive, &*codec::fastest()).expect("loads");
    resident.verify(&archive).expect("matches");
    let mut back = vec![0; bytes.len()];
    resident.read(0, &mut back).expect("reads");
    assert!(back == bytes, "what is on the device is not the original");
    assert!(resident.read(1, &mut back).is_err(), "read behind the end");
    let tensors = resident.tensors();
    assert_eq!(tensors.len(), 8);
    assert_eq!(
        (resident.address() + tensors[0].start) % 256,
        0,
        "the tensors' data are not aligned"
    );
}

/// The archives to decode: those that `BSZ_ARCHIVES` lists, as in `PATH`, or the golden ones.
fn archives() -> Vec<PathBuf> {
    if let Some(listed) = std::env::var_os("BSZ_ARCHIVES") {
        return std::env::split_paths(&listed).collect();
    }
    let golden = std::fs::read_dir(places::root().join("tests/data/v1")).expect("golden archives");
    let mut paths: Vec<_> = golden.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of what is in device memory.
fn sha256_of(resident: &Resident) -> String {
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 64 << 20]);
    for at in (0..resident.len()).step_by(piece.len()) {
        let n = piece.len().min(resident.len() - at);
        resident.read(at, &mut piece[..n]).expect("reads");
        hash.update(&piece[..n]);
    }
    hex(hash.finalize())
}

/// SHA-256 of the original as a session decodes it to the host; chunks that no GPU decodes come
/// from the CPU.
fn sha256_through(session: &mut Session, archive: &Archive) -> String {
    let index = archive.index();
    let len = usize::try_from(archive.footer().original_len).expect("fits in memory");
    let original = Mutex::new(vec![0; len]);
    let deliver = |id: usize, decoded: &[u8]| {
        let at = index.chunk(id).expect("indexed").original.start as usize;
        original.lock().expect("not poisoned")[at..at + decoded.len()].copy_from_slice(decoded);
    };
    let (mut ids, mut pieces) = (Vec::new(), Vec::new());
    for id in 0..index.len() {
        let chunk = index.chunk(id).expect("indexed");
        if gpu::supports(chunk.coding) {
            let model = archive.model_of(&chunk).expect("a model");
            let (stored_len, len) = (chunk.stored_len as usize, chunk.len());
            pieces.push(Piece { coding: chunk.coding, model, stored_len, len, checksum: None });
            ids.push(id);
        } else {
            let mut out = vec![0; chunk.len()];
            let stored = archive.stored_chunk(id).expect("read");
            stored.decode(&*codec::fastest(), &mut out).expect("decodes");
            deliver(id, &out);
        }
    }
    let fill = |i: usize, place: &mut [u8]| archive.read_stored(ids[i], place);
    let take = |i: usize, decoded: Result<&[u8]>| deliver(ids[i], decoded.expect("decodes"));
    session.decode(&pieces, &fill, &take).expect("CUDA works");
    hex(Sha256::digest(original.into_inner().expect("not poisoned")))
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn files_are_their_originals() {
    let gpu = Gpu::open(0).expect("a driver");
    let mut session = gpu.session(MIN_MEMORY).expect("memory");
    for path in archives() {
        let archive = Archive::open(&path).expect("opens");
        let resident = gpu.load(&archive, &*codec::fastest()).expect("loads");
        let on_device = sha256_of(&resident);
        drop(resident);
        let on_host = sha256_through(&mut session, &archive);
        let name = path.file_stem().expect("a name").to_string_lossy();
        // `tests/gpu/run` reads these lines.
        println!("sha256 {name} {on_device} {on_host}");
        let expected = hex(archive.footer().sha256);
        assert_eq!((&on_device, &on_host), (&expected, &expected), "{name}");
    }
}

/// Four copies of the chunks that a GPU decodes, with their checksums.
fn pieces(archive: &Archive) -> (Vec<(StoredChunk, u64)>, Vec<Piece>) {
    let index = archive.index();
    let ids: Vec<usize> = (0..index.len())
        .filter(|&id| gpu::supports(index.chunk(id).expect("indexed").coding))
        .collect();
    assert!(ids.len() < index.len(), "the sample has no chunk of zstd");
    let raw = |id: usize| index.chunk(id).expect("indexed").coding == codec::Coding::Raw;
    // Chunks that the stand-in driver decodes slowly come only once.
    let often = (0..12).flat_map(|round| ids.iter().filter(move |&&id| round == 0 || raw(id)));
    let chunks: Vec<_> = often
        .map(|&id| {
            (archive.stored_chunk(id).expect("read"), index.chunk(id).expect("indexed").checksum)
        })
        .collect();
    let piece = |(chunk, _): &(StoredChunk, u64)| {
        let (coding, model, payload) = chunk.parts();
        let (model, stored_len, len) = (model.cloned(), payload.len(), chunk.decoded_len());
        Piece { coding, model, stored_len, len, checksum: None }
    };
    let pieces = chunks.iter().map(piece).collect();
    (chunks, pieces)
}

/// Decode, with damage to piece 2 and without piece 3. The outcome of a piece is `true` if its
/// bytes are right.
fn decode(
    session: &mut Session,
    chunks: &[(StoredChunk, u64)],
    pieces: &[Piece],
) -> Result<Vec<Option<Result<bool>>>> {
    let outcomes = Mutex::new(vec![None; pieces.len()]);
    let fill = |i: usize, place: &mut [u8]| {
        place.copy_from_slice(chunks[i].0.parts().2);
        match i {
            2 => place[1] ^= 1,
            3 => return Err(Error::truncated("not there")),
            _ => {}
        }
        Ok(())
    };
    let take = |i: usize, decoded: Result<&[u8]>| {
        let outcome = decoded.map(|d| d.len() == pieces[i].len && checksum(d) == chunks[i].1);
        let before = outcomes.lock().expect("not poisoned")[i].replace(outcome);
        assert!(before.is_none(), "piece {i} came twice");
    };
    session.decode(pieces, &fill, &take)?;
    Ok(outcomes.into_inner().expect("not poisoned"))
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn a_session_decodes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, archive) = sample(dir.path());
    let (chunks, pieces) = pieces(&archive);
    let gpu = Gpu::open(0).expect("a driver");
    assert!(gpu.session(MIN_MEMORY - 1).is_err());
    let mut session = gpu.session(MIN_MEMORY).expect("memory");
    let total: usize = pieces.iter().map(|p| p.len).sum();
    assert!(total > 4 * MIN_MEMORY / 8, "fewer batches than slots: {total} bytes");
    for _ in 0..2 {
        let outcomes = decode(&mut session, &chunks, &pieces).expect("CUDA works");
        for (i, outcome) in outcomes.into_iter().enumerate() {
            match (i, outcome.expect("an outcome")) {
                (2, Err(e)) => assert_eq!(e.kind(), ErrorKind::Corruption),
                (2, Ok(right)) => assert!(!right, "the damage was not detected"),
                (3, outcome) => {
                    assert_eq!(outcome.expect_err("not there").kind(), ErrorKind::Truncated)
                }
                (i, outcome) => assert!(outcome.is_ok_and(|right| right), "piece {i}"),
            }
        }
    }
    let none = decode(&mut session, &[], &[]).expect("nothing to do");
    assert!(none.is_empty());
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn the_device_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, archive) = sample(dir.path());
    let (chunks, pieces) = pieces(&archive);
    let gpu = Gpu::open(0).expect("a driver");
    let mut session = gpu.session(MIN_MEMORY).expect("memory");
    // The fewest launches that all batches can take are more than the device bears.
    let e = decode(&mut session, &chunks, &pieces).expect_err("the device fails");
    assert_eq!(e.to_string(), "CUDA: cannot launch a kernel: unspecified launch failure");
    drop(session);
    let e = gpu.load(&archive, &*codec::fastest()).err().expect("the device fails");
    assert_eq!(e.kind(), ErrorKind::Io);
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn a_call_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let bytes = matrices(&[("a", "BF16", None, tensor("BF16", 9000, Fill::Weights, 1))]);
    pack_bytes(dir.path(), "x.safetensors", &bytes, 4 << 10);
    let archive = Archive::open(&dir.path().join("out.bsz")).expect("opens");
    let Ok(gpu) = Gpu::open(0) else { return };
    let _ = gpu.free_memory();
    if let Ok(resident) = gpu.load(&archive, &*codec::fastest()) {
        let mut back = vec![0; bytes.len()];
        assert!(resident.read(0, &mut back).is_err() || back == bytes);
    }
    let Ok(mut session) = gpu.session(MIN_MEMORY) else { return };
    let chunk = archive.index().chunk(1).expect("indexed");
    let model = archive.model_of(&chunk).expect("a model");
    let (stored_len, len) = (chunk.stored_len as usize, chunk.len());
    let piece = Piece { coding: chunk.coding, model, stored_len, len, checksum: None };
    let fill = |_: usize, place: &mut [u8]| archive.read_stored(1, place);
    let take = |_: usize, decoded: Result<&[u8]>| {
        if let Ok(decoded) = decoded {
            assert_eq!(checksum(decoded), chunk.checksum);
        }
    };
    let _ = session.decode(&[piece], &fill, &take);
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn the_second_device_is_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, archive) = sample(dir.path());
    let gpu = Gpu::open(1).expect("a second device");
    assert_eq!((gpu.name(), gpu.ordinal()), ("no second GPU", 1));
    let resident = gpu.load(&archive, &*codec::fastest()).expect("loads");
    let mut back = vec![0; bytes.len()];
    resident.read(0, &mut back).expect("reads");
    assert!(back == bytes, "what is on the device is not the original");
    let why = Gpu::open(2).err().expect("no such device").to_string();
    assert_eq!(why, "CUDA: there is no GPU 2; the last one is 1");
}

#[test]
#[ignore = "another test runs it, with the stand-in driver"]
fn damage_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, archive) = sample(dir.path());
    let index = archive.index();
    let chunks = (0..index.len()).map(|id| index.chunk(id).expect("indexed"));
    // The end of a chunk with a model is a plane, which no decoder checks by itself.
    let id = chunks
        .enumerate()
        .find(|(_, c)| c.coding == codec::Coding::Planes && c.len() > 1000)
        .expect("a chunk with planes")
        .0;
    let chunk = index.chunk(id).expect("indexed");
    let path = dir.path().join("out.bsz");
    let mut stored = std::fs::read(&path).expect("read");
    stored[(chunk.stored_at + u64::from(chunk.stored_len)) as usize - 1] ^= 1;
    std::fs::write(&path, stored).expect("written");
    let archive = Archive::open(&path).expect("opens");
    let gpu = Gpu::open(0).expect("a driver");
    let e = gpu.load(&archive, &*codec::fastest()).err().expect("damaged");
    assert_eq!(e.kind(), ErrorKind::Corruption);
    assert!(e.to_string().contains(&format!("chunk {id}")), "{e}");
}
