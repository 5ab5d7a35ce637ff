//! What packing makes of files that are not safetensors: as small as the same weights in
//! safetensors, exact, and nothing of what holds no weights.

mod common;

use bszfs::codec;
use bszfs::pack::{self, Action, FileReport, Options, Pattern, Selection, Task};
use bszfs::read::{self, Archive};
use common::containers::{Tensor, gguf, npy, npz, onnx, safetensors, torch, zip};
use common::random::Random;
use common::samples::{Fill, pack_bytes, tensor, unpack_bytes};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Mutex;

/// Rows and columns of the matrices, which have scales of their own.
const ROWS: u64 = 600;
const COLUMNS: u64 = 384;

fn model(dtype: &'static str) -> Vec<Tensor> {
    let width = if dtype == "F32" { 4 } else { 2 };
    let of = |name: &str, seed| {
        let bytes = (ROWS * COLUMNS) as usize * width;
        let data = tensor(dtype, bytes, Fill::Scaled, seed);
        Tensor::new(name, dtype, &[ROWS, COLUMNS], data)
    };
    vec![of("a", 1), of("b", 2), of("c", 3)]
}

/// What is left of a file, in percent; it has to come back as it was.
fn percent(dir: &Path, name: &str, bytes: &[u8]) -> f64 {
    let archive = pack_bytes(dir, name, bytes, 256 << 10);
    let back = unpack_bytes(dir, &archive, &*codec::reference()).expect("unpacks");
    assert!(back == bytes, "{name} came back changed");
    100.0 * archive.len() as f64 / bytes.len() as f64
}

#[test]
fn weights_take_as_little_in_any_container() {
    let dir = tempfile::tempdir().expect("a directory");
    for dtype in ["F32", "F16", "BF16"] {
        let base = percent(dir.path(), "m.safetensors", &safetensors(&model(dtype)));
        let number = [("F32", 0), ("F16", 1), ("BF16", 30)].iter().find(|n| n.0 == dtype);
        let number = number.expect("a type").1;
        let tensors = model(dtype).into_iter().map(|t| (t, number)).collect::<Vec<_>>();
        for (name, bytes) in [
            ("m.gguf", gguf(&tensors)),
            ("m.pt", torch(&model(dtype))),
            ("m.npz", npz(&model(dtype))),
            ("m.onnx", onnx(&model(dtype), None).0),
        ] {
            let got = percent(dir.path(), name, &bytes);
            assert!(got < base + 0.3, "{dtype} in {name}: {got:.2}, in safetensors: {base:.2}");
        }
        let (model, data) = onnx(&model(dtype), Some("m.onnx_data"));
        fs::write(dir.path().join("m.onnx"), model).expect("written");
        let got = percent(dir.path(), "m.onnx_data", &data);
        assert!(got < base + 0.3, "{dtype} beside a model: {got:.2}, in safetensors: {base:.2}");
    }
}

