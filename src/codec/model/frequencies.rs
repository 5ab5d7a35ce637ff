//! Frequency tables: symbol counts scaled to a power of two, and their stored form.

use crate::{
    codec::{PROB_BITS, bytes::take_array},
    error::{Error, Result},
};

/// The frequencies of a table add up to this.
pub const TOTAL: u32 = 1 << PROB_BITS;
/// The largest alphabet: symbols of a table, the escape included.
pub const ALPHABET: usize = 64;

/// Frequencies by symbol: those of the symbol values in order, then the escape's, then zeros.
pub type Frequencies = [u16; ALPHABET];

/// The frequencies of a model's symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrequencyTable {
    frequencies: Frequencies,
}

impl FrequencyTable {
    /// A table of the symbols counted in `counts`. Every symbol gets a slot, seen or not.
    pub fn from_counts(counts: &[u64]) -> Self {
        Self { frequencies: normalise(counts) }
    }

    /// Frequencies by symbol.
    pub fn frequencies(&self) -> &Frequencies {
        &self.frequencies
    }

    /// Appends the frequencies of the first `symbols` symbols, one or two bytes each.
    pub(super) fn write_to(&self, symbols: usize, out: &mut Vec<u8>) {
        for &f in &self.frequencies[..symbols] {
            let high = (f >> 7) as u8;
            if high == 0 {
                out.push(f as u8);
            } else {
                out.extend_from_slice(&[f as u8 | 0x80, high]);
            }
        }
    }

    /// Reads the frequencies of `symbols` symbols.
    pub(super) fn read_from(input: &mut &[u8], symbols: usize) -> Result<Self> {
        let mut byte = || {
            let [byte] =
                *take_array(input).ok_or_else(|| Error::corrupt("a model ends too early"))?;
            Ok::<u8, Error>(byte)
        };
        let mut frequencies = [0; ALPHABET];
        for frequency in &mut frequencies[..symbols] {
            let low = byte()?;
            *frequency = low.into();
            if low & 0x80 != 0 {
                *frequency = u16::from(low & 0x7f) | u16::from(byte()?) << 7;
            }
        }
        let sum: u32 = frequencies.iter().map(|&f| u32::from(f)).sum();
        if sum != TOTAL || frequencies.iter().any(|&f| u32::from(f) == TOTAL) {
            return Err(Error::corrupt("the frequencies of a table do not add up"));
        }
        Ok(Self { frequencies })
    }
}

/// Scales the counts of at least two symbols to frequencies that add up to [`TOTAL`], each at least
/// 1.
fn normalise(counts: &[u64]) -> Frequencies {
    let total: u64 = counts.iter().sum();
    let scale = f64::from(TOTAL) / total.max(1) as f64;
    let mut freqs = [0; ALPHABET];
    for (f, &c) in freqs.iter_mut().zip(counts) {
        *f = ((c as f64 * scale).round() as u16).clamp(1, TOTAL as u16 - 1);
    }
    let mut sum: i64 = freqs.iter().map(|&f| i64::from(f)).sum();
    // Add or take single slots where that changes the coded size least.
    while sum != i64::from(TOTAL) {
        let grow = sum < i64::from(TOTAL);
        let delta = |i: usize| {
            let (c, f) = (counts[i] as f64, f64::from(freqs[i]));
            if grow { -c * ((f + 1.0) / f).log2() } else { c * (f / (f - 1.0)).log2() }
        };
        let best = (0..counts.len())
            .filter(|&i| grow || freqs[i] > 1)
            .min_by(|&a, &b| delta(a).total_cmp(&delta(b)));
        let Some(best) = best else {
            unreachable!("64 symbols cannot fill 2^14 slots with one each")
        };
        if grow {
            freqs[best] += 1;
            sum += 1;
        } else {
            freqs[best] -= 1;
            sum -= 1;
        }
    }
    freqs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_always_add_up_and_cover_every_symbol() {
        for counts in [
            vec![1u64, 1],
            vec![0, 1_000_000_000],
            vec![0, 0],
            (0..64).map(|i| u64::from(i % 3 == 0)).collect(),
            (0..64).map(|i| 1u64 << (i / 2)).collect(),
            (0..64).map(|i| if i == 7 { u32::MAX.into() } else { 1 }).collect(),
        ] {
            let freqs = normalise(&counts);
            assert_eq!(freqs.iter().map(|&f| u32::from(f)).sum::<u32>(), TOTAL);
            assert!(freqs[..counts.len()].iter().all(|&f| f > 0 && u32::from(f) < TOTAL));
            assert!(freqs[counts.len()..].iter().all(|&f| f == 0));
        }
    }
}
