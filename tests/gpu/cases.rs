//! Chunks for the tests of the GPU's kernels: of random models, and damaged ones.

use super::common::random::Random;
use bszfs::{
    ErrorKind,
    codec::{
        self, Coding, Encoder, EntropyModel, LANES, checksum, model::FrequencyTable, planes::Layout,
    },
    gpu::{Cut, Loop},
};
use std::sync::Arc;

/// A chunk as stored.
#[derive(Clone)]
pub struct Case {
    pub coding: Coding,
    pub model: Option<Arc<EntropyModel>>,
    pub payload: Vec<u8>,
    pub len: usize,
    /// The bytes with whose checksum the decoded ones are compared, if they are.
    pub checks: Option<Vec<u8>>,
}

/// The bytes, or the kind of the error.
pub type Outcome = Result<Vec<u8>, ErrorKind>;

impl Case {
    /// What the decoded bytes are compared with.
    pub fn checksum(&self) -> Option<u64> {
        self.checks.as_deref().map(checksum)
    }

    /// The outcome of the scalar decoder.
    pub fn expected(&self) -> Outcome {
        let mut out = vec![0; self.len];
        let decoded =
            codec::reference().decode(self.coding, self.model.as_deref(), &self.payload, &mut out);
        decoded.map_err(|e| e.kind())?;
        match self.checksum() {
            Some(expected) if checksum(&out) != expected => Err(ErrorKind::Corruption),
            _ => Ok(out),
        }
    }
}

/// The same chunk without some of its words or escapes, and with the counts reduced accordingly.
pub fn lacking(whole: &Case, r: &mut Random) -> Option<Case> {
    let model = whole.model.as_ref().filter(|_| whole.payload[0] == 0)?;
    let count = whole.len / usize::from(model.layout().width());
    let blocks = if model.choices() > 1 { count.div_ceil(model.block()) } else { 0 };
    let counts = 4 + 2 * model.layout().planes().len();
    let words_at = counts + 8 + blocks.div_ceil(4) + 4 * LANES;
    let field =
        |at: usize| u32::from_le_bytes(whole.payload[at..][..4].try_into().expect("four bytes"));
    let [words, escapes] = [counts, counts + 4].map(|at| field(at) as usize);
    let (at, begin, n) = match below(r, 4) {
        0 if escapes > 0 => (counts + 4, words_at + 2 * words, escapes),
        _ if words > 0 => (counts, words_at, words),
        _ => return None,
    };
    let gone = 1 + below(r, n);
    let mut case = whole.clone();
    case.payload[at..at + 4].copy_from_slice(&((n - gone) as u32).to_le_bytes());
    case.payload.drain(begin + 2 * (n - gone)..begin + 2 * n);
    Some(case)
}

/// The same chunk with some damage, which may be a part of the chunk `other`.
pub fn damage(whole: &Case, other: &Case, r: &mut Random) -> Case {
    let mut case = whole.clone();
    for _ in 0..1 + below(r, 3) {
        let n = case.payload.len();
        if n == 0 {
            break;
        }
        let at = below(r, n);
        match below(r, 10) {
            0..3 => case.payload[at % n.min(64)] ^= r.next() as u8,
            3..6 => case.payload[at] ^= 1 << below(r, 8),
            6 => case.payload.truncate(n - at % n.min(600)),
            7 => case.payload.resize(n + 1 + at % 100, r.next() as u8),
            8 => {
                let part = &other.payload[..other.payload.len().min(n - at)];
                case.payload[at..at + part.len()].copy_from_slice(part);
            }
            _ => case.len = (case.len + at % 300).saturating_sub(below(r, 300)).max(1),
        }
    }
    case
}

pub fn below(r: &mut Random, bound: usize) -> usize {
    (r.next() % bound as u64) as usize
}

/// A chunk of at most `most` elements, or three times as many of one byte, with its own model. One
/// in twenty may be raw, as most small chunks are.
pub fn random_case(r: &mut Random, most: usize) -> Case {
    loop {
        let model = if below(r, 3) > 0 { frequent_model(r) } else { random_model(r) };
        let case = case_of(r, model, most);
        if case.coding == Coding::Planes || below(r, 20) == 0 {
            return case;
        }
    }
}

/// A chunk in planes for a loop of its own: that of `cut`, with classes of columns or without.
pub fn case_for(r: &mut Random, cut: &Cut, classes: bool, most: usize) -> Case {
    loop {
        let model = model_for(r, cut, classes);
        let case = case_of(r, model, most);
        if case.coding == Coding::Planes {
            return case;
        }
    }
}

fn case_of(r: &mut Random, model: EntropyModel, most: usize) -> Case {
    let most = if model.layout().width() == 1 { 3 * most } else { most };
    let count = most - below(r, most);
    let chunk = elements(r, &model, count);
    let (coding, payload) = codec::encode(&chunk, Some(&Encoder::new(&model)), false);
    let model = (coding == Coding::Planes).then(|| Arc::new(model));
    Case { coding, model, payload, len: chunk.len(), checks: None }
}

