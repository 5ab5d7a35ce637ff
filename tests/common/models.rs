//! Small models to pack. The same seed gives the same bytes.

use super::random::Random;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// Write a safetensors file of `weights` BF16 weights and a few other tensors.
pub fn write_model(path: &Path, seed: u64, weights: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let bf16: Vec<u8> =
        (0..weights).flat_map(|_| bf16::from_f64(random.weight()).to_le_bytes()).collect();
    let f32: Vec<u8> = (0..5000).flat_map(|_| (random.weight() as f32).to_le_bytes()).collect();
    let bytes: Vec<u8> = (0..777).map(|_| random.next() as u8).collect();
    let view = |dtype, shape: &[usize], data| {
        TensorView::new(dtype, shape.to_vec(), data).expect("a tensor")
    };
    let tensors = [
        ("model.layers.0.weight", view(Dtype::BF16, &[weights], &bf16)),
        ("model.norm.weight", view(Dtype::F32, &[50, 100], &f32)),
        ("model.mask", view(Dtype::U8, &[777], &bytes)),
    ];
    let file = safetensors::serialize(tensors, None).expect("a model");
    std::fs::write(path, &file).expect("write the model");
    file
}
