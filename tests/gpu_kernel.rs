//! The GPU kernel, compiled for the CPU with sanitizers, decodes like the scalar decoder: the same
//! bytes, or an error where that one fails. See `tests/gpu/shim.h`.
//!
//! With `BSZ_GPU=1` in the environment, it runs on this machine's GPU instead.

mod common;

#[path = "gpu/cases.rs"]
mod cases;

use bszfs::{
    ErrorKind,
    codec::Coding,
    gpu::{
        Gpu, MIN_MEMORY, Piece,
        batch::{Batch, Item},
    },
    read::Archive,
};
use cases::{Case, Outcome, damage, lacking, random_case};
use common::cxx::{self, Built};
use common::places;
use common::random::Random;
use common::samples::{Fill, matrices, pack_bytes, tensor};
use sha2::{Digest, Sha256};
use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex, OnceLock},
};

/// Chunks that decoded, and those of them that the kernel's loop for usual chunks has decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Good {
    all: usize,
    usual: usize,
}

/// The emulator of the kernel, compiled on first use. `None`, with a message, without a working
/// compiler.
fn emulator() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<Built>> = OnceLock::new();
    let flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let built = BUILT.get_or_init(|| cxx::build("tests/gpu/emulate.cpp", "emulate", &flags));
    built.as_ref().map(|b| b.path.as_path())
}

fn on_gpu() -> bool {
    std::env::var_os("BSZ_GPU").is_some_and(|v| v == "1")
}

/// Whether anything here can run the kernel.
fn can_run() -> bool {
    on_gpu() || emulator().is_some()
}

/// Decode `cases` on the GPU. A session does not say which loop has decoded a chunk.
fn run_on_gpu(cases: &[Case]) -> Vec<(Outcome, bool)> {
    let piece = |c: &Case| Piece {
        coding: c.coding,
        model: c.model.clone(),
        stored_len: c.payload.len(),
        len: c.len,
    };
    let outcomes = Mutex::new(vec![Err(ErrorKind::Io); cases.len()]);
    let fill = |i: usize, place: &mut [u8]| {
        place.copy_from_slice(&cases[i].payload);
        Ok(())
    };
    let take = |i: usize, decoded: bszfs::Result<&[u8]>| {
        outcomes.lock().expect("not poisoned")[i] =
            decoded.map(<[u8]>::to_vec).map_err(|e| e.kind());
    };
    // Under the tools of CUDA, it takes seconds to open a GPU.
    static OPENED: OnceLock<Gpu> = OnceLock::new();
    let gpu = OPENED.get_or_init(|| Gpu::open().expect("a GPU"));
    let mut session = gpu.session(MIN_MEMORY).expect("memory");
    session.decode(&cases.iter().map(piece).collect::<Vec<_>>(), &fill, &take).expect("CUDA works");
    outcomes
        .into_inner()
        .expect("not poisoned")
        .into_iter()
        .map(|outcome| (outcome, false))
        .collect()
}

