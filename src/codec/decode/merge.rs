//! Puts elements together from their symbol values and planes, while both are in the first-level
//! cache.

use super::{
    element::Element,
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
