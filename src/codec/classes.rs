//! Histograms in classes, each with a table of its own: rows and columns of a weight matrix differ in scale and mean.
//!
//! Lloyd's algorithm (1982) with the coded size as the distance: each histogram goes to the class that codes it in the
//! fewest bits, each class takes the frequencies of its members.

use super::{PROB_BITS, alias::BUCKETS};

/// How often each symbol occurs.
pub(super) type Histogram = [f32; BUCKETS];

const ITERATIONS: usize = 6;
/// Weight of all symbols' frequencies in those of a class, in symbols: a class knows its rare ones badly.
const PRIOR: f32 = 64.0;

/// Classes of things that have a histogram for each of several contexts (a block has one for each class of columns).
pub(super) struct Classes {
    /// By thing.
    pub(super) members: Vec<u8>,
    /// By class and context.
    pub(super) sums: Vec<Vec<Histogram>>,
}

impl Classes {
    /// Put things into `count` classes. The histograms of a thing's `contexts` are next to each other.
    pub(super) fn new(histograms: &[Histogram], contexts: usize, count: usize) -> Self {
        let mut whole = vec![[0.0; BUCKETS]; contexts];
        for thing in histograms.chunks(contexts) {
            whole.iter_mut().zip(thing).for_each(|(w, h)| add(w, h, 1.0));
        }
        let total: f32 = whole.iter().flatten().sum::<f32>().max(1.0);
        whole.iter_mut().flatten().for_each(|w| *w *= PRIOR / total);
        let mut classes =
            Self { members: quantiles(histograms, contexts, count), sums: Vec::new() };
        for _ in 0..ITERATIONS {
            classes.sum(histograms, &whole, count);
            classes.assign(histograms, contexts);
        }
        classes.sum(histograms, &whole, count);
        classes
    }

    /// Put things into the classes that there are.
    pub(super) fn assign(&mut self, histograms: &[Histogram], contexts: usize) {
        let costs: Vec<Vec<Histogram>> =
            self.sums.iter().map(|s| s.iter().map(bits).collect()).collect();
        let best = |thing: &[Histogram]| {
            let cost =
                |c: &Vec<Histogram>| thing.iter().zip(c).map(|(h, c)| dot(h, c)).sum::<f32>();
            let costs: Vec<f32> = costs.iter().map(cost).collect();
            (0..costs.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap_or(0) as u8
        };
        self.members = histograms.chunks(contexts).map(best).collect();
    }

    fn sum(&mut self, histograms: &[Histogram], whole: &[Histogram], count: usize) {
        self.sums = vec![whole.to_vec(); count];
        for (thing, &m) in histograms.chunks(whole.len()).zip(&self.members) {
            self.sums[usize::from(m)].iter_mut().zip(thing).for_each(|(s, h)| add(s, h, 1.0));
        }
    }

    /// Bits that all things take, each with the table of its class.
    pub(super) fn cost(&self) -> f64 {
        self.sums.iter().flatten().map(cost).sum()
    }
}

/// Bits that the symbols of a histogram take with a table of their own.
pub(super) fn cost(h: &Histogram) -> f64 {
    h.iter().zip(bits(h)).map(|(&n, b)| f64::from(n) * f64::from(b)).sum()
}

/// Classes to begin with: things in the order of their mean symbol, in equal parts.
fn quantiles(histograms: &[Histogram], contexts: usize, count: usize) -> Vec<u8> {
    let mean = |thing: &[Histogram]| {
        let sum = |f: fn(usize) -> f32| -> f32 {
            thing.iter().map(|h| h.iter().enumerate().map(|(i, n)| f(i) * n).sum::<f32>()).sum()
        };
        sum(|i| i as f32) / sum(|_| 1.0).max(1.0)
    };
    let means: Vec<f32> = histograms.chunks(contexts).map(mean).collect();
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|&a, &b| means[a].total_cmp(&means[b]));
    let mut members = vec![0; means.len()];
    for (place, thing) in order.into_iter().enumerate() {
        members[thing] = (place * count / means.len()) as u8;
    }
    members
}

/// What each symbol costs in a table of these counts.
fn bits(counts: &Histogram) -> Histogram {
    let total: f32 = counts.iter().sum::<f32>().max(1.0);
    let least = 1.0 / (1 << PROB_BITS) as f32;
    counts.map(|c| -(c / total).max(least).log2())
}

fn add(sum: &mut Histogram, h: &Histogram, weight: f32) {
    sum.iter_mut().zip(h).for_each(|(s, n)| *s += n * weight);
}

fn dot(a: &Histogram, b: &Histogram) -> f32 {
    let mut sums = [0.0; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += a * b);
    }
    sums.iter().sum()
}
