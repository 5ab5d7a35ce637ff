//! How a source is cut while it is encoded: into groups of extents, and these into parts.

use super::plan::Planned;
use crate::format::Extent;
use std::ops::Range;

/// Bytes of the source that are encoded together. Two windows are in memory at a time, and the
/// encoded chunks of two.
pub(super) const WINDOW: usize = 16 << 20;
/// Groups of extents that fit into a window; each has at least one extent.
pub(super) struct Groups<'a>(pub(super) &'a [Extent]);

impl<'a> Iterator for Groups<'a> {
    type Item = &'a [Extent];

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = 0;
        let fit = self.0.iter().take_while(|e| {
            bytes += e.len;
            bytes <= WINDOW as u64
        });
        let (group, rest) = self.0.split_at(fit.count().max(1).min(self.0.len()));
        self.0 = rest;
        (!group.is_empty()).then_some(group)
    }
}

/// A part of an extent that becomes a chunk.
pub(super) struct Part {
    /// The index of the extent in its group.
    pub(super) extent: usize,
    pub(super) original: Range<u64>,
}

/// The parts of a group of extents, in order.
pub(super) fn parts(group: &[Planned]) -> Vec<Part> {
    let parts = group.iter().enumerate().flat_map(|(extent, g)| {
        let end = g.extent.start + g.extent.len;
        let chunks = (g.extent.start..end).step_by(g.chunk);
        chunks.map(move |at| Part { extent, original: at..end.min(at + g.chunk as u64) })
    });
    parts.collect()
}

/// The range of the original that neighbouring parts cover.
pub(super) fn range(parts: &[Part]) -> Range<u64> {
    parts[0].original.start..parts[parts.len() - 1].original.end
}