/// Decode `cases` with the kernel; says of each, too, whether the loop for usual chunks did it. Each
/// output starts `skew` bytes past a multiple of 16. `None` without a compiler.
fn run(cases: &[Case], skew: usize) -> Option<Vec<(Outcome, bool)>> {
    if on_gpu() {
        return Some(run_on_gpu(cases));
    }
    let program = emulator()?;
    if cases.is_empty() {
        return Some(Vec::new());
    }
    let mut out_len = skew;
    let items: Vec<Item<'_>> = cases
        .iter()
        .map(|c| {
            let (model, stored_len) = (c.model.as_deref(), c.payload.len());
            let item = Item { coding: c.coding, model, stored_len, len: c.len, out: out_len };
            out_len = (out_len + c.len + 16).next_multiple_of(16) + skew;
            item
        })
        .collect();
    let batch = Batch::new(&items).expect("chunks for the kernel");
    let mut stored = vec![0xee; batch.stored_len()];
    for (i, case) in cases.iter().enumerate() {
        stored[batch.payload(i)].copy_from_slice(&case.payload);
    }
    let mut head = vec![
        batch.launches().len(),
        batch.record_count(),
        stored.len(),
        batch.models_len(),
        out_len,
    ];
    for l in batch.launches() {
        head.extend([l.width.into(), l.first, l.blocks, l.shared_len]);
    }
    let mut file: Vec<u8> = head.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
    batch.write_records(&mut file);
    file.extend(stored);
    batch.write_models(&mut file);
    let dir = tempfile::tempdir().expect("a directory");
    let (input, output) = (dir.path().join("batch"), dir.path().join("result"));
    std::fs::write(&input, file).expect("written");
    let ran = Command::new(program).args([&input, &output]).output().expect("runs");
    assert!(ran.status.success(), "the kernel failed: {}", String::from_utf8_lossy(&ran.stderr));
    let result = std::fs::read(&output).expect("read");
    let (out, statuses) = result.split_at(out_len);
    let statuses: Vec<u32> =
        statuses.as_chunks().0.iter().map(|&s| u32::from_le_bytes(s)).collect();
    let outcome = |(i, item): (usize, &Item<'_>)| {
        let outcome = batch.outcome(i, &statuses);
        let bytes = outcome.map(|()| out[item.out..][..item.len].to_vec());
        (bytes.map_err(|e| e.kind()), batch.took_usual_path(i, &statuses))
    };
    Some(items.iter().enumerate().map(outcome).collect())
}

/// Assert that the kernel and the scalar decoder agree on all `cases`; returns how many of them
/// decode. Prints the hash of all outcomes, which is the same wherever the kernel runs.
fn agree(cases: &[Case], skew: usize) -> usize {
    agree_by_path(cases, skew).all
}

/// The same, with the number of those that are usual.
fn agree_by_path(cases: &[Case], skew: usize) -> Good {
    let Some(outcomes) = run(cases, skew) else { return Good::default() };
    let (mut good, mut hash) = (Good::default(), Sha256::new());
    for (i, (case, (outcome, usual))) in cases.iter().zip(outcomes).enumerate() {
        let expected = case.expected();
        good.all += usize::from(expected.is_ok());
        good.usual += usize::from(usual);
        let same = outcome == expected;
        match &outcome {
            Ok(bytes) => hash.update(bytes),
            Err(kind) => hash.update(format!("{kind:?}")),
        }
        let kinds = [outcome.map(|_| ()), expected.map(|_| ())];
        assert!(
            same,
            "chunk {i} of {} bytes, {:?}: kernel and scalar: {kinds:?}",
            case.len, case.coding
        );
    }
    let hash: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    // `tests/gpu/run` reads this line.
    println!("outcomes {} {} {hash}", cases.len(), good.all);
    good
}

/// The chunks of an archive, except those coded with zstd.
fn chunks(path: &Path) -> Vec<Case> {
    let archive = Archive::open(path).expect("opens");
    let bytes = std::fs::read(path).expect("read");
    let index = archive.index();
    let models: Vec<_> = (0..archive.footer().model_count)
        .map(|id| Arc::new(index.model(id).expect("a model")))
        .collect();
    let case = |id| {
        let c = index.chunk(id).expect("indexed");
        let payload = bytes[c.stored_at as usize..][..c.stored_len as usize].to_vec();
        Case {
            coding: c.coding,
            model: models.get(c.model as usize).cloned(),
            payload,
            len: c.len(),
        }
    };
    (0..index.len()).map(case).filter(|c| c.coding != Coding::Zstd).collect()
}

#[test]
fn golden_archives_decode() {
    let data = std::fs::read_dir(places::root().join("tests/data/v1")).expect("golden archives");
    let mut paths: Vec<_> = data.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let mut usual = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let cases = chunks(path);
        // Outputs that are aligned, and some that are not.
        let good = [0, [2, 8, 1][i % 3]].map(|skew| agree_by_path(&cases, skew));
        assert!(good.iter().all(|good| good.all == cases.len()) || !can_run());
        if good[0].usual > 0 {
            usual.push(path.file_stem().expect("a name").to_string_lossy().into_owned());
        }
    }
    // On a GPU, nothing says which loop has decoded a chunk.
    assert!(usual.contains(&"bf16".to_owned()) || on_gpu() || !can_run(), "{usual:?}");
}

