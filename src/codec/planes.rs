//! Elements as bit planes: how each type is cut, and how a plane that is not coded is packed into bytes.

use super::ROUND;
use crate::error::{Error, Result};

/// What a tensor's elements are, as far as their bits matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementKind {
    /// Sign, exponent, mantissa, from the top; `width` bytes, little-endian.
    Float {
        /// Bytes of an element: 2, 4 or 8.
        width: u8,
        /// Exponent bits.
        exponent: u8,
    },
    /// Anything else: each of the element's `width` bytes (1, 2, 4 or 8) is a plane.
    Bytes {
        /// Bytes of an element.
        width: u8,
    },
}

impl ElementKind {
    /// Bytes of one element.
    pub fn width(self) -> usize {
        match self {
            Self::Float { width, .. } | Self::Bytes { width } => width.into(),
        }
    }

    /// Mantissa bits that best join the exponent in the symbol.
    ///
    /// Two come within 0.04 points of coding the whole mantissa conditionally. A half-precision symbol takes
    /// three, which fills a byte and leaves a byte.
    pub fn symbol_mantissa(self) -> u8 {
        match self {
            Self::Float { exponent: 5, .. } => 3,
            Self::Float { .. } => 2,
            Self::Bytes { .. } => 0,
        }
    }

    /// How elements of this kind are cut, with `top` mantissa bits in the symbol, when the lowest `zeros` mantissa
    /// bits of all of them are zero, as in a float that was widened from a narrower one.
    pub fn layout(self, zeros: u8, top: u8) -> Layout {
        let (width, rotated, cuts) = match self {
            Self::Bytes { width } => (width, false, vec![8; width.into()]),
            Self::Float { width, exponent } => {
                let mantissa = width * 8 - 1 - exponent;
                let top = top.min(mantissa - zeros);
                let mut cuts = vec![exponent + top];
                if zeros == 0 {
                    bytes_from_below(mantissa - top + 1, &mut cuts);
                } else {
                    bytes_from_below(mantissa - zeros - top, &mut cuts);
                    bytes_from_below(zeros, &mut cuts);
                    cuts.push(1); // the sign
                }
                (width, true, cuts)
            }
        };
        let mut low = width * 8;
        let planes = cuts
            .into_iter()
            .map(|bits| {
                low -= bits;
                Plane { low, bits }
            })
            .collect();
        Layout { width, rotated, planes }
    }
}

/// Cut `bits` into as few planes as possible, the odd one on top.
fn bytes_from_below(bits: u8, cuts: &mut Vec<u8>) {
    if !bits.is_multiple_of(8) {
        cuts.push(bits % 8);
    }
    cuts.extend(std::iter::repeat_n(8, (bits / 8).into()));
}

/// Some neighbouring bits of every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Its lowest bit in the (rotated) element.
    pub low: u8,
    /// How many bits: up to 16, up to 8 where the plane may be stored as it is.
    pub bits: u8,
}

impl Plane {
    /// All ones, `bits` of them.
    pub fn mask(self) -> u16 {
        ((1u32 << self.bits) - 1) as u16
    }
}

/// How elements are cut into planes, from the top bit down to the lowest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    width: u8,
    rotated: bool,
    planes: Vec<Plane>,
}

