//! Matrices quantised as current releases ship them in safetensors: FP8 with scales of blocks,
//! MXFP4, NVFP4 and MXFP6. The weights are seeded, and have rows of different scales.

use super::{containers::Tensor, random::Random};

/// Four bits: the numbers of E2M1.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Rows and columns of the weights. A row has 90 scales in MXFP4, as in gpt-oss.
pub const ROWS: usize = 768;
pub const COLUMNS: usize = 2880;

/// The weights by row: normal, or with tails that are longer by so many octaves.
pub fn weights(seed: u64, tails: f32) -> Vec<f32> {
    let mut random = Random(seed);
    let mut normal = || {
        let unit = |bits: u64| ((bits >> 40) + 1) as f32 / (1 << 24) as f32;
        let (a, b) = (unit(random.next()), unit(random.next()));
        (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
    };
    let mut out = Vec::with_capacity(ROWS * COLUMNS);
    for _ in 0..ROWS {
        let scale = 0.02 * (0.8 * normal()).exp2();
        out.extend((0..COLUMNS).map(|_| scale * (tails * normal()).exp2() * normal()));
    }
    out
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(1e-12, |most, w| w.abs().max(most))
}

/// The exponent that a block of OCP MX shares, biased by 127, for a type whose largest number has
/// this exponent.
fn e8m0(block: &[f32], exponent: i32) -> u8 {
    (largest(block).log2().floor() as i32 - exponent + 127).clamp(0, 254) as u8
}

fn power(e8m0: u8) -> f32 {
    (f32::from(e8m0) - 127.0).exp2()
}

/// The nearest of these numbers, which ascend, and the sign above it.
fn nearest(numbers: &[f32], w: f32) -> u8 {
    let code = numbers.windows(2).filter(|n| w.abs() > (n[0] + n[1]) / 2.0).count();
    code as u8 | (u8::from(w.is_sign_negative()) * numbers.len() as u8)
}

/// E4M3, rounded to nearest; 448 is the largest number.
fn e4m3(w: f32) -> u8 {
    let a = w.abs().min(448.0);
    let exponent = a.log2().floor().max(-6.0);
    let steps = (a / (exponent - 3.0).exp2()).round() as i32;
    let code = (exponent as i32 + 6) * 8 + steps;
    u8::from(w.is_sign_negative()) << 7 | code as u8
}

/// Codes of four bits, two in a byte, the first one in the lower half.
fn pairs(codes: &[u8]) -> Vec<u8> {
    codes.chunks_exact(2).map(|c| c[0] | c[1] << 4).collect()
}

fn tensor(name: &str, dtype: &'static str, shape: &[usize], data: Vec<u8>) -> Tensor {
    let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
    Tensor::new(name, dtype, &shape, data)
}

/// F8_E4M3 with a scale in F32 for each 128 columns of a row.
pub fn fp8(weights: &[f32]) -> Vec<Tensor> {
    let (mut numbers, mut scales) = (Vec::new(), Vec::new());
    for row in weights.chunks(COLUMNS) {
        for block in row.chunks(128) {
            let scale = largest(block) / 448.0;
            numbers.extend(block.iter().map(|w| e4m3(w / scale)));
            scales.extend(scale.to_le_bytes());
        }
    }
    let blocks = COLUMNS.div_ceil(128);
    vec![
        tensor("weight", "F8_E4M3", &[ROWS, COLUMNS], numbers),
        tensor("weight_scale_inv", "F32", &[ROWS, blocks], scales),
    ]
}

/// MXFP4: as gpt-oss ships it, or with the types of newer safetensors.
pub fn mxfp4(weights: &[f32], typed: bool) -> Vec<Tensor> {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for block in weights.chunks(32) {
        let scale = e8m0(block, 2);
        codes.extend(block.iter().map(|w| nearest(&E2M1, w / power(scale))));
        scales.push(scale);
    }
    let blocks = COLUMNS / 32;
    match typed {
        true => vec![
            tensor("blocks", "F4", &[ROWS, COLUMNS], pairs(&codes)),
            tensor("scales", "F8_E8M0", &[ROWS, blocks], scales),
        ],
        false => vec![
            tensor("blocks", "U8", &[1, ROWS, blocks, 16], pairs(&codes)),
            tensor("scales", "U8", &[1, ROWS, blocks], scales),
        ],
    }
}

/// NVFP4, as ModelOpt ships it.
pub fn nvfp4(weights: &[f32]) -> Vec<Tensor> {
    let whole = largest(weights) / (6.0 * 448.0);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for block in weights.chunks(16) {
        let scale = largest(block) / 6.0;
        codes.extend(block.iter().map(|w| nearest(&E2M1, w / scale)));
        scales.push(e4m3(scale / whole));
    }
    vec![
        tensor("weight", "U8", &[ROWS, COLUMNS / 2], pairs(&codes)),
        tensor("weight_scale", "F8_E4M3", &[ROWS, COLUMNS / 16], scales),
        tensor("weight_scale_2", "F32", &[], whole.to_le_bytes().into()),
    ]
}

/// MXFP6 (E2M3): four numbers in three bytes.
pub fn mxfp6(weights: &[f32]) -> Vec<Tensor> {
    let number = |i: u8| match i >> 3 {
        0 => f32::from(i) / 8.0,
        e => f32::from(8 + (i & 7)) / 8.0 * f32::from(1u8 << (e - 1)),
    };
    let numbers: Vec<f32> = (0..32).map(number).collect();
    let (mut packed, mut scales) = (Vec::new(), Vec::new());
    for block in weights.chunks(32) {
        let scale = e8m0(block, 2);
        scales.push(scale);
        for four in block.chunks(4) {
            let word = four
                .iter()
                .rev()
                .fold(0u32, |word, w| word << 6 | u32::from(nearest(&numbers, w / power(scale))));
            packed.extend(&word.to_le_bytes()[..3]);
        }
    }
    vec![
        tensor("weight", "F6_E2M3", &[ROWS, COLUMNS], packed),
        tensor("weight_scale", "F8_E8M0", &[ROWS, COLUMNS / 32], scales),
    ]
}
