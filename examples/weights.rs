//! Writes a model of random weights of one dtype, of any size:  weights DTYPE MIB FILE
//!
//! DTYPE is BF16, F16, F32 or F8_E4M3. Matrices have 4096 columns and at most 32 MiB. The weights
//! are normally distributed, with a scale per row and per column, like trained ones. The same
//! arguments give nearly the same file on every machine: the last bits of logarithms may differ.

use half::{bf16, f16};
use rayon::prelude::*;
use std::{
    error::Error,
    f32::consts::TAU,
    fs::File,
    io::{Write, stdout},
};

const COLUMNS: usize = 4096;
/// The most bytes of a matrix.
const MATRIX: usize = 32 << 20;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Two standard normal numbers, by the Box-Muller transform.
    fn normals(&mut self) -> [f32; 2] {
        let bits = self.next();
        // The first is in (0, 1]: never 0, since its logarithm is taken.
        let [a, b] = [(bits >> 40) + 1, bits & 0xff_ffff].map(|n| n as f32 / (1 << 24) as f32);
        let (radius, (sin, cos)) = ((-2.0 * a.ln()).sqrt(), (TAU * b).sin_cos());
        [radius * cos, radius * sin]
    }
}

/// A scale near 1.
fn scale(random: &mut Random) -> f32 {
    (0.15 * random.normals()[0]).exp2()
}

/// Four bits of exponent and three of mantissa, which is cut off.
fn f8_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    if value.abs() < 1.0 / 64.0 {
        return sign | (value.abs() * 512.0) as u8;
    }
    // The bias is 7 instead of 127; 0x7e is the largest number.
    sign | ((bits & 0x7fff_ffff) >> 20).saturating_sub(120 << 3).min(0x7e) as u8
}

/// The elements of one row.
fn write_row(dtype: &str, row: &mut [u8], by_column: &[f32], random: &mut Random) {
    let by_row = 0.02 * scale(random);
    let width = row.len() / COLUMNS;
    for (pair, scales) in row.chunks_exact_mut(2 * width).zip(by_column.chunks_exact(2)) {
        let weights = random.normals();
        for ((place, weight), scale) in pair.chunks_exact_mut(width).zip(weights).zip(scales) {
            let weight = weight * by_row * scale;
            match dtype {
                "BF16" => place.copy_from_slice(&bf16::from_f32(weight).to_le_bytes()),
                "F16" => place.copy_from_slice(&f16::from_f32(weight).to_le_bytes()),
                "F32" => place.copy_from_slice(&weight.to_le_bytes()),
                // Quantised models scale their matrices up to the range of the type.
                _ => place[0] = f8_e4m3(weight * 4000.0),
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dtype, mib, file] = &args[..] else { return Err("weights DTYPE MIB FILE".into()) };
    let width = match dtype.as_str() {
        "BF16" | "F16" => 2,
        "F32" => 4,
        "F8_E4M3" => 1,
        _ => return Err("DTYPE must be BF16, F16, F32 or F8_E4M3".into()),
    };
    let bytes = mib.parse::<usize>()?.checked_mul(1 << 20).ok_or("MIB is too large")?;
    let matrices: Vec<_> =
        (0..bytes).step_by(MATRIX).map(|at| (at, MATRIX.min(bytes - at))).collect();
    let entries: Vec<String> = matrices
        .iter()
        .enumerate()
        .map(|(i, &(at, len))| {
            let (rows, end) = (len / width / COLUMNS, at + len);
            format!(r#""model.layers.{i}.weight":{{"dtype":"{dtype}","shape":[{rows},{COLUMNS}],"#)
                + &format!(r#""data_offsets":[{at},{end}]}}"#)
        })
        .collect();
    let mut header = format!("{{{}}}", entries.join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let mut out = File::create(file)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for (i, (_, len)) in matrices.into_iter().enumerate() {
        let seed = (i as u64) << 32;
        let mut random = Random(seed);
        let by_column: Vec<f32> = (0..COLUMNS).map(|_| scale(&mut random)).collect();
        let mut matrix = vec![0; len];
        matrix.par_chunks_exact_mut(COLUMNS * width).enumerate().for_each(|(r, row)| {
            write_row(dtype, row, &by_column, &mut Random(seed + 1 + r as u64));
        });
        out.write_all(&matrix)?;
    }
    writeln!(stdout(), "{file}: {bytes} bytes of {dtype}")?;
    Ok(())
}
