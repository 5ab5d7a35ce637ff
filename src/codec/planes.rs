//! Elements as symbol values and bit planes: how each type is cut, and how a plane, which is not
//! entropy-coded, is packed into bytes.

use crate::error::{Error, Result};

/// Values of a plane that are packed together.
pub const GROUP: usize = 64;

/// The type of a tensor's elements, as far as their bits matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementKind {
    /// Little-endian floats: sign, exponent and mantissa, from the top bit.
    Float {
        /// Bytes of an element: 1, 2, 4 or 8.
        width: u8,
        /// Exponent bits.
        exponent: u8,
    },
    /// Integers and packed formats.
    Bytes {
        /// Bytes of an element: 1, 2, 4 or 8.
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

/// Some adjacent bits of every element, all within one of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// The plane's lowest bit in the (rotated) element.
    pub low: u8,
    /// The number of bits, 1–8.
    pub bits: u8,
}

impl Plane {
    /// The largest value, a mask of [`Self::bits`] ones.
    pub fn mask(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }
}

/// How elements are cut: a symbol value of their top bits, and planes from there down to the lowest
/// bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    width: u8,
    rotated: bool,
    symbol_bits: u8,
    planes: Vec<Plane>,
}

impl Layout {
    /// A layout of elements of `width` bytes. If `rotated`, they are rotated left by one bit first.
    /// `plane_bits` holds the number of bits of each plane, top first.
    ///
    /// # Errors
    /// Corruption if symbol value and planes do not cover every bit exactly once, or if a plane
    /// crosses a byte boundary.
    pub fn new(width: u8, rotated: bool, symbol_bits: u8, plane_bits: &[u8]) -> Result<Self> {
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(Error::corrupt(format!("elements of {width} bytes are unknown")));
        }
        let mut low = (width * 8).wrapping_sub(symbol_bits);
        if !(1..=16).contains(&symbol_bits) || symbol_bits > width * 8 {
            return Err(Error::corrupt("a model's symbol values do not fit its elements"));
        }
        let mut planes = Vec::with_capacity(plane_bits.len());
        for &bits in plane_bits {
            // A plane's top bit and its lowest bit are in the same byte.
            if !(1..=8).contains(&bits) || bits > low || (low - 1) / 8 != (low - bits) / 8 {
                return Err(Error::corrupt("a plane of a model crosses a byte boundary"));
            }
            low -= bits;
            planes.push(Plane { low, bits });
        }
        if low != 0 {
            return Err(Error::corrupt("a model's planes do not cover its elements"));
        }
        Ok(Self { width, rotated, symbol_bits, planes })
    }

    /// The layout with the fewest planes in which the `zeros` lowest bits, not counting the sign,
    /// have planes of their own.
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
            .unwrap_or_else(|e| unreachable!("sorted edges at every byte make a layout: {e}"))
    }

    /// Bytes of an element.
    pub fn width(&self) -> u8 {
        self.width
    }

    /// Whether elements are rotated left by one bit, which makes the sign the lowest bit.
    pub fn rotated(&self) -> bool {
        self.rotated
    }

    /// The number of top bits that make up an element's symbol value.
    pub fn symbol_bits(&self) -> u8 {
        self.symbol_bits
    }

    /// The planes, top first.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// Replaces `out` by the symbol values of the elements of `chunk`, a whole number of elements.
    #[inline(always)]
    pub fn symbol_values(&self, chunk: &[u8], out: &mut Vec<u16>) {
        let low = self.width * 8 - self.symbol_bits;
        self.field(chunk, low, |v| v as u16, out);
    }

    /// Replaces `out` by the values of `plane` in the elements of `chunk`, a whole number of
    /// elements.
    #[inline(always)]
    pub fn plane_values(&self, plane: Plane, chunk: &[u8], out: &mut Vec<u8>) {
        let mask = plane.mask();
        self.field(chunk, plane.low, |v| v as u8 & mask, out);
    }

    #[inline(always)]
    fn field<T>(&self, chunk: &[u8], low: u8, value: impl Fn(u64) -> T, out: &mut Vec<T>) {
        out.clear();
        // Shifting in the element's own type lets the loop be vectorised.
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

/// The planes of the lowest `bits` bits of an element, top first.
pub fn raw_planes(bits: u8) -> impl Iterator<Item = Plane> {
    (0..bits).step_by(8).rev().map(move |low| Plane { low, bits: (bits - low).min(8) })
}

/// Bytes that a plane of `count` values of `bits` bits takes when stored in full.
pub fn packed_len(bits: u8, count: usize) -> usize {
    count.div_ceil(GROUP) * GROUP * usize::from(bits) / 8
}

/// Appends packed values of `bits` (1–8) bits. See [`unpack_group`] for the format.
#[inline(always)]
pub fn pack(values: &[u8], bits: u8, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + packed_len(bits, values.len()), 0);
    let packed = out[start..].chunks_exact_mut(8 * usize::from(bits));
    let (groups, rest) = values.as_chunks::<GROUP>();
    let mut last = [0; GROUP];
    last[..rest.len()].copy_from_slice(rest);
    for (group, packed) in groups.iter().chain([&last]).zip(packed) {
        let (mut at, mut shift) = (0, 0);
        for part in parts(bits) {
            let packed = &mut packed[at..at + 8 * usize::from(part)];
            match part {
                8 => packed.copy_from_slice(group),
                4 => pack_part::<2, 32>(group, shift, packed),
                2 => pack_part::<4, 16>(group, shift, packed),
                _ => pack_part::<8, 8>(group, shift, packed),
            }
            at += packed.len();
            shift += part;
        }
    }
}

