//! The headers of containers other than safetensors: what they say becomes extents, and whatever
//! they say, extents cover the file and nothing panics.

mod common;

use bszfs::codec::ElementKind;
use bszfs::error::Result;
use bszfs::format::{Container, Extent, container, onnx_data};
use common::containers::{Tensor, gguf, npy, npz, onnx, pickle, torch, zip};
use common::random::Random;
use common::samples::{Fill, tensor};

const F32: ElementKind = ElementKind::Float { width: 4, exponent: 8 };
const F16: ElementKind = ElementKind::Float { width: 2, exponent: 5 };
const BF16: ElementKind = ElementKind::Float { width: 2, exponent: 8 };
const U8: ElementKind = ElementKind::Bytes { width: 1 };

/// What the header of a file says.
fn read(file: &[u8]) -> Container {
    let read = |at: u64, out: &mut [u8]| -> Result<()> {
        out.copy_from_slice(&file[at as usize..][..out.len()]);
        Ok(())
    };
    container(&read, file.len() as u64).expect("no reader fails")
}

/// The known extents of a file, which have to be those of `format`.
fn known(file: &[u8], format: &str) -> Vec<Extent> {
    match read(file) {
        Container::Known(found, extents) if found == format => {
            assert_cover(&extents, file.len());
            extents.into_iter().filter(|e| e.kind.is_some()).collect()
        }
        other => panic!("{format}: {other:?}"),
    }
}

fn assert_cover(extents: &[Extent], len: usize) {
    let mut at = 0;
    for e in extents {
        assert!(e.start == at && e.len > 0, "{extents:?}");
        at += e.len;
    }
    assert_eq!(at, len as u64);
}

/// Two matrices, a vector and integers.
fn model() -> Vec<Tensor> {
    let of = |name, dtype, shape: &[u64], width: u64| {
        let bytes = shape.iter().product::<u64>() * width;
        Tensor::new(name, dtype, shape, tensor(dtype, bytes as usize, Fill::Weights, bytes))
    };
    vec![
        of("embedding", "F32", &[40, 200], 4),
        of("half", "F16", &[30, 40, 10, 10], 2),
        of("norm", "F32", &[3000], 4),
        of("ids", "I64", &[1, 1000], 8),
    ]
}

/// That the extents are those of [`model`].
fn assert_model(file: &[u8], format: &str) {
    let known = known(file, format);
    let said: Vec<_> = known.iter().map(|e| (e.kind.expect("known"), e.row)).collect();
    let integers = (ElementKind::Bytes { width: 8 }, Some(1000));
    assert_eq!(said, [(F32, Some(200)), (F16, Some(4000)), (F32, None), integers], "{format}");
    for (extent, tensor) in known.iter().zip(model()) {
        assert_eq!(file[extent.start as usize..][..extent.len as usize], tensor.data);
    }
}

fn gguf_model() -> Vec<u8> {
    gguf(&model().into_iter().zip([0, 1, 0, 27]).collect::<Vec<_>>())
}

/// One file of each format.
fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("GGUF", gguf_model()),
        ("zip", torch(&model())),
        ("zip", npz(&model())),
        ("ONNX", onnx(&model(), None).0),
        ("NumPy", npy("<f4", false, &[50, 60], &[1; 12000])),
    ]
}

#[test]
fn tensors_are_found_with_their_types_and_rows() {
    for (format, file) in all().into_iter().filter(|(format, _)| *format != "NumPy") {
        assert_model(&file, format);
    }
}

#[test]
fn blocks_of_quantised_tensors_are_rows() {
    // Type, weights and bytes of a block, and the row.
    for (kind, weights, bytes, row) in
        [(8, 32, 34, 136), (2, 32, 18, 144), (12, 256, 144, 144), (14, 256, 210, 210)]
    {
        let data = tensor("U8", 5 * bytes, Fill::Noise, 1);
        let quantised = Tensor::new("q", "U8", &[5, weights], data.clone());
        let file = gguf(&[(quantised, kind)]);
        let [extent] = known(&file, "GGUF")[..] else { panic!("one tensor") };
        assert_eq!((extent.kind, extent.row), (Some(U8), Some(row)));
        assert_eq!(file[extent.start as usize..], data);
    }
}

#[test]
fn the_order_of_numpy_arrays_is_that_of_their_bytes() {
    let of = |descr, fortran, shape: &[u64], len| {
        known(&npy(descr, fortran, shape, &vec![1; len]), "NumPy")
    };
    let rows = |known: Vec<Extent>| known.iter().map(|e| (e.kind, e.row)).collect::<Vec<_>>();
    assert_eq!(rows(of("<f4", false, &[10, 300], 12000)), [(Some(F32), Some(300))]);
    assert_eq!(rows(of("<f4", true, &[300, 10], 12000)), [(Some(F32), Some(300))]);
    assert_eq!(rows(of("<c8", false, &[5, 300], 12000)), [(Some(F32), Some(600))]);
    assert_eq!(rows(of("|V2", false, &[10, 300], 6000)), [(Some(BF16), Some(300))]);
    // Big-endian and structured types are left to the detector.
    assert_eq!(of(">f4", false, &[10, 300], 12000), []);
    assert_eq!(of("|V12", false, &[10, 100], 12000), []);
}

