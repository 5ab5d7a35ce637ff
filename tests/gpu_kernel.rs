//! The GPU kernel, compiled for the CPU with sanitizers, decodes like the scalar decoder: the same
//! bytes, or an error where that one fails. See `tests/gpu/shim.h`.
//!
//! With `BSZ_GPU=1` in the environment, it runs on this machine's GPU instead.

mod common;

#[path = "gpu/cases.rs"]
mod cases;

use bszfs::{
    codec::Coding,
    gpu::{
        Gpu, Loop, Piece,
        batch::{Batch, Item},
    },
    read::Archive,
};
use cases::{Case, Outcome, below, case_for, damage, lacking, random_case};
use common::cxx::{self, Built};
use common::places;
use common::random::Random;
use common::samples::{Fill, pack_tensors};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
};

/// Chunks that decoded, and how many of them each loop of its own has decoded, with a class of
/// columns and with several.
#[derive(Debug, Default)]
struct Good {
    all: usize,
    own: BTreeMap<(Loop, bool), usize>,
}

impl Good {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        other.own.into_iter().for_each(|(own, n)| *self.own.entry(own).or_default() += n);
    }
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

/// Decode `cases` on the GPU, as `run` does.
fn run_on_gpu(cases: &[Case], skew: usize) -> Vec<(Outcome, Option<Loop>)> {
    let piece = |c: &Case| Piece {
        coding: c.coding,
        model: c.model.clone(),
        stored_len: c.payload.len(),
        len: c.len,
        checksum: c.checksum(),
    };
    let fill = |i: usize, place: &mut [u8]| {
        place.copy_from_slice(&cases[i].payload);
        Ok(())
    };
    // Under the tools of CUDA, it takes seconds to open a GPU.
    static OPENED: OnceLock<Gpu> = OnceLock::new();
    let gpu = OPENED.get_or_init(|| Gpu::open(0).expect("a GPU"));
    let pieces: Vec<_> = cases.iter().map(piece).collect();
    let mut placed = gpu.place(&pieces, skew, &fill).expect("CUDA works");
    let mut outcomes = Vec::new();
    let taken = placed.results(&mut |_, decoded, own| {
        outcomes.push((decoded.map(<[u8]>::to_vec).map_err(|e| e.kind()), own));
        Ok(())
    });
    taken.expect("CUDA works");
    outcomes
}

/// Decode `cases` with the kernel; says of each, too, which loop of its own did it.
/// Each output starts `skew` bytes past a multiple of 16. `None` without a compiler.
fn run(cases: &[Case], skew: usize) -> Option<Vec<(Outcome, Option<Loop>)>> {
    if cases.is_empty() {
        return Some(Vec::new());
    }
    if on_gpu() {
        return Some(run_on_gpu(cases, skew));
    }
    let program = emulator()?;
    let mut out_len = skew;
    let items: Vec<Item<'_>> = cases
        .iter()
        .map(|c| {
            let (model, stored_len) = (c.model.as_deref(), c.payload.len());
            let (coding, len, checksum) = (c.coding, c.len, c.checksum());
            let item = Item { coding, model, stored_len, len, out: out_len, checksum };
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
        head.extend([l.kernel.into(), l.first, l.blocks, l.shared_len]);
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
        (bytes.map_err(|e| e.kind()), batch.own_loop(i, &statuses))
    };
    Some(items.iter().enumerate().map(outcome).collect())
}

/// Assert that the kernel and the scalar decoder agree on all `cases`; returns how many of them
/// decode. Prints the hash of all outcomes, which is the same wherever the kernel runs.
fn agree(cases: &[Case], skew: usize) -> usize {
    agree_by_loop(cases, skew).all
}

/// The same, with the loops that have decoded them.
fn agree_by_loop(cases: &[Case], skew: usize) -> Good {
    let Some(outcomes) = run(cases, skew) else { return Good::default() };
    let (mut good, mut hash) = (Good::default(), Sha256::new());
    for (i, (case, (outcome, own))) in cases.iter().zip(outcomes).enumerate() {
        let expected = case.expected();
        good.all += usize::from(expected.is_ok());
        if let (Some(own), Some(model)) = (own, &case.model) {
            *good.own.entry((own, model.classes() > 1)).or_default() += 1;
        }
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
            checks: None,
        }
    };
    (0..index.len()).map(case).filter(|c| c.coding != Coding::Zstd).collect()
}

#[test]
fn golden_archives_decode() {
    let data = std::fs::read_dir(places::root().join("tests/data/v1")).expect("golden archives");
    let mut paths: Vec<_> = data.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let mut own = BTreeSet::new();
    for (i, path) in paths.iter().enumerate() {
        let cases = chunks(path);
        // Outputs that are aligned, and some that are not.
        let good = [0, [2, 8, 1][i % 3]].map(|skew| agree_by_loop(&cases, skew));
        assert!(good.iter().all(|good| good.all == cases.len()) || !can_run());
        own.extend(good[0].own.keys().copied());
    }
    let expected = [
        (Loop::Bf16, false),
        (Loop::Bf16Signed, true),
        (Loop::F16, false),
        (Loop::F32, false),
        (Loop::F32OfBf16, false),
        (Loop::F8E5M2Signed, true),
    ];
    assert!(expected.iter().all(|l| own.contains(l)) || !can_run(), "{own:?}");
}

