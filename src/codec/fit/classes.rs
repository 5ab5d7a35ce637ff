//! Clusters histograms into classes, each with a table of its own: rows and columns of a weight
//! matrix differ in scale and mean.
//!
//! This is Lloyd's algorithm (1982) with the coded size as the distance: each histogram joins the
//! class that codes it in the fewest bits, and each class takes the frequencies of its members.

use crate::codec::{PROB_BITS, model::ALPHABET};

/// How often each symbol occurs.
pub(super) type Histogram = [f32; ALPHABET];

const ITERATIONS: usize = 6;
/// The weight of the overall frequencies in those of a class, in symbols: a class alone estimates
/// its rare symbols badly.
const PRIOR: f32 = 64.0;

/// Classes of items that have a histogram for each of several contexts. A block, for example, has
/// one for each class of columns.
pub(super) struct Classes {
    /// By item: its class.
    pub(super) members: Vec<u8>,
    /// By class and context: the sum of its members' histograms.
    pub(super) sums: Vec<Vec<Histogram>>,
}

impl Classes {
    /// Clusters items into `count` classes. The histograms of an item, one for each of the
    /// `contexts`, are contiguous.
    pub(super) fn new(histograms: &[Histogram], contexts: usize, count: usize) -> Self {
        let mut whole = vec![[0.0; ALPHABET]; contexts];
        for item in histograms.chunks(contexts) {
            whole.iter_mut().zip(item).for_each(|(w, h)| add(w, h, 1.0));
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

    /// Assigns items to the existing classes.
    pub(super) fn assign(&mut self, histograms: &[Histogram], contexts: usize) {
        let costs: Vec<Vec<Histogram>> =
            self.sums.iter().map(|s| s.iter().map(bits).collect()).collect();
        let best = |item: &[Histogram]| {
            let cost = |c: &Vec<Histogram>| item.iter().zip(c).map(|(h, c)| dot(h, c)).sum::<f32>();
            let costs: Vec<f32> = costs.iter().map(cost).collect();
            (0..costs.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap_or(0) as u8
        };
        self.members = histograms.chunks(contexts).map(best).collect();
    }

    fn sum(&mut self, histograms: &[Histogram], whole: &[Histogram], count: usize) {
        self.sums = vec![whole.to_vec(); count];
        for (item, &m) in histograms.chunks(whole.len()).zip(&self.members) {
            self.sums[usize::from(m)].iter_mut().zip(item).for_each(|(s, h)| add(s, h, 1.0));
        }
    }

    /// The bits of all items, each coded with the tables of its class.
    pub(super) fn cost(&self) -> f64 {
        self.sums.iter().flatten().map(cost).sum()
    }
}

/// The bits of a histogram's symbols, coded with a table of their own.
pub(super) fn cost(h: &Histogram) -> f64 {
    h.iter().zip(bits(h)).map(|(&n, b)| f64::from(n) * f64::from(b)).sum()
}

/// The initial classes: items in the order of their mean symbol, cut into equal parts.
fn quantiles(histograms: &[Histogram], contexts: usize, count: usize) -> Vec<u8> {
    let mean = |item: &[Histogram]| {
        let sum = |f: fn(usize) -> f32| -> f32 {
            item.iter().map(|h| h.iter().enumerate().map(|(i, n)| f(i) * n).sum::<f32>()).sum()
        };
        sum(|i| i as f32) / sum(|_| 1.0).max(1.0)
    };
    let means: Vec<f32> = histograms.chunks(contexts).map(mean).collect();
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|&a, &b| means[a].total_cmp(&means[b]));
    let mut members = vec![0; means.len()];
    for (place, item) in order.into_iter().enumerate() {
        members[item] = (place * count / means.len()) as u8;
    }
    members
}

/// The bits of each symbol in a table of these counts.
pub(super) fn bits(counts: &Histogram) -> Histogram {
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