#[test]
fn archives_with_the_default_chunk_size_decode() {
    let dir = tempfile::tempdir().expect("a directory");
    let of =
        |name, dtype, bytes, fill: Fill| (name, dtype, fill.row(), tensor(dtype, bytes, fill, 7));
    let bytes = matrices(&[
        of("a", "BF16", 600_000, Fill::Weights),
        of("b", "F16", 300_000, Fill::Columns),
        of("c", "F32", 400_000, Fill::Frozen),
        of("d", "F32", 300_002, Fill::Special),
        of("e", "U8", 300_001, Fill::Noise),
    ]);
    pack_bytes(dir.path(), "x.safetensors", &bytes, 256 << 10);
    let cases = chunks(&dir.path().join("out.bsz"));
    let good = agree(&cases, 0);
    assert!(good == cases.len() || !can_run());
}

#[test]
fn chunks_of_random_models_decode() {
    let mut r = Random(31);
    for skew in [0, 2, 4, 8, 3] {
        let cases: Vec<_> =
            (0..60).map(|i| random_case(&mut r, if i == 0 { 20_000 } else { 2000 })).collect();
        let good = agree_by_path(&cases, skew);
        assert!(good.all == cases.len() || !can_run());
        let aligned = skew % 8 == 0;
        let expected = if aligned { 15..cases.len() } else { 0..1 };
        assert!(expected.contains(&good.usual) || on_gpu() || !can_run(), "{good:?}");
    }
}

#[test]
fn damaged_chunks_are_refused_as_by_the_scalar_decoder() {
    let mut r = Random(37);
    let (mut good, mut usual) = (0, 0);
    for _ in 0..4 {
        let whole: Vec<_> = (0..50).map(|_| random_case(&mut r, 2000)).collect();
        let damaged = |i: usize, r: &mut Random| {
            damage(&whole[i % whole.len()], &whole[(i + 7) % whole.len()], r)
        };
        let cases: Vec<_> = (0..500).map(|i| damaged(i, &mut r)).collect();
        let one = agree_by_path(&cases, 0);
        (good, usual) = (good + one.all, usual + one.usual);
    }
    assert!(usual > 50 || on_gpu() || !can_run(), "{usual} of {good} are usual");
    // Only the checksum detects changed bits of a stored plane.
    assert!((1..1600).contains(&good) || !can_run(), "{good} of 2000 decode");
}

#[test]
fn chunks_with_missing_words_or_escapes_are_refused() {
    // Everything else is consistent, so only decoding can detect it. Without planes, whatever
    // follows the words is outside the chunk.
    let mut r = Random(43);
    let mut cases = Vec::new();
    while cases.len() < 150 {
        let whole = random_case(&mut r, 6000);
        cases.extend(lacking(&whole, &mut r));
    }
    assert_eq!(agree(&cases, 0), 0);
}

#[test]
fn every_changed_byte_of_a_head_has_the_effect_it_has_in_the_scalar_decoder() {
    let mut r = Random(41);
    for _ in 0..8 {
        let whole = random_case(&mut r, 1000);
        let flip = |i: usize| {
            let mut case = whole.clone();
            case.payload[i / 3] ^= [1, 0x80, 0xff][i % 3];
            case
        };
        agree(&(0..3 * whole.payload.len().min(120)).map(flip).collect::<Vec<_>>(), 0);
        let short = |n: usize| Case { payload: whole.payload[..n].to_vec(), ..whole.clone() };
        agree(&(0..whole.payload.len().min(700)).step_by(3).map(short).collect::<Vec<_>>(), 0);
    }
}
