//! The GPU kernel, compiled for the CPU with sanitizers, decodes like the scalar decoder: the same
//! bytes, or an error where that one fails. See `tests/gpu/shim.h`.
//!
//! With `BSZ_GPU=1` in the environment, it runs on this machine's GPU instead.

mod common;

use bszfs::{
    ErrorKind,
    codec::{self, Coding, Encoder, EntropyModel, LANES, model::FrequencyTable, planes::Layout},
    gpu::{
        Gpu, MIN_MEMORY, Piece,
        batch::{Batch, Item},
    },
    read::Archive,
};
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

/// A chunk as stored.
#[derive(Clone)]
struct Case {
    coding: Coding,
    model: Option<Arc<EntropyModel>>,
    payload: Vec<u8>,
    len: usize,
}

/// The bytes, or the kind of the error.
type Outcome = Result<Vec<u8>, ErrorKind>;

impl Case {
    /// The outcome of the scalar decoder.
    fn expected(&self) -> Outcome {
        let mut out = vec![0; self.len];
        let decoded =
            codec::reference().decode(self.coding, self.model.as_deref(), &self.payload, &mut out);
        decoded.map(|()| out).map_err(|e| e.kind())
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

/// Decode `cases` on the GPU.
fn run_on_gpu(cases: &[Case]) -> Vec<Outcome> {
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
    outcomes.into_inner().expect("not poisoned")
}

/// Decode `cases` with the kernel. Each output starts `skew` bytes past a multiple of 16. `None`
/// without a compiler.
fn run(cases: &[Case], skew: usize) -> Option<Vec<Outcome>> {
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
        outcome.map(|()| out[item.out..][..item.len].to_vec()).map_err(|e| e.kind())
    };
    Some(items.iter().enumerate().map(outcome).collect())
}

/// Assert that the kernel and the scalar decoder agree on all `cases`; returns how many of them
/// decode. Prints the hash of all outcomes, which is the same wherever the kernel runs.
fn agree(cases: &[Case], skew: usize) -> usize {
    let Some(outcomes) = run(cases, skew) else { return 0 };
    let (mut good, mut hash) = (0, Sha256::new());
    for (i, (case, outcome)) in cases.iter().zip(outcomes).enumerate() {
        let expected = case.expected();
        good += usize::from(expected.is_ok());
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
    println!("outcomes {} {good} {hash}", cases.len());
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
    for (i, path) in paths.iter().enumerate() {
        let cases = chunks(path);
        let good = agree(&cases, [0, 2, 8, 1][i % 4]);
        assert!(good == cases.len() || !can_run());
    }
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
        let good = agree(&cases, skew);
        assert!(good == cases.len() || !can_run());
    }
}

#[test]
fn damaged_chunks_are_refused_as_by_the_scalar_decoder() {
    let mut r = Random(37);
    let mut good = 0;
    for _ in 0..4 {
        let whole: Vec<_> = (0..50).map(|_| random_case(&mut r, 2000)).collect();
        let damaged = |i: usize, r: &mut Random| {
            damage(&whole[i % whole.len()], &whole[(i + 7) % whole.len()], r)
        };
        let cases: Vec<_> = (0..500).map(|i| damaged(i, &mut r)).collect();
        good += agree(&cases, 0);
    }
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

/// The same chunk without some of its words or escapes, and with the counts reduced accordingly.
fn lacking(whole: &Case, r: &mut Random) -> Option<Case> {
    let model = whole.model.as_ref().filter(|_| whole.payload[0] == 0)?;
    let count = whole.len / usize::from(model.layout().width());
    let blocks = if model.choices() > 1 { count.div_ceil(model.block()) } else { 0 };
    let counts = 4 + 2 * model.layout().planes().len();
    let words_at = counts + 8 + blocks.div_ceil(4) + 4 * LANES;
    let field =
        |at: usize| u32::from_le_bytes(whole.payload[at..][..4].try_into().expect("four bytes"));
    let [words, escapes] = [counts, counts + 4].map(|at| field(at) as usize);
    let (at, begin, n) = match below(r, 4) {
        0 if escapes > 0 => (counts + 4, words_at + 2 * words, escapes),
        _ if words > 0 => (counts, words_at, words),
        _ => return None,
    };
    let gone = 1 + below(r, n);
    let mut case = whole.clone();
    case.payload[at..at + 4].copy_from_slice(&((n - gone) as u32).to_le_bytes());
    case.payload.drain(begin + 2 * (n - gone)..begin + 2 * n);
    Some(case)
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

/// The same chunk with some damage, which may be a part of the chunk `other`.
fn damage(whole: &Case, other: &Case, r: &mut Random) -> Case {
    let mut case = whole.clone();
    for _ in 0..1 + below(r, 3) {
        let n = case.payload.len();
        if n == 0 {
            break;
        }
        let at = below(r, n);
        match below(r, 10) {
            0..3 => case.payload[at % n.min(64)] ^= r.next() as u8,
            3..6 => case.payload[at] ^= 1 << below(r, 8),
            6 => case.payload.truncate(n - at % n.min(600)),
            7 => case.payload.resize(n + 1 + at % 100, r.next() as u8),
            8 => {
                let part = &other.payload[..other.payload.len().min(n - at)];
                case.payload[at..at + part.len()].copy_from_slice(part);
            }
            _ => case.len = (case.len + at % 300).saturating_sub(below(r, 300)).max(1),
        }
    }
    case
}

fn below(r: &mut Random, bound: usize) -> usize {
    (r.next() % bound as u64) as usize
}

/// A chunk of at most `most` elements with its own model. One in twenty may be raw, as most small
/// chunks are.
fn random_case(r: &mut Random, most: usize) -> Case {
    loop {
        let model = random_model(r);
        let count = most - below(r, most);
        let chunk = elements(r, &model, count);
        let (coding, payload) = codec::encode(&chunk, Some(&Encoder::new(&model)), false);
        if coding == Coding::Planes {
            return Case { coding, model: Some(Arc::new(model)), payload, len: chunk.len() };
        } else if below(r, 20) == 0 {
            return Case { coding, model: None, payload, len: chunk.len() };
        }
    }
}

/// A model of any width, split into planes in any way, with any number of values, tables and
/// classes.
fn random_model(r: &mut Random) -> EntropyModel {
    let width = 1u8 << below(r, 4);
    let symbol_bits = 1 + below(r, (8 * width).min(16).into()) as u8;
    let (mut planes, mut top, often) = (Vec::new(), 8 * width - symbol_bits, 1 + below(r, 8));
    for low in (0..top).rev() {
        if low % 8 == 0 || below(r, often) == 1 {
            planes.push(top - low);
            top = low;
        }
    }
    let layout =
        Layout::new(width, below(r, 2) == 1, symbol_bits, &planes).expect("planes within bytes");
    let (base, apart) = (r.next() as u16, below(r, 2) == 1);
    let value = |i: usize| {
        (if apart { r.next() as u16 } else { base.wrapping_add(i as u16) }) >> (16 - symbol_bits)
    };
    let mut values: Vec<u16> = (0..63).map(value).collect();
    values.truncate(1 + below(r, 63));
    values.sort_unstable();
    values.dedup();
    let block = LANES * if below(r, 8) == 0 { 1 << 20 } else { 1 + below(r, 8) };
    let classes = if below(r, 2) == 0 { 1 } else { 2 + below(r, 7) };
    let columns = if classes == 1 { 0 } else { LANES + below(r, 3 * LANES) };
    let columns =
        (0..columns).map(|i| if i < classes { i } else { below(r, classes) } as u8).collect();
    let tables = (0..classes * (1 + below(r, 4)))
        .map(|_| {
            let (shape, likely) = (below(r, 40), below(r, values.len() + 1));
            let count = |i: usize| match shape % 4 {
                0 => 1,
                1 => 1 << (r.next() % (1 + shape as u64 / 2)),
                2 => 1 << ((i + likely) % (values.len() + 1) % 40),
                _ if i == likely => 1 << 20,
                _ => shape as u64 / 4,
            };
            FrequencyTable::from_counts(&(0..=values.len()).map(count).collect::<Vec<_>>())
        })
        .collect();
    EntropyModel::new(layout, values, block, columns, tables).expect("within all bounds")
}

/// Elements distributed as in the tables, with planes of noise, of a constant, or of mostly zero
/// blocks.
fn elements(r: &mut Random, model: &EntropyModel, count: usize) -> Vec<u8> {
    let layout = model.layout();
    let width = usize::from(layout.width());
    let constant = below(r, 16) == 0;
    let modes: Vec<u8> = layout.planes().iter().map(|_| r.next() as u8).collect();
    let symbols = |t: &FrequencyTable| -> Vec<usize> {
        t.frequencies()
            .iter()
            .enumerate()
            .flat_map(|(s, &f)| std::iter::repeat_n(s, f.into()))
            .collect()
    };
    let draws: Vec<_> = model.tables().iter().map(symbols).collect();
    let choices: [usize; 16] = std::array::from_fn(|_| below(r, model.choices()));
    let mut out = Vec::with_capacity(count * width);
    for i in 0..count {
        let class =
            model.columns().get(i % model.columns().len().max(1)).map_or(0, |&c| usize::from(c));
        let draw = &draws[choices[i / model.block() % 16] * model.classes() + class];
        let symbol = draw[if constant { 0 } else { below(r, draw.len()) }];
        let noise = r.next() & ((1 << layout.symbol_bits()) - 1);
        let top = model.values().get(symbol).map_or(noise, |&v| v.into());
        let mut e = top << (8 * width - usize::from(layout.symbol_bits()));
        for (plane, mode) in layout.planes().iter().zip(&modes) {
            let value = match mode % 4 {
                0 => 0,
                1 => *mode,
                2 if !(i / model.block()).is_multiple_of(7) => 0,
                _ => r.next() as u8,
            };
            e |= u64::from(value & plane.mask()) << plane.low;
        }
        if layout.rotated() {
            e = e >> 1 | (e & 1) << (8 * width - 1);
        }
        out.extend_from_slice(&e.to_le_bytes()[..width]);
    }
    out
}
