//! What the parts of a file are of which no header says it: samples of them tell.
//!
//! A part is looked at in steps. Neighbouring steps that are of one kind become one extent, whose
//! ends are found by bisection. Wherever a guess is wrong, packing saves less; no byte is lost.

use crate::{
    codec::{Detected, ElementKind, detect},
    error::Result,
    format::Extent,
};

/// Smaller parts are not looked at, in bytes.
const MIN_REGION: u64 = 64 << 10;
/// Bytes from one sample to the next, and the most samples of one part.
const STEP: u64 = 256 << 10;
const MAX_SAMPLES: u64 = 1 << 14;
/// Bytes of a sample.
const SAMPLE: usize = 8 << 10;
/// How exactly the ends of an extent are found, in bytes.
const EXACT: u64 = 4 << 10;

/// Reads so many bytes at an offset of the file into a buffer, which is resized to hold them.
type Read<'a> = &'a dyn Fn(u64, &mut Vec<u8>, usize) -> Result<()>;

/// An element type, and where elements start in the file: at what offset modulo their width.
type Layout = (ElementKind, u64);

/// Replace the large extents of unknown content by what samples of them say.
pub(super) fn detect_unknown(read: Read<'_>, extents: Vec<Extent>) -> Result<Vec<Extent>> {
    let mut known = Vec::with_capacity(extents.len());
    for extent in extents {
        match extent.kind {
            None if extent.len >= MIN_REGION => Region { read, extent }.split(&mut known)?,
            _ => known.push(extent),
        }
    }
    Ok(known)
}

/// The share of `count` evenly spread samples of a part of a file that look like weights.
pub(super) fn weights(read: Read<'_>, extent: Extent, count: u64) -> Result<f64> {
    let region = Region { read, extent };
    let step = (extent.len / count).max(1);
    let mut found = 0;
    for i in 0..count {
        let at = region.whole_sample(extent.start + i * step + step / 2);
        let detected = region.sample(at, None)?;
        found += u32::from(detected.is_some_and(|d| d.plausible && d.saving >= WORTH_PACKING));
    }
    Ok(f64::from(found) / count as f64)
}

/// The share of a sample that packing must save for it to count as weights.
const WORTH_PACKING: f64 = 0.05;

/// A part of a file of unknown content.
struct Region<'a> {
    read: Read<'a>,
    extent: Extent,
}

impl Region<'_> {
    /// Add extents that cover the region.
    fn split(&self, out: &mut Vec<Extent>) -> Result<()> {
        let (start, end) = (self.extent.start, self.extent.end());
        let step = STEP.max(self.extent.len.div_ceil(MAX_SAMPLES));
        let (mut from, mut layout) = (start, self.layout(start, None)?);
        let mut at = start;
        while at < end {
            let next = (at + step).min(end);
            let sampled = next - SAMPLE as u64;
            let new = self.layout(sampled, layout)?;
            if new != layout {
                let border = self.border(at.max(from), sampled, layout, new)?;
                push(out, from, border, layout);
                (from, layout) = (border, new);
            }
            at = next;
        }
        push(out, from, end, layout);
        Ok(())
    }

    /// Where, between two samples, one layout gives way to the other.
    fn border(
        &self,
        mut low: u64,
        mut high: u64,
        before: Option<Layout>,
        after: Option<Layout>,
    ) -> Result<u64> {
        // What has a layout tells better where it ends than what has none.
        let (sought, first) = if before.is_some() { (before, true) } else { (after, false) };
        while high.saturating_sub(low) > EXACT {
            let middle = low.midpoint(high);
            let is_sought = self.layout(middle, sought)? == sought;
            if is_sought == first { low = middle } else { high = middle }
        }
        Ok(if first { low } else { high })
    }

    fn layout(&self, at: u64, before: Option<Layout>) -> Result<Option<Layout>> {
        let at = self.whole_sample(at);
        let found = self.sample(at, before)?;
        Ok(found.map(|d| (d.kind, (at + d.phase as u64) % d.kind.width() as u64)))
    }

    /// Where a sample near `at` starts that is within the region.
    fn whole_sample(&self, at: u64) -> u64 {
        at.min(self.extent.end().saturating_sub(SAMPLE as u64)).max(self.extent.start)
    }

    /// What the bytes at `at` are.
    fn sample(&self, at: u64, before: Option<Layout>) -> Result<Option<Detected>> {
        let mut bytes = Vec::new();
        let len = (self.extent.end() - at).min(SAMPLE as u64);
        (self.read)(at, &mut bytes, len as usize)?;
        let before = before.map(|(kind, phase)| {
            let width = kind.width() as u64;
            (kind, ((phase + width - at % width) % width) as usize)
        });
        Ok(detect(&bytes, before))
    }
}

/// Add an extent, and what is left of it in front of its first whole element and behind its last.
fn push(out: &mut Vec<Extent>, start: u64, end: u64, layout: Option<Layout>) {
    let mut add = |start: u64, end: u64, kind| {
        if end > start {
            out.push(Extent { start, len: end - start, kind, row: None });
        }
    };
    let Some((kind, phase)) = layout else { return add(start, end, None) };
    let width = kind.width() as u64;
    let first = (start + (phase + width - start % width) % width).min(end);
    let last = first + (end - first) / width * width;
    add(start, first, None);
    add(first, last, Some(kind));
    add(last, end, None);
}
