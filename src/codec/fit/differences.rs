//! Fits a model of differences to a sample of a tensor and the bytes of its base.

use super::{
    block_of,
    classes::{Classes, Histogram, bits, cost},
    plan::{CHOICE, MIN_BLOCKS, TABLE, WORTH_CHOICES, WORTH_CLASSES, tables},
};
use crate::{
    codec::{
        EntropyModel,
        differences::differences,
        model::{ALPHABET, Cut, Delta, MAX_CHOICES, MAX_DELTA_CLASSES, MAX_VALUES},
        planes::ElementKind,
    },
    error::Result,
};
use std::collections::{BTreeMap, HashMap};

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

/// A difference and the class of its element.
type Difference = (i64, u8);

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
    let threshold = threshold(&sample);
    let differences = differences(sample.bytes, sample.base, width, threshold);
    let fit = Fit {
        blocks: differences.chunks(block_of(sample.row)).collect(),
        classes: if threshold == 0 { 1 } else { MAX_DELTA_CLASSES },
        width,
        share: sample.bytes.len() as f64 / sample.tensor.max(1) as f64,
    };
    let mut best = fit.plan(&vec![0; fit.blocks.len()], 1);
    if fit.blocks.len() >= MIN_BLOCKS {
        let mut several = fit.plan(&fit.alike(), MAX_CHOICES);
        several = fit.plan(&fit.assign(&several), MAX_CHOICES);
        if best.bits - several.bits >= WORTH_CHOICES * 8.0 * sample.bytes.len() as f64 {
            best = several;
        }
    }
    let tables = tables(&[best.histograms], ALPHABET);
    let delta = Delta { base, distance, threshold, cuts: best.cuts };
    EntropyModel::of_differences(delta, width as u8, block_of(sample.row), tables)
}

/// What a model is fitted to.
struct Fit<'a> {
    blocks: Vec<&'a [Difference]>,
    classes: usize,
    width: usize,
    /// The sample's share of the tensor. What is stored once per tensor is weighted by it.
    share: f64,
}

/// How the differences of each table are cut, by choice and class.
struct Plan {
    cuts: Vec<Cut>,
    histograms: Vec<Histogram>,
    /// Estimated bits of the sample, with its share of what the tables take.
    bits: f64,
}

impl Fit<'_> {
    /// Blocks whose differences are alike, as the same choice.
    fn alike(&self) -> Vec<u8> {
        let bucket = |difference: i64| {
            let bits = 64 - difference.unsigned_abs().leading_zeros() as usize;
            (2 * bits + usize::from(difference < 0)).min(ALPHABET - 1)
        };
        let mut histograms = vec![[0.0; ALPHABET]; self.blocks.len() * self.classes];
        for (block, of_classes) in self.blocks.iter().zip(histograms.chunks_mut(self.classes)) {
            for &(difference, class) in *block {
                of_classes[usize::from(class)][bucket(difference)] += 1.0;
            }
        }
        Classes::new(&histograms, self.classes, MAX_CHOICES).members
    }

    /// The best cuts if the blocks make these choices, of which there are `count` at most.
    fn plan(&self, members: &[u8], count: usize) -> Plan {
        let mut plan = Plan { cuts: Vec::new(), histograms: Vec::new(), bits: 0.0 };
        for choice in (0..count as u8).filter(|choice| members.contains(choice)) {
            for class in 0..self.classes as u8 {
                let blocks = self.blocks.iter().zip(members).filter(|(_, m)| **m == choice);
                let differences: Vec<i64> = blocks
                    .flat_map(|(block, _)| block.iter().filter(|(_, c)| *c == class))
                    .map(|(difference, _)| *difference)
                    .collect();
                let (cut, list) = self.cut(&differences);
                let mut histogram = [0.0; ALPHABET];
                for difference in &differences {
                    histogram[usize::from(cut.symbol(*difference))] += 1.0;
                }
                plan.bits += self.bits(cut.raw_bits, &histogram) + (list + TABLE) * self.share;
                plan.histograms.push(histogram);
                plan.cuts.push(cut);
            }
        }
        if plan.cuts.len() > self.classes {
            plan.bits += CHOICE * self.blocks.len() as f64;
        }
        plan
    }

    /// The bits of differences whose symbols are counted in `histogram`.
    fn bits(&self, raw_bits: u8, histogram: &Histogram) -> f64 {
        let count: f32 = histogram.iter().sum();
        let escaped = f64::from(histogram[MAX_VALUES]) * self.escape();
        cost(histogram) + f64::from(raw_bits) * f64::from(count) + escaped
    }

    /// Bits of what is escaped.
    fn escape(&self) -> f64 {
        8.0 * self.width as f64
    }

    /// The best cut of some differences, and bits of its list of values.
    fn cut(&self, differences: &[i64]) -> (Cut, f64) {
        let some: Vec<i64> =
            differences.iter().step_by(differences.len().div_ceil(TRIED).max(1)).copied().collect();
        let most = 8 * self.width as u8 - 6;
        let count = |cut: &Cut| {
            let mut histogram = [0.0; ALPHABET];
            some.iter().for_each(|&d| histogram[usize::from(cut.symbol(d))] += 1.0);
            self.bits(cut.raw_bits, &histogram)
        };
        let (mut best, mut least) = (Cut::default(), f64::INFINITY);
        for raw_bits in 0..=most {
            let cut = Cut { raw_bits, values: None };
            let bits = count(&cut);
            if bits < least {
                (best, least) = (cut, bits);
            }
        }
        let list = (MAX_VALUES * 8 * self.width) as f64;
        let part = some.len() as f64 / differences.len().max(1) as f64;
        let listed = Cut { raw_bits: 0, values: frequent(&some, self.width) };
        let extra = list * self.share * part;
        if listed.values.is_some() && count(&listed) + extra < 0.95 * least {
            return (listed, list);
        }
        (best, 0.0)
    }

    /// The choice of each block that takes the fewest bits.
    fn assign(&self, plan: &Plan) -> Vec<u8> {
        let costs: Vec<Histogram> = plan.histograms.iter().map(bits).collect();
        let cost = |block: &[Difference], choice: usize| -> f32 {
            let of = |&(difference, class): &Difference| {
                let table = choice * self.classes + usize::from(class);
                let cut = &plan.cuts[table];
                let symbol = usize::from(cut.symbol(difference));
                let escaped = if symbol == MAX_VALUES { self.escape() as f32 } else { 0.0 };
                costs[table][symbol] + f32::from(cut.raw_bits) + escaped
            };
            block.iter().map(of).sum()
        };
        let choices = plan.cuts.len() / self.classes;
        let best = |block: &&[Difference]| {
            let by_choice: Vec<f32> = (0..choices).map(|choice| cost(block, choice)).collect();
            let least = (0..choices).min_by(|&a, &b| by_choice[a].total_cmp(&by_choice[b]));
            least.unwrap_or(0) as u8
        };
        self.blocks.iter().map(best).collect()
    }
}

