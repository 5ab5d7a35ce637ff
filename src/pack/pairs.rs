//! Which tensor of which base a tensor may differ little from: that of its name, type and shape;
//! or, if there is none or it looks different, that of its type and length that looks most alike.
//!
//! A wrong pair costs no byte: the planner takes differences only where they save.

use super::{
    bases::{BaseFile, read},
    content::Content,
    tensors::{Tensor, extents, tensors},
};
use crate::{error::Result, format::Extent};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Smaller extents have no model: its tables would cost more than they save. In bytes.
pub(super) const MIN_MODELLED: u64 = 8 << 10;
/// Bytes in the middle of two tensors by which they are compared.
const PROBE: usize = 4 << 10;
/// Two tensors look alike if their elements differ, on average, in this share of their bits or
/// less.
const ALIKE: f64 = 0.65;
/// The most tensors of one type and length that a tensor is compared with, if names do not tell.
const MOST_COMPARED: usize = 256;
/// A base must give at least this share of a file to be used.
const LEAST: f64 = 0.005;
/// What a tensor of the same name, type and shape counts that does not look alike.
const BY_NAME: f64 = 0.01;

/// The place in a base that a tensor may differ little from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The index of the base.
    pub(super) base: usize,
    /// From a place in the tensor to that in the base.
    pub(super) distance: i64,
}

/// The pairs of a file.
#[derive(Default)]
pub(super) struct Pairs {
    pub(super) bases: Vec<Arc<dyn BaseFile>>,
    /// By the start of a tensor.
    by_start: HashMap<u64, Pair>,
}

/// A possible pair of the tensor with this index, and how many bytes it may save.
struct Candidate {
    tensor: usize,
    pair: Pair,
    gain: f64,
}

impl Pairs {
    /// Pair the tensors of a file.
    pub(super) fn of(
        content: &Content<'_>,
        extents: &[Extent],
        bases: Vec<Arc<dyn BaseFile>>,
    ) -> Result<Self> {
        if bases.is_empty() {
            return Ok(Self::default());
        }
        let all = Pool::new(&bases)?;
        let mut candidates = Vec::new();
        let tensors = content.tensors(extents)?;
        for (i, tensor) in tensors.iter().enumerate() {
            if tensor.extent.len >= MIN_MODELLED {
                let mut probe = Vec::new();
                let Range { start, end } = probed(&tensor.extent);
                content.read(start, &mut probe, (end - start) as usize)?;
                all.candidates(i, tensor, &probe, &mut candidates)?;
            }
        }
        let chosen = choose(candidates, bases.len(), LEAST * content.len as f64);
        let by_start =
            chosen.into_iter().map(|(i, pair)| (tensors[i].extent.start, pair)).collect();
        Ok(Self { bases, by_start })
    }

    /// That of an extent.
    pub(super) fn pair(&self, extent: &Extent) -> Option<Pair> {
        self.by_start.get(&extent.start).copied()
    }

    /// Read `out.len()` bytes of a base that belong to those at `start` of the file.
    pub(super) fn read(&self, pair: Pair, start: u64, out: &mut [u8]) -> Result<()> {
        read(&*self.bases[pair.base], start.wrapping_add_signed(pair.distance), out)
    }
}

/// Take from few bases what saves most: from that which saves most first, and from the others what
/// it does not have.
fn choose(mut candidates: Vec<Candidate>, bases: usize, least: f64) -> HashMap<usize, Pair> {
    let mut chosen = HashMap::new();
    candidates.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    loop {
        let mut gains = vec![HashMap::new(); bases];
        for c in candidates.iter().filter(|c| !chosen.contains_key(&c.tensor)) {
            gains[c.pair.base].entry(c.tensor).or_insert((c.gain, c.pair));
        }
        let gain = |gains: &HashMap<usize, (f64, Pair)>| gains.values().map(|g| g.0).sum::<f64>();
        // Of equals, the first.
        let best = gains.into_iter().rev().max_by(|a, b| gain(a).total_cmp(&gain(b)));
        match best.filter(|best| !best.is_empty() && gain(best) >= least) {
            Some(best) => chosen.extend(best.into_iter().map(|(i, (_, pair))| (i, pair))),
            None => return chosen,
        }
    }
}

/// A tensor of a base.
struct Based {
    base: usize,
    tensor: Tensor,
    probe: OnceLock<Vec<u8>>,
}

/// The tensors of all bases.
struct Pool<'a> {
    bases: &'a [Arc<dyn BaseFile>],
    tensors: Vec<Based>,
    /// By name, and by what is left of it without one or more of its first components.
    by_name: HashMap<String, Vec<usize>>,
    /// By bytes of an element, and length.
    by_len: HashMap<(usize, u64), Vec<usize>>,
}

impl<'a> Pool<'a> {
    fn new(bases: &'a [Arc<dyn BaseFile>]) -> Result<Self> {
        let mut all =
            Self { bases, tensors: Vec::new(), by_name: HashMap::new(), by_len: HashMap::new() };
        for (i, base) in bases.iter().enumerate() {
            let read = |at, out: &mut [u8]| read(&**base, at, out);
            let len = base.base().len;
            for tensor in tensors(&read, len, &extents(&read, len)?)? {
                all.add(i, tensor);
            }
        }
        Ok(all)
    }

    fn add(&mut self, base: usize, tensor: Tensor) {
        let i = self.tensors.len();
        for name in suffixes(&tensor.name) {
            self.by_name.entry(name.to_owned()).or_default().push(i);
        }
        self.by_len.entry(key(&tensor)).or_default().push(i);
        self.tensors.push(Based { base, tensor, probe: OnceLock::new() });
    }