#[test]
fn archives_with_the_default_chunk_size_decode() {
    let dir = tempfile::tempdir().expect("a directory");
    let tensors = [
        ("a", "BF16", 600_000, Fill::Weights),
        ("b", "F16", 300_000, Fill::Columns),
        ("c", "F32", 400_000, Fill::Frozen),
        ("d", "F32", 300_002, Fill::Special),
        ("e", "U8", 300_001, Fill::Noise),
    ];
    pack_tensors(dir.path(), 256 << 10, 7, &tensors);
    let cases = chunks(&dir.path().join("out.bsz"));
    let good = agree(&cases, 0);
    assert!(good == cases.len() || !can_run());
}

#[test]
fn chunks_of_random_models_decode() {
    let (mut r, mut good) = (Random(31), Good::default());
    for skew in [0, 2, 4, 8, 3] {
        let cases: Vec<_> =
            (0..60).map(|i| random_case(&mut r, if i == 0 { 20_000 } else { 2000 })).collect();
        let one = agree_by_loop(&cases, skew);
        assert!(one.all == cases.len() || !can_run());
        assert!(skew % 4 == 0 || one.own.is_empty(), "not aligned: {one:?}");
        good.add(one);
    }
    assert!(good.own.len() > 10 || !can_run(), "{good:?}");
}

#[test]
fn every_loop_decodes_good_and_damaged_chunks() {
    let mut r = Random(53);
    let all = Loop::CUTS.iter().flat_map(|cut| [(cut, false), (cut, true)]);
    for (cut, classes) in all.filter(|(cut, classes)| cut.is_for(*classes)) {
        let whole: Vec<_> = (0..8).map(|_| case_for(&mut r, cut, classes, 3000)).collect();
        // The last byte is that of a plane, unless the chunk is very short.
        let changed = whole.iter().cloned().map(|mut case| {
            *case.payload.last_mut().expect("a payload") ^= 1 << below(&mut r, 8);
            case
        });
        let mut damaged: Vec<_> = changed.collect();
        damaged.extend((0..40).map(|i| damage(&whole[i % 8], &whole[(i + 3) % 8], &mut r)));
        for (cases, least) in [(&whole, 3), (&damaged, 3)] {
            let good = agree_by_loop(cases, 0);
            let taken = good.own.get(&(cut.own, classes)).copied().unwrap_or(0);
            assert!(taken >= least || !can_run(), "{cut:?}, {classes}: {good:?}");
        }
    }
}

/// A raw chunk of random bytes that is compared with a checksum: its own, or that of other bytes.
fn checked_case(len: usize, flip: Option<usize>, r: &mut Random) -> Case {
    let payload: Vec<u8> = (0..len).map(|_| r.next() as u8).collect();
    let mut other = payload.clone();
    flip.inspect(|at| other[at % len] ^= 1 << (at % 8));
    Case { coding: Coding::Raw, model: None, payload, len, checks: Some(other) }
}

#[test]
fn checksums_are_compared_on_the_device() {
    let mut r = Random(47);
    let mut lens: Vec<usize> = (1..300).collect();
    // Around whole blocks and stripes, and beyond.
    for around in [1024, 1024 + 64, 2048, 4096 - 64, 10_000] {
        lens.extend(around - 2..around + 3);
    }
    lens.push(256 << 10);
    for skew in [0, 1, 8] {
        let good: Vec<_> = lens.iter().map(|&len| checked_case(len, None, &mut r)).collect();
        assert!(agree(&good, skew) == good.len() || !can_run());
        let flip = |r: &mut Random| Some(r.next() as usize);
        let bad: Vec<_> = lens
            .iter()
            .map(|&len| {
                let at = flip(&mut r);
                checked_case(len, at, &mut r)
            })
            .collect();
        assert_eq!(agree(&bad, skew), 0);
    }
    // What the kernels decode, too.
    let mut cases: Vec<_> = (0..40).map(|_| random_case(&mut r, 2000)).collect();
    for (i, case) in cases.iter_mut().enumerate() {
        let mut bytes = case.expected().expect("a good chunk");
        bytes[0] ^= u8::from(i % 2 == 1);
        case.checks = Some(bytes);
    }
    assert!(agree(&cases, 0) == 20 || !can_run());
}

#[test]
fn damaged_chunks_are_refused_as_by_the_scalar_decoder() {
    let mut r = Random(37);
    let mut good = Good::default();
    for _ in 0..4 {
        let whole: Vec<_> = (0..50).map(|_| random_case(&mut r, 2000)).collect();
        let damaged = |i: usize, r: &mut Random| {
            damage(&whole[i % whole.len()], &whole[(i + 7) % whole.len()], r)
        };
        let cases: Vec<_> = (0..500).map(|i| damaged(i, &mut r)).collect();
        good.add(agree_by_loop(&cases, 0));
    }
    assert!(good.own.len() > 10 || !can_run(), "{good:?}");
    // Only the checksum detects changed bits of a stored plane.
    assert!((1..1600).contains(&good.all) || !can_run(), "{} of 2000 decode", good.all);
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
