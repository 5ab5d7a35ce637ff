//! Small models to pack: the same bytes for the same seed.

#![allow(dead_code, reason = "each test program uses its part of this")]

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// A stream of numbers for a seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// About normally distributed, as weights are.
    fn weight(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum();
        (sum - 2.0) * 0.05
    }
}

/// Write a safetensors file of `weights` BF16 weights and a few other tensors.
pub fn write_model(path: &Path, seed: u64, weights: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let bf16: Vec<u8> =
        (0..weights).flat_map(|_| bf16::from_f32(random.weight()).to_le_bytes()).collect();
    let f32: Vec<u8> = (0..5000).flat_map(|_| random.weight().to_le_bytes()).collect();
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
