//! Fits a model of differences to a sample of a tensor and the bytes of its base.

use super::{
    block_of,
    classes::{Classes, Histogram, cost},
    plan::{CHOICE, MIN_BLOCKS, TABLE, WORTH_CHOICES, WORTH_CLASSES, tables},
};
use crate::{
    codec::{
        EntropyModel,
        differences::{self, differences},
        model::{ALPHABET, Delta, MAX_CHOICES, MAX_DELTA_CLASSES},
        planes::ElementKind,
    },
    error::Result,
};
use std::collections::BTreeMap;

/// Elements from which the classes and the raw bits are chosen.
const TRIED: usize = 1 << 17;

/// Part of a tensor, or all of it, and what its base has in the same places: contiguous whole rows.
#[derive(Clone, Copy)]
pub struct DifferenceSample<'a> {
    /// The element type.
    pub kind: ElementKind,
    /// The elements, little-endian.
    pub bytes: &'a [u8],
    /// The base's bytes, as many.
    pub base: &'a [u8],
    /// Elements of a row, if chunks will start at rows.
    pub row: Option<usize>,
    /// Bytes of the whole tensor.
    pub tensor: u64,
}

/// How differences are cut: [`Delta::threshold`] and [`Delta::raw_bits`].
type Choice = (u64, [u8; MAX_DELTA_CLASSES]);

/// The model for a tensor that is stored as differences from the base with this number, whose bytes
/// are at this distance.
///
/// # Errors
/// None is known: a fitted model is valid. It is validated nevertheless.
pub fn fit_differences(
    sample: DifferenceSample<'_>,
    base: u8,
    distance: i64,
) -> Result<EntropyModel> {
    let width = sample.kind.width();
    let (threshold, raw_bits) = choose(&sample);
    let classes = if threshold == 0 { 1 } else { MAX_DELTA_CLASSES };
    let block = block_of(sample.row);
    let whole = 8.0 * sample.bytes.len() as f64;
    let share = sample.bytes.len() as f64 / sample.tensor.max(1) as f64;
    let differences = differences(sample.bytes, sample.base, width, threshold);
    let histograms: Vec<Histogram> = differences
        .chunks(block)
        .flat_map(|block| {
            let mut of_classes = vec![[0.0; ALPHABET]; classes];
            for &(difference, class) in block {
                let class = usize::from(class);
                let cut = differences::Cut::new(difference, raw_bits[class], width);
                of_classes[class][usize::from(cut.symbol)] += 1.0;
            }
            of_classes
        })
        .collect();
    let mut one = vec![[0.0; ALPHABET]; classes];
    for of_classes in histograms.chunks(classes) {
        one.iter_mut().zip(of_classes).for_each(|(sum, h)| add(sum, h));
    }
    let bits = one.iter().map(cost).sum::<f64>() + TABLE * share * classes as f64;
    let mut sums = vec![one];
    let blocks = histograms.len() / classes;
    if blocks >= MIN_BLOCKS {
        let several = Classes::new(&histograms, classes, MAX_CHOICES);
        let side = CHOICE * blocks as f64 + TABLE * share * (MAX_CHOICES * classes) as f64;
        if bits - several.cost() - side >= WORTH_CHOICES * whole {
            sums = several.sums;
        }
    }
    let delta = Delta { base, distance, threshold, raw_bits };
    EntropyModel::of_differences(delta, width as u8, block, tables(&sums, ALPHABET))
}

/// The best way to cut the differences, from part of the sample.
fn choose(sample: &DifferenceSample<'_>) -> Choice {
    let width = sample.kind.width();
    let step = (sample.bytes.len() / width).div_ceil(TRIED).max(1);
    let thin = |bytes: &[u8]| -> Vec<u8> {
        bytes.chunks(width * 128).step_by(step).flatten().copied().collect()
    };
    let (bytes, base) = (thin(sample.bytes), thin(sample.base));
    let mantissa = match sample.kind {
        ElementKind::Float { width, exponent } => Some(8 * width - 1 - exponent),
        ElementKind::Bytes { .. } => None,
    };
    let exponents = base.chunks_exact(width).map(|element| {
        let value = element.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        mantissa.map_or(0, |bits| (value & (u64::MAX >> (65 - 8 * width))) >> bits)
    });
    // By exponent and number of raw bits: how often each symbol occurs.
    let most = 8 * width as u8 - 6;
    let mut histograms: BTreeMap<u64, Vec<Histogram>> = BTreeMap::new();
    for ((difference, _), exponent) in
        differences(&bytes, &base, width, 0).into_iter().zip(exponents)
    {
        let of_exponent = histograms
            .entry(exponent)
            .or_insert_with(|| vec![[0.0; ALPHABET]; usize::from(most) + 1]);
        for (raw, histogram) in (0..).zip(of_exponent) {
            let cut = differences::Cut::new(difference, raw, width);
            histogram[usize::from(cut.symbol)] += 1.0;
        }
    }
    let whole = 8.0 * bytes.len() as f64;
    let total = |below: bool, threshold: u64| {
        let mut sums = vec![[0.0; ALPHABET]; usize::from(most) + 1];
        for (_, of) in histograms.iter().filter(|(e, _)| (**e < threshold) == below) {
            sums.iter_mut().zip(of).for_each(|(sum, h)| add(sum, h));
        }
        best_raw_bits(&sums, width)
    };
    let (raw, bits) = total(false, 0);
    let mut best = (0, [raw, 0]);
    let mut limit = bits - WORTH_CLASSES * whole;
    for &exponent in histograms.keys().skip(1) {
        let (first, second) = (total(false, exponent), total(true, exponent));
        if first.1 + second.1 < limit {
            limit = first.1 + second.1;
            let threshold = exponent << mantissa.unwrap_or(0);
            best = (threshold, [first.0, second.0]);
        }
    }
    best
}

/// The number of raw bits that takes the fewest bits in all, and these.
fn best_raw_bits(by_raw_bits: &[Histogram], width: usize) -> (u8, f64) {
    let bits = |(raw, histogram): (u8, &Histogram)| {
        let count: f32 = histogram.iter().sum();
        let escaped = f64::from(histogram[ALPHABET - 1]) * 8.0 * width as f64;
        (raw, cost(histogram) + f64::from(raw) * f64::from(count) + escaped)
    };
    let all = (0..).zip(by_raw_bits).map(bits);
    all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

fn add(sum: &mut Histogram, h: &Histogram) {
    sum.iter_mut().zip(h).for_each(|(s, n)| *s += n);
}