#[test]
fn tensors_are_described_by_the_header_of_any_container() {
    let dir = tempfile::tempdir().expect("a directory");
    let tensors = || model("F32").into_iter().map(|t| (t, 0)).collect::<Vec<_>>();
    for (name, container, dtype, bytes) in [
        ("m.safetensors", "safetensors", "F32", safetensors(&model("F32"))),
        ("m.gguf", "GGUF", "F32", gguf(&tensors())),
        ("m.pt", "zip", "FloatStorage", torch(&model("F32"))),
        ("m.npz", "zip", "<f4", npz(&model("F32"))),
        ("m.onnx", "ONNX", "FLOAT", onnx(&model("F32"), None).0),
    ] {
        pack_bytes(dir.path(), name, &bytes, 256 << 10);
        let archive = Archive::open(&dir.path().join("out.bsz")).expect("opens");
        let described = read::describe(&archive, &*codec::reference()).expect("described");
        assert_eq!(described.container, Some(container), "{name}");
        let shown: Vec<_> = described.tensors.iter().map(|t| (&*t.name, &*t.dtype)).collect();
        assert_eq!(shown, ["a", "b", "c"].map(|n| (n, dtype)), "{name}");
        for tensor in &described.tensors {
            let (shape, coded) = (&tensor.shape, &tensor.coded);
            assert_eq!(*shape, [ROWS as usize, COLUMNS as usize], "{name}");
            assert_eq!(coded.bytes, 4 * ROWS * COLUMNS, "{name}");
            assert!(coded.stored < coded.bytes && coded.codings.contains_key("planes"), "{name}");
        }
    }
    let of = |bytes: &[u8]| {
        pack_bytes(dir.path(), "m", bytes, 256 << 10);
        let archive = Archive::open(&dir.path().join("out.bsz")).expect("opens");
        let described = read::describe(&archive, &*codec::reference()).expect("described");
        (described.container, described.tensors.len())
    };
    assert_eq!(of(&npy("<f4", false, &[4, 300], &[1; 4800])), (Some("NumPy"), 1));
    assert_eq!(of(&[7; 5000]), (None, 0));
}

#[test]
fn floats_without_a_header_are_found_wherever_they_start() {
    let dir = tempfile::tempdir().expect("a directory");
    for (dtype, most) in [("F32", 90.0), ("BF16", 78.0), ("F16", 90.0)] {
        let weights: Vec<u8> = model(dtype).into_iter().flat_map(|t| t.data).collect();
        for skipped in [0, 1, 1001] {
            let bytes = [&vec![7; skipped], &weights[..]].concat();
            let got = percent(dir.path(), "m.raw", &bytes);
            assert!(got < most, "{dtype} from {skipped} on: {got:.2}");
        }
        let width = if dtype == "F32" { 4 } else { 2 };
        let big: Vec<u8> = weights
            .chunks(width)
            .flat_map(|e| e.iter().rev().copied().collect::<Vec<_>>())
            .collect();
        let got = percent(dir.path(), "m.raw", &big);
        assert!(got < most + 4.0, "big-endian {dtype}: {got:.2}");
    }
    // Several kinds one behind the other, and what is none.
    let of = |dtype, n, seed| tensor(dtype, n, Fill::Weights, seed);
    let parts = [
        of("F32", 700_001, 1),
        of("U8", 300_000, 2),
        tensor("U8", 500_000, Fill::Noise, 3),
        of("BF16", 900_000, 4),
        vec![0; 200_000],
        of("F64", 800_003, 5),
    ];
    let got = percent(dir.path(), "m.raw", &parts.concat());
    let apart: usize =
        parts.iter().map(|part| pack_bytes(dir.path(), "x", part, 256 << 10).len()).sum();
    let whole: usize = parts.iter().map(Vec::len).sum();
    let apart = 100.0 * apart as f64 / whole as f64;
    assert!(got < apart + 1.5, "{got:.2} together, {apart:.2} apart");
}

/// Collects what is reported.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl pack::Progress for Told {
    fn begin(&self, _: &Path, _: Task, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self, _: &FileReport) {}
    fn warn(&self, _: &Path, what: &str) {
        self.0.lock().expect("not poisoned").push(what.to_owned());
    }
    fn left(&self, _: &Path, what: &str) {
        self.0.lock().expect("not poisoned").push(what.to_owned());
    }
}

/// Pack a directory in place; returns the names that it has then, and what was told.
fn pack_tree(dir: &Path, selection: Selection) -> (Vec<String>, String) {
    let check = |file: &File, _: &dyn pack::Progress| {
        read::verify(&Archive::from_file(file.try_clone()?)?, &*codec::reference(), &|_| ())
    };
    let (o, told) = (Options { in_place: true, selection, ..Options::default() }, Told::default());
    let report = pack::tree(dir, dir, &o, &check, &told).expect("packs");
    assert_eq!(report.failed, 0);
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    assert!(report.files.iter().all(|f| !matches!(f.action, Action::Copied)));
    (names, told.0.into_inner().expect("not poisoned").join("\n"))
}

