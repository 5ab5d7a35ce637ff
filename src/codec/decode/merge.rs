//! Puts elements together from their symbol values and planes, while both are in the first-level
//! cache.

use super::{
    kernel::Kernel,
    parser::{Planes, Source},
};
use crate::codec::{
    planes::{GROUP, Layout, packed_len},
    wire::CARRIED,
};

/// Elements that are decoded and then merged at a time.
pub(super) const STEP: usize = 2048;
/// Elements of the last step at most. Allowing more than [`STEP`] ensures that the last step holds
/// everything that the states carry, even of a plane of one bit.
pub(super) const MAX_STEP: usize = 2 * STEP;

/// Merges elements step by step.
pub(super) struct Merge<'a> {
    layout: &'a Layout,
    /// By byte of the elements, lowest first: the values of the planes within it.
    bytes: Vec<[u8; MAX_STEP]>,
}

impl<'a> Merge<'a> {
    pub(super) fn new(layout: &'a Layout) -> Self {
        let used = layout.planes().first().map_or(0, |p| p.low / 8 + 1);
        Self { layout, bytes: vec![[0; MAX_STEP]; used.into()] }
    }

    /// Writes the elements from `first`, a multiple of [`STEP`], to all of `out`. Their top bits
    /// are the left-aligned symbol values `values`; the others come from `planes`. The last step
    /// gets the bytes that the states carry.
    #[inline(always)]
    pub(super) fn step<E: Element, K: Kernel>(
        &mut self,
        kernel: K,
        values: &[u16],
        planes: &Planes<'_>,
        first: usize,
        carried: Option<&[u8; CARRIED]>,
        out: &mut [u8],
    ) {
        let n = values.len();
        let mut above = self.bytes.len();
        for (i, (plane, source)) in self.layout.planes().iter().zip(&planes.sources).enumerate() {
            let byte = usize::from(plane.low / 8);
            let bytes = &mut self.bytes[byte];
            let shift = plane.low % 8;
            // Planes are in order from the top: the first of a byte replaces the previous step's.
            let keep = byte == above;
            above = byte;
            match source {
                Source::Constant(value) => {
                    let value = value << shift;
                    bytes[..n].iter_mut().for_each(|b| *b = if keep { *b | value } else { value });
                }
                Source::Packed(packed) => {
                    let packed = &packed[packed_len(plane.bits, first)..];
                    let bytes = &mut bytes[..n.next_multiple_of(GROUP)];
                    match carried.filter(|_| planes.carrier == Some(i)) {
                        None => kernel.unpack(packed, plane.bits, shift, keep, bytes),
                        Some(end) => {
                            kernel.unpack(&[packed, end].concat(), plane.bits, shift, keep, bytes);
                        }
                    }
                }
            }
        }
        let b = &self.bytes;
        let rotated = self.layout.rotated();
        match (b.as_slice(), rotated) {
            ([], _) => fuse::<E, 0>(values, [], rotated, out),
            ([a], true) => fuse::<E, 1>(values, [a], true, out),
            ([a], false) => fuse::<E, 1>(values, [a], false, out),
            ([a, b], _) => fuse::<E, 2>(values, [a, b], rotated, out),
            ([a, b, c], true) => fuse::<E, 3>(values, [a, b, c], true, out),
            ([a, b, c], false) => fuse::<E, 3>(values, [a, b, c], false, out),
            (bytes, _) => {
                // Elements of eight bytes; missing bytes are zero.
                let zero = [0; MAX_STEP];
                fuse::<E, 8>(
                    values,
                    std::array::from_fn(|i| bytes.get(i).unwrap_or(&zero)),
                    rotated,
                    out,
                );
            }
        }
    }
}

