//! Families of small models: a base, and others that differ little from it.

use super::program::run;
use super::random::Random;
use super::samples::{Fill, matrices, tensor};
use std::fs;
use std::path::Path;

/// A tensor: name, elements of a row, bytes of BF16.
pub type Tensor = (String, Option<usize>, Vec<u8>);

/// Tensors `l.0.w`, `l.1.w` and so on, of different sizes.
pub fn tensors(seed: u64, count: usize) -> Vec<Tensor> {
    let tensor = |i: usize| {
        let bytes = 2 * 256 * (500 + 130 * i);
        let data = tensor("BF16", bytes, Fill::Weights, seed * 100 + i as u64);
        (format!("l.{i}.w"), Some(256), data)
    };
    (0..count).map(tensor).collect()
}

/// The file of these tensors.
pub fn file(tensors: &[Tensor]) -> Vec<u8> {
    let tensors: Vec<_> =
        tensors.iter().map(|(name, row, data)| (&**name, "BF16", *row, data.clone())).collect();
    matrices(&tensors)
}

/// Every third element or so, a little larger or smaller.
pub fn tuned(tensors: &[Tensor], seed: u64) -> Vec<Tensor> {
    let mut random = Random(seed);
    let mut tune = |data: &Vec<u8>| -> Vec<u8> {
        let element = |pair: &[u8; 2]| {
            let step = match random.next() % 9 {
                0 => 1,
                1 => u16::MAX,
                2 => 2,
                _ => 0,
            };
            u16::from_le_bytes(*pair).wrapping_add(step).to_le_bytes()
        };
        data.as_chunks::<2>().0.iter().flat_map(element).collect()
    };
    tensors.iter().map(|(name, row, data)| (name.clone(), *row, tune(data))).collect()
}

/// The version of the archive at `path`, and the SHA-256 of its bases.
pub fn needs(path: &Path) -> (u8, Vec<String>) {
    let file = fs::File::open(path).expect("opens");
    let bases = bszfs::format::bases_of(&file).expect("sound").expect("an archive");
    (fs::read(path).expect("read")[8], bases.iter().map(|base| base.pin_name()).collect())
}

/// Assert that the archive at `path` holds `bytes`.
#[track_caller]
pub fn holds(path: &Path, bytes: &[u8]) {
    let dir = tempfile::tempdir_in(path.parent().expect("a directory")).expect("a directory");
    for name in needs(path).1 {
        fs::hard_link(path.with_file_name(&name), dir.path().join(&name)).expect("its pin");
    }
    fs::copy(path, dir.path().join("x.safetensors.bsz")).expect("copied");
    run(dir.path(), &["unpack", "x.safetensors.bsz", "-o", "out"]).ok();
    assert!(fs::read(dir.path().join("out")).expect("read") == bytes, "other bytes");
}