#[test]
fn a_directory_is_packed_by_content() {
    let root = tempfile::tempdir().expect("a directory");
    let write =
        |name: &str, bytes: &[u8]| fs::write(root.path().join(name), bytes).expect("written");
    let mut r = Random(3);
    let noise: Vec<u8> = (0..50_000).flat_map(|_| r.next().to_le_bytes()).collect();
    let weights: Vec<u8> = model("F32").into_iter().flat_map(|t| t.data).collect();
    write("dump", &weights);
    write("model.pt", &torch(&model("F16")));
    write("model.npz", &npz(&model("F32")));
    write("array.npy", &npy("<f4", false, &[3 * ROWS, COLUMNS], &weights));
    write("picture.png", &[b"\x89PNG\r\n\x1a\n", &noise[..]].concat());
    write("program", &[b"\x7fELF", &weights[..]].concat());
    write("packed.zip", &zip(&[("noise".into(), noise.clone())]));
    write("noise.bin", &noise);
    write("code.rs", "fn main() { println!(\"Hello\"); }\n".repeat(20_000).as_bytes());
    write("config.json", b"{}");
    let gguf = gguf(&model("F32").into_iter().map(|t| (t, 0)).collect::<Vec<_>>());
    write("cut.gguf", &gguf[..gguf.len() - 100]);
    let (names, told) = pack_tree(root.path(), Selection::default());
    let left =
        ["code.rs", "config.json", "cut.gguf", "noise.bin", "packed.zip", "picture.png", "program"];
    let mut expected: Vec<String> = left.iter().map(|name| (*name).to_owned()).collect();
    expected.extend(
        ["array.npy", "dump", "model.npz", "model.pt"].iter().map(|name| format!("{name}.bsz")),
    );
    expected.sort();
    assert_eq!(names, expected);
    for why in [
        "is incomplete: it has",
        "1 .png (is an image)",
        "1 .rs (is text)",
        "1 without a suffix (is a program)",
        "(holds no weights)",
    ] {
        assert!(told.contains(why), "{why}: {told}");
    }
}

#[test]
fn patterns_select_what_is_packed() {
    let root = tempfile::tempdir().expect("a directory");
    for name in ["model.pt", "optimizer.pt", "model.npz"] {
        fs::write(root.path().join(name), torch(&model("F16"))).expect("written");
    }
    let selection =
        Selection { only: vec![Pattern::new("*.pt")], exclude: vec![Pattern::new("opt*")] };
    let (names, told) = pack_tree(root.path(), selection);
    assert_eq!(names, ["model.npz", "model.pt.bsz", "optimizer.pt"]);
    assert!(told.contains("1 .npz, 1 .pt (is not selected)"), "{told}");
}

#[test]
fn scales_and_quants_of_blocks_are_coded_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut r = Random(8);
    // Blocks of 32 weights, as Q4_0 has them: a scale in F16, and 32 quants of four bits.
    let mut data = Vec::new();
    for _ in 0..20_000 {
        let weights: Vec<f64> = (0..32).map(|_| r.weight()).collect();
        let scale = weights.iter().fold(0.0f64, |most, w| most.max(w.abs())) / 8.0;
        data.extend(half::f16::from_f64(scale).to_le_bytes());
        let quant = |i: usize| ((weights[i] / scale).round() as i8 + 8).clamp(0, 15) as u8;
        data.extend((0..16).map(|i| quant(i) | quant(i + 16) << 4));
    }
    let tensor = |name| Tensor::new(name, "U8", &[20_000, 32], data.clone());
    let blocks = percent(dir.path(), "q.gguf", &gguf(&[(tensor("q"), 2)]));
    let bytes = percent(dir.path(), "q.gguf", &gguf(&[(tensor("q"), 24)]));
    assert!(blocks < bytes - 1.0, "{blocks:.2} as blocks, {bytes:.2} as bytes");
}
