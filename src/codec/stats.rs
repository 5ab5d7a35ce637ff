//! From a tensor's chunks to its model: counts values plane by plane and decides what is coded.

use super::{
    classes::classes,
    encode::{Encoder, encode, zstd_competes},
    model::{BLOCK, Model, Table},
    planes::{ElementKind, Layout},
};
use crate::error::Result;

/// A plane is worth a table where its entropy is this share of its width or less.
const WORTH_CODING: f64 = 0.99;
/// Blocks kept of a tensor at least, if it has as many.
const KEPT_BLOCKS: usize = 2048;
/// Elements looked at before a chunk's plane is counted in full: random low bits are recognised at once.
const SAMPLE: usize = 4096;

/// Counts of a tensor's values, gathered chunk by chunk; partial ones merge, so chunks may be counted in parallel.
pub struct Modeler {
    kind: ElementKind,
    /// Every bit that is set in any element (rotated).
    seen: u64,
    layout: Layout,
    counts: Vec<Vec<u64>>,
    /// Of the top plane, one of this many blocks is kept for [`classes`].
    stride: usize,
    blocks: Vec<Vec<u16>>,
}

impl Modeler {
    /// A modeler for `bytes` bytes of elements of `kind` whose lowest mantissa bits are not known to be zero.
    pub fn new(kind: ElementKind, bytes: u64) -> Self {
        let stride = bytes as usize / kind.width() / BLOCK / KEPT_BLOCKS;
        Self::with_layout(kind, kind.layout(0, kind.symbol_mantissa()), stride.max(1))
    }

    fn with_layout(kind: ElementKind, layout: Layout, stride: usize) -> Self {
        let counts = layout.planes().iter().map(|p| vec![0; 1 << p.bits]).collect();
        Self { kind, seen: 0, layout, counts, stride, blocks: Vec::new() }
    }

    /// An empty modeler of the same layout.
    pub fn fresh(&self) -> Self {
        Self::with_layout(self.kind, self.layout.clone(), self.stride)
    }

    /// Count a chunk. Bytes behind the last whole element are not counted.
    pub fn observe(&mut self, chunk: &[u8]) {
        self.seen |= self.layout.seen(chunk);
        let mut values = Vec::with_capacity(chunk.len() / usize::from(self.layout.width()));
        for (i, (&plane, total)) in self.layout.planes().iter().zip(&mut self.counts).enumerate() {
            self.layout.values(plane, chunk, &mut values);
            // Low planes are mostly noise: only the chunks in which they are not share a table.
            if i > 0 {
                let mut sample = vec![0; 1 << plane.bits];
                let step = (values.len() / SAMPLE).max(1);
                values.iter().step_by(step).for_each(|&v| sample[usize::from(v)] += 1);
                if entropy(&sample) > bias_free_limit(plane.bits, &sample) {
                    continue;
                }
            }
            count(&values, total);
            if i == 0 {
                self.blocks.extend(values.chunks_exact(BLOCK).step_by(self.stride).map(<[u16]>::to_vec));
            }
        }
    }

    /// Add what another modeler of the same layout saw.
    pub fn merge(mut self, other: Self) -> Self {
        self.seen |= other.seen;
        self.blocks.extend(other.blocks);
        for (a, b) in self.counts.iter_mut().zip(other.counts) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
        self
    }

    /// A modeler of a layout that suits better, now that all elements were seen; they must be observed again.
    pub fn refined(&self) -> Option<Self> {
        let ElementKind::Float { width, exponent } = self.kind else { return None };
        let mantissa = width * 8 - 1 - exponent;
        // Bit 0 of a rotated element is its sign.
        let zeros = ((self.seen >> 1).trailing_zeros() as u8).min(mantissa);
        // A symbol has room for 64 octaves of two mantissa bits each, which weights hardly fill, but a single one far
        // below all others may: fewer mantissa bits then, and at last bytes.
        let now = self.layout.planes()[0].bits - exponent;
        let fits = |top: &u8| {
            let used = |v: usize| v >> (now - top);
            let first = self.counts[0].iter().skip(1).position(|&c| c > 0).map_or(0, |v| used(v + 1));
            let last = self.counts[0].iter().rposition(|&c| c > 0).map_or(0, used);
            Table::has_room(first, last)
        };
        let next = match (0..=now).rev().find(fits) {
            Some(top) => Self::with_layout(self.kind, self.kind.layout(zeros, top), self.stride),
            None => {
                let kind = ElementKind::Bytes { width };
                Self::with_layout(kind, kind.layout(0, 0), self.stride)
            }
        };
        (next.layout != self.layout).then_some(next)
    }

    /// The model, with a table for each plane that is worth one; `None` where no plane is.
    pub fn finish(self) -> Result<Option<Model>> {
        let mut tables = Vec::with_capacity(self.counts.len());
        for (i, (counts, plane)) in self.counts.iter().zip(self.layout.planes()).enumerate() {
            let worth = |tables: &Vec<Table>| {
                tables.len() > 1 || entropy(counts) <= WORTH_CODING * f64::from(plane.bits)
            };
            let classes = if i == 0 {
                classes(&self.blocks, counts, self.stride, 8 * self.kind.width())
            } else {
                Vec::new()
            };
            tables.push(Table::from_counts(counts, &classes).filter(worth).unwrap_or_default());
        }
        let wide_uncoded = self
            .layout
            .planes()
            .iter()
            .zip(&tables)
            .zip(&self.counts)
            .any(|((p, t), c)| p.bits > 8 && t.is_empty() && c.iter().filter(|&&n| n > 0).count() > 1);
        let constant = self.counts.iter().any(|c| c.iter().filter(|&&n| n > 0).count() == 1);
        if wide_uncoded || (tables.iter().all(Vec::is_empty) && !constant) {
            return Ok(None);
        }
        Model::new(self.layout, tables).map(Some)
    }
}

/// Whether zstd should be tried on every chunk of a tensor of which `samples` are some.
pub fn should_try_zstd(samples: &[&[u8]], encoder: Option<&Encoder<'_>>) -> bool {
    samples.iter().any(|s| zstd_competes(s, encode(s, encoder, false).1.len()))
}

/// Add the occurrences of `values` to `total`.
fn count(values: &[u16], total: &mut [u64]) {
    // Runs of one value would wait for each other's increments in a single table.
    let mut counts: [Vec<u32>; 4] = std::array::from_fn(|_| vec![0; total.len()]);
    for quad in values.chunks(4) {
        quad.iter().zip(&mut counts).for_each(|(&v, c)| c[usize::from(v)] += 1);
    }
    for (i, t) in total.iter_mut().enumerate() {
        *t += counts.iter().map(|c| u64::from(c[i])).sum::<u64>();
    }
}

/// Order-0 entropy in bits a value.
fn entropy(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return f64::INFINITY;
    }
    let total = total as f64;
    counts.iter().filter(|&&c| c > 0).map(|&c| c as f64 / total).map(|p| -p * p.log2()).sum()
}

/// [`WORTH_CODING`] for counts of few values, whose entropy comes out low (Miller 1955: by (m − 1) / 2n nats).
fn bias_free_limit(bits: u8, counts: &[u64]) -> f64 {
    let n: u64 = counts.iter().sum();
    WORTH_CODING * f64::from(bits)
        - ((1u64 << bits) - 1) as f64 / (2.0 * n.max(1) as f64) * std::f64::consts::LOG2_E
}
