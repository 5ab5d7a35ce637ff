//! The most frequent layouts of elements, for which the kernels have loops of their own: `enum
//! Loop` in `parse.cuh`.

use crate::codec::planes::Layout;

/// A loop of the kernels. The symbols hold the exponent and two bits of the mantissa, or, where
/// they hold the sign, one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loop {
    /// BF16.
    Bf16 = 1,
    /// BF16, with the sign in the symbol.
    Bf16Signed,
    /// F16.
    F16,
    /// F16, with the sign in the symbol.
    F16Signed,
    /// F32.
    F32,
    /// F32, with the sign in the symbol.
    F32Signed,
    /// F32 that was widened from F16.
    F32OfF16,
    /// The same, with the sign in the symbol.
    F32OfF16Signed,
    /// F32 that was widened from BF16.
    F32OfBf16,
    /// E4M3.
    F8E4M3,
    /// E4M3, with the sign in the symbol.
    F8E4M3Signed,
    /// E5M2.
    F8E5M2,
    /// E5M2, with the sign in the symbol.
    F8E5M2Signed,
}

/// How the elements are cut that a loop is for.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The loop.
    pub own: Loop,
    /// Bytes of an element.
    pub width: u8,
    /// Whether elements are rotated.
    pub rotated: bool,
    /// The bits of each plane; negative if the loop needs the plane to be zero in the whole chunk.
    /// All others must be stored in full.
    pub planes: &'static [i8],
}

impl Cut {
    /// Whether there is a loop for models with classes of columns, or for those without.
    pub fn is_for(&self, classes: bool) -> bool {
        if self.rotated { !classes || self.width < 4 } else { classes }
    }
}

const fn cut(own: Loop, width: u8, rotated: bool, planes: &'static [i8]) -> Cut {
    Cut { own, width, rotated, planes }
}

impl Loop {
    /// What the loops are for.
    pub const CUTS: &'static [Cut] = &[
        cut(Self::Bf16, 2, true, &[6]),
        cut(Self::Bf16Signed, 2, false, &[6]),
        cut(Self::F16, 2, true, &[1, 8]),
        cut(Self::F16Signed, 2, false, &[1, 8]),
        cut(Self::F32, 4, true, &[6, 8, 8]),
        cut(Self::F32Signed, 4, false, &[6, 8, 8]),
        cut(Self::F32OfF16, 4, true, &[6, 2, -6, -7, 1]),
        cut(Self::F32OfF16Signed, 4, false, &[6, 3, -5, -8]),
        cut(Self::F32OfBf16, 4, true, &[5, -1, -8, -7, 1]),
        cut(Self::F8E4M3, 1, true, &[2]),
        cut(Self::F8E4M3Signed, 1, false, &[2]),
        cut(Self::F8E5M2, 1, true, &[1]),
        cut(Self::F8E5M2Signed, 1, false, &[1]),
    ];

    /// The loop for elements that are cut like these.
    pub fn of(layout: &Layout) -> Option<Self> {
        let fits = |cut: &&Cut| {
            (cut.width, cut.rotated) == (layout.width(), layout.rotated())
                && layout
                    .planes()
                    .iter()
                    .map(|p| p.bits)
                    .eq(cut.planes.iter().map(|b| b.unsigned_abs()))
        };
        Self::CUTS.iter().find(fits).map(|cut| cut.own)
    }

    /// The loop with this number.
    pub(super) fn numbered(number: u32) -> Option<Self> {
        Self::CUTS.iter().map(|cut| cut.own).find(|&own| own as u32 == number)
    }
}
