//! Reusable memory for stored bytes while they are decoded, in huge pages where the system has
//! them.
//!
//! A direct read of 1 MiB into scattered pages of 4 KiB is 256 segments for the disk to fill; into
//! a huge page, it is one.

use crate::error::{Context, Result};
use memmap2::{Advice, MmapMut};
use std::ops::{Deref, DerefMut};

/// The size of a huge page on most systems. Elsewhere, it is only an alignment.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// The size of a small page on most systems.
pub(crate) const PAGE: usize = 4096;

/// Reusable memory for stored bytes.
#[derive(Default)]
pub struct Scratch(Option<HugePages>);

impl Scratch {
    /// The first `len` bytes, with arbitrary content.
    ///
    /// # Errors
    /// Io, if the system has no memory.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&mut [u8]> {
        if self.0.as_ref().is_none_or(|pages| pages.len() < len) {
            // Free the old pages first, so that both are never allocated together.
            self.0 = None;
            self.0 = Some(HugePages::new(len)?);
        }
        Ok(self.0.as_mut().map_or(&mut [], |pages| &mut pages[..len]))
    }
}

/// Zeroed memory that starts at a multiple of [`HUGE_PAGE`].
struct HugePages {
    map: MmapMut,
    skip: usize,
    len: usize,
}

impl HugePages {
    /// At least `len` bytes, rounded up to [`HUGE_PAGE`]. Untouched bytes take no memory.
    ///
    /// # Errors
    /// Io, if the system has no memory.
    fn new(len: usize) -> Result<Self> {
        let len = len.next_multiple_of(HUGE_PAGE);
        // The bytes around the aligned part are never touched.
        let map = MmapMut::map_anon(len + HUGE_PAGE).about("memory")?;
        let skip = map.as_ptr().align_offset(HUGE_PAGE);
        if let Err(e) = map.advise_range(Advice::HugePage, skip, len) {
            log::debug!("huge pages were refused: {e}");
        }
        Ok(Self { map, skip, len })
    }
}

impl Deref for HugePages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.skip..][..self.len]
    }
}

impl DerefMut for HugePages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.skip..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_zeroed_and_writable() {
        for (len, expected) in
            [(1, HUGE_PAGE), (HUGE_PAGE, HUGE_PAGE), (HUGE_PAGE + 1, 2 * HUGE_PAGE)]
        {
            let mut pages = HugePages::new(len).expect("memory");
            assert_eq!((pages.len(), pages.as_ptr().align_offset(HUGE_PAGE)), (expected, 0));
            assert!(pages.iter().all(|&byte| byte == 0));
            pages.fill(7);
        }
    }
}
