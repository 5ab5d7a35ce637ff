//! What the chunks of a tensor share: how elements are cut into planes, and the planes' frequency tables.
//!
//! One type serves both sides; its wire form is a record of the archive's index.

use super::{
    PROB_BITS,
    planes::{Layout, Plane},
};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::OnceLock;

/// The frequencies of a table add up to this.
pub const TOTAL: u32 = 1 << PROB_BITS;
/// A table holds at most this many symbols.
pub const MAX_SYMBOLS: usize = 256;
/// A plane has at most this many tables.
pub const MAX_TABLES: usize = 4;
/// Where a plane has several tables, this many neighbouring elements share one.
pub const BLOCK: usize = 512;

/// A table's entry for one of the [`TOTAL`] slots, packed: symbol in bits 0–7, the slot's number among
/// those of its symbol in bits 8–19, frequency in bits 20–31.
pub type Slots = [u32; TOTAL as usize];

/// Which symbols own which slots: each bucket of slots belongs to at most two (the alias method, Walker 1974), so that
/// a decoder can find the symbol with tables small enough for registers. See `docs/FORMAT.md`, "Slots".
#[derive(Clone, Debug)]
pub struct Buckets {
    /// Slots of bucket `b` that belong to symbol `b`, from the first on.
    pub own: Vec<u16>,
    /// The symbol to which the others belong.
    pub other: Vec<u8>,
    /// How many slots that symbol has in its own and in earlier buckets.
    pub before: Vec<u16>,
}

impl Buckets {
    fn new(freqs: &[u16]) -> Self {
        let count = if freqs.len() <= 128 { 128 } else { MAX_SYMBOLS };
        let size = (TOTAL as usize / count) as u16;
        let mut own: Vec<u16> = freqs.to_vec();
        own.resize(count, 0);
        let mut other: Vec<u8> = (0..count).map(|b| b as u8).collect();
        let (mut small, mut large): (VecDeque<usize>, VecDeque<usize>) =
            (0..count).partition(|&b| own[b] < size);
        // What a small symbol leaves of its bucket goes to the first large one, until that is small itself.
        while let (Some(s), Some(&l)) = (small.pop_front(), large.front()) {
            other[s] = l as u8;
            own[l] -= size - own[s];
            if own[l] < size {
                large.pop_front();
                small.push_back(l);
            }
        }
        let mut next = own.clone();
        let before = (0..count)
            .map(|b| {
                let owner = usize::from(other[b]);
                let before = next[owner];
                next[owner] += size - own[b];
                before
            })
            .collect();
        Self { own, other, before }
    }

    /// The symbol of `slot`, and the slot's number among those of its symbol.
    fn symbol(&self, slot: usize) -> (u8, u16) {
        let size = TOTAL as usize / self.own.len();
        let (bucket, place) = (slot / size, (slot % size) as u16);
        match place.checked_sub(self.own[bucket]) {
            None => (bucket as u8, place),
            Some(beyond) => (self.other[bucket], self.before[bucket] + beyond),
        }
    }
}

/// The frequencies of a plane's symbols.
///
/// Symbol 0 stands for the value 0, symbol `i > 0` for `base + i`: a window of values that needs not start
/// at zero but always reaches it, since exact zeros are common and far below all other exponents.
#[derive(Clone, Debug)]
pub struct Table {
    base: u16,
    freqs: Vec<u16>,
    decoder: OnceLock<Box<DecodeTable>>,
}

/// A table in the forms that decoders use.
#[derive(Clone, Debug)]
pub struct DecodeTable {
    /// By slot.
    pub slots: Slots,
    /// By bucket; of 128 buckets only.
    pub registers: Option<Registers>,
}

/// What the 128-bucket decoder keeps in registers: 16-bit numbers as two tables of bytes, low and high.
#[derive(Clone, Debug)]
pub struct Registers {
    /// [`Buckets::own`].
    pub own: [u8; 128],
    /// [`Buckets::other`].
    pub other: [u8; 128],
    /// [`Buckets::before`] minus [`Buckets::own`], modulo 2^16.
    pub shift: [[u8; 128]; 2],
    /// Frequencies by symbol.
    pub freqs: [[u8; 128]; 2],
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.base == other.base && self.freqs == other.freqs
    }
}

