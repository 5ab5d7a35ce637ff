//! Elements as unsigned integers of their width.

/// An element as an unsigned integer of its width.
pub(in crate::codec) trait Element: Copy {
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