/// The most frequent differences, filled up with small ones; `None` if one of them is too large.
fn frequent(differences: &[i64], width: usize) -> Option<Box<[i64; MAX_VALUES]>> {
    let mut counts: HashMap<i64, u32> = HashMap::new();
    differences.iter().for_each(|d| *counts.entry(*d).or_default() += 1);
    let mut counts: Vec<(i64, u32)> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|&(difference, count)| (std::cmp::Reverse(count), difference));
    let mut values: Vec<i64> = counts.into_iter().map(|(d, _)| d).take(MAX_VALUES).collect();
    let small = (0..=MAX_VALUES as i64).filter(|value| !values.contains(value));
    let small: Vec<i64> = small.collect();
    values.extend(small.into_iter().take(MAX_VALUES - values.len()));
    values.sort_unstable();
    let limit = i64::MAX >> (64 - 8 * width);
    let fits = values.iter().all(|value| (-limit..=limit).contains(value));
    <[i64; MAX_VALUES]>::try_from(values).ok().filter(|_| fits).map(Box::new)
}

/// The best [`Delta::threshold`], from part of the sample.
fn threshold(sample: &DifferenceSample<'_>) -> u64 {
    let width = sample.kind.width();
    let ElementKind::Float { exponent, .. } = sample.kind else { return 0 };
    let mantissa = 8 * width as u8 - 1 - exponent;
    let step = (sample.bytes.len() / width).div_ceil(TRIED).max(1);
    let thin = |bytes: &[u8]| -> Vec<u8> {
        bytes.chunks(width * 128).step_by(step).flatten().copied().collect()
    };
    let (bytes, base) = (thin(sample.bytes), thin(sample.base));
    let exponents = base.chunks_exact(width).map(|element| {
        let value = element.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        (value & (u64::MAX >> (65 - 8 * width))) >> mantissa
    });
    // By exponent and number of raw bits: how often each symbol occurs.
    let cuts: Vec<Cut> =
        (0..=8 * width as u8 - 6).map(|raw_bits| Cut { raw_bits, values: None }).collect();
    let mut histograms: BTreeMap<u64, Vec<Histogram>> = BTreeMap::new();
    let all = differences(&bytes, &base, width, 0);
    for ((difference, _), exponent) in all.into_iter().zip(exponents) {
        let of_exponent =
            histograms.entry(exponent).or_insert_with(|| vec![[0.0; ALPHABET]; cuts.len()]);
        for (cut, histogram) in cuts.iter().zip(of_exponent) {
            histogram[usize::from(cut.symbol(difference))] += 1.0;
        }
    }
    let fit = Fit { blocks: Vec::new(), classes: 1, width, share: 1.0 };
    let total = |below: bool, threshold: u64| {
        let mut sums = vec![[0.0; ALPHABET]; cuts.len()];
        for (_, of) in histograms.iter().filter(|(e, _)| (**e < threshold) == below) {
            sums.iter_mut().zip(of).for_each(|(sum, h)| add(sum, h));
        }
        let bits = cuts.iter().zip(&sums).map(|(cut, h)| fit.bits(cut.raw_bits, h));
        bits.fold(f64::INFINITY, f64::min)
    };
    let mut best = 0;
    let mut limit = total(false, 0) - WORTH_CLASSES * 8.0 * bytes.len() as f64;
    for &exponent in histograms.keys().skip(1) {
        let bits = total(false, exponent) + total(true, exponent);
        if bits < limit {
            (best, limit) = (exponent << mantissa, bits);
        }
    }
    best
}

fn add(sum: &mut Histogram, h: &Histogram) {
    sum.iter_mut().zip(h).for_each(|(s, n)| *s += n);
}
