//! Elements as bit planes: how each type is cut, and how a plane that is not coded is packed into bytes.

use crate::error::{Error, Result};

/// Values that are packed together.
pub const GROUP: usize = 64;

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
    /// Integers and packed formats of `width` bytes (1, 2, 4 or 8).
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
}

/// Some neighbouring bits of every element, all within one of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Its lowest bit in the (rotated) element.
    pub low: u8,
    /// How many bits, 1–8.
    pub bits: u8,
}

impl Plane {
    /// All ones, `bits` of them.
    pub fn mask(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }
}

/// How elements are cut: a symbol of their top bits, and planes from there down to the lowest bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    width: u8,
    rotated: bool,
    symbol_bits: u8,
    planes: Vec<Plane>,
}

impl Layout {
    /// A layout of elements of `width` bytes, which are rotated left by one bit first if `rotated`, with planes of
    /// `plane_bits`.
    ///
    /// # Errors
    /// Corruption, where symbol and planes do not cover every bit once, or a plane crosses a byte.
    pub fn new(width: u8, rotated: bool, symbol_bits: u8, plane_bits: &[u8]) -> Result<Self> {
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(Error::corrupt(format!("elements of {width} bytes are unknown")));
        }
        let mut low = (width * 8).wrapping_sub(symbol_bits);
        if !(1..=16).contains(&symbol_bits) || symbol_bits > width * 8 {
            return Err(Error::corrupt("a model's symbols do not fit its elements"));
        }
        let mut planes = Vec::with_capacity(plane_bits.len());
        for &bits in plane_bits {
            // A plane's top bit and its lowest are in the same byte.
            if !(1..=8).contains(&bits) || bits > low || (low - 1) / 8 != (low - bits) / 8 {
                return Err(Error::corrupt(
                    "a model's planes do not follow each other within bytes",
                ));
            }
            low -= bits;
            planes.push(Plane { low, bits });
        }
        if low != 0 {
            return Err(Error::corrupt("a model's planes do not cover its elements"));
        }
        Ok(Self { width, rotated, symbol_bits, planes })
    }

    /// A layout with as few planes as possible in which the `zeros` lowest bits, the sign aside, are planes of their own.
    pub fn cut(width: u8, rotated: bool, symbol_bits: u8, zeros: u8) -> Self {
        let rest = width * 8 - symbol_bits;
        // Bit 0 of a rotated element is its sign.
        let sign = u8::from(rotated);
        let zeros = zeros.min(rest.saturating_sub(sign));
        let edge =
            |at: u8| at.is_multiple_of(8) || (zeros > 0 && (at == sign || at == sign + zeros));
        let mut edges: Vec<u8> = (0..rest).filter(|&at| edge(at)).chain([rest]).collect();
        edges.reverse();
        let bits: Vec<u8> = edges.windows(2).map(|w| w[0] - w[1]).collect();
        Self::new(width, rotated, symbol_bits, &bits)
            .unwrap_or_else(|e| unreachable!("edges in order at every byte make a layout: {e}"))
    }

    /// Bytes of an element.
    pub fn width(&self) -> u8 {
        self.width
    }

    /// Whether elements are rotated left by one bit, so that the sign comes lowest.
    pub fn rotated(&self) -> bool {
        self.rotated
    }

    /// How many of an element's top bits its symbol stands for.
    pub fn symbol_bits(&self) -> u8 {
        self.symbol_bits
    }

    /// The planes, top first.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// The top bits of the elements of `chunk`, a whole number of them.
    pub fn tops(&self, chunk: &[u8], out: &mut Vec<u16>) {
        let low = self.width * 8 - self.symbol_bits;
        self.field(chunk, low, |v| v as u16, out);
    }

    /// The values of `plane` in the elements of `chunk`, a whole number of them.
    pub fn values(&self, plane: Plane, chunk: &[u8], out: &mut Vec<u8>) {
        let mask = plane.mask();
        self.field(chunk, plane.low, |v| v as u8 & mask, out);
    }

    fn field<T>(&self, chunk: &[u8], low: u8, value: impl Fn(u64) -> T, out: &mut Vec<T>) {
        out.clear();
        // The shifts in the element's own type: many at a time.
        macro_rules! field {
            ($t:ty) => {{
                let elements = chunk.as_chunks().0.iter().map(|&e| <$t>::from_le_bytes(e));
                if self.rotated {
                    out.extend(elements.map(|e| value((e.rotate_left(1) >> low).into())));
                } else {
                    out.extend(elements.map(|e| value((e >> low).into())));
                }
            }};
        }
        match self.width {
            1 => field!(u8),
            2 => field!(u16),
            4 => field!(u32),
            _ => field!(u64),
        }
    }
}