/// Merges symbol values with the `N` bytes below them.
#[inline(always)]
fn fuse<E: Element, const N: usize>(
    values: &[u16],
    bytes: [&[u8; MAX_STEP]; N],
    rotated: bool,
    out: &mut [u8],
) {
    let bytes = bytes.map(|b| &b[..values.len()]);
    for (i, (&value, out)) in values.iter().zip(out.chunks_exact_mut(E::BYTES)).enumerate() {
        let mut e = E::from_value(value);
        for (j, byte) in bytes.iter().enumerate().take(E::BYTES) {
            e = e.with_byte(j, byte[i]);
        }
        e.unrotate(rotated).write(out);
    }
}

/// An element as an unsigned integer of its width.
pub(super) trait Element: Copy {
    const BYTES: usize;
    const ZERO: Self;
    /// The element whose top 16 bits are `value` (its top 8 bits, if it is a byte).
    fn from_value(value: u16) -> Self;
    /// With the bits of `byte` ORed into byte `i`.
    fn with_byte(self, i: usize, byte: u8) -> Self;
    /// Rotated right by one bit if `rotated`, which undoes the rotation of the layout.
    fn unrotate(self, rotated: bool) -> Self;
    fn write(self, out: &mut [u8]);
    /// The element that `bytes` hold, which are as many.
    fn read(bytes: &[u8]) -> Self;
    /// Reads as many of `elements` as `bytes` hold.
    fn read_all(bytes: &[u8], elements: &mut [Self]);
    /// Writes as many of `elements` as `bytes` have room for.
    fn write_all(elements: &[Self], bytes: &mut [u8]);
    /// The lowest bits of `value`.
    fn from_u64(value: u64) -> Self;
    /// The lowest bits of `value`.
    fn from_i64(value: i64) -> Self;
    /// Shifted left by so many bits, fewer than it has.
    fn shl(self, bits: u8) -> Self;
    /// The sum without its carry.
    fn wrapping_add(self, other: Self) -> Self;
    /// Whether the element without its top bit is below `threshold`.
    fn magnitude_below(self, threshold: Self) -> bool;
    /// Replaces those bits of `out` that are set in `mask`.
    fn write_masked(self, mask: Self, out: &mut [u8]);
}

macro_rules! element {
    ($($t:ty),*) => {$(
        impl Element for $t {
            const BYTES: usize = size_of::<$t>();
            const ZERO: Self = 0;
            #[inline(always)]
            fn from_value(value: u16) -> Self {
                if Self::BITS < 16 {
                    (value >> 8) as $t
                } else {
                    (value as $t) << (Self::BITS.saturating_sub(16))
                }
            }
            #[inline(always)]
            fn with_byte(self, i: usize, byte: u8) -> Self {
                self | (byte as $t) << (8 * i)
            }
            #[inline(always)]
            fn unrotate(self, rotated: bool) -> Self {
                if rotated { self.rotate_right(1) } else { self }
            }
            #[inline(always)]
            fn write(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
            #[inline(always)]
            fn read(bytes: &[u8]) -> Self {
                bytes.first_chunk().map_or(0, |&bytes| Self::from_le_bytes(bytes))
            }
            #[inline(always)]
            fn read_all(bytes: &[u8], elements: &mut [Self]) {
                let bytes = bytes.as_chunks().0;
                elements.iter_mut().zip(bytes).for_each(|(e, b)| *e = Self::from_le_bytes(*b));
            }
            #[inline(always)]
            fn write_all(elements: &[Self], bytes: &mut [u8]) {
                let bytes = bytes.as_chunks_mut().0;
                bytes.iter_mut().zip(elements).for_each(|(b, e)| *b = e.to_le_bytes());
            }
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn from_i64(value: i64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn shl(self, bits: u8) -> Self {
                self << bits
            }
            #[inline(always)]
            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn magnitude_below(self, threshold: Self) -> bool {
                self & (Self::MAX >> 1) < threshold
            }
            fn write_masked(self, mask: Self, out: &mut [u8]) {
                let bytes = self.to_le_bytes().into_iter().zip(mask.to_le_bytes());
                out.iter_mut().zip(bytes).for_each(|(o, (b, mask))| *o = *o & !mask | b);
            }
        }
    )*};
}
element!(u8, u16, u32, u64);
