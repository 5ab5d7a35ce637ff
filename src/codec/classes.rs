//! Blocks of a plane in classes, each with a table of its own: rows of a weight matrix differ in scale.
//!
//! Lloyd's algorithm (1982) with the coded size as the distance: each block goes to the class that codes it in the
//! fewest bits, each class takes the frequencies of its blocks.

use super::model::{BLOCK, MAX_TABLES};

/// Blocks below which classes are not tried.
const FEWEST: usize = 64;
const ITERATIONS: usize = 5;
/// Weight of the whole plane's frequencies in those of a class, in values: a class knows its rare values badly.
const PRIOR: f32 = 64.0;
/// Bits of a choice.
const CHOICE: f32 = 2.0;
/// What classes must save of the elements, whole: they cost a tenth of the speed of decoding them.
const WORTH: f32 = 0.0007;
/// About what a symbol takes in a table's wire form, in bits.
const ENTRY: f32 = 10.0;

/// Counts by value for each class of `blocks`, one of `stride` of a plane whose values are counted in `counts`, in
/// elements of `element_bits`; none where classes do not pay.
pub(super) fn classes(
    blocks: &[Vec<u16>],
    counts: &[u64],
    stride: usize,
    element_bits: usize,
) -> Vec<Vec<u64>> {
    let live: Vec<usize> = (0..counts.len()).filter(|&v| counts[v] > 0).collect();
    if blocks.len() < FEWEST || live.len() < 2 {
        return Vec::new();
    }
    let mut index = vec![0; counts.len()];
    live.iter().enumerate().for_each(|(i, &v)| index[v] = i);
    let histograms: Vec<Vec<f32>> = blocks
        .iter()
        .map(|block| {
            let mut h = vec![0.0; live.len()];
            block.iter().for_each(|&v| h[index[usize::from(v)]] += 1.0);
            h
        })
        .collect();
    let total: u64 = counts.iter().sum();
    let whole: Vec<f32> = live.iter().map(|&v| (counts[v] as f64 / total as f64) as f32).collect();
    let mut members = quantiles(&histograms);
    let mut sums = sum(&histograms, &members, &whole);
    for _ in 0..ITERATIONS {
        let costs: Vec<Vec<f32>> = sums.iter().map(|s| bits(s)).collect();
        for (m, h) in members.iter_mut().zip(&histograms) {
            let cost = |c: usize| dot(h, &costs[c]);
            *m = (0..MAX_TABLES).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
        }
        sums = sum(&histograms, &members, &whole);
    }
    let costs: Vec<Vec<f32>> = sums.iter().map(|s| bits(s)).collect();
    let apart: f32 = members.iter().zip(&histograms).map(|(&m, h)| dot(h, &costs[m]) + CHOICE).sum();
    let whole_bits = bits(&whole);
    let together: f32 = histograms.iter().map(|h| dot(h, &whole_bits)).sum();
    let tables = ENTRY * (live.len() * (MAX_TABLES - 1)) as f32 / stride as f32;
    if together - apart - tables < WORTH * (element_bits * BLOCK * blocks.len()) as f32 {
        return Vec::new();
    }
    let in_full = |sum: &Vec<f32>| {
        let mut full = vec![0; counts.len()];
        live.iter().zip(sum).for_each(|(&v, &c)| full[v] = ((c * 1024.0) as u64).max(1));
        full
    };
    sums.iter().map(in_full).collect()
}

/// Classes to begin with: blocks in the order of their mean value, in equal parts.
fn quantiles(histograms: &[Vec<f32>]) -> Vec<usize> {
    let mean = |h: &Vec<f32>| -> f32 { h.iter().enumerate().map(|(i, n)| i as f32 * n).sum() };
    let means: Vec<f32> = histograms.iter().map(mean).collect();
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|&a, &b| means[a].total_cmp(&means[b]));
    let mut members = vec![0; means.len()];
    for (place, block) in order.into_iter().enumerate() {
        members[block] = place * MAX_TABLES / means.len();
    }
    members
}

/// The classes' counts, with the prior.
fn sum(histograms: &[Vec<f32>], members: &[usize], whole: &[f32]) -> Vec<Vec<f32>> {
    let mut sums = vec![whole.iter().map(|p| p * PRIOR).collect::<Vec<f32>>(); MAX_TABLES];
    for (&m, h) in members.iter().zip(histograms) {
        sums[m].iter_mut().zip(h).for_each(|(s, n)| *s += n);
    }
    sums
}

/// What each value costs at these counts.
fn bits(counts: &[f32]) -> Vec<f32> {
    let total: f32 = counts.iter().sum();
    // No frequency is below 2^-12.
    counts.iter().map(|c| -(c / total).max(1.0 / 4096.0).log2()).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