/// Bytes that a plane of `count` values of `bits` bits takes when stored as it is.
pub fn packed_len(bits: u8, count: usize) -> usize {
    count.div_ceil(GROUP) * GROUP * usize::from(bits) / 8
}

/// Store values of `bits` (1–8) bits: see [`unpack_group`].
pub fn pack(values: &[u8], bits: u8, out: &mut Vec<u8>) {
    for block in values.chunks(GROUP) {
        let mut round = [0u8; GROUP];
        round[..block.len()].copy_from_slice(block);
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
fn pack_part<const PER: usize, const STRIDE: usize>(
    round: &[u8; GROUP],
    shift: u8,
    out: &mut Vec<u8>,
) {
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
pub fn unpack_group(packed: &[u8], bits: u8, out: &mut [u8; GROUP]) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    if bits == 8 {
        out.copy_from_slice(&packed[..GROUP]);
        return;
    }
    // Eight values at a time: shifts move bits between the bytes of a word, and masks take them away again.
    let mut words = packed.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
    let mut next = || words.next().unwrap_or_default();
    let mut values = [0u64; GROUP / 8];
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
                let values: Vec<u8> = (0..count).map(|i| (i * 73 + i / 7) as u8 & mask).collect();
                let mut packed = Vec::new();
                pack(&values, bits, &mut packed);
                assert_eq!(packed.len(), packed_len(bits, count));
                let mut back = Vec::new();
                for block in packed.chunks_exact(8 * usize::from(bits)) {
                    let mut round = [0xaa; GROUP];
                    unpack_group(block, bits, &mut round);
                    back.extend(round);
                }
                assert_eq!(&back[..count], &values, "{bits} bits, {count} values");
            }
        }
    }

    #[test]
    fn every_cut_covers_the_element_within_its_bytes() {
        for width in [1u8, 2, 4, 8] {
            for symbol_bits in 1..=(width * 8).min(16) {
                for (zeros, rotated) in (0..width * 8).flat_map(|z| [(z, false), (z, true)]) {
                    let l = Layout::cut(width, rotated, symbol_bits, zeros);
                    let bits: u8 = l.planes().iter().map(|p| p.bits).sum();
                    assert_eq!(bits + symbol_bits, width * 8);
                }
            }
        }
        assert!(Layout::new(4, true, 10, &[7, 8, 7]).is_err(), "a plane crosses a byte");
        assert!(Layout::new(4, true, 10, &[6, 8]).is_err(), "bits are left over");
        assert!(Layout::new(1, false, 8, &[8; 32]).is_err(), "planes below the lowest bit");
        assert!(Layout::new(2, true, 17, &[]).is_err() && Layout::new(1, false, 9, &[]).is_err());
    }

    #[test]
    fn zero_bits_have_planes_of_their_own() {
        let bits = |l: Layout| l.planes().iter().map(|p| (p.low, p.bits)).collect::<Vec<_>>();
        // Rotated, bit 0 is the sign; thirteen zero bits come above it.
        assert_eq!(bits(Layout::cut(4, true, 10, 13)), [(16, 6), (14, 2), (8, 6), (1, 7), (0, 1)]);
        assert_eq!(bits(Layout::cut(4, false, 10, 13)), [(16, 6), (13, 3), (8, 5), (0, 8)]);
        assert_eq!(bits(Layout::cut(4, true, 10, 0)), [(16, 6), (8, 8), (0, 8)]);
    }

    #[test]
    fn rotation_moves_the_sign_to_the_lowest_bit() {
        for (width, chunk) in [(2, &[1u8, 0x80][..]), (8, &[0, 0, 0, 0, 0, 0, 0, 0x80])] {
            let layout = Layout::cut(width, true, 10, 0);
            let mut values = Vec::new();
            layout.values(*layout.planes().last().expect("has planes"), chunk, &mut values);
            assert_eq!(values[0] & 1, 1);
            let mut tops = Vec::new();
            layout.tops(chunk, &mut tops);
            assert_eq!(tops, [0]);
        }
    }
}