impl Layout {
    /// A layout of elements of `width` bytes, which are rotated left by one bit first if `rotated`.
    ///
    /// # Errors
    /// Corruption, where the planes do not cover every bit once, from the top down.
    pub fn new(width: u8, rotated: bool, planes: Vec<Plane>) -> Result<Self> {
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(Error::corrupt(format!("elements of {width} bytes are unknown")));
        }
        let mut low = u32::from(width) * 8;
        for plane in &planes {
            low = low.wrapping_sub(plane.bits.into());
            if !(1..=16).contains(&plane.bits) || low != u32::from(plane.low) {
                return Err(Error::corrupt("a model's planes do not follow each other"));
            }
        }
        if low != 0 {
            return Err(Error::corrupt("a model's planes do not cover its elements"));
        }
        Ok(Self { width, rotated, planes })
    }

    /// Bytes of an element.
    pub fn width(&self) -> u8 {
        self.width
    }

    /// Whether elements are rotated left by one bit, so that the sign comes lowest.
    pub fn rotated(&self) -> bool {
        self.rotated
    }

    /// The planes, top first.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// The values of `plane` in the elements of `chunk`, a whole number of them.
    pub fn values(&self, plane: Plane, chunk: &[u8], out: &mut Vec<u16>) {
        match self.width {
            1 => values::<1>(chunk, |e| e[0].rotate_left(self.rotated.into()).into(), plane, out),
            2 => values::<2>(
                chunk,
                |e| u16::from_le_bytes(e).rotate_left(self.rotated.into()).into(),
                plane,
                out,
            ),
            4 => values::<4>(
                chunk,
                |e| u32::from_le_bytes(e).rotate_left(self.rotated.into()).into(),
                plane,
                out,
            ),
            _ => values::<8>(chunk, |e| u64::from_le_bytes(e).rotate_left(self.rotated.into()), plane, out),
        }
    }

    /// Every bit that is set in any of the elements of `chunk`, as `values` sees them.
    pub fn seen(&self, chunk: &[u8]) -> u64 {
        let mut wide = [0u8; 8];
        for e in chunk.chunks_exact(8) {
            wide.iter_mut().zip(e).for_each(|(w, b)| *w |= b);
        }
        let width = usize::from(self.width);
        let mut element = [0u8; 8];
        wide.chunks_exact(width).for_each(|w| element.iter_mut().zip(w).for_each(|(e, b)| *e |= b));
        let tail = chunk.chunks_exact(8).remainder().chunks_exact(width);
        tail.for_each(|t| element.iter_mut().zip(t).for_each(|(e, b)| *e |= b));
        let bits = u32::from(self.width) * 8;
        let x = u64::from_le_bytes(element);
        if self.rotated { (x << 1 | x >> (bits - 1)) & (u64::MAX >> (64 - bits)) } else { x }
    }
}

#[inline(always)]
fn values<const N: usize>(chunk: &[u8], element: impl Fn([u8; N]) -> u64, plane: Plane, out: &mut Vec<u16>) {
    out.clear();
    let mask = plane.mask();
    out.extend(chunk.as_chunks::<N>().0.iter().map(|&e| (element(e) >> plane.low) as u16 & mask));
}

/// Bytes that a plane of `count` values of `bits` bits takes when stored as it is.
pub fn packed_len(bits: u8, count: usize) -> usize {
    count.div_ceil(ROUND) * ROUND * usize::from(bits) / 8
}

/// Store values of `bits` (1–8) bits: see [`unpack_round`].
pub fn pack(values: &[u16], bits: u8, out: &mut Vec<u8>) {
    for block in values.chunks(ROUND) {
        let mut round = [0u8; ROUND];
        round.iter_mut().zip(block).for_each(|(r, &v)| *r = v as u8);
        let mut shift = 0;
        for part in parts(bits) {
            match part {
                8 => out.extend_from_slice(&round),
                4 => pack_part::<2, 32>(&round, shift, out),
                2 => pack_part::<4, 16>(&round, shift, out),
                _ => pack_part::<8, 8>(&round, shift, out),
            }
            shift += part;
        }
    }
}

/// The bits of a round from `shift` on, `PER` values to a byte, those of one byte `STRIDE` apart.
#[inline(always)]
fn pack_part<const PER: usize, const STRIDE: usize>(round: &[u8; ROUND], shift: u8, out: &mut Vec<u8>) {
    let bits = 8 / PER;
    let mask = (1u16 << bits).wrapping_sub(1) as u8;
    let mut bytes = [0u8; STRIDE];
    for i in 0..PER {
        for (j, byte) in bytes.iter_mut().enumerate() {
            *byte |= (round[i * STRIDE + j] >> shift & mask) << (i * bits);
        }
    }
    out.extend_from_slice(&bytes);
}

