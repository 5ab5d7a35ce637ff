//! The extents of a file: parts whose bytes are of one kind, which together cover it.

use crate::codec::ElementKind;

/// A shorter row joins the dimensions before it, as in the kernels of a convolution. In elements.
const SHORT_ROW: usize = 128;

/// A part of a file whose bytes are of one kind. The extents of a file cover it without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte in the file.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its element type; `None` for headers, gaps and anything unknown.
    pub kind: Option<ElementKind>,
    /// Elements of a row, if it holds a matrix.
    pub row: Option<usize>,
}

impl Extent {
    /// The byte after its last one.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// An extent of unknown content.
    pub fn unknown(start: u64, len: u64) -> Self {
        Self { start, len, kind: None, row: None }
    }
}

/// Elements of a row: the last dimension, or the last ones together if it is too short. `shape`
/// starts with the outermost dimension, and an element of the shape consists of `parts` elements.
pub(super) fn row<T>(parts: usize, shape: &[T]) -> Option<usize>
where
    T: Copy + TryInto<usize>,
{
    let mut row = parts;
    for &dimension in shape.get(1..)?.iter().rev() {
        row = row.checked_mul(dimension.try_into().ok()?)?;
        if row >= SHORT_ROW {
            return Some(row);
        }
    }
    None
}

/// Sort what has these extents by its place in a file of `file_len` bytes. Where they overlap or
/// are not within the file, the first ones stay.
pub(super) fn order<T>(known: &mut Vec<T>, file_len: u64, extent: impl Fn(&T) -> Extent) {
    known.sort_by_key(|known| (extent(known).start, extent(known).len));
    let mut at = 0;
    known.retain(|known| {
        let Extent { start, len, .. } = extent(known);
        let end = start.checked_add(len).filter(|&end| end <= file_len);
        let end = end.filter(|_| start >= at && len > 0);
        at = end.unwrap_or(at);
        end.is_some()
    });
}

/// The extents of a file of `file_len` bytes of which those in `known` are known. Where these
/// overlap or are not within the file, the first ones count.
pub(super) fn cover(mut known: Vec<Extent>, file_len: u64) -> Vec<Extent> {
    order(&mut known, file_len, |extent| *extent);
    let mut extents = Vec::with_capacity(2 * known.len() + 1);
    let mut at = 0;
    for extent in known {
        if extent.start > at {
            extents.push(Extent::unknown(at, extent.start - at));
        }
        extents.push(extent);
        at = extent.end();
    }
    if file_len > at {
        extents.push(Extent::unknown(at, file_len - at));
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_cover_the_file_whatever_is_known() {
        let kind = Some(ElementKind::Bytes { width: 1 });
        let known = |start, len| Extent { start, len, kind, row: None };
        for known in [
            vec![],
            vec![known(0, 100)],
            vec![known(50, 10), known(10, 20)],
            vec![known(10, 20), known(29, 10), known(30, 0)],
            vec![known(90, 11), known(u64::MAX, 1), known(1, u64::MAX)],
        ] {
            let extents = cover(known, 100);
            let mut at = 0;
            for e in &extents {
                assert!(e.start == at && e.len > 0);
                at = e.end();
            }
            assert_eq!(at, 100);
        }
        assert_eq!(cover(Vec::new(), 0), []);
    }

    #[test]
    fn short_rows_join() {
        assert_eq!(row(1, &[7usize, 300]), Some(300));
        assert_eq!(row(1, &[7u64, 64, 3, 3]), Some(64 * 9));
        assert_eq!(row(1, &[300u64]), None);
        assert_eq!(row(1, &[2, u64::MAX, u64::MAX]), Some(usize::MAX));
        assert_eq!(row::<u64>(1, &[]), None);
    }
}