impl Table {
    /// Tables for values counted in `counts` (indexed by value): one, or one for each of `classes`, whose counts cover
    /// the same values. `None` where fewer than two values occur or where they do not fit into a window of
    /// [`MAX_SYMBOLS`].
    pub fn from_counts(counts: &[u64], classes: &[Vec<u64>]) -> Option<Vec<Self>> {
        let first = counts.iter().skip(1).position(|&c| c > 0)? + 1;
        let last = counts.iter().rposition(|&c| c > 0)?;
        if !Self::has_room(first, last) {
            return None;
        }
        let base = if last < MAX_SYMBOLS { 0 } else { first - 1 };
        let table = |counts: &[u64]| {
            let mut window: Vec<u64> = counts[base..=last].to_vec();
            window[0] = counts[0];
            Some(Self { base: base as u16, freqs: normalise(&window)?, decoder: OnceLock::new() })
        };
        if classes.is_empty() {
            Some(vec![table(counts)?])
        } else {
            classes.iter().map(|c| table(c)).collect()
        }
    }

    /// Whether a table can have all values from `first`, which is not 0, to `last`.
    pub fn has_room(first: usize, last: usize) -> bool {
        last < MAX_SYMBOLS || last + 1 - first < MAX_SYMBOLS
    }

    /// The value that symbol 1 exceeds by one.
    pub fn base(&self) -> u16 {
        self.base
    }

    /// Frequencies by symbol.
    pub fn freqs(&self) -> &[u16] {
        &self.freqs
    }

    /// Which slots belong to which symbol.
    pub fn buckets(&self) -> Buckets {
        Buckets::new(&self.freqs)
    }

    /// For the `i`-th slot of each symbol, symbols in order: its number.
    pub fn slot_numbers(&self) -> Box<[u16; TOTAL as usize]> {
        let buckets = self.buckets();
        let starts: Vec<usize> = self
            .freqs
            .iter()
            .scan(0, |next, &f| {
                let start = *next;
                *next += usize::from(f);
                Some(start)
            })
            .collect();
        let mut numbers = Box::new([0; TOTAL as usize]);
        for slot in 0..TOTAL as usize {
            let (symbol, i) = buckets.symbol(slot);
            numbers[starts[usize::from(symbol)] + usize::from(i)] = slot as u16;
        }
        numbers
    }

    /// The decoders' tables, made on first use.
    pub fn decoder(&self) -> &DecodeTable {
        self.decoder.get_or_init(|| {
            let buckets = self.buckets();
            let slots = std::array::from_fn(|slot| {
                let (symbol, i) = buckets.symbol(slot);
                u32::from(symbol) | u32::from(i) << 8 | u32::from(self.freqs[usize::from(symbol)]) << 20
            });
            let registers = (buckets.own.len() == 128).then(|| {
                let shift = |b: usize| buckets.before[b].wrapping_sub(buckets.own[b]).to_le_bytes();
                let freq = |s: usize| self.freqs.get(s).copied().unwrap_or(0).to_le_bytes();
                Registers {
                    own: std::array::from_fn(|b| buckets.own[b] as u8),
                    other: std::array::from_fn(|b| buckets.other[b]),
                    shift: [0, 1].map(|i| std::array::from_fn(|b| shift(b)[i])),
                    freqs: [0, 1].map(|i| std::array::from_fn(|s| freq(s)[i])),
                }
            });
            Box::new(DecodeTable { slots, registers })
        })
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.base.to_le_bytes());
        out.extend_from_slice(&(self.freqs.len() as u16).to_le_bytes());
        for &f in &self.freqs {
            let high = (f >> 7) as u8;
            if high == 0 {
                out.push(f as u8);
            } else {
                out.extend_from_slice(&[f as u8 | 0x80, high]);
            }
        }
    }

    fn read_from(input: &mut &[u8], bits: u8) -> Result<Self> {
        let base = u16::from_le_bytes(take(input)?);
        let count = usize::from(u16::from_le_bytes(take(input)?));
        if !(2..=MAX_SYMBOLS).contains(&count) || usize::from(base) + count > 1 << bits {
            return Err(Error::corrupt("a frequency table does not fit its plane"));
        }
        let mut freqs = Vec::with_capacity(count);
        for _ in 0..count {
            let [low] = take(input)?;
            let mut f = u16::from(low);
            if low & 0x80 != 0 {
                let [high] = take(input)?;
                f = f & 0x7f | u16::from(high) << 7;
            }
            freqs.push(f);
        }
        let sum: u64 = freqs.iter().map(|&f| u64::from(f)).sum();
        if sum != u64::from(TOTAL) || freqs.iter().any(|&f| u32::from(f) == TOTAL) {
            return Err(Error::corrupt("the frequencies of a table do not add up"));
        }
        Ok(Self { base, freqs, decoder: OnceLock::new() })
    }
}

