//! Where the readers of a model are, and which layers they are likely to read next.

use super::layer_map::Layer;
use std::collections::HashMap;

/// Predicts the next layers from the order in which layers were read so far.
#[derive(Default)]
pub struct LayerTracker {
    last: Option<Layer>,
    /// Bytes read of each layer since the last one was reached.
    read: HashMap<Layer, u64>,
    /// Consecutive correct predictions.
    correct: u32,
    /// Whether a prediction was ever wrong.
    was_wrong: bool,
    /// How many layers after the last one are predicted.
    predicted: u32,
}

/// A read of a part of a layer.
#[derive(Clone, Copy)]
pub struct LayerRead {
    /// Bytes that were read.
    pub bytes: u64,
    /// Size of the layer in bytes.
    pub size: u64,
    /// Whether the page cache serves most of the predicted layers, so that few reads arrive here:
    /// then any read of a predicted layer means that the layer is reached.
    pub is_sparse: bool,
}

impl LayerTracker {
    /// A layer is reached when one part in so many was read. Random readers rarely get there.
    const REACHED_PART: u64 = 8;
    /// It must also be so many bytes, or half of the layer. The kernel's readahead at the end of
    /// another layer must not count.
    const REACHED_BYTES: u64 = 4 << 20;
    /// A step back by so many layers is another thread that lags behind.
    const MAX_LAG: i64 = 2;

    /// Record a read of `layer`. If the layer is thereby reached, predict how many layers after it
    /// come next, at most `max`.
    ///
    /// The prediction is the number of layers that were read in order, or one at first. After a
    /// wrong prediction, the first step in order does not count, because it may be chance.
    pub fn record(&mut self, layer: Layer, read: LayerRead, max: u32) -> Option<u32> {
        if self.last == Some(layer) {
            return None;
        }
        let step = self
            .last
            .filter(|last| last.0 == layer.0)
            .map(|last| i64::from(layer.1) - i64::from(last.1));
        let was_predicted = step.is_some_and(|step| (1..=self.predicted.into()).contains(&step));
        if !(read.is_sparse && was_predicted) {
            let bytes = self.read.entry(layer).or_default();
            *bytes += read.bytes;
            let part = read.size.div_ceil(Self::REACHED_PART);
            if *bytes < part.max(Self::REACHED_BYTES.min(read.size / 2)) {
                return None;
            }
        }
        self.read.clear();
        match step {
            Some(step) if (-Self::MAX_LAG..0).contains(&step) => return None,
            Some(step) if step == 1 || (read.is_sparse && was_predicted) => self.correct += 1,
            Some(_) => (self.correct, self.was_wrong) = (0, true),
            None => {}
        }
        self.last = Some(layer);
        let predicted =
            if self.was_wrong { self.correct.saturating_sub(1) } else { self.correct + 1 };
        self.predicted = predicted.min(max);
        Some(self.predicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_extend_as_far_as_layers_were_read_in_order() {
        let mut tracker = LayerTracker::default();
        let dense = |bytes, size| LayerRead { bytes, size, is_sparse: false };
        let reaches = |tracker: &mut LayerTracker, layers: &[u32]| -> Vec<Option<u32>> {
            layers.iter().map(|&n| tracker.record((0, n), dense(40, 80), 99)).collect()
        };
        // One more after each layer. A second thread that lags behind changes nothing.
        assert_eq!(
            reaches(&mut tracker, &[0, 0, 1, 0, 1, 2]),
            [Some(1), None, Some(2), None, None, Some(3)]
        );
        // In the order of names: 1, 10, 11, ... 19, 2.
        assert_eq!(reaches(&mut tracker, &[10, 11, 12, 13, 3]), [0, 0, 1, 2, 0].map(Some));
        assert_eq!(tracker.record((1, 0), dense(40, 80), 99), Some(0));
        // Small reads at random.
        let mut random = LayerTracker::default();
        assert!((0..900).all(|i| random.record((0, i * 7 % 100), dense(1, 80), 99).is_none()));
        // The kernel's readahead after layer 1 extends into layer 10 of two shards.
        let mut ahead = LayerTracker::default();
        let read = [(0, 80 << 20), (1, 80 << 20), (10, 1 << 20), (10, 1 << 20), (2, 80 << 20)];
        assert_eq!(
            read.map(|(layer, bytes)| ahead.record((0, layer), dense(bytes, 6 << 20), 99)),
            [Some(1), Some(2), None, None, Some(3)]
        );
        let mut large = LayerTracker::default();
        assert_eq!(
            [10, 20, 30].map(|mib| large.record((0, 0), dense(mib << 20, 400 << 20), 99)),
            [None, None, Some(1)]
        );
    }

    #[test]
    fn any_read_of_a_predicted_layer_counts_while_the_page_cache_serves_the_rest() {
        let mut tracker = LayerTracker::default();
        let read = |bytes, is_sparse| LayerRead { bytes, size: 6 << 20, is_sparse };
        assert_eq!(tracker.record((0, 0), read(6 << 20, true), 3), Some(1));
        // Layer 10, which the kernel's readahead reads, is not predicted.
        assert_eq!(tracker.record((0, 10), read(1 << 20, true), 3), None);
        assert_eq!(tracker.record((0, 1), read(4096, false), 3), None);
        assert_eq!(tracker.record((0, 1), read(4096, true), 3), Some(2));
        // The page cache served all of layer 2.
        assert_eq!(tracker.record((0, 3), read(4096, true), 3), Some(3));
        assert_eq!(tracker.record((0, 4), read(4096, true), 3), Some(3));
        assert_eq!(tracker.record((0, 8), read(4096, true), 3), None);
    }
}
