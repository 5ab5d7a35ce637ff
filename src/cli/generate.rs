//! A model from a seed, with the layout and the statistics of a trained one, for `bsz demo`.

use crate::error::{Context, Result};
use half::bf16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::path::Path;

const HIDDEN: usize = 512;
const INNER: usize = 1408;
const LAYERS: usize = 8;
const VOCABULARY: usize = 16_000;

/// Write `model.safetensors` (about 60 MB of BF16, Llama's layout) and `config.json` into `dir`.
pub fn model(dir: &Path) -> Result<()> {
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), VOCABULARY, HIDDEN)];
    for layer in 0..LAYERS {
        let matrices = [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", HIDDEN / 4, HIDDEN),
            ("self_attn.v_proj", HIDDEN / 4, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ];
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        tensors.extend(matrices.map(|(part, rows, columns)| (name(part), rows, columns)));
        tensors.extend(
            ["input_layernorm", "post_attention_layernorm"].map(|part| (name(part), 1, HIDDEN)),
        );
    }
    tensors.push(("model.norm.weight".into(), 1, HIDDEN));

    let data: Vec<Vec<u8>> =
        tensors.iter().enumerate().map(|(i, t)| weights(i as u64, t.1, t.2)).collect();
    let views = tensors.iter().zip(&data).map(|((name, rows, columns), bytes)| {
        let shape = if *rows == 1 { vec![*columns] } else { vec![*rows, *columns] };
        TensorView::new(Dtype::BF16, shape, bytes).map(|view| (name, view))
    });
    let path = dir.join("model.safetensors");
    let views: std::result::Result<Vec<_>, _> = views.collect();
    let written = views.and_then(|views| serialize_to_file(views, None, &path));
    written.map_err(std::io::Error::other).about_path(&path)?;

    let config = serde_json::json!({
        "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    });
    let path = dir.join("config.json");
    std::fs::write(&path, format!("{config:#}\n")).about_path(&path)
}

/// `rows` x `columns` BF16 values, little-endian: Gaussian with a scale per tensor, row and column,
/// like trained weights. A single row is a norm, close to 1.
fn weights(seed: u64, rows: usize, columns: usize) -> Vec<u8> {
    let mut random = Random(seed << 32);
    if rows == 1 {
        return (0..columns)
            .flat_map(|_| bf16::from_f32(1.0 + 0.1 * random.normal()).to_le_bytes())
            .collect();
    }
    let scale = 0.015 + 0.02 * random.uniform();
    let by_column: Vec<f32> =
        (0..columns).map(|_| scale * (0.15 * random.normal()).exp2()).collect();
    let mut bytes = vec![0; rows * columns * 2];
    bytes.par_chunks_mut(columns * 2).enumerate().for_each(|(row, bytes)| {
        let mut random = Random((seed << 32) + 1 + row as u64);
        let by_row = (0.15 * random.normal()).exp2();
        for (cell, by_column) in bytes.chunks_exact_mut(2).zip(&by_column) {
            cell.copy_from_slice(
                &bf16::from_f32(random.normal() * by_row * by_column).to_le_bytes(),
            );
        }
    });
    bytes
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, and good enough to draw weights.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1]: never 0, since its logarithm is taken.
    fn uniform(&mut self) -> f32 {
        ((self.next() >> 40) + 1) as f32 / (1 << 24) as f32
    }

    /// Standard normal, by the Box-Muller transform.
    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_reproducible_and_plausible_weights() {
        let bytes = weights(3, 64, 128);
        assert_eq!(bytes, weights(3, 64, 128));
        assert_ne!(bytes, weights(4, 64, 128));
        let values: Vec<f32> =
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        let power = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((0.01..0.06).contains(&power.sqrt()), "standard deviation {}", power.sqrt());
    }
}