    /// Add the candidates of a tensor whose probe is this.
    fn candidates(
        &self,
        tensor: usize,
        of: &Tensor,
        probe: &[u8],
        out: &mut Vec<Candidate>,
    ) -> Result<()> {
        let mut found = false;
        for i in self.named(of) {
            let gain = self.gain(i, of, probe)?;
            found |= gain.is_some();
            out.push(self.candidate(tensor, of, i, gain.unwrap_or(BY_NAME)));
        }
        if found {
            return Ok(());
        }
        let alike = self.by_len.get(&key(of)).into_iter().flatten().take(MOST_COMPARED);
        for &i in alike {
            if let Some(gain) = self.gain(i, of, probe)? {
                out.push(self.candidate(tensor, of, i, gain));
            }
        }
        Ok(())
    }

    /// The tensors of the same name, type and shape; a prefix of either name may be missing.
    fn named(&self, of: &Tensor) -> Vec<usize> {
        let same = |i: &&usize| {
            let other = &self.tensors[**i].tensor;
            (other.extent.kind, other.extent.len, &other.shape)
                == (of.extent.kind, of.extent.len, &of.shape)
        };
        for (n, name) in suffixes(&of.name).enumerate() {
            let others = self.by_name.get(name).into_iter().flatten();
            // Either name is whole: `a.x` is not `b.x`.
            let whole = |i: &&usize| n == 0 || self.tensors[**i].tensor.name == name;
            let found: Vec<usize> = others.filter(|i| same(i) && whole(i)).copied().collect();
            let exact: Vec<usize> =
                found.iter().copied().filter(|&i| self.tensors[i].tensor.name == of.name).collect();
            match (exact.is_empty(), found.is_empty()) {
                (false, _) => return exact,
                (true, false) => return found,
                (true, true) => {}
            }
        }
        Vec::new()
    }

    /// The share of a tensor that a tensor of a base may save, if they look alike.
    fn gain(&self, i: usize, of: &Tensor, probe: &[u8]) -> Result<Option<f64>> {
        let Based { base, tensor, probe: there } = &self.tensors[i];
        if there.get().is_none() {
            let Range { start, end } = probed(&tensor.extent);
            let mut bytes = vec![0; (end - start) as usize];
            read(&*self.bases[*base], start, &mut bytes)?;
            let _ = there.set(bytes);
        }
        let there = there.get().map_or(&[][..], |bytes| bytes);
        let share = difference(probe, there, of.extent.kind.map_or(1, |kind| kind.width()));
        Ok((share <= ALIKE).then_some(1.0 - share))
    }

    fn candidate(&self, tensor: usize, of: &Tensor, i: usize, gain: f64) -> Candidate {
        let there = &self.tensors[i];
        let distance = there.tensor.extent.start.wrapping_sub(of.extent.start) as i64;
        let pair = Pair { base: there.base, distance };
        Candidate { tensor, pair, gain: gain * of.extent.len as f64 }
    }
}

/// A name, and what is left of it without one or more of its first components.
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    fn rest<'n>(name: &&'n str) -> Option<&'n str> {
        name.split_once('.').map(|(_, rest)| rest)
    }
    std::iter::successors((!name.is_empty()).then_some(name), rest)
}

/// What two tensors must have in common to be compared.
fn key(tensor: &Tensor) -> (usize, u64) {
    (tensor.extent.kind.map_or(1, |kind| kind.width()), tensor.extent.len)
}

/// The bytes by which an extent is compared.
fn probed(extent: &Extent) -> Range<u64> {
    let len = (PROBE as u64).min(extent.len) / 8 * 8;
    let start = extent.start + (extent.len - len) / 2 / 8 * 8;
    start..start + len
}

/// The share of their bits in which elements of `width` bytes differ.
fn difference(a: &[u8], b: &[u8], width: usize) -> f64 {
    let element = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
    let unused = 64 - 8 * width as u32;
    let bits = a.chunks_exact(width).zip(b.chunks_exact(width)).map(|(a, b)| {
        let difference = (element(a).wrapping_sub(element(b)) << unused) as i64 >> unused;
        65 - difference.unsigned_abs().leading_zeros().max(1)
    });
    let count = (a.len() / width).max(1);
    // No difference takes no bit.
    (bits.sum::<u32>() as f64 / count as f64 - 1.0) / (8 * width) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_differ_little_look_alike() {
        let bytes =
            |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let a = bytes(&[0x3c01, 0xbc01, 0x3c01, 0]);
        assert_eq!(difference(&a, &a, 2), 0.0);
        let near = bytes(&[0x3c02, 0xbc00, 0x3c01, 0xffff]);
        assert!(difference(&a, &near, 2) < 0.1);
        let far = bytes(&[0xbc01, 0x3c01, 0x0c01, 0x7000]);
        assert!(difference(&a, &far, 2) > ALIKE);
    }

    #[test]
    fn few_bases_give_what_saves_most() {
        let c = |tensor, base, gain| {
            let pair = Pair { base, distance: 0 };
            Candidate { tensor, pair, gain }
        };
        let from = |all: Vec<Candidate>| {
            let mut chosen: Vec<_> =
                choose(all, 3, 1.0).into_iter().map(|(i, pair)| (i, pair.base)).collect();
            chosen.sort_unstable();
            chosen
        };
        let all = vec![c(0, 0, 5.0), c(0, 1, 6.0), c(1, 0, 9.0), c(2, 2, 3.0), c(3, 2, 0.5)];
        assert_eq!(from(all), [(0, 0), (1, 0), (2, 2), (3, 2)]);
        assert_eq!(from(vec![c(0, 1, 0.5)]), []);
        assert_eq!(from(vec![c(0, 2, 5.0), c(0, 1, 5.0)]), [(0, 1)]);
    }
}
