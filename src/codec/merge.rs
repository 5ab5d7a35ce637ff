//! Elements from their parts: a block of top bits and the planes below them, merged while they are in the first-level
//! cache.

use super::{
    decode::{CARRIED, Kernel, Mode, take, unknown},
    model::EntropyModel,
    planes::{GROUP, Layout, Plane, packed_len},
};
use crate::error::{Error, Result};
use std::borrow::Cow;

/// Elements that are decoded before they are merged.
pub(super) const STEP: usize = 2048;
/// Elements of the last step: more than a step, so that it holds all that the states carry, of a plane of one bit too.
pub(super) const MOST: usize = 2 * STEP;
/// The planes of a chunk.
pub(super) struct Planes<'a> {
    sources: Vec<Source<'a>>,
    /// Of the plane that ends in the states.
    carrier: Option<usize>,
}

/// Where a plane's values come from.
enum Source<'a> {
    Packed(Cow<'a, [u8]>),
    Constant(u8),
}

impl<'a> Planes<'a> {
    /// Take the planes of `count` elements from `input`, as `records` say. If symbols are `coded`, the last plane that
    /// is stored in full and is long enough ends in their states.
    pub(super) fn parse(
        model: &EntropyModel,
        records: &[[u8; 2]],
        input: &mut &'a [u8],
        count: usize,
        coded: bool,
    ) -> Result<Self> {
        let planes = model.layout().planes();
        let long = |(r, p): (&[u8; 2], &Plane)| {
            r[0] == Mode::Stored as u8 && packed_len(p.bits, count) >= CARRIED
        };
        let carrier = records.iter().zip(planes).rposition(long).filter(|_| coded);
        let mut sources = Vec::with_capacity(planes.len());
        for (i, (&[mode, value], plane)) in records.iter().zip(planes).enumerate() {
            if mode != Mode::Constant as u8 && value != 0 {
                return Err(Error::corrupt("a plane has a value that it should not have"));
            }
            let stored = packed_len(plane.bits, count);
            sources.push(match mode {
                0 => Source::Packed(
                    take(input, if carrier == Some(i) { stored - CARRIED } else { stored })?.into(),
                ),
                1 if value <= plane.mask() => Source::Constant(value),
                2 => Source::Packed(sparse(plane.bits, model.block(), count, input)?.into()),
                mode => return Err(unknown(mode)),
            });
        }
        Ok(Self { sources, carrier })
    }

    /// Whether one of them ends in the states.
    pub(super) fn carried(&self) -> bool {
        self.carrier.is_some()
    }
}

/// A plane without the blocks in which it is zero: with them.
fn sparse(bits: u8, block: usize, count: usize, input: &mut &[u8]) -> Result<Vec<u8>> {
    let blocks = count.div_ceil(block);
    let present = take(input, blocks.div_ceil(8))?;
    if !blocks.is_multiple_of(8) && present.last().is_some_and(|b| b >> (blocks % 8) != 0) {
        return Err(Error::corrupt("a sparse plane has more blocks than the chunk"));
    }
    let mut full = vec![0; packed_len(bits, count)];
    for (i, block) in full.chunks_mut(packed_len(bits, block)).enumerate() {
        if present[i / 8] >> (i % 8) & 1 == 1 {
            block.copy_from_slice(take(input, block.len())?);
        }
    }
    Ok(full)
}

/// Merges step by step.
pub(super) struct Merge<'a> {
    layout: &'a Layout,
    /// By byte of the elements, from the lowest: the values of its planes.
    bytes: Vec<[u8; MOST]>,
}

impl<'a> Merge<'a> {
    pub(super) fn new(layout: &'a Layout) -> Self {
        let used = layout.planes().first().map_or(0, |p| p.low / 8 + 1);
        Self { layout, bytes: vec![[0; MOST]; used.into()] }
    }

    /// Elements from `first` on, a multiple of [`STEP`], to all of `out`: their top bits are `tops`, and the others
    /// come from `planes`. The last step has what the states carry.
    #[inline(always)]
    pub(super) fn step<E: Element, K: Kernel>(
        &mut self,
        kernel: K,
        tops: &[u16],
        planes: &Planes<'_>,
        first: usize,
        carried: Option<&[u8; CARRIED]>,
        out: &mut [u8],
    ) {
        let n = tops.len();
        let mut above = self.bytes.len();
        for (i, (plane, source)) in self.layout.planes().iter().zip(&planes.sources).enumerate() {
            let byte = usize::from(plane.low / 8);
            let bytes = &mut self.bytes[byte];
            let shift = plane.low % 8;
            // Planes come from the top down: the first in its byte replaces what was there before.
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
            ([], _) => fuse::<E, 0>(tops, [], rotated, out),
            ([a], true) => fuse::<E, 1>(tops, [a], true, out),
            ([a], false) => fuse::<E, 1>(tops, [a], false, out),
            ([a, b], _) => fuse::<E, 2>(tops, [a, b], rotated, out),
            ([a, b, c], true) => fuse::<E, 3>(tops, [a, b, c], true, out),
            ([a, b, c], false) => fuse::<E, 3>(tops, [a, b, c], false, out),
            (bytes, _) => {
                // Elements of eight bytes; what is not there is zero.
                let zero = [0; MOST];
                fuse::<E, 8>(
                    tops,
                    std::array::from_fn(|i| bytes.get(i).unwrap_or(&zero)),
                    rotated,
                    out,
                );
            }
        }
    }
}

/// Merge top bits and `N` bytes below them.
#[inline(always)]
fn fuse<E: Element, const N: usize>(
    tops: &[u16],
    bytes: [&[u8; MOST]; N],
    rotated: bool,
    out: &mut [u8],
) {
    let bytes = bytes.map(|b| &b[..tops.len()]);
    for (i, (&top, out)) in tops.iter().zip(out.chunks_exact_mut(E::BYTES)).enumerate() {
        let mut e = E::from_top(top);
        for (j, byte) in bytes.iter().enumerate().take(E::BYTES) {
            e = e.with_byte(j, byte[i]);
        }
        e.back(rotated).put(out);
    }
}

/// An element as an unsigned integer of its width.
pub(super) trait Element: Copy {
    const BYTES: usize;
    /// From its top 16 bits.
    fn from_top(top: u16) -> Self;
    /// With the bits of `byte` in byte `i`.
    fn with_byte(self, i: usize, byte: u8) -> Self;
    /// Rotated right by one bit, if elements are `rotated`.
    fn back(self, rotated: bool) -> Self;
    fn put(self, out: &mut [u8]);
    /// Replace those bits in `out` that `mask` has.
    fn put_under(self, mask: Self, out: &mut [u8]);
}

macro_rules! element {
    ($($t:ty),*) => {$(
        impl Element for $t {
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            fn from_top(top: u16) -> Self {
                if Self::BITS < 16 { (top >> 8) as $t } else { (top as $t) << (Self::BITS.saturating_sub(16)) }
            }
            #[inline(always)]
            fn with_byte(self, i: usize, byte: u8) -> Self {
                self | (byte as $t) << (8 * i)
            }
            #[inline(always)]
            fn back(self, rotated: bool) -> Self {
                if rotated { self.rotate_right(1) } else { self }
            }
            #[inline(always)]
            fn put(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
            fn put_under(self, mask: Self, out: &mut [u8]) {
                let bytes = self.to_le_bytes().into_iter().zip(mask.to_le_bytes());
                out.iter_mut().zip(bytes).for_each(|(o, (b, mask))| *o = *o & !mask | b);
            }
        }
    )*};
}
element!(u8, u16, u32, u64);