/// The powers of two that `bits` (1–8) is the sum of, greatest first: the widths that are packed apart.
fn parts(bits: u8) -> impl Iterator<Item = u8> {
    [8, 4, 2, 1].into_iter().filter(move |part| bits & part != 0)
}

/// Restore one round of values of `bits` (1–8) bits from its `8 * bits` packed bytes.
///
/// A round is cut into parts of 8, 4, 2 and 1 bits, the greatest holding the values' lowest bits. A part of
/// `p` bits is `8 * p` bytes, where byte `j` holds, lowest first, the values `j`, `j + 8p`, `j + 16p`, …; so
/// that a vector of bytes becomes vectors of neighbouring values with shifts and masks alone.
#[inline(always)]
pub fn unpack_round(packed: &[u8], bits: u8, out: &mut [u8; ROUND]) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    if bits == 8 {
        out.copy_from_slice(&packed[..ROUND]);
        return;
    }
    // Eight values at a time: shifts move bits between the bytes of a word, and masks take them away again.
    let mut words = packed.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
    let mut next = || words.next().unwrap_or_default();
    let mut values = [0u64; ROUND / 8];
    let mut shift = 0;
    if bits & 4 != 0 {
        for j in 0..4 {
            let word = next();
            values[j] = word & (ONES * 15);
            values[j + 4] = word >> 4 & (ONES * 15);
        }
        shift = 4;
    }
    if bits & 2 != 0 {
        for j in 0..2 {
            let word = next();
            for i in 0..4 {
                values[2 * i + j] |= (word >> (2 * i) & (ONES * 3)) << shift;
            }
        }
        shift += 2;
    }
    if bits & 1 != 0 {
        let word = next();
        for (i, value) in values.iter_mut().enumerate() {
            *value |= (word >> i & ONES) << shift;
        }
    }
    out.as_chunks_mut::<8>().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_come_back_at_every_width_and_length() {
        for bits in 1..=8u8 {
            for count in [1usize, 2, 31, 32, 63, 64, 65, 1000] {
                let mask = (1u16 << bits).wrapping_sub(1) as u8;
                let values: Vec<u16> = (0..count).map(|i| u16::from((i * 73 + i / 7) as u8 & mask)).collect();
                let mut packed = Vec::new();
                pack(&values, bits, &mut packed);
                assert_eq!(packed.len(), packed_len(bits, count));
                let mut back = Vec::new();
                for block in packed.chunks_exact(8 * usize::from(bits)) {
                    let mut round = [0xaa; ROUND];
                    unpack_round(block, bits, &mut round);
                    back.extend(round.map(u16::from));
                }
                assert_eq!(&back[..count], &values, "{bits} bits, {count} values");
            }
        }
    }

    #[test]
    fn every_kind_has_a_valid_layout_for_every_number_of_zero_bits() {
        for (width, exponent) in [(2, 5), (2, 8), (4, 8), (8, 11)] {
            let kind = ElementKind::Float { width, exponent };
            for (zeros, top) in (0..width * 8 - exponent).flat_map(|z| (0..4).map(move |t| (z, t))) {
                let l = kind.layout(zeros, top);
                assert_eq!(Layout::new(width, true, l.planes().to_vec()).expect("valid"), l);
                assert!(l.planes()[1..].iter().all(|p| p.bits <= 8));
            }
        }
    }

    #[test]
    fn rotation_moves_the_sign_to_the_lowest_bit() {
        for (width, exponent, chunk) in [(2, 8, &[1u8, 0x80][..]), (8, 11, &[0, 0, 0, 0, 0, 0, 0, 0x80])] {
            let layout = ElementKind::Float { width, exponent }.layout(0, 2);
            let last = layout.planes().len() - 1;
            let mut values = Vec::new();
            layout.values(layout.planes()[last], chunk, &mut values);
            assert_eq!(values[0] & 1, 1);
            assert_eq!(layout.seen(chunk) & 1, 1);
            layout.values(layout.planes()[0], chunk, &mut values);
            assert_eq!(values, [0]);
        }
    }
}