/// Scale counts to frequencies that add up to [`TOTAL`], at least 1 where a count is not zero.
///
/// `None` where fewer than two symbols occur: such a plane is a constant.
fn normalise(counts: &[u64]) -> Option<Vec<u16>> {
    let total: u64 = counts.iter().sum();
    if counts.iter().filter(|&&c| c > 0).count() < 2 {
        return None;
    }
    let scale = f64::from(TOTAL) / total as f64;
    let mut freqs: Vec<u16> =
        counts.iter().map(|&c| if c == 0 { 0 } else { ((c as f64 * scale).round() as u16).max(1) }).collect();
    let mut sum: i64 = freqs.iter().map(|&f| i64::from(f)).sum();
    // Give or take single slots where that changes the coded size least.
    while sum != i64::from(TOTAL) {
        let grow = sum < i64::from(TOTAL);
        let delta = |i: usize| {
            let (c, f) = (counts[i] as f64, f64::from(freqs[i]));
            if grow { -c * ((f + 1.0) / f).log2() } else { c * (f / (f - 1.0)).log2() }
        };
        let best = (0..freqs.len())
            .filter(|&i| if grow { freqs[i] > 0 } else { freqs[i] > 1 })
            .min_by(|&a, &b| delta(a).total_cmp(&delta(b)))?;
        if grow {
            freqs[best] += 1;
            sum += 1;
        } else {
            freqs[best] -= 1;
            sum -= 1;
        }
    }
    Some(freqs)
}

/// Everything a chunk needs, besides its own bytes, to be decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    layout: Layout,
    tables: Vec<Vec<Table>>,
}

impl Model {
    /// A model of `layout` with up to [`MAX_TABLES`] tables for each plane.
    ///
    /// # Errors
    /// Invalid argument, where there are more, or not as many entries as planes.
    pub fn new(layout: Layout, tables: Vec<Vec<Table>>) -> Result<Self> {
        if layout.planes().len() != tables.len() || tables.iter().any(|t| t.len() > MAX_TABLES) {
            return Err(Error::invalid("a model needs an entry for each plane, of four tables at most"));
        }
        Ok(Self { layout, tables })
    }

    /// How elements are cut.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The tables by plane. Those of one plane have the same window.
    pub fn tables(&self) -> &[Vec<Table>] {
        &self.tables
    }

