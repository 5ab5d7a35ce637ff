//! What packing makes of quantised weights as current releases ship them: exact, numbers of eight
//! bits as small as floats of that width, and scales as small as their rows let them be.

mod common;

use bszfs::codec;
use bszfs::read::{Archive, Description, describe};
use common::containers::{Tensor, safetensors};
use common::quants::{fp8, mxfp4, mxfp6, nvfp4, weights};
use common::samples::{pack_bytes, unpack_bytes};

/// The description of the archive of these tensors, which has to unpack to the same bytes.
fn packed(tensors: &[Tensor]) -> Description {
    let dir = tempfile::tempdir().expect("a directory");
    let bytes = safetensors(tensors);
    let archive = pack_bytes(dir.path(), "m.safetensors", &bytes, 256 << 10);
    for decoder in codec::decoders() {
        let back = unpack_bytes(dir.path(), &archive, &*decoder).expect("unpacks");
        assert!(back == bytes, "{} came back changed", tensors[0].name);
    }
    let archive = Archive::open(&dir.path().join("in.bsz")).expect("opens");
    describe(&archive, &*codec::reference()).expect("described")
}

/// What is left of a tensor, in percent.
fn left(description: &Description, name: &str) -> f64 {
    let tensor = description.tensors.iter().find(|t| t.name == name).expect("a tensor");
    100.0 * tensor.coded.stored as f64 / tensor.coded.bytes as f64
}

/// The order-0 entropy of the bytes of a tensor, in percent.
fn entropy(tensors: &[Tensor], name: &str) -> f64 {
    let bytes = &tensors.iter().find(|t| t.name == name).expect("a tensor").data;
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|&b| counts[usize::from(b)] += 1);
    let share = |&n: &u32| f64::from(n) / bytes.len() as f64;
    let bits: f64 = counts.iter().map(share).filter(|s| *s > 0.0).map(|s| -s * s.log2()).sum();
    100.0 * bits / 8.0
}

#[test]
fn scales_of_blocks_take_less_than_their_numbers_tell_without_their_rows() {
    for (tensors, name) in [
        (mxfp4(&weights(1, 0.0), false), "scales"),
        (mxfp4(&weights(1, 0.0), true), "scales"),
        (mxfp6(&weights(2, 0.0)), "weight_scale"),
        (nvfp4(&weights(3, 0.0)), "weight_scale"),
    ] {
        let (left, alone) = (left(&packed(&tensors), name), entropy(&tensors, name));
        assert!(left < 0.9 * alone, "{name}: {left:.2}, without rows {alone:.2}");
    }
}

#[test]
fn pairs_of_four_bits_are_coded_where_a_sign_can_be_left_out() {
    for typed in [false, true] {
        let tensors = mxfp4(&weights(4, 0.35), typed);
        let left = left(&packed(&tensors), "blocks");
        assert!(left < 99.0, "{left:.2}");
    }
}

#[test]
fn numbers_of_eight_bits_take_no_more_than_their_entropy() {
    let tensors = fp8(&weights(5, 0.0));
    let (left, alone) = (left(&packed(&tensors), "weight"), entropy(&tensors, "weight"));
    assert!(left < alone + 0.5, "{left:.2}, entropy {alone:.2}");
}