/// A model of any width, split into planes in any way, with any number of values, tables and
/// classes.
fn random_model(r: &mut Random) -> EntropyModel {
    let width = 1u8 << below(r, 4);
    let symbol_bits = 1 + below(r, (8 * width).min(16).into()) as u8;
    let (mut planes, mut top, often) = (Vec::new(), 8 * width - symbol_bits, 1 + below(r, 8));
    for low in (0..top).rev() {
        if low % 8 == 0 || below(r, often) == 1 {
            planes.push(top - low);
            top = low;
        }
    }
    let layout =
        Layout::new(width, below(r, 2) == 1, symbol_bits, &planes).expect("planes within bytes");
    let classes = if below(r, 2) == 0 { 1 } else { 2 + below(r, 7) };
    model_of(layout, classes, r)
}

/// A model of elements that are cut like most floats, for which the kernels have loops of their
/// own. For one in eight, there is none with as many classes.
fn frequent_model(r: &mut Random) -> EntropyModel {
    let cut = &Loop::CUTS[below(r, Loop::CUTS.len())];
    let classes = cut.is_for(true) && (!cut.is_for(false) || below(r, 2) == 0);
    let other = below(r, 8) == 0;
    model_for(r, cut, classes != other)
}

fn model_for(r: &mut Random, cut: &Cut, classes: bool) -> EntropyModel {
    let planes: Vec<u8> = cut.planes.iter().map(|bits| bits.unsigned_abs()).collect();
    let symbol_bits = 8 * cut.width - planes.iter().sum::<u8>();
    let layout = Layout::new(cut.width, cut.rotated, symbol_bits, &planes).expect("a layout");
    let classes = if classes { 2 + below(r, 7) } else { 1 };
    model_of(layout, classes, r)
}

fn model_of(layout: Layout, classes: usize, r: &mut Random) -> EntropyModel {
    let symbol_bits = layout.symbol_bits();
    let (base, apart) = (r.next() as u16, below(r, 2) == 1);
    let value = |i: usize| {
        (if apart { r.next() as u16 } else { base.wrapping_add(i as u16) }) >> (16 - symbol_bits)
    };
    let mut values: Vec<u16> = (0..63).map(value).collect();
    values.truncate(1 + below(r, 63));
    values.sort_unstable();
    values.dedup();
    let block = LANES * if below(r, 8) == 0 { 1 << 20 } else { 1 + below(r, 8) };
    let columns = if classes == 1 { 0 } else { LANES + below(r, 3 * LANES) };
    let columns =
        (0..columns).map(|i| if i < classes { i } else { below(r, classes) } as u8).collect();
    let tables = (0..classes * (1 + below(r, 4)))
        .map(|_| {
            let (shape, likely) = (below(r, 40), below(r, values.len() + 1));
            let count = |i: usize| match shape % 4 {
                0 => 1,
                1 => 1 << (r.next() % (1 + shape as u64 / 2)),
                2 => 1 << ((i + likely) % (values.len() + 1) % 40),
                _ if i == likely => 1 << 20,
                _ => shape as u64 / 4,
            };
            FrequencyTable::from_counts(&(0..=values.len()).map(count).collect::<Vec<_>>())
        })
        .collect();
    EntropyModel::new(layout, values, block, columns, tables).expect("within all bounds")
}

/// A mode of [`elements`] in which a plane is stored, and one in which it is zero.
const NOISE: u8 = 3;
const ZERO: u8 = 0;

/// Elements distributed as in the tables, with planes of noise, of a constant, or of mostly zero
/// blocks.
fn elements(r: &mut Random, model: &EntropyModel, count: usize) -> Vec<u8> {
    let layout = model.layout();
    let width = usize::from(layout.width());
    let constant = below(r, 16) == 0;
    let mut modes: Vec<u8> = layout.planes().iter().map(|_| r.next() as u8).collect();
    if below(r, 4) > 0 {
        // What a loop expects, if there is one for the layout.
        let cut = Loop::of(layout).and_then(|own| Loop::CUTS.iter().find(|cut| cut.own == own));
        if let Some(cut) = cut {
            modes = cut.planes.iter().map(|&bits| if bits < 0 { ZERO } else { NOISE }).collect();
        }
    }
    let symbols = |t: &FrequencyTable| -> Vec<usize> {
        t.frequencies()
            .iter()
            .enumerate()
            .flat_map(|(s, &f)| std::iter::repeat_n(s, f.into()))
            .collect()
    };
    let draws: Vec<_> = model.tables().iter().map(symbols).collect();
    let choices: [usize; 61] = std::array::from_fn(|_| below(r, model.choices()));
    let mut out = Vec::with_capacity(count * width);
    for i in 0..count {
        let class =
            model.columns().get(i % model.columns().len().max(1)).map_or(0, |&c| usize::from(c));
        let draw = &draws[choices[i / model.block() % 61] * model.classes() + class];
        let symbol = draw[if constant { 0 } else { below(r, draw.len()) }];
        let noise = r.next() & ((1 << layout.symbol_bits()) - 1);
        let top = model.values().get(symbol).map_or(noise, |&v| v.into());
        let mut e = top << (8 * width - usize::from(layout.symbol_bits()));
        for (plane, mode) in layout.planes().iter().zip(&modes) {
            let value = match mode % 4 {
                0 => 0,
                1 => *mode,
                2 if !(i / model.block()).is_multiple_of(7) => 0,
                _ => r.next() as u8,
            };
            e |= u64::from(value & plane.mask()) << plane.low;
        }
        if layout.rotated() {
            e = e >> 1 | (e & 1) << (8 * width - 1);
        }
        out.extend_from_slice(&e.to_le_bytes()[..width]);
    }
    out
}