    /// Append the wire form (`docs/FORMAT.md`, "Model").
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[
            self.layout.width(),
            u8::from(self.layout.rotated()),
            self.tables.len() as u8,
            0,
        ]);
        for (plane, tables) in self.layout.planes().iter().zip(&self.tables) {
            out.extend_from_slice(&[plane.bits, tables.len() as u8]);
            tables.iter().for_each(|t| t.write_to(out));
        }
    }

    /// Read one wire form and nothing behind it.
    ///
    /// # Errors
    /// Corruption, where anything is out of its bounds.
    pub fn read_from(mut input: &[u8]) -> Result<Self> {
        let input = &mut input;
        let [width, rotated, count, zero] = take(input)?;
        if rotated > 1 || zero != 0 {
            return Err(Error::corrupt("a model has unknown flags"));
        }
        let mut low = u32::from(width) * 8;
        let mut planes = Vec::with_capacity(usize::from(count));
        let mut tables = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let [bits, coded] = take(input)?;
            low = low
                .checked_sub(u32::from(bits))
                .ok_or_else(|| Error::corrupt("a model's planes are wider than its elements"))?;
            planes.push(Plane { low: low as u8, bits });
            if usize::from(coded) > MAX_TABLES || !(1..=16).contains(&bits) {
                return Err(Error::corrupt("a plane has more bits or tables than it may"));
            }
            let of_plane = (0..coded).map(|_| Table::read_from(input, bits)).collect::<Result<Vec<_>>>()?;
            if of_plane.iter().any(|t| (t.base, t.freqs.len()) != (of_plane[0].base, of_plane[0].freqs.len()))
            {
                return Err(Error::corrupt("the tables of a plane differ in their symbols"));
            }
            tables.push(of_plane);
        }
        if !input.is_empty() {
            return Err(Error::corrupt("a model has trailing bytes"));
        }
        Ok(Self { layout: Layout::new(width, rotated == 1, planes)?, tables })
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = input.split_first_chunk().ok_or_else(|| Error::corrupt("a model ends too early"))?;
    *input = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_always_add_up_and_cover_every_symbol_that_occurs() {
        for counts in [
            vec![1u64, 1],
            vec![1, 1_000_000_000],
            (0..256).map(|i| u64::from(i % 3 == 0)).collect(),
            (0..256).map(|i| 1u64 << (i / 8)).collect(),
            (0..256).map(|i| if i == 7 { u32::MAX.into() } else { 1 }).collect(),
        ] {
            let freqs = normalise(&counts).expect("two symbols");
            assert_eq!(freqs.iter().map(|&f| u32::from(f)).sum::<u32>(), TOTAL);
            assert!(counts.iter().zip(&freqs).all(|(&c, &f)| (c > 0) == (f > 0) && u32::from(f) < TOTAL));
        }
        assert!(normalise(&[0, 9]).is_none());
    }

    #[test]
    fn every_symbol_owns_as_many_slots_as_its_frequency_numbered_from_zero() {
        for counts in [
            vec![1u64, 1],
            vec![1, 1_000_000],
            (0..110).map(|i| 1 << (i / 4)).collect(),
            (0..128).map(|_| 7).collect(),
            (0..129).map(|i| i * i).collect(),
            (0..256).map(|i| 256 - i).collect(),
        ] {
            let freqs = normalise(&counts).expect("two symbols");
            let buckets = Buckets::new(&freqs);
            let mut seen: Vec<Vec<u16>> = vec![Vec::new(); freqs.len()];
            for slot in 0..TOTAL as usize {
                let (symbol, i) = buckets.symbol(slot);
                seen[usize::from(symbol)].push(i);
            }
            for (mut numbers, freq) in seen.into_iter().zip(freqs) {
                numbers.sort_unstable();
                assert_eq!(numbers, (0..freq).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_model_is_its_wire_form() {
        let mut counts = vec![0u64; 1024];
        for (i, c) in counts.iter_mut().enumerate().skip(430).take(110) {
            *c = i as u64 * 31 % 977;
        }
        counts[0] = 5;
        let classes = [counts.clone(), counts.iter().map(|&c| c.min(9)).collect()];
        let tables = Table::from_counts(&counts, &classes).expect("fits");
        let layout =
            Layout::new(2, true, vec![Plane { low: 6, bits: 10 }, Plane { low: 0, bits: 6 }]).expect("valid");
        let model = Model::new(layout, vec![tables, Vec::new()]).expect("valid");
        let mut wire = Vec::new();
        model.write_to(&mut wire);
        assert_eq!(Model::read_from(&wire).expect("reads"), model);
        for n in 0..wire.len() {
            assert!(Model::read_from(&wire[..n]).is_err(), "{n} bytes of a model were enough");
        }
        wire.push(0);
        assert!(Model::read_from(&wire).is_err(), "a trailing byte was accepted");
    }
}