#[test]
fn transposed_tensors_and_parts_of_storages_are_read() {
    let shared = |shape: &[u64], strides: &str| {
        let whole = Tensor::new("w", "F32", shape, vec![1; 4 * 20 * 300]);
        let mut pickle = pickle(std::slice::from_ref(&whole));
        if !strides.is_empty() {
            let contiguous = b"(M\x2c\x01K\x01t";
            let at = pickle.windows(7).position(|w| w == contiguous).expect("its strides");
            pickle.splice(at..at + 7, b"(K\x01M\x2c\x01t".iter().copied());
        }
        zip(&[("a/data.pkl".into(), pickle), ("a/data/0".into(), whole.data)])
    };
    let rows = |file: Vec<u8>| known(&file, "zip").iter().map(|e| e.row).collect::<Vec<_>>();
    assert_eq!(rows(shared(&[20, 300], "")), [Some(300)]);
    assert_eq!(rows(shared(&[300, 300], "swapped")), [None], "larger than its storage");
    assert_eq!(rows(shared(&[10, 300], "")), [None], "a part of its storage");
}

#[test]
fn data_beside_an_onnx_model_is_read() {
    let (file, data) = onnx(&model(), Some("model.onnx_data"));
    let read = |at: u64, out: &mut [u8]| -> Result<()> {
        out.copy_from_slice(&file[at as usize..][..out.len()]);
        Ok(())
    };
    let of = |name| onnx_data(&read, file.len() as u64, name, data.len() as u64).expect("read");
    let extents = of("model.onnx_data").expect("its data");
    assert_cover(&extents, data.len());
    let rows: Vec<_> = extents.iter().filter(|e| e.kind.is_some()).map(|e| e.row).collect();
    assert_eq!(rows, [Some(200), Some(4000), None, Some(1000)]);
    assert_eq!(of("other"), None);
    assert_eq!(known(&file, "ONNX"), []);
}

#[test]
fn every_truncation_is_told_or_harmless() {
    for (format, file) in all() {
        let data = file.len() - 12000;
        for len in (0..data.min(3000)).chain((data..file.len()).step_by(7)) {
            match read(&file[..len]) {
                Container::Known(_, extents) => assert_cover(&extents, len),
                Container::Incomplete(_, of) => assert!(of > len as u64, "{format} at {len}"),
                Container::Unknown | Container::Malformed(_) => {}
            }
        }
        let cut = read(&file[..file.len() - 1]);
        let expected = match format {
            "GGUF" | "NumPy" => cut == Container::Incomplete(format, file.len() as u64),
            "zip" => cut == Container::Malformed("zip"),
            _ => cut == Container::Unknown,
        };
        assert!(expected, "{format}: {cut:?}");
    }
}

#[test]
fn mutated_headers_do_no_harm() {
    let mut r = Random(20);
    for (_, file) in all() {
        // The header of zip archives is at the end, too.
        let ends = [0..2000.min(file.len()), file.len() - 600..file.len()];
        for _ in 0..4000 {
            let mut file = file.clone();
            for _ in 0..=r.next() % 4 {
                let part = ends[(r.next() % 2) as usize].clone();
                let at = part.start + r.next() as usize % part.len();
                file[at] = [0, 1, 0x7f, 0x80, 0xff, r.next() as u8][r.next() as usize % 6];
            }
            if let Container::Known(_, extents) = read(&file) {
                assert_cover(&extents, file.len());
            }
        }
    }
}

#[test]
fn any_pickle_ends_within_bounds() {
    let mut r = Random(7);
    let storage = ("a/data/0".to_owned(), vec![1; 4096]);
    let read_one = |pickle: Vec<u8>| {
        let file = zip(&[("a/data.pkl".to_owned(), pickle), storage.clone()]);
        assert!(matches!(read(&file), Container::Known("zip", _)));
    };
    let ops =
        *b"((((((00122KMJ\x8aILX\x8cUTVSBCGFN\x88\x89]}\x8f))\x85\x86\x87tttld\x91eu\x90abscQ\
                 R\x81\x93qrphj g\x94\x94\n\n\x80\x95";
    for _ in 0..3000 {
        let any = |_| match r.next() % 4 {
            0 => r.next() as u8,
            _ => ops[r.next() as usize % ops.len()],
        };
        read_one((0..200).map(any).collect());
    }
    // Tuples that would nest without end, or double with each step.
    read_one([b")".to_vec(), b"\x85".repeat(1 << 20)].concat());
    read_one([b")".to_vec(), b"2\x86".repeat(1 << 20)].concat());
    read_one(b"(".repeat(1 << 20));
    read_one(b")\x94".repeat(1 << 20));
    let good = pickle(&model());
    for len in 0..good.len() {
        read_one(good[..len].to_vec());
    }
}

#[test]
fn types_of_storages_are_told_by_the_pickle() {
    let half = Tensor::new("w", "BF16", &[64, 128], vec![1; 64 * 256]);
    let [extent] = known(&torch(&[half]), "zip")[..] else { panic!("one storage") };
    assert_eq!((extent.kind, extent.row), (Some(BF16), Some(128)));
}