/// Packs the bits from `shift` of a group's values: `PER` values per byte, which are `STRIDE`
/// apart in the group.
#[inline(always)]
fn pack_part<const PER: usize, const STRIDE: usize>(
    group: &[u8; GROUP],
    shift: u8,
    out: &mut [u8],
) {
    let bits = 8 / PER;
    let mask = (1u16 << bits).wrapping_sub(1) as u8;
    let mut bytes = [0u8; STRIDE];
    for i in 0..PER {
        for (j, byte) in bytes.iter_mut().enumerate() {
            *byte |= (group[i * STRIDE + j] >> shift & mask) << (i * bits);
        }
    }
    out.copy_from_slice(&bytes);
}

/// The powers of two that add up to `bits` (1–8), largest first: the widths of the parts that are
/// packed separately.
fn parts(bits: u8) -> impl Iterator<Item = u8> {
    [8, 4, 2, 1].into_iter().filter(move |part| bits & part != 0)
}

/// Unpacks one group of values of `bits` (1–8) bits from its `8 * bits` packed bytes.
///
/// A group is cut into parts of 8, 4, 2 and 1 bits; the largest holds the lowest bits of the
/// values. A part of `p` bits takes `8 * p` bytes. Its byte `j` holds, lowest bits first, the
/// values `j`, `j + 8p`, `j + 16p`, …, so that shifts and masks alone turn a vector of bytes into
/// vectors of adjacent values.
#[inline(always)]
pub fn unpack_group(packed: &[u8], bits: u8, out: &mut [u8; GROUP]) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    if bits == 8 {
        out.copy_from_slice(&packed[..GROUP]);
        return;
    }
    // Eight values at a time. The masks remove the bits that shifts move across bytes of a word.
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
                    let mut group = [0xaa; GROUP];
                    unpack_group(block, bits, &mut group);
                    back.extend(group);
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
        assert!(Layout::new(4, true, 10, &[7, 8, 7]).is_err(), "a plane crosses a byte boundary");
        assert!(Layout::new(4, true, 10, &[6, 8]).is_err(), "bits without a plane");
        assert!(Layout::new(1, false, 8, &[8; 32]).is_err(), "planes below the lowest bit");
        assert!(Layout::new(2, true, 17, &[]).is_err() && Layout::new(1, false, 9, &[]).is_err());
    }

    #[test]
    fn zero_bits_get_planes_of_their_own() {
        let bits = |l: Layout| l.planes().iter().map(|p| (p.low, p.bits)).collect::<Vec<_>>();
        // In rotated elements, bit 0 is the sign and the thirteen zero bits are above it.
        assert_eq!(bits(Layout::cut(4, true, 10, 13)), [(16, 6), (14, 2), (8, 6), (1, 7), (0, 1)]);
        assert_eq!(bits(Layout::cut(4, false, 10, 13)), [(16, 6), (13, 3), (8, 5), (0, 8)]);
        assert_eq!(bits(Layout::cut(4, true, 10, 0)), [(16, 6), (8, 8), (0, 8)]);
    }

    #[test]
    fn raw_planes_cover_the_lowest_bits_top_first() {
        let planes = |bits| raw_planes(bits).map(|p| (p.low, p.bits)).collect::<Vec<_>>();
        assert_eq!(planes(0), []);
        assert_eq!(planes(8), [(0, 8)]);
        assert_eq!(planes(11), [(8, 3), (0, 8)]);
        assert_eq!(planes(26), [(24, 2), (16, 8), (8, 8), (0, 8)]);
    }

    #[test]
    fn rotation_moves_the_sign_to_the_lowest_bit() {
        for (width, chunk) in [(2, &[1u8, 0x80][..]), (8, &[0, 0, 0, 0, 0, 0, 0, 0x80])] {
            let layout = Layout::cut(width, true, 10, 0);
            let mut values = Vec::new();
            layout.plane_values(*layout.planes().last().expect("has planes"), chunk, &mut values);
            assert_eq!(values[0] & 1, 1);
            let mut symbol_values = Vec::new();
            layout.symbol_values(chunk, &mut symbol_values);
            assert_eq!(symbol_values, [0]);
        }
    }
}
