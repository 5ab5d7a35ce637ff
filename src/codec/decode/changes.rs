//! What is added to the base's elements, a group at a time.

use super::element::Element;
use crate::codec::{
    model::{ALPHABET, Cut, ZERO},
    planes::GROUP,
};

/// A cut, for elements of one width.
pub(in crate::codec) struct CutOf<E> {
    pub raw_bits: u8,
    /// Whether values are listed. If not, they are symbols less [`ZERO`].
    pub listed: bool,
    /// By symbol: the difference without raw bits.
    pub differences: [E; ALPHABET],
}

impl<E: Element> CutOf<E> {
    pub fn new(cut: &Cut) -> Self {
        let difference = |symbol| E::from_i64(cut.value(symbol as u8)).shl(cut.raw_bits);
        Self {
            raw_bits: cut.raw_bits,
            listed: cut.values.is_some(),
            differences: std::array::from_fn(difference),
        }
    }
}

/// The differences of a group of elements, save what is escaped. Raw bits are in up to `BYTES`
/// bytes.
pub(in crate::codec) struct Changes<'a, E, const BYTES: usize> {
    pub symbols: &'a [u8; GROUP],
    /// Elements of the base whose magnitude is below this are of the second class.
    pub threshold: E,
    /// A bit for each element of the second class.
    pub second: u64,
    /// By class.
    pub cuts: [&'a CutOf<E>; 2],
    /// The raw bits, by byte of the difference.
    pub raw: [[u8; GROUP]; BYTES],
}

impl<E: Element, const BYTES: usize> Changes<'_, E, BYTES> {
    /// Adds the differences to the elements in `out`, in a way that needs no instruction set.
    #[inline(always)]
    pub fn add_to(&self, out: &mut [u8]) {
        if self.cuts.iter().any(|cut| cut.listed) {
            let all = self.cuts.map(|cut| &cut.differences);
            // The mask changes nothing but saves a bounds check.
            self.add_by(out, |symbol| all.map(|all| all[usize::from(symbol) & (ALPHABET - 1)]));
        } else {
            let bits = self.cuts.map(|cut| cut.raw_bits);
            self.add_by(out, |symbol| {
                let unit = E::from_i64(i64::from(symbol as i8 - ZERO as i8));
                bits.map(|bits| unit.shl(bits))
            });
        }
    }

    /// The same by the differences without raw bits, which `of` gives for a symbol in each class.
    #[inline(always)]
    fn add_by(&self, out: &mut [u8], of: impl Fn(u8) -> [E; 2]) {
        let mut elements = [E::ZERO; GROUP];
        E::read_all(out, &mut elements);
        for (i, (element, &symbol)) in elements.iter_mut().zip(self.symbols).enumerate() {
            let [first, second] = of(symbol);
            let in_second = element.magnitude_below(self.threshold);
            let mut difference = if in_second { second } else { first };
            for (j, raw) in self.raw.iter().enumerate().take(E::BYTES) {
                difference = difference.with_byte(j, raw[i]);
            }
            *element = element.wrapping_add(difference);
        }
        E::write_all(&elements, out);
    }
}

/// [`Kernel::classes16`](super::Kernel::classes16) for any width, in a way that needs no
/// instruction set.
#[inline(always)]
pub(super) fn classes<E: Element>(base: &[u8], threshold: E, classes: &mut [u8; GROUP]) -> u64 {
    let mut elements = [E::ZERO; GROUP];
    E::read_all(base, &mut elements);
    for (class, base) in classes.iter_mut().zip(elements) {
        *class = base.magnitude_below(threshold).into();
    }
    let mut bits = 0;
    for (i, eight) in classes.as_chunks::<8>().0.iter().enumerate() {
        // Gathers the lowest bits of eight bytes in the top byte.
        let eight = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits |= eight << (8 * i);
    }
    bits
}
